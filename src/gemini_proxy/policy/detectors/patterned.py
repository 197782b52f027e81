"""Detectors that are lists of labelled regular expressions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.policy.budget import Meter
from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.regex import Regex


def _always(text: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Rule:
    """``pattern`` finds candidates with this label; ``accept`` sees the found text and has the last word."""

    label: str
    pattern: str
    accept: Callable[[str], bool] = _always


class RuleSet:
    """Rules behind one search for any of their patterns: most texts hold none, and then one pass tells."""

    __slots__ = ("_any", "_rules", "labels")

    def __init__(self, rules: Iterable[Rule]) -> None:
        rules = tuple(rules)
        self.labels = frozenset(rule.label for rule in rules)
        self._rules = tuple((rule, Regex(rule.pattern, "find", tame=True)) for rule in rules)
        self._any = Regex("|".join(f"(?:{rule.pattern})" for rule, _ in self._rules), "find", tame=True)

    def find(self, texts: Sequence[str], meter: Meter) -> Iterable[Finding]:
        """Findings of all rules, text by text; of findings at the same place the first rule's is kept."""
        hits = [(index, text) for index, text in enumerate(texts) if self._any.test(text, meter)]
        return (finding for index, text in hits for finding in self._find(index, text, meter)) if hits else ()

    def _find(self, index: int, text: str, meter: Meter) -> Iterator[Finding]:
        seen: set[tuple[int, int]] = set()
        for rule, regex in self._rules:
            for start, end in regex.spans(text, meter):
                if (start, end) not in seen and (meter.sliced or rule.accept(text[start:end])):
                    seen.add((start, end))
                    yield Finding(index, start, end, rule.label)


@dataclass(frozen=True, slots=True)
class PatternDetector:
    """A detector with a fixed list, whose options change nothing."""

    name: str
    rules: RuleSet
    options: frozenset[str] = frozenset()

    @property
    def labels(self) -> frozenset[str]:
        return self.rules.labels

    def detect(self, texts: Sequence[str], options: Mapping[str, Any], meter: Meter) -> Iterable[Finding]:
        return self.rules.find(texts, meter)
