"""Estimate what the check of a rule costs, from its syntax tree at load."""

from collections.abc import Iterable, Mapping, Sequence

from gemini_proxy.policy.parse import syntax

# Microseconds that one binding costs, and nanoseconds that a text function costs a character.
_BINDING = 0.6
_CHARACTER = 6.0
# Nanoseconds a character of the slower detectors, as `make bench-detectors` prints them.
_DETECTORS = {"secrets": 65.0, "prompt_injection": 55.0, "pii": 45.0, "normalized": 30.0, "is_similar": 400.0}
# Nanoseconds a character for an index of the conversation, which is built once per check: the share of one rule.
_INDEXED = 50.0


class Cost:
    """The cost of one rule: the ``kinds`` of event that it goes over, and microseconds ``per_character``."""

    __slots__ = ("kinds", "per_character")

    def __init__(self, rule: syntax.Raise, predicates: Sequence[syntax.Predicate]) -> None:
        self.kinds = tuple(line.kind for line in syntax.declarations(rule.body) if line.source is None)
        nodes = [node for part in (rule, *predicates) for node in syntax.walk(part)]
        tests = sum(isinstance(node, syntax.Call | syntax.Comparison) for node in nodes)
        names = [node.name for node in nodes if isinstance(node, syntax.Name)]
        detectors = sum(_DETECTORS.get(name, 0.0) for name in names)
        indexed = _INDEXED if {"untrusted", "private"} & set(names) else 0.0
        self.per_character = (_CHARACTER * tests + detectors + indexed) / 1000


class Costs:
    """An upper estimate of what rules cost together, from the numbers of events and characters."""

    __slots__ = ("_alike",)

    def __init__(self, costs: Iterable[Cost]) -> None:
        alike: dict[tuple[str, ...], list[float]] = {}
        for cost in costs:
            alike.setdefault(cost.kinds, []).append(cost.per_character)
        # Cached, since every exchange asks twice: rules over the same kinds differ only in their cost per character.
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
