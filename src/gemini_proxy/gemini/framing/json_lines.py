"""Frame JSONL: a JSON object a line."""

from collections.abc import Iterator

from gemini_proxy.gemini.framing.frames import MAX_FRAME_BYTES, Frame, FrameReader, check_frame_size, decode_object

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLinesFraming:
    """Make a frame of each line with its line feed, without payload if it is blank. The last line needs none."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit = max_frame_bytes
        self._reader = FrameReader()
        self._held = bytearray()
        self._begun = False

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames of the lines that ``data`` ends. Raises DecodeError if one is not a JSON object."""
        return self._reader.read(self._frames(data), len(data))

    def end(self) -> list[Frame]:
        """Return the frame of a last line without line feed. Raises DecodeError if it is not a JSON object."""
        return self._reader.read([self._line()] if self._held else [])

    def _frames(self, data: bytes) -> Iterator[Frame]:
        start = 0
        while end := data.find(b"\n", start) + 1:
            self._hold(data[start:end])
            yield self._line()
            start = end
        self._hold(data[start:])

    def _hold(self, data: bytes) -> None:
        self._held += data
        check_frame_size(len(self._held), self._limit)

    def _line(self) -> Frame:
        raw = bytes(self._held)
        self._held.clear()
        text = raw if self._begun else raw.removeprefix(_BYTE_ORDER_MARK)
        self._begun = True
        return Frame(raw, decode_object(text) if text and not text.isspace() else None)
