"""Frame streamed bodies without ``alt=sse``: one JSON array, written element by element."""

import re
from collections.abc import Iterator
from enum import Enum, auto

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.framing.frames import MAX_FRAME_BYTES, Frame, FrameReader, check_frame_size, decode_object
from gemini_proxy.gemini.framing.json_scan import ObjectScanner

_WHITE_SPACE = re.compile(rb"[ \t\r\n]*+")


class _Expects(Enum):
    BODY = auto()
    FIRST_ELEMENT = auto()
    ELEMENT = auto()
    SEPARATOR = auto()
    END = auto()


class JsonArrayFraming:
    """Make a frame of each element with the separators before it. ``end`` makes a last one of the closing bracket.

    A body that is a single JSON object (an error) is one frame.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit = max_frame_bytes
        self._reader = FrameReader()
        self._held = bytearray()  # from the end of the last frame
        self._scanned = 0  # how much of that is separators already read
        self._expects = _Expects.BODY
        self._object: ObjectScanner | None = None
        self._opened = False

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames of the elements that ``data`` completes. Raises DecodeError for anything but an array."""
        return self._reader.read(self._frames(data), len(data))

    def end(self) -> list[Frame]:
        """Return the frame of the closing bracket. Raises DecodeError if an array that has begun lacks it."""
        return self._reader.read(self._rest())

    def _rest(self) -> Iterator[Frame]:
        if self._object is not None or self._expects not in (_Expects.BODY, _Expects.END):
            raise DecodeError("The upstream's JSON array ended before its closing bracket")
        if self._held:
            yield Frame(bytes(self._held), None)

    def _frames(self, data: bytes) -> Iterator[Frame]:
        self._held += data
        source, start = self._held, 0
        while (end := self._find_end(source, start)) != -1:
            check_frame_size(end - start, self._limit)
            payload = decode_object(source[start + self._scanned : end])
            yield Frame(bytes(source[start:end]), payload)
            self._end_element()
            start = end
        del source[:start]
        check_frame_size(len(source), self._limit)

    def _find_end(self, source: bytearray, start: int) -> int:
        """Return the end of the frame at ``start``, -1 if it is not complete. ``_scanned`` is then at its object."""
        if self._object is None:
            at = self._read_separators(source, start + self._scanned)
            self._scanned = at - start
            if at == len(source):
                return -1
            self._object = ObjectScanner()
        return self._object.find_end(source, start + self._scanned)

    def _end_element(self) -> None:
        self._object = None
        self._scanned = 0
        self._expects = _Expects.SEPARATOR if self._opened else _Expects.END

    def _read_separators(self, source: bytearray, at: int) -> int:
        """Return the index of the next element's first byte, or the end of the source."""
        while True:
            match = _WHITE_SPACE.match(source, at)
            at = at if match is None else match.end()
            if at == len(source):
                return at
            byte = source[at : at + 1]
            if byte == b"{" and self._expects in (_Expects.BODY, _Expects.FIRST_ELEMENT, _Expects.ELEMENT):
                return at
            self._expects = self._after(byte)
            at += 1

    def _after(self, byte: bytearray) -> _Expects:
        if byte == b"[" and self._expects is _Expects.BODY:
            self._opened = True
            return _Expects.FIRST_ELEMENT
        if byte == b"," and self._expects is _Expects.SEPARATOR:
            return _Expects.ELEMENT
        if byte == b"]" and self._expects in (_Expects.FIRST_ELEMENT, _Expects.SEPARATOR):
            return _Expects.END
        raise DecodeError(f"The upstream's JSON array holds an unexpected byte {bytes(byte)!r}")
