"""Define the frames into which a framing cuts an upstream body: their bytes, joined in order, are the body."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import orjson

from gemini_proxy.errors import DecodeError

# An inline image of 20 MB is 27 MB of base64, and an event may hold two. A larger frame would only fill the memory.
MAX_FRAME_BYTES = 64 * 1024 * 1024
_BYTES_PER_STEP: Final = 128
"""Bytes that pay for a step, which is a frame or a line of one and takes some 10 microseconds however short it is. A
model's events are longer than this, or few."""
_FREE_STEPS: Final = 50_000
"""Steps that no bytes have to pay for: half a second of work."""


class Frame(NamedTuple):
    """A piece of an upstream body that is passed on or withheld as a whole.

    ``raw`` has every byte from the end of the frame before it to its own end. ``payload`` is the JSON object in it,
    None if it holds none (separators, comments, brackets, blank lines).
    """

    raw: bytes
    payload: Mapping[str, Any] | None


class Framing(Protocol):
    """Cut a body that arrives in pieces into frames, at a cost linear in its length.

    Both methods raise DecodeError for bytes that cannot be read. Frames before a fault are not lost: a call that finds
    good frames and then a fault returns the frames, and the next call raises. After a fault a framing reads nothing
    more.
    """

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes."""
        ...

    def end(self) -> list[Frame]:
        """Return the frames in the remaining bytes. To be called once, when the body has ended."""
        ...


class FrameReader:
    """Run the steps of a framing so that no frame is lost with a fault, and a body takes time in line with its size.

    A flood of comments, blank lines or empty events would cost a hundred times what as many bytes cost otherwise.
    """

    __slots__ = ("_room", "fault")

    def __init__(self) -> None:
        self.fault: DecodeError | None = None
        """The fault after which nothing more can be read; None before one."""
        self._room = _FREE_STEPS * _BYTES_PER_STEP

    def read(self, steps: Iterable[Frame], size: int = 0) -> list[Frame]:
        """Return the frames of ``steps``, which read ``size`` more bytes.

        A DecodeError of the steps is raised at once if there are no frames, else by the next call.
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

    def take(self, frames: list[Frame], size: int) -> list[Frame]:
        """Return ``frames``, made from ``size`` more bytes without a fault."""
        self._room += size
        try:
            self.spend(len(frames))
        except DecodeError as fault:
            self.fault = fault
        return frames

    def spend(self, steps: int) -> None:
        """Count ``steps`` more. Raises DecodeError if the body has far too many for its size."""
        self._room -= steps * _BYTES_PER_STEP
        if self._room < 0:
            raise DecodeError("The upstream's response is in too many pieces for its size")


def decode_object(data: bytes | bytearray) -> dict[str, Any]:
    """Read the JSON object that ``data`` is. Raises DecodeError for anything else, such as invalid UTF-8."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DecodeError(f"The upstream sent invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DecodeError("The upstream sent JSON that is not an object")
    return value


def check_frame_size(size: int, limit: int) -> None:
    """Raise DecodeError if a frame, complete or not, has more than ``limit`` bytes."""
    if size > limit:
        raise DecodeError(f"The upstream sent a frame of more than {limit} bytes")
