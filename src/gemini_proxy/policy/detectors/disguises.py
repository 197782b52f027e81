"""Let detectors look twice: at a text as it is, and at what a reader or a model makes of it if it is disguised."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.normalized import Normalized, is_plain, near_changes, normalize
from gemini_proxy.policy.run.regex import Literals
from gemini_proxy.policy.run.texts import in_lines

# Finds labeled spans in texts.
Find = Callable[[Sequence[str], Meter], Iterable[Finding]]

_SMALL: Final = "abcdefghijklmnopqrstuvwxyz"
_ROTATED: Final = _SMALL[13:] + _SMALL[:13]
_ROT13: Final = str.maketrans(_SMALL + _SMALL.upper(), _ROTATED + _ROTATED.upper())
_LEAST_WORD: Final = 4
"""Shorter words stand in other text by chance when they are rotated or reversed."""
_LEAST_LETTERS: Final = 8
"""Texts of one letter each, one after another, that are read as one."""


class Disguises:
    """The second look of a detector: ``words`` tell that a text is rotated by 13 letters or reversed."""

    __slots__ = ("_count", "_turned")

    def __init__(self, words: Iterable[str] = ()) -> None:
        long = sorted({word for word in words if len(word) >= _LEAST_WORD})
        self._count = len(long)
        self._turned = Literals([*(word.translate(_ROT13) for word in long), *(word[::-1] for word in long)])

    def find(self, find: Find, texts: Sequence[str], meter: Meter) -> Iterable[Finding]:
        """Findings in the texts as they are, then those that only another reading of them shows."""
        plain = find(texts, meter)
        known = list(plain)
        lines = in_lines(texts)
        more: list[Finding] = []
        if lines is None or not is_plain(lines, meter):
            more.extend(found for index, text in enumerate(texts) for found in _normal(find, index, text, meter))
        if lines is None or self._turned_words(lines, meter):
            more.extend(
                found for index, text in enumerate(texts) for found in self._turned_in(find, index, text, meter)
            )
        more.sort(key=lambda found: found.text)
        more.extend(_in_letters(find, texts, meter))
        if not more:
            return known or plain
        return [*known, *_fresh(more, known)]

    def _turned_in(self, find: Find, index: int, text: str, meter: Meter) -> Iterator[Finding]:
        words = self._turned_words(text, meter)
        if any(number < self._count for number in words):
            yield from (_at(index, found, found.start, found.end) for found in find([text.translate(_ROT13)], meter))
        if any(number >= self._count for number in words):
            size = len(text)
            yield from (_at(index, found, size - found.end, size - found.start) for found in find([text[::-1]], meter))

    def _turned_words(self, text: str, meter: Meter) -> Sequence[int]:
        return self._turned.found(text, meter) if self._count else ()


def _at(index: int, found: Finding, start: int, end: int) -> Finding:
    return Finding(index, start, end, found.label)


def _normal(find: Find, index: int, text: str, meter: Meter) -> Iterator[Finding]:
    made = normalize(text, meter)
    if type(made) is Normalized:
        yield from _near_changes(find, index, made, meter)


def _near_changes(find: Find, index: int, text: Normalized, meter: Meter) -> Iterator[Finding]:
    """Findings that hold something that was changed: all others were seen in the text as it is."""
    stretches = list(near_changes(text))
    begins = [start for start, _ in text.changes]
    for found in find([text[start:end] for start, end in stretches], meter):
        start, end = found.start + stretches[found.text][0], found.end + stretches[found.text][0]
        number = bisect_right(begins, start)
        if (number < len(begins) and begins[number] < end) or (number and text.changes[number - 1][1] > start):
            yield _at(index, found, *text.span(start, end))


def _in_letters(find: Find, texts: Sequence[str], meter: Meter) -> Iterator[Finding]:
    """Findings in texts of one letter each, as the items of a list: at the first that they are in."""
    if len(texts) < _LEAST_LETTERS:
        return
    at = 0
    for single, group in groupby(texts, lambda text: len(text) == 1):
        letters = list(group)
        if single and len(letters) >= _LEAST_LETTERS:
            yield from (_at(at + found.start, found, 0, 1) for found in find(["".join(letters)], meter))
        at += len(letters)


def _fresh(more: Iterable[Finding], known: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings that touch no known finding with the same label."""
    places: dict[tuple[int, str], list[tuple[int, int]]] = {}
    for found in known:
        places.setdefault((found.text, found.label), []).append((found.start, found.end))
    for spans in places.values():
        spans.sort()
    for found in more:
        spans = places.setdefault((found.text, found.label), [])
        number = bisect_left(spans, (found.end, 0))
        if not (number and spans[number - 1][1] > found.start):
            spans.insert(number, (found.start, found.end))
            yield found
