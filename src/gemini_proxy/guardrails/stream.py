"""Decides which of the upstream's bytes may leave before a verdict. No I/O."""

from collections.abc import Mapping
from typing import Any, Literal

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.candidates import Delta
from gemini_proxy.gemini.framing.frames import Frame, Framing
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.guardrails.tail import Tail

StreamCheck = Literal["final", "window", "hold"]


class FrameGate:
    """Passes frames on, or withholds them until ``release``.

    ``final`` withholds from the first frame that finishes every candidate on, and every frame with a function call, and
    what follows it; ``window`` withholds every frame, and lets go with ``pass_texts`` and ``pass_parts`` what ``tail``
    does not keep; ``hold`` withholds everything. Raises DecodeError for bytes that cannot be read, and for an answer
    over ``max_bytes``: the merged answer is kept whole for the final check, so its size is bounded here.
    ``events_left`` counts the events that left: what a refusal inside a JSON array has to know.
    """

    def __init__(
        self,
        framing: Framing,
        merger: Merger,
        mode: StreamCheck,
        candidate_count: int | None,
        max_bytes: int,
        tail: Tail | None = None,
    ) -> None:
        self.mode = mode
        self._tail = tail
        self._grown: list[Delta] = []
        if tail is not None:
            self._deltas = merger.follow()
        self._framing = framing
        self._merger = merger
        self._hold = mode == "hold"
        self._candidate_count = candidate_count
        self._room = max_bytes
        self._ready: list[bytes] = []
        self._withheld: list[bytes] = []
        self._call_withheld = False
        self._ending = False
        self.events_left = 0
        self._events_withheld = 0
        self._empty = True

    @property
    def empty(self) -> bool:
        """Whether no event has come yet: nothing, blank lines, comments or an array without elements."""
        return self._empty

    @property
    def wants_verdict(self) -> bool:
        """True while a whole function call, in ``window`` any part but text, is withheld from a client that would go on
        receiving after it."""
        if not self.part_waits or self._hold or self._ending:
            return False
        return not any(candidate.has_open_call for candidate in self._merger.candidates)

    @property
    def part_waits(self) -> bool:
        """Whether a part is withheld that needs a verdict of its own; it may not be whole yet."""
        return self._call_withheld if self._tail is None else self._tail.part_waits

    def take_grown(self) -> list[Delta]:
        """What candidates got since the last time, for ``window``."""
        grown, self._grown = self._grown, []
        return grown

    @property
    def ending(self) -> bool:
        """Whether the frames that end the answer have come: what waits now waits for the final check."""
        return self._ending

    def pass_parts(self) -> None:
        """In ``window``: a verdict on the whole so far allows every part that has come."""
        if self._tail is not None:
            self._tail.pass_parts()

    def pass_texts(self) -> None:
        """In ``window``: all text so far has passed. What is far enough from its end may leave."""
        if self._tail is not None:
            frames, events = self._tail.leave()
            self._ready.extend(frames)
            self.events_left += events

    def feed(self, data: bytes) -> None:
        """Take in what came from upstream; ``take`` has what of it may leave."""
        self._room -= len(data)
        if self._room < 0:
            raise DecodeError("The upstream's answer is larger than the proxy may hold.")
        self._sort(self._framing.feed(data))

    def end(self) -> None:
        """The body has ended; what is withheld now waits for ``release``."""
        self._sort(self._framing.end())

    @property
    def following(self) -> bytes:
        """The first bytes of what will leave next, empty where nothing waits."""
        waiting = self._ready or self._withheld
        return waiting[0] if waiting else self._tail.following if self._tail is not None else b""

    def take(self) -> bytes:
        """The bytes that may leave now. They have to: a refusal goes on where they end."""
        ready = self._ready
        if not ready:
            return b""
        taken = ready[0] if len(ready) == 1 else b"".join(ready)
        ready.clear()
        return taken

    def release(self) -> None:
        """Let everything withheld leave, after a verdict that covers it."""
        if self._tail is not None:
            frames, events = self._tail.release()
            self._ready.extend(frames)
            self.events_left += events
        self._ready.extend(self._withheld)
        self._withheld.clear()
        self.events_left += self._events_withheld
        self._events_withheld = 0
        self._call_withheld = False

    def _sort(self, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.payload is not None:
                self._merge(frame.payload)
            if self._tail is not None:
                self._keep(self._tail, frame)
            elif self._hold or self._ending or self._call_withheld or frame.payload is None:
                # A frame without payload may be the end of the body (an array's bracket): it waits for the next one.
                self._withheld.append(frame.raw)
                self._events_withheld += frame.payload is not None
            else:
                self._ready.extend(self._withheld)
                self._withheld.clear()
                self._ready.append(frame.raw)
                self.events_left += 1

    def _keep(self, tail: Tail, frame: Frame) -> None:
        if frame.payload is None:
            tail.add_remainder(frame.raw)
        else:
            grown = self._deltas.copy()
            self._deltas.clear()
            self._grown.extend(grown)
            tail.add(frame.raw, grown, last=self._ending)

    def _merge(self, payload: Mapping[str, Any]) -> None:
        self._empty = False
        self._merger.add(payload)
        self._call_withheld = self._call_withheld or self._merger.carried_call
        self._ending = self._ending or self._merger.finished(self._candidate_count)
