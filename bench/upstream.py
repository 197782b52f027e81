"""A scripted Gemini: answers by the model's name, on bare protocols so that it is never the slowest part.

``bench-unary`` answers with 1.45 kB of JSON, ``bench-refused`` that it knows no such key.
``bench-{events}x{interval_ms}`` streams as many SSE events of about 500 bytes, that far apart, each with the time of
its writing in its text. ``bench-silent`` sends one event and then nothing.
``python -m bench.upstream`` listens on a free port and prints it.
"""

import asyncio
import json
import re
import time
from typing import Final

_TARGET = re.compile(rb"POST \S*?/models/bench-(?:(unary)|(refused)|(silent)|(\d+)x(\d+)):")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PROSE = "The ferry leaves at seven and takes an hour and a half, so bring a coat and something to read on deck. "
_STAMP = "@STAMP@"
_JSON_HEAD: Final = "HTTP/1.1 {} \r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: {}\r\n\r\n"
_SSE_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_ADDRESS: Final = "127.0.0.1"


def _answer(text: str, finish: str | None) -> dict[str, object]:
    candidate: dict[str, object] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": 104, "candidatesTokenCount": 187, "totalTokenCount": 291}
    return {
        "candidates": [candidate],
        "usageMetadata": {**usage, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 104}]},
        "modelVersion": "bench-1",
        "responseId": "b3NjaWxsYXRl",
    }


def _unary() -> bytes:
    body = json.dumps(_answer((_PROSE * 12)[:1070], "STOP"), indent=2).encode()
    return _JSON_HEAD.format("200 OK", len(body)).encode() + body


def _refused() -> bytes:
    error = {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT"}
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
    body = json.dumps({"error": {**error, "details": details}}).encode()
    return _JSON_HEAD.format("400 Bad Request", len(body)).encode() + body


def _event(finish: str | None) -> tuple[bytes, bytes]:
    """An event as a chunk of its own, in two halves between which 20 digits of nanoseconds belong."""
    text = f"{_STAMP} " + (_PROSE * 3)[:195]
    event = f"data: {json.dumps(_answer(text, finish))}\r\n\r\n"
    before, after = event.split("STAMP")
    size = len(before) + 20 + len(after)
    return f"{size:x}\r\n{before}".encode(), f"{after}\r\n".encode()


_UNARY_ANSWER: Final = _unary()
_MIDDLE: Final = _event(None)
_LAST: Final = _event("STOP")
_END: Final = b"0\r\n\r\n"
_REFUSED: Final = _refused()
_UNKNOWN: Final = _JSON_HEAD.format("404 Not Found", 2).encode() + b"{}"


class Upstream(asyncio.Protocol):
    """One connection: reads requests, one at a time, and plays the script they name."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, end)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < size:
            return
        target = _TARGET.match(self._buffer)
        self._buffer = self._buffer[size:]
        self._play(target)

    def _play(self, target: "re.Match[bytes] | None") -> None:
        if target is None:
            self._transport.write(_UNKNOWN)
        elif target[1]:
            self._transport.write(_UNARY_ANSWER)
        elif target[2]:
            self._transport.write(_REFUSED)
        elif target[3]:
            self._transport.write(_SSE_HEAD + _stamped(_MIDDLE))
        else:
            self._events, self._interval = int(target[4]), int(target[5]) / 1000
            self._sent, self._begun = 0, self._loop.time()
            self._send(_SSE_HEAD)

    def _send(self, head: bytes = b"") -> None:
        """Write the next event and plan the one after it, by the clock of the stream's beginning."""
        self._sent += 1
        if self._sent == self._events:
            self._transport.write(head + _stamped(_LAST) + _END)
            return
        self._transport.write(head + _stamped(_MIDDLE))
        self._timer = self._loop.call_at(self._begun + self._sent * self._interval, self._send)


def _stamped(halves: tuple[bytes, bytes]) -> bytes:
    return b"%b%020d%b" % (halves[0], time.monotonic_ns(), halves[1])


async def serve() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    # A server made from host and port, not from a socket of ours: only then does asyncio set TCP_NODELAY.
    server = await loop.create_server(Upstream, _ADDRESS, 0, backlog=2048)
    print(f"listening on {_ADDRESS}:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
