"""Reading HTTP/1.1 answers with as little work as is correct, so that measuring costs less than what is measured."""

import re

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class AnswerError(Exception):
    """The bytes are not an HTTP answer of a kind this reader knows."""


class AnswerReader:
    """One answer: its status, and its body piece by piece, by length or chunked (RFC 9112, sections 6 and 7)."""

    __slots__ = ("_buffer", "_chunked", "_left", "_trailing", "ended", "status")

    def __init__(self) -> None:
        self.status = 0
        self.ended = False
        self._buffer = b""
        self._chunked = False
        self._left = 0
        self._trailing = False

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body in ``data``; ``status`` and ``ended`` follow. Raises AnswerError."""
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        if not self.status:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return b""
            self._read_head(data[:end])
            data = data[end + 4 :]
        return self._dechunk(data) if self._chunked else self._count(data)

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 "):
            raise AnswerError(f"not an HTTP/1.1 answer: {head[:40]!r}")
        self.status = int(head[9:12])
        if _CHUNKED.search(head):
            self._chunked = True
            return
        length = _LENGTH.search(head)
        if length is None:
            raise AnswerError("an answer without length")
        self._left = int(length[1])

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise AnswerError("more bytes than were announced")
        self.ended = not self._left
        return data

    def _dechunk(self, data: bytes) -> bytes:
        pieces = []
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                pieces.append(piece)
                self._trailing = not self._left
                continue
            start = at + 2 if self._trailing else at
            line_end = data.find(b"\r\n", start)
            size = int(data[start:line_end], 16) if line_end >= 0 else -1
            if size < 0 or (size == 0 and len(data) < line_end + 4):
                self._buffer = data[at:]
                break
            if size == 0:
                self.ended = True
                break
            self._left, self._trailing, at = size, False, line_end + 2
        return b"".join(pieces)
