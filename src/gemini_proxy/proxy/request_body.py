"""Reads a request body in bounded time and memory: identity or gzip, JSON in UTF-8 and nothing else."""

import asyncio
import re
import zlib

from aiohttp import web

from gemini_proxy.errors import BadRequest, UnsupportedMediaType
from gemini_proxy.http.memory_budget import MEMORY_BUDGET, SMALL
from gemini_proxy.http.request_body import joined, read_pieces, too_large

_UTF8 = re.compile(r"\s*(charset\s*=\s*(utf-?8|\"utf-?8\")\s*)?;?\s*")
"""The only parameter of the content type, once: whoever reads a second one reads another text."""
_INFLATE_STEP = 262_144
"""Bytes inflated before the loop gets its turn: well under a millisecond."""
_DEFLATED_STEP = 65_536
"""Bytes given to zlib at a time: it copies what it has not used yet at every step."""


async def read_body(request: web.Request, limit: int, seconds: float) -> bytes:
    """The body without its content encoding, of at most ``limit`` bytes before and after decompression.

    Raises PayloadTooLarge, UnsupportedMediaType for other encodings, types and charsets, BadRequest for gzip that is
    truncated, corrupt or goes on after its end, and for a body that is not there within ``seconds``. Raises Unavailable
    where the server holds too much of other bodies.
    """
    _check_type(request)
    encoding = _encoding(request)
    if request.content_length is not None and request.content_length > limit:
        raise too_large(limit)
    if encoding == "identity" and request.content.is_eof() and 0 < (request.content_length or 0) <= min(limit, SMALL):
        # All of it is here already, as it is for most requests: nothing to wait for.
        return request.content.read_nowait(-1)
    try:
        async with asyncio.timeout(seconds):
            raw = await read_pieces(request, limit)
            return raw if encoding == "identity" else await _gunzip(request, raw, limit)
    except TimeoutError:
        raise BadRequest(f"The request body did not arrive within {seconds:g} seconds.") from None
    except web.HTTPException:
        raise BadRequest("The request body cannot be read.") from None


def _check_type(request: web.Request) -> None:
    given = request.headers.getall("content-type", ())
    if len(given) > 1:
        raise BadRequest("The header Content-Type is given more than once.")
    if not given or given[0] == "application/json":
        return
    mime, _, parameters = given[0].lower().partition(";")
    if mime.strip() != "application/json":
        raise UnsupportedMediaType("The request body must be application/json.")
    if not _UTF8.fullmatch(parameters):
        raise UnsupportedMediaType("The request body must be in UTF-8.")


def _encoding(request: web.Request) -> str:
    given = request.headers.getall("content-encoding", ())
    encoding = ",".join(given).strip().lower() or "identity"
    if encoding not in ("identity", "gzip"):
        raise UnsupportedMediaType("Content-Encoding may be gzip or identity.")
    return encoding


async def _gunzip(request: web.Request, raw: bytes, limit: int) -> bytes:
    budget = request.app[MEMORY_BUDGET]
    inflate = zlib.decompressobj(wbits=31)
    pieces: list[bytes] = []
    size = start = 0
    while not inflate.eof:
        data = inflate.unconsumed_tail or raw[start : start + _DEFLATED_STEP]
        if not data:
            raise BadRequest("The gzip body is truncated.")
        if not inflate.unconsumed_tail:
            start += len(data)
        try:
            piece = inflate.decompress(data, _INFLATE_STEP)
        except zlib.error:
            raise BadRequest("The gzip body is corrupt.") from None
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise too_large(limit)
        if size > SMALL:
            budget.reserve(request, len(piece))
        await asyncio.sleep(0)
    if inflate.unused_data or start < len(raw):
        raise BadRequest("The gzip body goes on after its end.")
    return await joined(pieces, size)
