"""The frames of an answer that wait, window by window: which of them the verdicts so far let go. No I/O."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gemini_proxy.gemini.candidates import Delta


@dataclass(slots=True)
class _Frame:
    """``ends`` is where the frame's texts end. ``part`` waits for a check of the whole."""

    raw: bytes
    event: bool
    ends: Sequence["_End"] = ()
    part: bool = False
    last: bool = False


class _Said:
    """How much a candidate has said: characters of text, and those of its thoughts as well."""

    __slots__ = ("all", "text")

    def __init__(self) -> None:
        self.text = 0
        self.all = 0


class _End(NamedTuple):
    """A frame's last text of one kind: how much its candidate had said then, of text or, for a thought, of all."""

    candidate: int
    thought: bool
    said: int


class Tail:
    """Frames in the order in which they came. A frame may leave when all before it may, and when

    - for each text in it ``overlap`` characters more of its candidate's text have come, for each thought so many of
      either kind: readers join what is text, and what came in order;
    - every part in it that is not plain text has passed a check of the whole;
    - it is not one of the frames that end the answer.

    Calls, media and thoughts do not end a text, since readers join what follows them to it. Thoughts alone are joined
    as well, but what they begin does not wait for another thought: then an answer would wait to its end.
    """

    def __init__(self, overlap: int, *, skips_thoughts: bool) -> None:
        self._overlap = overlap
        self._skips_thoughts = skips_thoughts
        self._frames: deque[_Frame] = deque()
        self._said: dict[int, _Said] = {}
        self.part_waits = False
        """Whether a part that is not plain text waits for its verdict."""

    @property
    def following(self) -> bytes:
        """The first bytes that wait."""
        return self._frames[0].raw if self._frames else b""

    def add(self, raw: bytes, grown: Iterable[Delta], *, last: bool) -> None:
        """Take in an event and what it brought."""
        ends: dict[tuple[int, bool], _End] = {}
        part = False
        for each in grown:
            if each.text is None:
                part = True
            elif (end := self._end(each)) is not None:
                ends[each.candidate, each.thought] = end
        self.part_waits = self.part_waits or part
        self._frames.append(_Frame(raw, True, tuple(ends.values()), part, last))

    def add_remainder(self, raw: bytes) -> None:
        """Take in bytes that are no event, such as an array's bracket: they wait for the next event."""
        self._frames.append(_Frame(raw, False))

    def pass_parts(self) -> None:
        """A check of the whole so far has passed."""
        self.part_waits = False
        for frame in self._frames:
            frame.part = False

    def leave(self) -> tuple[list[bytes], int]:
        """The frames that may leave, and how many of them are events."""
        count = events = 0
        for place, frame in enumerate(self._frames, start=1):
            if frame.last or frame.part or not all(self._is_past(end) for end in frame.ends):
                break
            if frame.event:
                count, events = place, events + 1
        return [self._frames.popleft().raw for _ in range(count)], events

    def release(self) -> tuple[list[bytes], int]:
        """All frames."""
        frames = list(self._frames)
        self._frames.clear()
        self.part_waits = False
        return [frame.raw for frame in frames], sum(frame.event for frame in frames)

    def _end(self, grown: Delta) -> _End | None:
        if not grown.text or (grown.thought and self._skips_thoughts):
            return None
        said = self._said.setdefault(grown.candidate, _Said())
        said.all += len(grown.text)
        if not grown.thought:
            said.text += len(grown.text)
        return _End(grown.candidate, grown.thought, said.all if grown.thought else said.text)

    def _is_past(self, end: _End) -> bool:
        said = self._said[end.candidate]
        return (said.all if end.thought else said.text) - end.said >= self._overlap
