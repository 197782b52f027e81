"""What a rule needs to see, and what a check of it costs: both read off the syntax tree at load."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from gemini_proxy.policy import syntax
from gemini_proxy.policy.events import FIELDS
from gemini_proxy.policy.rules import RuleScope

_TEXT_KINDS = frozenset(("Message", "TextChunk"))
_SEARCHES = frozenset(("find", "text"))
# Microseconds that one binding costs, and nanoseconds that a text function costs a character.
_BINDING = 0.6
_CHARACTER = 6.0


def lines_within(lines: Sequence[syntax.Line]) -> Iterator[syntax.Line]:
    """Lines, those of quantifiers' blocks included."""
    for line in lines:
        yield line
        if isinstance(line, syntax.Quantifier):
            yield from lines_within(line.body)


def declarations(lines: Sequence[syntax.Line]) -> list[syntax.Declaration]:
    """Every declaration in the lines, those in flows and quantifiers included."""
    found = []
    for line in lines_within(lines):
        if isinstance(line, syntax.Declaration):
            found.append(line)
        elif isinstance(line, syntax.Flow):
            found.extend(link for link in line.links if isinstance(link, syntax.Declaration))
    return found


def scope_of(rule: syntax.Raise, detectors: frozenset[str], binding_predicates: frozenset[str]) -> RuleScope:
    """The narrowest scope that is certain; ``binding_predicates`` declare events of their own."""
    bindings = [line for line in declarations(rule.body) if line.source is None and line.kind in FIELDS]
    calls = {name for node in syntax.walk(rule) if (name := _called(node)) is not None}
    has_flow = any(isinstance(line, syntax.Flow | syntax.Quantifier) for line in lines_within(rule.body))
    if (
        has_flow
        or len(bindings) != 1
        or bindings[0].kind == "Input"
        or "tool_call" in calls
        or calls & binding_predicates
    ):
        return "flow"
    if bindings[0].kind == "ToolOutput" and _asks_for_tool(rule):
        return "flow"
    name = bindings[0].name
    local = bindings[0].kind in _TEXT_KINDS and all(_grows(line, name, detectors) for line in rule.body)
    return "text" if local else "message"


def _called(node: syntax.Node) -> str | None:
    if isinstance(node, syntax.Call) and isinstance(node.function, syntax.Name):
        return node.function.name
    return None


def _asks_for_tool(rule: syntax.Raise) -> bool:
    return any(isinstance(node, syntax.Is) for node in syntax.walk(rule))


def _grows(line: syntax.Line, name: str, detectors: frozenset[str]) -> bool:
    """Whether the line, once true of a text, stays true of any longer text for the same place in it."""
    if isinstance(line, syntax.Declaration):
        return line.source is None or _is_search(line.source, detectors)
    if not isinstance(line, syntax.Condition):
        return False
    return _is_positive(line.value, name, detectors)


def _is_positive(node: syntax.Expr, name: str, detectors: frozenset[str]) -> bool:
    if isinstance(node, syntax.Logical):
        return all(_is_positive(operand, name, detectors) for operand in node.operands)
    if isinstance(node, syntax.Comparison) and len(node.rest) == 1:
        operator, other = node.rest[0]
        if operator in (">", ">="):
            return isinstance(other, syntax.Constant) and _is_count(node.first, detectors)
        fixed = _is_role(node.first, name) or _is_role(other, name)
        return fixed or (operator == "in" and isinstance(node.first, syntax.Constant) and _is_text(other, name))
    if isinstance(node, syntax.Call) and isinstance(node.function, syntax.Name):
        if node.function.name == "any" and len(node.args) == 1:
            return _is_search(node.args[0], detectors)
        return _is_search(node, detectors)
    return False


def _is_count(node: syntax.Expr, detectors: frozenset[str]) -> bool:
    """``len(find(..)) + ..``: a number that only grows with the text."""
    if isinstance(node, syntax.Binary):
        return node.operator == "+" and _is_count(node.left, detectors) and _is_count(node.right, detectors)
    named = isinstance(node, syntax.Call) and isinstance(node.function, syntax.Name) and node.function.name == "len"
    return named and isinstance(node, syntax.Call) and len(node.args) == 1 and _is_search(node.args[0], detectors)


def _is_role(node: syntax.Expr, name: str) -> bool:
    return isinstance(node, syntax.Attribute) and node.name == "role" and _is_variable(node.value, name)


def _is_text(node: syntax.Expr, name: str) -> bool:
    if isinstance(node, syntax.Attribute):
        return node.name in ("content", "text") and _is_variable(node.value, name)
    return isinstance(node, syntax.Name)


def _is_variable(node: syntax.Expr, name: str) -> bool:
    return isinstance(node, syntax.Name) and node.name == name


def _is_search(node: syntax.Expr, detectors: frozenset[str]) -> bool:
    if not isinstance(node, syntax.Call) or not isinstance(node.function, syntax.Name):
        return False
    simple = all(isinstance(each, syntax.Constant | syntax.Name | syntax.Attribute) for each in node.args)
    return simple and node.function.name in (_SEARCHES | detectors)


class Cost:
    """What a rule's bindings and characters cost: ``kinds`` it goes over, microseconds ``per_character``."""

    __slots__ = ("kinds", "per_character")

    def __init__(self, rule: syntax.Raise, predicates: Sequence[syntax.Predicate]) -> None:
        self.kinds = tuple(line.kind for line in declarations(rule.body) if line.source is None)
        nodes = [node for part in (rule, *predicates) for node in syntax.walk(part)]
        tests = sum(isinstance(node, syntax.Call | syntax.Comparison) for node in nodes)
        self.per_character = _CHARACTER * tests / 1000


class Costs:
    """An upper estimate of what rules cost together, from how many events and characters there are."""

    __slots__ = ("_alike",)

    def __init__(self, costs: Iterable[Cost]) -> None:
        alike: dict[tuple[str, ...], list[float]] = {}
        for cost in costs:
            alike.setdefault(cost.kinds, []).append(cost.per_character)
        # Rules over the same kinds differ in their cost per character alone: it is asked twice for every exchange.
        self._alike = tuple((kinds, len(rules), sum(rules)) for kinds, rules in alike.items())

    def microseconds(self, counts: Mapping[str, int], chars: int) -> float:
        events = max(1, sum(counts.values()))
        texts = counts["Message"] + counts["ToolOutput"]
        total = 0.0
        for kinds, rules, per_character in self._alike:
            bindings = 1.0
            for kind in kinds:
                bindings *= max(1, counts.get(kind, texts))
            repeats = min(max(1.0, bindings / events), 10.0)
            total += rules * (2 + bindings * _BINDING) + chars * per_character * repeats
        return total
