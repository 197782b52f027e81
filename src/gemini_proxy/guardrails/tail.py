"""The frames of an answer that wait, window by window: which of them the verdicts so far let go. No I/O."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gemini_proxy.gemini.merger import Grown


@dataclass(slots=True)
class _Frame:
    """``ends`` is where the frame's text ends: candidate, run, characters. ``part`` waits for a check of the whole."""

    raw: bytes
    event: bool
    ends: Sequence[tuple[int, int, int]] = ()
    part: bool = False
    last: bool = False


class _Run:
    """A candidate's text of one kind, thought or not: its number, and its length so far."""

    __slots__ = ("length", "number", "thought")

    def __init__(self) -> None:
        self.number = 0
        self.thought: bool | None = None
        self.length = 0


class Tail:
    """Frames in the order in which they came. A frame may leave when all before it may, and when

    - of each text in it ``overlap`` characters more have come, or a text of the other kind after it (a thought's text
      and the answer's are apart);
    - every part in it that is not plain text has passed a check of the whole;
    - it is not one of the frames that end the answer.

    Calls and media do not end a text, since what follows them may go on in the same message.
    """

    def __init__(self, overlap: int, *, skips_thoughts: bool) -> None:
        self._overlap = overlap
        self._skips_thoughts = skips_thoughts
        self._frames: deque[_Frame] = deque()
        self._runs: dict[int, _Run] = {}
        self.part_waits = False
        """Whether a part that is not plain text waits for its verdict."""

    @property
    def following(self) -> bytes:
        """The first bytes that wait."""
        return self._frames[0].raw if self._frames else b""

    def add(self, raw: bytes, grown: Iterable[Grown], *, last: bool) -> None:
        """Take in an event and what it brought."""
        ends: dict[int, tuple[int, int, int]] = {}
        part = False
        for each in grown:
            if each.text is None:
                part = True
            elif (end := self._end(each)) is not None:
                ends[each.candidate] = end
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

    def _end(self, grown: Grown) -> tuple[int, int, int] | None:
        run = self._runs.get(grown.candidate)
        if run is None:
            run = self._runs[grown.candidate] = _Run()
        if run.thought is not grown.thought:
            run.number, run.thought, run.length = run.number + 1, grown.thought, 0
        run.length += len(grown.text or "")
        if not grown.text or (grown.thought and self._skips_thoughts):
            return None
        return grown.candidate, run.number, run.length

    def _is_past(self, end: tuple[int, int, int]) -> bool:
        candidate, number, length = end
        run = self._runs[candidate]
        return run.number != number or run.length - length >= self._overlap
