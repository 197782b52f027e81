"""What a client gets of a stream whose bytes leave without waiting."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gemini_proxy.proxy.response import ClientResponse

PIECE = b"data: {}\n\n" * 300
MANY = 10_000
"""More pieces than sockets take in while nobody reads."""
MOST_HELD = 64 * 1024
"""Bytes that wait for a client at most: what asyncio takes in before it says that it is enough."""


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_nothing_is_written_without_waiting_once_the_client_falls_behind(version: str) -> None:
    """Until then it gets all, in chunks where it knows them, and afterwards the rest."""
    behind: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = ClientResponse(request)
        response.stream_head("text/event-stream")
        before = response.flows
        await response.write(b"first")
        assert not before
        pieces = 0
        while response.flows and pieces < MANY:
            response.write_now(PIECE)
            pieces += 1
        assert pieces < MANY
        assert request.transport is not None
        assert request.transport.get_write_buffer_size() <= MOST_HELD
        behind.set_result(pieces)
        await response.write(b"last")
        return await response.finish(b"")

    app = web.Application()
    app.router.add_get("/", stream)
    async with TestServer(app) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port, limit=1024)
        writer.write(f"GET / HTTP/{version}\r\nhost: x\r\n\r\n".encode())
        expected = b"first" + PIECE * await behind + b"last"
        await reader.readuntil(b"\r\n\r\n")
        assert await read_body(reader, chunked=version == "1.1") == expected
        writer.close()


async def read_body(reader: asyncio.StreamReader, *, chunked: bool) -> bytes:
    if not chunked:
        return await reader.read()
    pieces = []
    while size := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(size))
        assert await reader.readline() == b"\r\n"
    return b"".join(pieces)
