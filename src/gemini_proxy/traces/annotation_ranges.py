"""Map the annotations of a trace to ranges in its messages. No I/O.

An address is a dotted path from ``messages`` on, and perhaps a range within the text it leads to, in characters:
``messages.2.content:10-25``; ``:L3`` is the fourth line. Without a range it is the text, or everything below the path.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.traces.trace import TRACED, Annotation, End
from gemini_proxy.traces.visible import as_json

# Enough digits for any text: int() refuses thousands of them.
_ADDRESS = re.compile(
    r"(?P<path>.*?)(?::(?:(?P<start>[0-9]{1,12})-(?P<end>[0-9]{1,12})|L(?P<line>[0-9]{1,12})))?", re.S
)
_INDEX = re.compile(r"\[([0-9]+)\]")


@dataclass(frozen=True, slots=True)
class AnnotationRange:
    """An annotation, read: ``number`` counts from 1 in a trace; without a range ``start`` and ``line`` are None."""

    number: int
    annotation: Annotation
    path: str
    start: int | None = None
    end: int | None = None
    line: int | None = None

    @property
    def logged(self) -> bool:
        """Return whether the rule only annotates; otherwise it blocks."""
        return self.annotation.guardrail.get("action") == "log"

    @property
    def ranged(self) -> bool:
        return self.start is not None or self.line is not None

    @property
    def value_end(self) -> End | None:
        """Return which end of a traced value this is; None if no rule traced one here."""
        told = self._traced.get("end")
        return told if told in ("call", "source") else None

    @property
    def violation(self) -> tuple[str, ...]:
        """Return what identifies the violation within the trace; all its ends share it."""
        guardrail = self.annotation.guardrail
        return (*(str(guardrail.get(name)) for name in ("id", "action")), str(self._traced.get("violation")))

    @property
    def _traced(self) -> Mapping[str, Any]:
        told = self.annotation.extra.get(TRACED)
        return told if isinstance(told, Mapping) else {}

    def span(self, text: str) -> tuple[int, int] | None:
        """Return start and end of the range in ``text``, the text at the path; None if it lies outside."""
        if self.line is not None:
            return _line_span(text, self.line)
        if self.start is None or self.end is None:
            return 0, len(text)
        start, end = self.start, min(self.end, len(text))
        return (start, end) if start < end else None


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a text, and the marks whose ranges cover all of it."""

    start: int
    text: str
    marks: tuple[AnnotationRange, ...]


class AnnotationRanges:
    """The marks of a trace, by the addresses they belong to."""

    def __init__(self, annotations: Sequence[Annotation]) -> None:
        self.all = tuple(_mark(number, annotation) for number, annotation in enumerate(annotations, start=1))
        self._ranged: dict[str, list[AnnotationRange]] = {}
        self._whole: dict[str, list[AnnotationRange]] = {}
        for mark in self.all:
            (self._ranged if mark.ranged else self._whole).setdefault(mark.path, []).append(mark)
        self._ends: dict[tuple[tuple[str, ...], End], list[AnnotationRange]] = {}
        for mark in self.all:
            if (end := mark.value_end) is not None:
                self._ends.setdefault((mark.violation, end), []).append(mark)
        self._lengths = sorted({len(path) for path in self._whole if path})

    def other_ends(self, mark: AnnotationRange) -> tuple[AnnotationRange, ...]:
        """Return the sources of a call's value, or the values of calls that came from a source."""
        if mark.value_end is None:
            return ()
        return tuple(self._ends.get((mark.violation, "source" if mark.value_end == "call" else "call"), ()))

    def on(self, leaf: str) -> tuple[AnnotationRange, ...]:
        """Return the ranges of the text at an address: its own, and those of everything around it."""
        above = [
            mark
            for length in self._lengths
            if len(leaf) == length or leaf[length : length + 1] == "."
            for mark in self._whole.get(leaf[:length], ())
        ]
        found = [*self._ranged.get(leaf, ()), *above]
        return tuple(sorted(found, key=lambda mark: mark.number)) if len(found) > 1 else tuple(found)


def segments(text: str, marks: Sequence[AnnotationRange]) -> tuple[Segment, ...]:
    """Cut ``text`` where a range begins or ends. Joined, the segments are the text."""
    spans = [(mark, span) for mark in marks if (span := mark.span(text)) is not None]
    borders = sorted({0, len(text), *(place for _, span in spans for place in span)})
    starting: dict[int, list[tuple[AnnotationRange, int]]] = {}
    for mark, (start, end) in spans:
        starting.setdefault(start, []).append((mark, end))
    found: list[Segment] = []
    open_: list[tuple[AnnotationRange, int]] = []
    for start, end in zip(borders, borders[1:], strict=False):
        open_ = [*(entry for entry in open_ if entry[1] > start), *starting.get(start, ())]
        found.append(Segment(start, text[start:end], tuple(mark for mark, _ in open_)))
    return tuple(found)


def leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Yield every value in a message that is neither a mapping nor a list, with its address, except for the role."""
    stack: list[tuple[str, object]] = [(path, value)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, Mapping):
            inner = [
                (f"{path}.{name}", item)
                for name, item in value.items()
                if not (name == "role" and path.count(".") == 1)
            ]
            stack.extend(reversed(inner))
        elif isinstance(value, list):
            stack.extend((f"{path}.{index}", value[index]) for index in range(len(value) - 1, -1, -1))
        elif value is not None:
            yield path, value if isinstance(value, str) else as_json(value)


def _mark(number: int, annotation: Annotation) -> AnnotationRange:
    found = _ADDRESS.fullmatch(annotation.address)
    assert found is not None, "the pattern takes every text"
    # Some of Invariant's clients write messages[2] for messages.2.
    head, dot, rest = found["path"].partition(".")
    path = _INDEX.sub(r".\1", head) + dot + rest
    if found["start"] is not None:
        return AnnotationRange(number, annotation, path, int(found["start"]), int(found["end"]))
    return AnnotationRange(number, annotation, path, line=int(found["line"]) if found["line"] is not None else None)


def _line_span(text: str, line: int) -> tuple[int, int] | None:
    start = 0
    for _ in range(min(line, text.count("\n") + 1)):
        newline = text.find("\n", start)
        if newline < 0:
            return None
        start = newline + 1
    end = text.find("\n", start)
    end = len(text) if end < 0 else end
    return (start, end) if start < end else None
