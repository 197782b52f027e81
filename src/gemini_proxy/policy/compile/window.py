"""Tell from a rule's syntax tree at load whether it can be judged while a response grows.

A *slice* is a piece of one message's text together with some text before it. The tests accepted here ask only whether
something occurs in the text: a slice that contains it whole, and a character on either side, shows it, and more text
does not undo it. A conjunction of such tests works too: it depends on the span from the first to the last match. Any
other test waits for the whole text.
"""

from collections.abc import Iterator
from typing import Final

from gemini_proxy.policy.compile.scope import Context
from gemini_proxy.policy.detectors import positional
from gemini_proxy.policy.detectors.builtin import BUILTIN
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.policy import RuleWindow
from gemini_proxy.policy.run.events import FIELDS
from gemini_proxy.policy.run.regex_dialect import split

_ORDER: Final[tuple[RuleWindow, ...]] = ("slice", "edge", "hint", "whole")
_SLICE, _EDGE, _HINT, _WHOLE = range(4)
_TEXT_KINDS = frozenset(("Message", "TextChunk"))
# The certainty of each detector, and the options that do not change it. With other options it is less certain.
_DETECTORS = {
    "secrets": (_SLICE, frozenset(("generic", "raw"))),
    "unicode": (_SLICE, frozenset(("categories",))),
    "copyright": (_EDGE, frozenset(("threshold",))),
    "prompt_injection": (_EDGE, frozenset(("threshold", "model", "raw"))),
    "pii": (_HINT, frozenset(("entities", "raw"))),
}
_MORE_THAN_NONE = ((">", 0), (">=", 1), ("!=", 0))


def window_of(rule: syntax.Raise, context: Context, binding_predicates: frozenset[str]) -> RuleWindow:
    """Tell how a rule is judged while a response grows; ``binding_predicates`` declare events of their own."""
    lines = list(syntax.lines_within(rule.body))
    named = {node.name for node in syntax.walk(rule) if isinstance(node, syntax.Name)}
    # A predicate may call one that declares events.
    if binding_predicates and named & context.predicates.keys():
        return "whole"
    events = [line for line in syntax.declarations(rule.body) if line.source is None]
    if not any(_reads_response(event, rule, context) for event in events):
        quantifiers = [line for line in lines if isinstance(line, syntax.Quantifier)]
        nested = any(isinstance(inner, syntax.Quantifier) for quantifier in quantifiers for inner in quantifier.body)
        stays = not nested and all(_only_grows(quantifier, context) for quantifier in quantifiers)
        return "event" if stays else "late"
    if len(events) != 1 or _kind(events[0], context) not in _TEXT_KINDS:
        return "whole"
    if not all(isinstance(line, syntax.Declaration | syntax.Condition) for line in lines):
        return "whole"
    return _ORDER[_Tests(rule, context, events[0].name).certainty()]


def reads_all_messages(rule: syntax.Raise, context: Context, binding_predicates: frozenset[str]) -> bool:
    """Tell whether a rule asks for more than the events of a binding: it counts, or looks through all messages."""
    named = {node.name for node in syntax.walk(rule) if isinstance(node, syntax.Name)}
    if binding_predicates and named & context.predicates.keys():
        return True
    if any(isinstance(line, syntax.Quantifier) for line in syntax.lines_within(rule.body)):
        return True
    return any(_kind(line, context) == "Input" for line in syntax.declarations(rule.body))


def _kind(line: syntax.Declaration, context: Context) -> str:
    imported = context.imported.get(line.kind)
    return imported.name if imported is not None and imported.role == "kind" else line.kind


def _reads_response(event: syntax.Declaration, rule: syntax.Raise, context: Context) -> bool:
    """Return whether more text in a response can change what holds of the event."""
    kind = _kind(event, context)
    if kind != "Message":
        return kind in ("TextChunk", "Input")
    return not any(
        isinstance(line, syntax.Condition) and _excludes_responses(line.value, event.name) for line in rule.body
    )


def _excludes_responses(node: syntax.Expr, name: str) -> bool:
    """Return whether ``m.role == "user"`` or the like must hold, alone or beside other conditions."""
    if isinstance(node, syntax.Logical):
        return node.operator == "and" and any(_excludes_responses(each, name) for each in node.operands)
    if not isinstance(node, syntax.Comparison) or len(node.rest) != 1:
        return False
    operator, other = node.rest[0]
    if not _is_role(node.first, name):
        return False
    if operator == "==" and isinstance(other, syntax.Constant):
        return other.value != "assistant"
    if operator == "in" and isinstance(other, syntax.Sequence):
        return all(isinstance(item, syntax.Constant) and item.value != "assistant" for item in other.items)
    return operator == "!=" and isinstance(other, syntax.Constant) and other.value == "assistant"


def _is_role(node: syntax.Expr, name: str) -> bool:
    return isinstance(node, syntax.Attribute) and node.name == "role" and _is_name(node.value, name)


def _is_name(node: syntax.Node, name: str) -> bool:
    return isinstance(node, syntax.Name) and node.name == name


def _only_grows(line: syntax.Quantifier, context: Context) -> bool:
    """Return whether this is ``count(min=..)``, which later events cannot undo."""
    imported = context.imported.get(line.name)
    counts = (imported.name if imported is not None else line.name) == "count"
    return counts and not line.negated and all(name == "min" for name, _ in line.kwargs)


