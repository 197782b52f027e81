"""HTTP as bytes over a socket of its own: what no HTTP library would send."""

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True)
class RawAnswer:
    """An answer as it came."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def closing(self) -> bool:
        """Whether the server says that it closes the connection."""
        return b"connection: close" in self.header_lines or self.head.startswith(b"HTTP/1.0")

    @property
    def header_lines(self) -> list[bytes]:
        return self.head.lower().split(b"\r\n")

    @property
    def error(self) -> Any:
        """The Google error in the body; fails where it is none, or is not labeled so."""
        assert b"content-type: application/json; charset=utf-8" in self.header_lines
        error = orjson.loads(self.body)["error"]
        assert error["code"] == self.status
        assert isinstance(error["message"], str) and error["status"].isupper()
        return error


class RawConnection:
    """One TCP connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> "RawConnection":
        host, port = url.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, seconds: float = 15.0) -> RawAnswer:
        """The next answer, which has to have a length."""
        async with asyncio.timeout(seconds):
            head = await self._reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await self._reader.readexactly(int(lengths[0].partition(b":")[2]))
        return RawAnswer(head, body)

    async def ended(self, seconds: float = 15.0) -> bool:
        """True when the server closes the connection without another byte."""
        async with asyncio.timeout(seconds):
            return await self._reader.read() == b""

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def exchange(url: str, data: bytes) -> RawAnswer:
    """Send ``data`` over a connection of its own; the answer to it."""
    connection = await RawConnection.open(url)
    try:
        await connection.send(data)
        return await connection.answer()
    finally:
        await connection.close()


def post_bytes(path: str, *headers: bytes, body: bytes = b"", key: bytes | None = b"AIzaTestKey") -> bytes:
    """A POST whose body has a length, unless a header says that it comes in chunks."""
    lines = [b"POST " + path.encode() + b" HTTP/1.1", b"host: localhost"]
    lines += [b"x-goog-api-key: " + key] if key else []
    if not any(header.lower().startswith((b"content-length", b"transfer-encoding")) for header in headers):
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, *headers]) + b"\r\n\r\n" + body
