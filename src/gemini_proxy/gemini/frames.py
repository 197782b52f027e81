"""What a framing makes of an upstream body: frames, whose bytes joined in order are the body."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import orjson

from gemini_proxy.errors import DecodeError

# An inline image of 20 MB is 27 MB of base64 and an event may hold two; beyond that a frame only fills the memory.
MAX_FRAME_BYTES = 64 * 1024 * 1024


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
    """Runs a framing's steps, so that frames read before a fault are not lost with it."""

    __slots__ = ("_fault",)

    def __init__(self) -> None:
        self._fault: DecodeError | None = None

    @property
    def broken(self) -> bool:
        """Whether a fault was met: nothing more can be read."""
        return self._fault is not None

    def read(self, steps: Iterator[Frame]) -> list[Frame]:
        """The frames of ``steps``; raises its DecodeError at once if there are none, else at the next call."""
        if self._fault is not None:
            raise self._fault
        frames: list[Frame] = []
        try:
            frames.extend(steps)
        except DecodeError as fault:
            self._fault = fault
            if not frames:
                raise
        return frames


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
