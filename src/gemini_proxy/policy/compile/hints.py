"""Help authors: say what a name may mean that is not known, and warn of what loads and never holds.

An author may use the words of another language or another field. A rule may ask for a role that no message has, for a
method that it does not call, or for a label that nothing finds.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final, NoReturn

from gemini_proxy.policy.compile.scope import Context, Scope
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.builtins import FUNCTIONS
from gemini_proxy.policy.run.events import FIELDS
from gemini_proxy.policy.run.methods import ARITY

METHODS_ELSEWHERE: Final[Mapping[str, str]] = {
    "contains": 'write "..." in text',
    "includes": 'write "..." in text',
    "find": "write any(find(pattern, text))",
    "search": "write any(find(pattern, text))",
    "test": "write any(find(pattern, text))",
    "matches": "write match(pattern, text)",
    "match": "write match(pattern, text)",
    "length": "write len(text)",
    "size": "write len(text)",
    "count": "write len(find(pattern, text))",
    "title": "write .lower()",
    "casefold": "write .lower()",
    "toLowerCase": "write .lower()",
    "toUpperCase": "write .upper()",
    "trim": "write .strip()",
}
"""Methods that texts have elsewhere, and what is written here."""

FIELDS_ELSEWHERE: Final[Mapping[tuple[str, str], str]] = {
    ("ToolCall", "name"): "write {0}.function.name, or {0} is tool:the_name",
    ("ToolCall", "arguments"): "write {0}.function.arguments",
    ("ToolCall", "args"): "write {0}.function.arguments",
    ("ToolCall", "content"): "write {0}.function.arguments",
    ("ToolCall", "tool"): "write {0}.function.name, or {0} is tool:the_name",
    ("ToolOutput", "name"): "write {0}.tool_name, or {0} is tool:the_name",
    ("ToolOutput", "function"): "write {0}.tool_name, or {0} is tool:the_name",
    ("ToolOutput", "text"): "write {0}.content",
    ("ToolOutput", "output"): "write {0}.content",
    ("ToolOutput", "response"): "write {0}.content",
    ("Message", "text"): "write {0}.content",
    ("Message", "parts"): "write {0}.content",
    ("Message", "author"): "write {0}.role",
    ("Tool", "parameters"): "write {0}.inputSchema",
}
"""Fields that events have elsewhere, by kind and name, and what is written here of the event {0}."""

MODULES_ELSEWHERE: Final[Mapping[str, str]] = {
    "re": "find(pattern, text) and match(pattern, text) need no import",
}
"""Modules that are looked for, and what does their work here."""

_NAMES_ELSEWHERE: Final[Mapping[str, str]] = {
    "null": "write None",
    "nil": "write None",
    "undefined": "write None",
    "true": "write True",
    "false": "write False",
    "re": MODULES_ELSEWHERE["re"],
}
"""Names that mean something elsewhere, and what is written here."""


# Names that are not known


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return ``did you mean "..."?`` with the closest known name, None if none is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f'did you mean "{close[0]}"?' if close else None


def fail_unknown(
    context: Context, node: syntax.Node, name: str, local: Iterable[str], otherwise: str | None = None
) -> NoReturn:
    """Complain about a name, with the nearest one that would do, or else with what is said ``otherwise``."""
    if _is_importable(context, name):
        module = "invariant" if name in ("count", "forall") else "invariant.detectors"
        context.fail(node, f'"{name}" is not imported', f"add: from {module} import {name}", fault="unknown")
    hint = _NAMES_ELSEWHERE.get(name) or nearest(name, {*_known(context, local), *context.detectors.names}) or otherwise
    context.fail(node, f'unknown name "{name}"', hint, fault="unknown")


def knows(context: Context, name: str, local: Iterable[str]) -> bool:
    """Return whether a name stands for something, or would if it was imported."""
    return name in _known(context, local) or _is_importable(context, name)


def _is_importable(context: Context, name: str) -> bool:
    return name in context.detectors.names or name in ("count", "forall")


def _known(context: Context, local: Iterable[str]) -> set[str]:
    return {*local, *context.constants, *context.predicates, *context.imported, *FUNCTIONS, "find", "match", "input"}


# What never holds, or always does

_ROLES: Final[Mapping[str, tuple[str, ...]]] = {"Message": ("assistant", "system", "user"), "ToolOutput": ("tool",)}
"""The roles of events, by their kind. Every door's own words for them are translated."""
_MEANT: Final = {
    "model": 'write "assistant" for the model',
    "ai": 'write "assistant" for the model',
    "bot": 'write "assistant" for the model',
    "developer": 'write "system" for instructions',
    "human": 'write "user" for the client',
    "tool": "outputs of tools are (o: ToolOutput)",
    "function": "outputs of tools are (o: ToolOutput)",
}
_TEXTS: Final = frozenset(
    (("Message", "role"), ("Message", "content"), ("TextChunk", "text"), ("Tool", "name"), ("Tool", "description"),
     ("ToolOutput", "tool_name"), ("ToolParameter", "name"), ("ToolParameter", "description"))
)  # fmt: skip
# Methods whose names no argument of a tool has by chance.
_UNMISTAKABLE: Final = frozenset(("lower", "upper", "strip", "startswith", "endswith", "split", "splitlines"))


def warn_of_comparison(context: Context, node: syntax.Comparison, scope: Scope) -> None:
    """Warn of a comparison with a role that the event cannot have, and of a whole event with a text."""
    left = node.first
    for operator, right in node.rest:
        # With ``in`` a role on the right is a text in which a piece is looked for.
        for one, other in ((left, right), (right, left))[: 1 if operator in ("in", "not in") else 2]:
            if kind := _role_of(one, scope):
                for place, text in _texts(context, other, scope):
                    _warn_of_role(context, place, kind, text, operator)
            elif operator in ("==", "is") and isinstance(one, syntax.Name) and scope.kinds.get(one.name) in FIELDS:
                _warn_of_event(context, one, str(scope.kinds[one.name]), other)
        left = right


