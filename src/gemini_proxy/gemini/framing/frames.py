"""What a framing makes of an upstream body: frames, whose bytes joined in order are the body."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import orjson

from gemini_proxy.errors import DecodeError

# An inline image of 20 MB is 27 MB of base64 and an event may hold two; beyond that a frame only fills the memory.
MAX_FRAME_BYTES = 64 * 1024 * 1024
_BYTES_PER_STEP: Final = 128
"""A step, which is a frame or a line of one, takes some 10 microseconds however short it is. The events of a model are
longer than this, or few."""
_FREE_STEPS: Final = 50_000
"""Steps that need no bytes: half a second's work."""


class Frame(NamedTuple):
    """A piece of an upstream body that is passed on or withheld as a whole.

    ``raw``: every upstream byte from the end of the previous frame to the end of this one; joined in order they are
    the body. ``payload``: the JSON object in it, None where the frame holds none (separators, comments, brackets,
    blank lines).
    """

    raw: bytes
    payload: Mapping[str, Any] | None


class Framing(Protocol):
    """Cuts a body into frames, however it arrives in pieces, at a cost linear in its length.

    Both methods raise DecodeError for what cannot be read. Frames read before the fault come first: the call that
    meets a fault behind good frames returns those, and the next call raises. A framing stays broken after a fault.
    """

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes."""
        ...

    def end(self) -> list[Frame]:
        """The frames in the remaining bytes; to be called once, when the body has ended."""
        ...


class FrameReader:
    """Runs a framing's steps: frames read before a fault are not lost with it, and a body's time goes by its size.

    A flood of comments, blank lines or empty events would cost a hundred times what its bytes cost in any other body.
    """

    __slots__ = ("_room", "fault")

    def __init__(self) -> None:
        self.fault: DecodeError | None = None
        """The fault that was met: nothing more can be read."""
        self._room = _FREE_STEPS * _BYTES_PER_STEP

    def read(self, steps: Iterable[Frame], size: int = 0) -> list[Frame]:
        """The frames of ``steps``, which ``size`` bytes more are read in.

        Raises their DecodeError at once if there are no frames, else at the next call.
        """
        if self.fault is not None:
            raise self.fault
        frames: list[Frame] = []
        self._room += size
        try:
            frames.extend(steps)
            self.spend(len(frames))
        except DecodeError as fault:
            self.fault = fault
            if not frames:
                raise
        return frames

    def spend(self, steps: int) -> None:
        """Count ``steps`` more; raises DecodeError where the body has far too many of them for its size."""
        self._room -= steps * _BYTES_PER_STEP
        if self._room < 0:
            raise DecodeError("The upstream's response is in too many pieces for its size")


def decode_object(data: bytes | bytearray) -> dict[str, Any]:
    """The JSON object that ``data`` is; raises DecodeError for anything else, invalid UTF-8 included."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DecodeError(f"The upstream sent invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DecodeError("The upstream sent JSON that is not an object")
    return value


def check_frame_size(size: int, limit: int) -> None:
    """Raise DecodeError for a frame, whole or not yet, of more than ``limit`` bytes."""
    if size > limit:
        raise DecodeError(f"The upstream sent a frame of more than {limit} bytes")
