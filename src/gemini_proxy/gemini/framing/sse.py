"""Frame the bodies of ``alt=sse``, by the event stream format of the WHATWG HTML standard, section 9.2.

Google ends a stream that fails on its side with a bare JSON object. The standard has no such form; it is read too.
"""

import re
from collections.abc import Iterator
from typing import Any

import orjson

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.framing.frames import MAX_FRAME_BYTES, Frame, FrameReader, check_frame_size, decode_object
from gemini_proxy.gemini.framing.json_scan import ObjectScanner

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = re.compile(rb"[ \t\r\n]+")
_BRACE, _LF, _CR = b"{\n\r"
_PLAIN_END = b"\r\n\r\n"
# Clients may show or run the value of a field that the standard says to ignore, so unknown fields are refused.
_OTHER_FIELDS = frozenset((b"", b"event", b"id", b"retry"))


class SseFraming:
    """Make a frame of each event, its blank line included, and of each bare JSON object.

    Line ends are CRLF, LF or CR in any mix. An event that ends in CR is complete without waiting for an LF behind
    it; that LF, further blank lines and the byte order mark come as frames of their own, without payload. ``data``
    must be a JSON object, or nothing, or ``[DONE]``. The last event needs no blank line.

    Raises DecodeError for a line that is neither a known field nor a comment nor JSON, and for invalid JSON.
    """

    __slots__ = ("_held", "_limit", "_line_begun", "_lines", "_marked", "_object", "_reader")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit = max_frame_bytes
        self._reader = FrameReader()
        self._held = bytearray()  # the frame being read, from its first byte
        self._lines: _EventLines | None = None
        self._object: ObjectScanner | None = None
        self._marked = False  # the byte order mark was read, or is known to be missing
        self._line_begun = False  # blanks or an object stand before this on the same line: no field may follow

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes. Raises DecodeError for what cannot be read."""
        if data.endswith(_PLAIN_END) and not self._held and (frames := self._plain(data)) is not None:
            return self._reader.take(frames, len(data))
        return self._reader.read(self._frames(data), len(data))

    def _plain(self, data: bytes) -> list[Frame] | None:
        """Return the frames of whole events with one data line each, None for any other bytes. Nearly all events have
        this form.

        Faults are left to the general reader, which finds them again after the frames before them.
        """
        if not self._marked or self._line_begun or self._reader.fault is not None or len(data) > self._limit:
            return None
        frames: list[Frame] = []
        start = 0
        while data.startswith(b"data:", start):
            line_end = data.find(b"\r", start)
            if data.find(b"\n", start) != line_end + 1 or not data.startswith(_PLAIN_END, line_end):
                return None
            end = line_end + len(_PLAIN_END)
            try:
                payload = orjson.loads(data[start + 5 : line_end])
            except orjson.JSONDecodeError:
                return None
            if type(payload) is not dict:
                return None
            frames.append(Frame(data[start:end], payload))
            start = end
        return frames if start == len(data) else None

    def end(self) -> list[Frame]:
        """Return the frame of an event without its blank line. Raises DecodeError for any other remainder."""
        return self._reader.read(self._rest())

    def _rest(self) -> Iterator[Frame]:
        if self._object is not None:
            raise DecodeError("The upstream's stream ended inside a JSON object")
        if self._held:
            lines = self._lines or _EventLines(self._reader)
            lines.take_line(self._held, 0, len(self._held))
            yield Frame(bytes(self._held), lines.payload())

    def _frames(self, data: bytes) -> Iterator[Frame]:
        source: bytes | bytearray = data
        if self._held:
            self._held += data
            source = self._held
        start = 0 if self._marked else self._read_mark(source)
        if start:
            yield Frame(_BYTE_ORDER_MARK, None)
        line_ends = _LineEnds(source, start)
        while self._marked and start < len(source):
            frame = self._next(source, start, line_ends)
            if frame is None:
                break
            yield frame
            start += len(frame.raw)
        self._keep(source, start)

    def _keep(self, source: bytes | bytearray, start: int) -> None:
        if source is self._held:
            del self._held[:start]
        else:
            self._held += memoryview(source)[start:]
        check_frame_size(len(self._held), self._limit)

    def _read_mark(self, source: bytes | bytearray) -> int:
        head = source[: len(_BYTE_ORDER_MARK)]
        self._marked = len(head) == len(_BYTE_ORDER_MARK) or not _BYTE_ORDER_MARK.startswith(head)
        return len(head) if head == _BYTE_ORDER_MARK else 0

    def _next(self, source: bytes | bytearray, start: int, line_ends: "_LineEnds") -> Frame | None:
        """Return the frame that begins at ``start``, None if it is not complete."""
        if self._lines is None and self._object is None:
            if source.startswith(b"data:", start) and not self._line_begun:
                frame = self._single_line(source, start, line_ends)
                if frame is not None:
                    return frame
            elif blanks := _BLANKS.match(source, start):
                return self._blanks(blanks[0])
            elif source[start] == _BRACE:
                self._object = ObjectScanner()
            elif self._line_begun:
                raise DecodeError("The upstream's event stream has a line that is not JSON throughout")
        if self._object is not None:
            return self._bare_object(source, start, self._object)
        return self._event(source, start, line_ends)

    def _single_line(self, source: bytes | bytearray, start: int, line_ends: "_LineEnds") -> Frame | None:
        """Return an event of one data line, None for any other. Nearly all are such."""
        line_end = line_ends.first(start)
        if source.startswith(b"\r\n\r\n", line_end):
            end = line_end + 4
        elif source.startswith(b"\n\n", line_end):
            end = line_end + 2
        else:
            return None
        check_frame_size(end - start, self._limit)
        return Frame(bytes(source[start:end]), _payload(source[start + 5 : line_end]))

    def _blanks(self, raw: bytes) -> Frame:
        self._line_begun = raw[-1] not in (_LF, _CR)
        return Frame(bytes(raw), None)

    def _bare_object(self, source: bytes | bytearray, start: int, scanner: ObjectScanner) -> Frame | None:
        end = scanner.find_end(source, start)
        if end == -1:
            return None
        check_frame_size(end - start, self._limit)
        self._object = None
        self._line_begun = True
        raw = bytes(source[start:end])
        return Frame(raw, decode_object(raw))

    def _event(self, source: bytes | bytearray, start: int, line_ends: "_LineEnds") -> Frame | None:
        if self._lines is None:
            self._lines = _EventLines(self._reader)
        end = self._lines.find_end(source, start, line_ends)
        if end == -1:
            return None
        check_frame_size(end - start, self._limit)
        frame = Frame(bytes(source[start:end]), self._lines.payload())
        self._lines = None
        return frame


class _LineEnds:
    """Find line ends in one piece of bytes, looking at each byte at most twice."""

    __slots__ = ("_line_feed", "_source")

    def __init__(self, source: bytes | bytearray, start: int) -> None:
        self._source = source
        self._line_feed = start - 1

    def first(self, at: int) -> int:
        """Return the index of the first CR or LF from ``at`` on, or the length of the source."""
        if self._line_feed < at:
            found = self._source.find(b"\n", at)
            self._line_feed = len(self._source) if found == -1 else found
        found = self._source.find(b"\r", at, self._line_feed)
        return self._line_feed if found == -1 else found


class _EventLines:
    """Read the lines of one event as they come. Offsets count from the event's first byte."""

    __slots__ = ("_after_cr", "_data", "_line", "_reader", "_searched")

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        self._data = bytearray()  # the data lines so far, each with a line feed behind it
        self._line = 0
        self._searched = 0
        self._after_cr = False

    def find_end(self, source: bytes | bytearray, start: int, line_ends: _LineEnds) -> int:
        """Return the index behind the blank line that ends the event at ``start``, -1 if there is none yet."""
        while (at := start + self._searched) < len(source):
            if self._after_cr and source[at] == _LF:
                self._line += 1
                at += 1
            self._after_cr = False
            line_end = line_ends.first(at)
            self._searched = line_end - start
            if line_end == len(source):
                break
            if self._line == self._searched:
                return line_end + (2 if source.startswith(b"\r\n", line_end) else 1)
            self.take_line(source, start, line_end)
            self._line = self._searched = line_end + 1 - start
            self._after_cr = source[line_end] == _CR
        return -1

    def take_line(self, source: bytes | bytearray, start: int, line_end: int) -> None:
        """Read the line up to ``line_end``. Raises DecodeError for no field of the standard, and for too many lines."""
        self._reader.spend(1)
        name, _, value = bytes(source[start + self._line : line_end]).partition(b":")
        if name == b"data":
            self._data += value.removeprefix(b" ")
            self._data += b"\n"
        elif name not in _OTHER_FIELDS:
            raise DecodeError("The upstream's event stream has a line that is neither a field nor JSON")

    def payload(self) -> dict[str, Any] | None:
        """Read the data lines, joined as the standard says."""
        return _payload(self._data[:-1])


def _payload(data: bytes | bytearray) -> dict[str, Any] | None:
    try:
        return decode_object(data)
    except DecodeError:
        if data.strip() in (b"", b"[DONE]"):
            return None
        raise