def warn_of_uncalled(context: Context, node: syntax.Attribute, scope: Scope) -> None:
    """Warn if a text's method is read and not called, since a text has no such value."""
    name = node.name
    if name not in _UNMISTAKABLE and not ((name in ARITY or name in METHODS_ELSEWHERE) and _is_text(node.value, scope)):
        return
    hint = METHODS_ELSEWHERE.get(name) or f"write .{name}({'...' if ARITY[name][0] else ''})"
    context.warn(node, f"{name} is a method that is not called, so this never finds anything", hint)


def _role_of(node: syntax.Expr, scope: Scope) -> str | None:
    """Return the kind of the event whose role an expression is, None if it is none."""
    if not isinstance(node, syntax.Attribute) or node.name != "role" or not isinstance(node.value, syntax.Name):
        return None
    kind = scope.kinds.get(node.value.name)
    return kind if kind in _ROLES else None


def _texts(context: Context, node: syntax.Expr, scope: Scope) -> Iterable[tuple[syntax.Expr, str]]:
    """Yield the texts of a literal, a constant or a list of them."""
    if isinstance(node, syntax.Sequence):
        for item in node.items:
            yield from _texts(context, item, scope)
    elif isinstance(node, syntax.Constant):
        if isinstance(node.value, str):
            yield node, node.value
    elif isinstance(node, syntax.Name) and node.name not in scope.slots and node.name in context.constants:
        value = context.constants[node.name].value
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, str):
                yield node, each


def _warn_of_role(context: Context, node: syntax.Expr, kind: str, role: str, operator: str) -> None:
    known = _ROLES[kind]
    if role in known:
        return
    near = nearest(role, known)
    listed = ", ".join(f'"{each}"' for each in known)
    hint = _MEANT.get(role.lower()) if kind == "Message" else None
    result = "always" if operator in ("!=", "not in", "is not") else "never"
    message = f'no {kind} has the role "{role}", so the comparison with it {result} holds'
    context.warn(node, message, hint or near or f"the role is {'one of ' if len(known) > 1 else ''}{listed}")


def _warn_of_event(context: Context, event: syntax.Name, kind: str, other: syntax.Expr) -> None:
    if not isinstance(other, syntax.Constant) or not isinstance(other.value, str):
        return
    named = kind in ("ToolCall", "ToolOutput")
    hint = f"write {event.name} is tool:{other.value}" if named else "read a field first, as in .content"
    context.warn(event, f"a {kind} is not a text, so this never holds", hint)


def _is_text(node: syntax.Expr, scope: Scope) -> bool:
    match node:
        case syntax.Constant(value=value):
            return isinstance(value, str)
        case syntax.Template():
            return True
        case syntax.Name(name=name):
            return scope.kinds.get(name) == "str"
        case syntax.Attribute(name="name", value=syntax.Attribute(name="function", value=syntax.Name(name=call))):
            return scope.kinds.get(call) == "ToolCall"
        case syntax.Attribute(name=field, value=syntax.Name(name=event)):
            return (scope.kinds.get(event), field) in _TEXTS
        case syntax.Call(function=syntax.Attribute(name=method)):
            return method in ("lower", "upper", "strip", "replace", "join", "format")
    return False


# Labels and entities that nothing finds


def warn_of_labels(context: Context, node: syntax.Node, wanted: object, among: syntax.Expr) -> None:
    """Warn of the ``wanted`` labels, one or a list, that the call ``among`` never gives."""
    if isinstance(among, syntax.Call):
        for label in wanted if isinstance(wanted, list | tuple) else [wanted]:
            if isinstance(label, str):
                _warn_of_label(context, node, among, label)


def _warn_of_label(context: Context, node: syntax.Node, call: syntax.Call, label: str) -> None:
    """Warn where a label is looked for among those of a detector's call that never gives it."""
    if not isinstance(call.function, syntax.Name) or len(call.args) != 1 or call.kwargs:
        return
    imported = context.imported.get(call.function.name)
    if imported is None or imported.role != "detector":
        return
    warn_of_entity(context, node, imported.name, label)
    detector = context.detectors.detectors[imported.name]
    labels: frozenset[str] | None = getattr(detector, "labels", None)
    if labels is not None and label not in labels | getattr(detector, "not_found", frozenset()):
        near = nearest(label, labels) or f"it finds {', '.join(sorted(labels)[:8])}"
        context.warn(node, f"{imported.name} without options finds no {label}, so this is never true; {near}")


def warn_of_entities(context: Context, node: syntax.Call, name: str, by_position: tuple[str, ...]) -> None:
    """Warn of entities that the call asks for and that nothing finds."""
    options = dict(node.kwargs) | dict(zip(by_position, node.args[1:], strict=False))
    wanted = options.get("entities")
    items = wanted.items if isinstance(wanted, syntax.Sequence) else [wanted]
    for item in items:
        if isinstance(item, syntax.Constant) and isinstance(item.value, str):
            warn_of_entity(context, item, name, item.value)


def warn_of_entity(context: Context, node: syntax.Node, detector: str, entity: str) -> None:
    """Warn where a detector knows an entity by name and never finds it."""
    if entity in getattr(context.detectors.detectors.get(detector), "not_found", ()):
        context.warn(
            node,
            f"{entity} is never found here: {detector} finds only values of a known format. "
            f'In a policy file of a server, {detector}(x, model="presidio") finds more',
        )
