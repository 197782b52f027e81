"""Tell of what loads and never holds, or always does: a role that no message has, a method that is not called."""

from collections.abc import Iterable, Mapping
from typing import Final

from gemini_proxy.policy.compile.hints import METHODS_ELSEWHERE
from gemini_proxy.policy.compile.scope import Context, Scope, nearest
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.events import FIELDS
from gemini_proxy.policy.run.methods import ARITY

ROLES: Final[Mapping[str, tuple[str, ...]]] = {"Message": ("assistant", "system", "user"), "ToolOutput": ("tool",)}
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
    return kind if kind in ROLES else None


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
    known = ROLES[kind]
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
