"""Reads what a request brings, and the JSON object in it, in bounded time and memory."""

import asyncio
from typing import Any, Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from gemini_proxy.explorer.keys import SERVER
from gemini_proxy.gemini import strict_json
from gemini_proxy.gemini.strict_json import read_object
from gemini_proxy.http.memory_budget import BRIEF, HOLDINGS

MAX_DEPTH: Final = strict_json.MAX_DEPTH + 16
"""The messages made of the deepest model call, within a call of the API, and room to spare."""
MAX_CONTAINERS: Final = 500_000
"""Objects and lists of a request's JSON: nothing else happens while they are made, for a few hundred milliseconds."""
MAX_VALUES: Final = 3_000_000
"""Members of them; the same. Both are counted in texts as well, where millions do not occur."""
_BRIEF: Final = 65_536
"""Bytes of JSON that are read in well under a millisecond, whatever they hold."""
_LARGE: Final = 4_194_304
"""Bytes that take some milliseconds to be copied."""


async def read_json(request: web.Request) -> dict[str, Any]:
    """The request's JSON object, whatever content type it claims to have.

    Raises PayloadTooLarge, UnsupportedMediaType for a content encoding, and BadRequest for what does not arrive in time
    or is not one JSON object in UTF-8 that reads the same everywhere.
    """
    body = await read_bytes(request, request.app[SERVER].max_request_bytes)
    if not body.strip():
        raise BadRequest("Request should not be empty")
    if body.count(b"{") + body.count(b"[") > MAX_CONTAINERS or body.count(b",") > MAX_VALUES:
        raise BadRequest("The request holds too many values.")
    if len(body) <= _BRIEF:
        return read_object(body, MAX_DEPTH)
    # A thread gives the loop its turn while a large body is walked through.
    return await asyncio.to_thread(read_object, body, MAX_DEPTH)


async def read_bytes(request: web.Request, limit: int) -> bytes:
    """The body as it was sent, of at most ``limit`` bytes.

    Raises PayloadTooLarge, UnsupportedMediaType for a content encoding, BadRequest for what does not arrive in time.
    """
    seconds = request.app[SERVER].request_timeout
    encoding = ",".join(request.headers.getall("content-encoding", ())).strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType("Content-Encoding may only be identity.")
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            return await read_pieces(request, limit)
    except TimeoutError:
        raise BadRequest(f"The request body did not arrive within {seconds:g} seconds.") from None
    except (web.HTTPException, web.RequestPayloadError):
        raise BadRequest("The request body cannot be read.") from None


async def read_pieces(request: web.Request, limit: int) -> bytes:
    """What is left of the body, as it comes.

    Raises PayloadTooLarge once it is over ``limit`` bytes, Unavailable where the server holds too much of other bodies.
    """
    held = request.app[HOLDINGS]
    pieces: list[bytes] = []
    size = 0
    while data := await request.content.readany():
        pieces.append(data)
        size += len(data)
        if size > limit:
            raise too_large(limit)
        if size > BRIEF:
            held.take(request, len(data))
    return await joined(pieces, size)


async def joined(pieces: list[bytes], size: int) -> bytes:
    """The pieces of a body, ``size`` bytes, as one. A large one is made beside the loop, as it takes a while."""
    if len(pieces) == 1:
        return pieces[0]
    # From a megabyte on this leaves the interpreter to others.
    return b"".join(pieces) if size < _LARGE else await asyncio.to_thread(b"".join, pieces)


def too_large(limit: int) -> PayloadTooLarge:
    """The error for a body over ``limit`` bytes."""
    return PayloadTooLarge(f"The request body is over the limit of {limit} bytes.")
