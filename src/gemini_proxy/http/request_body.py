"""Read a request body in bounded time and memory."""

import asyncio
from typing import Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from gemini_proxy.http.memory_budget import MEMORY_BUDGET, SMALL

_LARGE: Final = 4_194_304
"""Bytes that take some milliseconds to be copied."""


async def read_bytes(request: web.Request, limit: int, seconds: float) -> bytes:
    """Return the body as it was sent, of at most ``limit`` bytes.

    Raise PayloadTooLarge, UnsupportedMediaType for a content encoding, BadRequest for a body that cannot be read or has
    not arrived within ``seconds``, and as ``read_pieces`` does.
    """
    encoding = ",".join(request.headers.getall("content-encoding", ())).strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType("Content-Encoding must be identity")
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            return await read_pieces(request, limit)
    except TimeoutError:
        raise BadRequest(f"The request body did not arrive within {seconds:g} seconds") from None
    except (web.HTTPException, web.RequestPayloadError):
        raise BadRequest("The request body cannot be read") from None


async def read_pieces(request: web.Request, limit: int) -> bytes:
    """Return the rest of the body as it arrives.

    Raise PayloadTooLarge once it is over ``limit`` bytes, Unavailable if it exceeds the memory budget.
    """
    budget = request.app[MEMORY_BUDGET]
    pieces: list[bytes] = []
    size = 0
    while data := await request.content.readany():
        pieces.append(data)
        size += len(data)
        if size > limit:
            raise too_large(limit)
        if size > SMALL:
            budget.reserve(request, len(data))
    return await joined(pieces, size)


async def joined(pieces: list[bytes], size: int) -> bytes:
    """Return the pieces of a body, ``size`` bytes, as one. A large one is joined in a thread, as it takes a while."""
    if len(pieces) == 1:
        return pieces[0]
    # From a megabyte on, joining releases the interpreter to other threads.
    return b"".join(pieces) if size < _LARGE else await asyncio.to_thread(b"".join, pieces)


def too_large(limit: int) -> PayloadTooLarge:
    """Return the error for a body over ``limit`` bytes."""
    return PayloadTooLarge(f"The request body is over the limit of {limit} bytes")
