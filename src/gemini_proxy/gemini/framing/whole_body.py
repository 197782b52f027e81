"""Frame the body of a unary response: one JSON object."""

from gemini_proxy.gemini.framing.frames import MAX_FRAME_BYTES, Frame, check_frame_size, decode_object


class WholeBodyFraming:
    """Make one frame at the end of the body, without payload if that is blank."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit = max_frame_bytes
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Return no frame yet. Raises DecodeError as soon as the body is over the limit."""
        self._size += len(data)
        if self._size > self._limit:
            self._pieces.clear()
        check_frame_size(self._size, self._limit)
        self._pieces.append(data)
        return []

    def end(self) -> list[Frame]:
        """Return the body's one frame. Raises DecodeError if it is not a JSON object, or over the limit."""
        check_frame_size(self._size, self._limit)
        body = b"".join(self._pieces)
        self._pieces.clear()
        return [Frame(body, decode_object(body) if body and not body.isspace() else None)]
