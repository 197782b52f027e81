"""Detectors that are lists of labelled regular expressions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.regex import Literals, Regex


def _always(text: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Rule:
    """``pattern`` finds candidates with this label; ``accept`` sees the found text and has the last word.

    One of ``words``, in small letters, stands in whatever the pattern finds; a rule without them is tried on any text.
    """

    label: str
    pattern: str
    words: tuple[str, ...] = ()
    accept: Callable[[str], bool] = _always


class RuleSet:
    """Rules behind one search for their words and one for the patterns of those without: most texts hold none.

    ``stays`` says that of all rules what is accepted stays accepted when the text goes on.
    """

    __slots__ = ("_any", "_by_word", "_regexes", "_rules", "_stays", "_wordless", "_words", "labels")

    def __init__(self, rules: Iterable[Rule], *, stays: bool = False) -> None:
        self._rules = tuple(rules)
        self._stays = stays
        # By pattern, compiled at first use: most are never used.
        self._regexes: dict[str, Regex] = {}
        self.labels = frozenset(rule.label for rule in self._rules)
        words = sorted({word for rule in self._rules for word in rule.words})
        self._words = Literals(words) if words else None
        self._by_word = [
            frozenset(number for number, rule in enumerate(self._rules) if word in rule.words) for word in words
        ]
        self._wordless = frozenset(number for number, rule in enumerate(self._rules) if not rule.words)
        patterns = [self._rules[number].pattern for number in sorted(self._wordless)]
        self._any = "|".join(f"(?:{pattern})" for pattern in patterns)

    def find(self, texts: Sequence[str], meter: Meter) -> Iterable[Finding]:
        """Findings of all rules, text by text; of findings at the same place the first rule's is kept."""
        hits = [(index, text, tried) for index, text in enumerate(texts) if (tried := self._tried(text, meter))]
        return (finding for hit in hits for finding in self._find(*hit, meter)) if hits else ()

    def _tried(self, text: str, meter: Meter) -> frozenset[int]:
        """The numbers of the rules that may find something in the text."""
        tried = self._wordless if self._any and self._regex(self._any).test(text, meter) else frozenset()
        return tried.union(*(self._by_word[word] for word in self._words.found(text, meter))) if self._words else tried

    def _find(self, index: int, text: str, tried: frozenset[int], meter: Meter) -> Iterator[Finding]:
        seen: set[tuple[int, int]] = set()
        unseen = meter.sliced and not self._stays
        for number in sorted(tried):
            rule = self._rules[number]
            for start, end in self._regex(rule.pattern).spans(text, meter):
                if (start, end) not in seen and (unseen or rule.accept(text[start:end])):
                    seen.add((start, end))
                    yield Finding(index, start, end, rule.label)

    def _regex(self, pattern: str) -> Regex:
        """Two threads may both compile; both get equal ones and one of them stays."""
        regex = self._regexes.get(pattern)
        if regex is None:
            regex = self._regexes[pattern] = Regex(pattern, "find", tame=True)
        return regex


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
