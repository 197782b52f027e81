"""Reads a request body in bounded time and memory: identity or gzip, JSON in UTF-8 and nothing else."""

import asyncio
import zlib
from email.message import Message as HeaderParser

from aiohttp import web

from gemini_proxy.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

_INFLATE_STEP = 262_144
"""Bytes inflated before the loop gets its turn: well under a millisecond."""


async def read_body(request: web.Request, limit: int, timeout: float) -> bytes:
    """The body without its content encoding, of at most ``limit`` bytes before and after decompression.

    Raises PayloadTooLarge, UnsupportedMediaType for other encodings, types and charsets, BadRequest for gzip that is
    truncated, corrupt or goes on after its end, and for a body that is not there within ``timeout`` seconds.
    """
    _check_type(request)
    encoding = _encoding(request)
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(timeout):
            raw = await _read(request, limit)
            return raw if encoding == "identity" else await _gunzip(raw, limit)
    except TimeoutError:
        raise BadRequest(f"The request body did not arrive within {timeout:g} seconds.") from None
    except web.HTTPException:
        raise BadRequest("The request body cannot be read.") from None


def _check_type(request: web.Request) -> None:
    given = request.headers.getall("content-type", ())
    if len(given) > 1:
        raise BadRequest("The header Content-Type is given more than once.")
    if not given or given[0] == "application/json":
        return
    parsed = HeaderParser()
    parsed["content-type"] = given[0]
    charset = str(parsed.get_param("charset", "utf-8")).lower()
    if parsed.get_content_type() != "application/json":
        raise UnsupportedMediaType("The request body must be application/json.")
    if charset not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("The request body must be in UTF-8.")


def _encoding(request: web.Request) -> str:
    given = request.headers.getall("content-encoding", ())
    encoding = ",".join(given).strip().lower() or "identity"
    if encoding not in ("identity", "gzip"):
        raise UnsupportedMediaType("Content-Encoding may be gzip or identity.")
    return encoding


async def _read(request: web.Request, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while data := await request.content.readany():
        pieces.append(data)
        size += len(data)
        if size > limit:
            raise _too_large(limit)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _gunzip(raw: bytes, limit: int) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    pieces: list[bytes] = []
    size = 0
    while raw and not inflate.eof:
        try:
            piece = inflate.decompress(raw, _INFLATE_STEP)
        except zlib.error:
            raise BadRequest("The gzip body is corrupt.") from None
        raw = inflate.unconsumed_tail
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        await asyncio.sleep(0)
    if not inflate.eof:
        raise BadRequest("The gzip body is truncated.")
    if inflate.unused_data:
        raise BadRequest("The gzip body goes on after its end.")
    return b"".join(pieces)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is over the limit of {limit} bytes.")
