"""Find characters of some Unicode categories, by default invisible ones: ``unicode``."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.regex import Regex

CATEGORIES = frozenset(
    "Cc Cf Cn Co Cs Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po Ps Sc Sk Sm So Zl Zp Zs".split()
)
# Formatting, private use and surrogates: readers do not see them, but models read them.
HIDDEN = frozenset(("Cf", "Co", "Cs"))
_NOT_ASCII = Regex(r"[^\x00-\x7f]+", "find", tame=True)


@dataclass(frozen=True, slots=True)
class UnicodeDetector:
    """Labels are category names; runs of one category are one finding."""

    name: str = "unicode"
    options: frozenset[str] = frozenset(("categories",))
    positional: tuple[str, ...] = ("categories",)
    labels: frozenset[str] = HIDDEN

    def detect(self, texts: Sequence[str], options: Mapping[str, Any], meter: Meter) -> Iterable[Finding]:
        """Raise EvaluationError for a category that Unicode does not have."""
        wanted = options.get("categories")
        names = HIDDEN if wanted is None else frozenset((wanted,) if isinstance(wanted, str) else wanted)
        if unknown := names - CATEGORIES:
            raise EvaluationError(f"unicode does not know the category {', '.join(map(str, sorted(unknown)))}")
        return _findings(texts, names, meter)


def _findings(texts: Sequence[str], names: frozenset[str], meter: Meter) -> Iterator[Finding]:
    for index, text in enumerate(texts):
        if text.isascii() and names <= HIDDEN:
            continue
        for start, end in _spans(text, names, meter):
            yield from _runs(index, text, start, end, names, meter)


def _spans(text: str, names: frozenset[str], meter: Meter) -> Iterable[tuple[int, int]]:
    """Return where characters of the categories can be; hidden ones are not in ASCII."""
    return _NOT_ASCII.spans(text, meter) if names <= HIDDEN and text.isprintable() is False else [(0, len(text))]


def _runs(index: int, text: str, start: int, end: int, names: frozenset[str], meter: Meter) -> Iterator[Finding]:
    begun, label = start, ""
    for at in range(start, end):
        if at & 255 == 0:
            meter.charge(64)
        category = unicodedata.category(text[at])
        if category != label:
            if label in names:
                yield Finding(index, begun, at, label)
            begun, label = at, category
    if label in names:
        yield Finding(index, begun, end, label)
