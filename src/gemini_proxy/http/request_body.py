"""Read request bodies in bounded time and memory, and check the type that they say they have.

Each has a limit, and the large ones are within one memory budget.
"""

import asyncio
import re
import zlib
from typing import Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, PayloadTooLarge, Unavailable, UnsupportedMediaType

SMALL: Final = 65_536
"""Bytes of a body that are not counted: they are read ahead of a connection anyway, and ``server.max_exchanges`` bounds
the connections. So a few large bodies keep other large ones out, and no small ones."""
_LARGE: Final = 4_194_304
"""Bytes that take some milliseconds to be copied."""
_UTF8: Final = re.compile(r"\s*(charset\s*=\s*(utf-?8|\"utf-?8\")\s*)?;?\s*")
"""The only allowed parameter of the content type, given once: a second one could change how the text is read."""
_INFLATE_STEP: Final = 262_144
"""Bytes inflated before the loop gets its turn: well under a millisecond."""
_DEFLATED_STEP: Final = 65_536
"""Bytes given to zlib at a time: it copies what it has not used yet at every step."""


async def read_body(request: web.Request, limit: int, seconds: float) -> bytes:
    """Return the body without its content encoding, of at most ``limit`` bytes before and after decompression.

    Raises PayloadTooLarge, UnsupportedMediaType for other encodings, and BadRequest for gzip that is truncated, corrupt
    or continues after its end, and for a body that does not arrive within ``seconds``. Raises Unavailable if the server
    holds too many bytes of other bodies.
    """
    encoding = _encoding(request)
    declared = request.content_length or 0
    if declared > limit:
        raise _too_large(limit)
    if encoding == "identity" and request.content.is_eof() and 0 < declared <= min(limit, SMALL):
        # All of it has arrived, as with most requests: nothing to wait for.
        return request.content.read_nowait(-1)
    try:
        async with asyncio.timeout(seconds):
            raw = await _read_pieces(request, limit)
            return raw if encoding == "identity" else await _gunzip(request, raw, limit)
    except TimeoutError:
        raise BadRequest(f"The request body did not arrive within {seconds:g} seconds") from None
    except web.HTTPException:
        raise BadRequest("The request body cannot be read") from None


async def read_bytes(request: web.Request, limit: int, seconds: float) -> bytes:
    """Return the body as it was sent, of at most ``limit`` bytes.

    Raise PayloadTooLarge, UnsupportedMediaType for a content encoding, BadRequest for a body that cannot be read or has
    not arrived within ``seconds``, and Unavailable if it exceeds the memory budget.
    """
    encoding = ",".join(request.headers.getall("content-encoding", ())).strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType("Content-Encoding must be identity")
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            return await _read_pieces(request, limit)
    except TimeoutError:
        raise BadRequest(f"The request body did not arrive within {seconds:g} seconds") from None
    except (web.HTTPException, web.RequestPayloadError):
        raise BadRequest("The request body cannot be read") from None


def check_type(request: web.Request) -> None:
    """Raise UnsupportedMediaType for a body that is not JSON in UTF-8, BadRequest for a repeated type."""
    given = request.headers.getall("content-type", ())
    if len(given) > 1:
        raise BadRequest("The header Content-Type is given more than once")
    if not given or given[0] == "application/json":
        return
    mime, _, parameters = given[0].lower().partition(";")
    if mime.strip() != "application/json":
        raise UnsupportedMediaType("The request body must be JSON: send the header Content-Type: application/json")
    if not _UTF8.fullmatch(parameters):
        raise UnsupportedMediaType("The request body must be in UTF-8")


async def _read_pieces(request: web.Request, limit: int) -> bytes:
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
            raise _too_large(limit)
        if size > SMALL:
            budget.reserve(request, len(data))
    return await _joined(pieces, size)


async def _joined(pieces: list[bytes], size: int) -> bytes:
    """Return the pieces of a body, ``size`` bytes, as one. A large one is joined in a thread, as it takes a while."""
    if len(pieces) == 1:
        return pieces[0]
    # From a megabyte on, joining releases the interpreter to other threads.
    return b"".join(pieces) if size < _LARGE else await asyncio.to_thread(b"".join, pieces)


def _too_large(limit: int) -> PayloadTooLarge:
    """Return the error for a body over ``limit`` bytes."""
    return PayloadTooLarge(f"The request body is over the limit of {limit} bytes")


def _encoding(request: web.Request) -> str:
    given = request.headers.getall("content-encoding", ())
    if not given:
        return "identity"
    encoding = ",".join(given).strip().lower() or "identity"
    if encoding not in ("identity", "gzip"):
        raise UnsupportedMediaType("Content-Encoding must be gzip or identity")
    return encoding


async def _gunzip(request: web.Request, raw: bytes, limit: int) -> bytes:
    budget = request.app[MEMORY_BUDGET]
    inflate = zlib.decompressobj(wbits=31)
    pieces: list[bytes] = []
    size = start = 0
    while not inflate.eof:
        data = inflate.unconsumed_tail or raw[start : start + _DEFLATED_STEP]
        if not data:
            raise BadRequest("The gzip body is truncated")
        if not inflate.unconsumed_tail:
            start += len(data)
        try:
            piece = inflate.decompress(data, _INFLATE_STEP)
        except zlib.error:
            raise BadRequest("The gzip body is corrupt") from None
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        if size > SMALL:
            budget.reserve(request, len(piece))
        await asyncio.sleep(0)
    if inflate.unused_data or start < len(raw):
        raise BadRequest("The gzip body goes on after its end")
    return await _joined(pieces, size)


class MemoryBudget:
    """Count the bytes of large bodies from their arrival until their requests have been answered.

    A single body may exceed ``limit``: another limit bounds what one request may bring.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    @property
    def used(self) -> int:
        """Return the bytes counted now."""
        return self._used

    def reserve(self, request: web.Request, size: int) -> None:
        """Count ``size`` more bytes for a request. Raise Unavailable if other requests leave no room for them."""
        own = request.get(_RESERVED, 0)
        if self._used > own and self._used + size > self._limit:
            raise Unavailable(
                "The server holds as many bytes of large requests as server.max_held_bytes allows; try again later"
            )
        self._used += size
        request[_RESERVED] = own + size

    def release(self, request: web.Request) -> int:
        """Uncount a request's bytes, once it has been answered. Return how many there were."""
        if not self._used:
            return 0
        reserved: int = request.get(_RESERVED, 0)
        self._used -= reserved
        return reserved


MEMORY_BUDGET = web.AppKey("MEMORY_BUDGET", MemoryBudget)
_RESERVED = web.RequestKey("RESERVED", int)
