"""Split an annotated text into runs with the same annotations, cut to what a page can show. No I/O."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final, Literal

from gemini_proxy.traces.annotation_ranges import AnnotationRange, Segment, segments
from gemini_proxy.traces.trace import GUARDRAILS_SOURCE

Kind = Literal["block", "ask", "mask", "log", "remark"]
"""The action of a rule; "remark" if a person or a program made the annotation."""
_KINDS: Final[Sequence[Kind]] = ("block", "ask", "mask", "log", "remark")
"""The heaviest first: a range has the color of the heaviest."""
Style = Kind | Literal[""]

SHOWN: Final = 20_000
"""Characters of one text that a page shows; beyond them it shows excerpts around marks."""
_AROUND, _EXCERPT, _EXCERPTS = 80, 400, 40
"""Characters beside and within a mark in an excerpt, and the number of excerpts on a page."""
_NAMED: Final = 8
"""Marks of one run that the page names: a thousand that overlap need not have a thousand numbers at each letter."""


@dataclass(frozen=True, slots=True)
class StyledRun:
    """A run of text with the same marks. ``starts`` and ``ends`` are the numbers of the marks that start and end here.

    ``wide`` says that only a larger range around the text is marked. A gap has no text, but ``skipped`` characters.
    """

    at: int
    text: str
    style: Style = ""
    wide: bool = False
    marks: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Note:
    """A rule's message about one or several similar ranges, with the numbers and addresses of its marks."""

    numbers: tuple[int, ...]
    kind: Kind
    message: str
    rule: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnnotatedText:
    """The text at an address, ``length`` characters long. The gaps among the runs are not shown."""

    address: str
    length: int
    runs: tuple[StyledRun, ...]
    notes: tuple[Note, ...]

    @property
    def text(self) -> str:
        return "".join(run.text for run in self.runs)


def annotate_text(
    text: str, address: str, marks: Sequence[AnnotationRange], known: Set[int] = frozenset()
) -> AnnotatedText:
    """Return ``text`` with its ``marks`` and notes on them, without notes on those in ``known`` or outside the text."""
    here = [mark for mark in marks if mark.span(text) is not None]
    windows = _windows(text, here)
    runs = _runs(text, here, windows, len(text), address, known)
    return AnnotatedText(address, len(text), tuple(runs), notes(mark for mark in here if mark.number not in known))


def text_window(text: str, address: str, marks: Sequence[AnnotationRange], start: int) -> AnnotatedText:
    """Return the part of ``text`` from ``start`` on that fits a page."""
    here = [mark for mark in marks if mark.span(text) is not None]
    end = min(len(text), start + SHOWN)
    inside = [mark for mark in here if (span := mark.span(text)) is not None and span[0] < end and span[1] > start]
    runs = _runs(text, inside, [(start, end)], end, address, frozenset())
    return AnnotatedText(address, len(text), tuple(run for run in runs if not run.skipped), notes(inside))


def notes(marks: Iterable[AnnotationRange]) -> tuple[Note, ...]:
    """Return the notes of marks, one for all marks with the same rule and message."""
    alike: dict[tuple[Kind, str, str], list[AnnotationRange]] = {}
    for mark in marks:
        annotation = mark.annotation
        alike.setdefault((kind(mark), annotation.content, _rule_name(mark)), []).append(mark)
    return tuple(
        Note(tuple(mark.number for mark in same), *key, tuple(mark.annotation.address for mark in same))
        for key, same in alike.items()
    )


def kind(mark: AnnotationRange) -> Kind:
    """Return the kind of a mark's annotation."""
    if mark.logged:
        return "log"
    annotation = mark.annotation
    action = annotation.guardrail.get("action")
    if action == "ask" or action == "mask":
        return "ask" if action == "ask" else "mask"
    return "block" if annotation.guardrail or annotation.source == GUARDRAILS_SOURCE else "remark"


def _rule_name(mark: AnnotationRange) -> str:
    """Return the name of the rule that made a mark, else the source of the annotation."""
    return str(mark.annotation.guardrail.get("name") or mark.annotation.source)


def _windows(text: str, marks: Sequence[AnnotationRange]) -> list[tuple[int, int]]:
    """Return start and end of the parts of the text that are shown, in order and without overlaps."""
    windows = [(0, min(len(text), SHOWN))]
    starts = sorted({span[0] for mark in marks if (span := mark.span(text)) is not None and span[1] > SHOWN})
    ends = {span[0]: span[1] for mark in marks if (span := mark.span(text)) is not None}
    for start in starts[:_EXCERPTS]:
        low, high = max(0, start - _AROUND), min(ends[start], start + _EXCERPT, len(text)) + _AROUND
        last = windows[-1]
        if low <= last[1]:
            windows[-1] = (last[0], max(last[1], min(high, len(text))))
        else:
            windows.append((low, min(high, len(text))))
    return windows


def _runs(
    text: str,
    marks: Sequence[AnnotationRange],
    windows: Sequence[tuple[int, int]],
    length: int,
    address: str,
    known: Set[int],
) -> list[StyledRun]:
    cut = segments(text, marks)
    # Once for each mark: thousands may cover each of thousands of segments.
    kinds = {mark.number: kind(mark) for mark in marks}
    runs: list[StyledRun] = []
    begun: set[int] = set(known)
    at = windows[0][0] if windows else 0
    index = 0
    last = _last_places(cut)
    for start, end in windows:
        if start > at:
            runs.append(StyledRun(at, "", skipped=start - at))
        while index < len(cut) and cut[index].start + len(cut[index].text) <= start:
            index += 1
        while index < len(cut) and cut[index].start < end:
            runs.append(_run(cut[index], start, end, address, begun, last, kinds))
            if cut[index].start + len(cut[index].text) > end:
                break
            index += 1
        at = end
    if at < length:
        runs.append(StyledRun(at, "", skipped=length - at))
    return runs


def _run(
    segment: Segment,
    start: int,
    end: int,
    address: str,
    begun: set[int],
    last: Mapping[int, int],
    kinds: Mapping[int, Kind],
) -> StyledRun:
    low, high = max(start, segment.start), min(end, segment.start + len(segment.text))
    text = segment.text[low - segment.start : high - segment.start]
    marks = segment.marks
    if not marks:
        return StyledRun(low, text)
    own = [mark for mark in marks if mark.path == address]
    starts = [mark.number for mark in marks if mark.number not in begun]
    begun.update(starts)
    closes = high == segment.start + len(segment.text)
    ends = [mark.number for mark in own if last[mark.number] == segment.start and closes]
    here = {kinds[mark.number] for mark in own or marks}
    return StyledRun(
        low,
        text,
        next(style for style in _KINDS if style in here),
        not own,
        tuple(mark.number for mark in marks[:_NAMED]),
        tuple(starts),
        tuple(ends[:_NAMED]),
    )


def _last_places(cut: Sequence[Segment]) -> dict[int, int]:
    """Return where the last segment of each mark begins."""
    return {mark.number: segment.start for segment in cut for mark in segment.marks}
