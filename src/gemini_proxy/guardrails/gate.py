"""Decides which of the upstream's bytes may leave before a verdict. No I/O."""

from collections.abc import Mapping
from typing import Any, Literal

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.frames import Frame, Framing
from gemini_proxy.gemini.merger import Merger, carries_function_call

StreamCheck = Literal["final", "hold"]


class FrameGate:
    """Passes frames on, or withholds them until ``release``.

    ``final`` withholds from the first frame that finishes every candidate on, and every frame with a function call, and
    what follows it; ``hold`` withholds everything. Raises DecodeError for bytes that cannot be read, and for an answer
    over ``max_bytes``: the merged answer is kept whole for the final check, so its size is bounded here.
    ``events_left`` counts the events that left: what a refusal inside a JSON array has to know.
    """

    def __init__(
        self, framing: Framing, merger: Merger, mode: StreamCheck, candidate_count: int | None, max_bytes: int
    ) -> None:
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

    @property
    def wants_verdict(self) -> bool:
        """True while a whole function call is withheld from a client that would go on receiving after it."""
        if not self._call_withheld or self._hold or self._ending:
            return False
        return not any(candidate.has_open_call for candidate in self._merger.candidates)

    def feed(self, data: bytes) -> None:
        """Take in what came from upstream; ``take`` has what of it may leave."""
        self._room -= len(data)
        if self._room < 0:
            raise DecodeError("The upstream's answer is larger than the proxy may hold.")
        self._sort(self._framing.feed(data))

    def end(self) -> None:
        """The body has ended; what is withheld now waits for ``release``."""
        self._sort(self._framing.end())

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
        self._ready.extend(self._withheld)
        self._withheld.clear()
        self.events_left += self._events_withheld
        self._events_withheld = 0
        self._call_withheld = False

    def _sort(self, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.payload is not None:
                self._merge(frame.payload)
            if self._hold or self._ending or self._call_withheld or frame.payload is None:
                # A frame without payload may be the end of the body (an array's bracket): it waits for the next one.
                self._withheld.append(frame.raw)
                self._events_withheld += frame.payload is not None
            else:
                self._ready.extend(self._withheld)
                self._withheld.clear()
                self._ready.append(frame.raw)
                self.events_left += 1

    def _merge(self, payload: Mapping[str, Any]) -> None:
        self._merger.add(payload)
        self._call_withheld = self._call_withheld or carries_function_call(payload)
        self._ending = self._ending or self._merger.finished(self._candidate_count)
