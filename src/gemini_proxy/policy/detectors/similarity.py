"""Find a text, or a sentence of it, with wording like another's: ``is_similar``. It compares letters, not meaning.

A text is represented by the counts of its groups of three letters. The similarity of two texts is the cosine of these.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

from gemini_proxy.policy.detectors import Finding, Parsed
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.texts import texts_of

_NAMED: Final = {"might_resemble": 0.4, "same_topic": 0.6, "very_similar": 0.8}
"""The stock language's names. Its own numbers are for a model's vectors and mean nothing here."""
_LONGEST_TARGETS: Final = 20_000
_SENTENCE: Final = re.compile(r"[^.!?\n]+")
_OTHER: Final = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Similarity:
    """``is_similar(text, target, threshold="might_resemble")``: true or false. ``target`` may be a list of texts."""

    name: str = "is_similar"
    options: frozenset[str] = frozenset(("target", "threshold"))
    positional: tuple[str, ...] = ("target", "threshold")

    def parse(self, texts: Sequence[str], args: Sequence[Any], options: Mapping[str, Any], meter: Meter) -> Parsed:
        threshold = options.get("threshold", "might_resemble")
        least = _NAMED.get(threshold) if isinstance(threshold, str) else threshold
        if not isinstance(least, int | float) or isinstance(least, bool) or not 0 <= least <= 1:
            raise EvaluationError(f"is_similar needs a threshold between 0 and 1, or one of {', '.join(_NAMED)}")
        written = list(texts_of(options.get("target")))
        if not any(map(str.strip, written)) or sum(map(len, written)) > _LONGEST_TARGETS:
            raise EvaluationError(f"is_similar needs a target: texts of 1 to {_LONGEST_TARGETS} characters")
        targets = [_groups(target, meter) for target in written]
        findings = [
            Finding(index, *span, "SIMILAR")
            for index, text in enumerate(texts)
            if (span := _first(text, targets, least, meter)) is not None
        ]
        return Parsed(bool(findings), findings)


def _first(text: str, targets: Sequence[Counter[str]], least: float, meter: Meter) -> tuple[int, int] | None:
    """Return the first sentence that scores over ``least``, or the whole text if only the whole does."""
    for start, end in (*_sentences(text), (0, len(text))):
        groups = _groups(text[start:end], meter)
        for target in targets:
            meter.charge(1 + (min(len(groups), len(target)) >> 3))
            if _cosine(groups, target) > least:
                return start, end
    return None


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    for match in _SENTENCE.finditer(text):
        if not match[0].isspace():
            yield match.span()


def _groups(text: str, meter: Meter) -> Counter[str]:
    meter.charge(1 + (len(text) >> 2))
    words = f" {_OTHER.sub(' ', text.casefold()).strip()} "
    return Counter(words[at : at + 3] for at in range(len(words) - 2))


def _cosine(first: Counter[str], second: Counter[str]) -> float:
    few, many = sorted((first, second), key=len)
    shared = sum(count * many[group] for group, count in few.items() if group in many)
    return shared / (_length(first) * _length(second)) if shared else 0.0


def _length(counts: Counter[str]) -> float:
    return sqrt(sum(count * count for count in counts.values()))