class _Tests:
    """The tests of one rule over the text of ``event``."""

    def __init__(self, rule: syntax.Raise, context: Context, event: str) -> None:
        self._rule = rule
        self._context = context
        self._event = event
        self._declared = {line.name for line in rule.body if isinstance(line, syntax.Declaration)}
        self._texts: set[str] = set()

    def certainty(self) -> int:
        """Return the worst certainty of all lines; names are declared before they are used."""
        return max((self._line(line) for line in self._rule.body), default=_WHOLE)

    def _line(self, line: syntax.Line) -> int:
        if isinstance(line, syntax.Condition):
            return self._condition(line.value)
        if not isinstance(line, syntax.Declaration):
            return _WHOLE
        if line.source is None:
            return _SLICE if line.kind in FIELDS else _WHOLE
        if line.kind != "str":
            return _WHOLE
        if self._is_text(line.source):
            self._texts.add(line.name)
            return _SLICE
        return self._search(line.source)

    def _condition(self, node: syntax.Expr) -> int:
        if isinstance(node, syntax.Logical):
            return max(self._condition(operand) for operand in node.operands)
        if self._is_fixed(node):
            return _SLICE
        if isinstance(node, syntax.Comparison) and len(node.rest) == 1:
            operator, other = node.rest[0]
            if operator == "in":
                listed = isinstance(other, syntax.Call)
                return _SLICE if self._is_fixed(node.first) and not listed and self._is_text(other) else _WHOLE
            bound = other.value if isinstance(other, syntax.Constant) else None
            return self._count(node.first) if (operator, bound) in _MORE_THAN_NONE else _WHOLE
        if isinstance(node, syntax.Call) and self._name(node) == "any" and len(node.args) == 1:
            return self._search(node.args[0])
        return self._search(node)

    def _count(self, node: syntax.Expr) -> int:
        """Rate ``len(find(..)) + ..``."""
        if isinstance(node, syntax.Binary) and node.operator == "+":
            return max(self._count(node.left), self._count(node.right))
        if isinstance(node, syntax.Call) and self._name(node) == "len" and len(node.args) == 1:
            return self._search(node.args[0])
        return _WHOLE

    def _search(self, node: syntax.Expr) -> int:
        """Rate a call that finds things in the text, as the condition that it finds any."""
        if not isinstance(node, syntax.Call) or not isinstance(node.function, syntax.Name):
            return _WHOLE
        if not all(self._is_fixed(value) for _, value in node.kwargs):
            return _WHOLE
        name, imported = node.function.name, self._context.imported.get(node.function.name)
        if self._name(node) == "find" and len(node.args) == 2 and self._is_text(node.args[1]):
            return self._pattern(node.args[0])
        if imported is None or imported.role != "detector" or name in self._declared:
            return _WHOLE
        return self._detector(imported.name, node)

    def _detector(self, name: str, node: syntax.Call) -> int:
        detector = self._context.detectors.detectors[name]
        ours = detector is BUILTIN.detectors.get(name)
        if not ours or name not in _DETECTORS or not node.args or not self._is_text(node.args[0]):
            return _WHOLE
        if not all(map(self._is_fixed, node.args[1:])):
            return _WHOLE
        if getattr(detector, "models", ()) and "model" in dict(node.kwargs):
            return _WHOLE
        certainty, options = _DETECTORS[name]
        used = [*positional(detector)[: len(node.args) - 1], *(key for key, _ in node.kwargs)]
        return certainty if all(key in options for key in used) else _HINT

    def _pattern(self, node: syntax.Expr) -> int:
        if isinstance(node, syntax.Constant):
            return _of_pattern(str(node.raw if node.raw is not None else node.value))
        if isinstance(node, syntax.Name) and node.name in self._context.constants and self._is_fixed(node):
            known = self._context.constants[node.name]
            return _of_pattern(str(known.raw if known.raw is not None else known.value))
        return _EDGE if self._is_fixed(node) else _WHOLE

    def _name(self, node: syntax.Call) -> str:
        """Return the name of the built-in function that is called, empty for anything else."""
        if not isinstance(node.function, syntax.Name) or node.function.name in self._declared:
            return ""
        imported = self._context.imported.get(node.function.name)
        if imported is not None:
            return imported.name if imported.role == "function" else ""
        return "" if node.function.name in self._context.predicates else node.function.name

    def _is_text(self, node: syntax.Expr) -> bool:
        """Return whether the value is all of the text, so that searches look through it."""
        if isinstance(node, syntax.Attribute):
            return node.name in ("content", "text") and _is_name(node.value, self._event)
        if isinstance(node, syntax.Call):
            return self._name(node) == "text" and bool(node.args) and all(map(self._is_text, node.args))
        return isinstance(node, syntax.Name) and (node.name == self._event or node.name in self._texts)

    def _is_fixed(self, node: syntax.Expr) -> bool:
        """Made of constants, parameters and the role alone, so the same for any text."""
        if any(isinstance(part, syntax.Call | syntax.Comprehension | syntax.Is) for part in syntax.walk(node)):
            return False
        return all(name == "input" or name in self._context.constants for name in self._variables(node))

    def _variables(self, node: syntax.Node) -> Iterator[str]:
        roles = sum(isinstance(part, syntax.Attribute) and _is_role(part, self._event) for part in syntax.walk(node))
        for part in syntax.walk(node):
            if isinstance(part, syntax.Name):
                if part.name == self._event and roles:
                    roles -= 1
                else:
                    yield part.name if part.name not in self._declared else ""


def _of_pattern(pattern: str) -> int:
    if split(pattern) is not None:
        return _WHOLE
    return _EDGE if looks_around(pattern) else _SLICE


def looks_around(pattern: str) -> bool:
    r"""Return whether a pattern depends on what stands beside a match (``^ $ \A \Z \b \B``), True in doubt."""
    at = 0
    while at < len(pattern):
        char = pattern[at]
        following = pattern[at + 1 : at + 2]
        if char in "^$" or (char == "\\" and following in "AZzbB" and following):
            return True
        at += 2 if char == "\\" or (char == "[" and following == "^") else 1
    return False
