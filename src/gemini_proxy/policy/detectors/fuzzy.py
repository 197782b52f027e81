"""Find a text that contains the words of a query, except for a few letters: ``fuzzy_contains``.

Edit distance by bit vectors (Myers 1999, as a search): one addition and a few masks a character.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.policy.detectors import Finding, Parsed
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.budget import Meter

_LONGEST_QUERY = 200
_MOST_ERRORS = 10


@dataclass(frozen=True, slots=True)
class FuzzyContains:
    """``fuzzy_contains(text, query, query_similarity_threshold=0.8)``: true or false. Letter case counts.

    ``use_semantic`` may be given as False, for policies written for the stock engine; True needs a model.
    """

    name: str = "fuzzy_contains"
    options: frozenset[str] = frozenset(("query", "query_similarity_threshold", "use_semantic"))
    positional: tuple[str, ...] = ("query", "query_similarity_threshold", "use_semantic")

    def parse(self, texts: Sequence[str], args: Sequence[Any], options: Mapping[str, Any], meter: Meter) -> Parsed:
        query = options.get("query")
        threshold = options.get("query_similarity_threshold", 0.8)
        if not isinstance(query, str) or not 0 < len(query) <= _LONGEST_QUERY:
            raise EvaluationError(f"fuzzy_contains needs a query of 1 to {_LONGEST_QUERY} characters")
        if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise EvaluationError("fuzzy_contains needs a threshold between 0 and 1")
        if options.get("use_semantic"):
            raise EvaluationError("fuzzy_contains compares letters only: use_semantic needs a model")
        allowed = min(_MOST_ERRORS, int(len(query) * (1 - threshold) + 1e-9))
        findings = [
            Finding(index, *span, "FUZZY")
            for index, text in enumerate(texts)
            if (span := search(query, text, allowed, meter)) is not None
        ]
        return Parsed(bool(findings), findings)


def search(query: str, text: str, allowed: int, meter: Meter) -> tuple[int, int] | None:
    """Return the first span within ``allowed`` edits of the query, about as long as the query."""
    if len(query) <= allowed:
        return 0, 0
    exact = text.find(query)
    if exact >= 0:
        return exact, exact + len(query)
    end = _end_of_match(query, text, allowed, meter)
    return None if end is None else (max(0, end - len(query)), end)


def _end_of_match(query: str, text: str, allowed: int, meter: Meter) -> int | None:
    masks: dict[str, int] = {}
    for at, char in enumerate(query):
        masks[char] = masks.get(char, 0) | 1 << at
    full, last = (1 << len(query)) - 1, 1 << len(query) - 1
    positive, negative, score = full, 0, len(query)
    for at, char in enumerate(text):
        if at & 127 == 0:
            meter.charge(128)
        match = masks.get(char, 0)
        along = match | negative
        across = (((match & positive) + positive) ^ positive) | match
        more, fewer = negative | (~(across | positive) & full), positive & across
        score += bool(more & last) - bool(fewer & last)
        if score <= allowed:
            return at + 1
        more, fewer = more << 1 & full, fewer << 1 & full
        positive, negative = fewer | (~(along | more) & full), more & along
    return None
