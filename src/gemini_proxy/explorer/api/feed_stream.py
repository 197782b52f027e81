"""``GET /api/v1/feed``: exchanges as they happen, in Server-Sent Events, for the live view and ``tail``."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound, ProxyError
from gemini_proxy.explorer.api.endpoints import Call, identified, with_errors
from gemini_proxy.explorer.app_keys import DATASETS, FEED
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.feed import MAX_REPLAYED
from gemini_proxy.traces.feed_events import Interest

RECHECK: Final = 5.0
"""Seconds for which a watcher's key or session is believed: revoked, it ends what it had begun."""
STALLED: Final = 60.0
"""Seconds for which a watcher may take in nothing, as for nginx: one that sleeps comes back and is told the rest."""
_LONGEST_NUMBER: Final = 18
_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
    "x-content-type-options": "nosniff",
}


@with_errors
async def feed(request: web.Request) -> web.StreamResponse:
    """Exchanges of the caller.

    Query: ``dataset`` (a name), ``refused`` (any value but 0: only those), and where to begin: ``after`` an event's id,
    or with the ``last`` n exchanges; the header Last-Event-ID wins over both. 401 and 404 (no such dataset) are in the
    form of the API; 503 where too many watch or the database does not answer.
    """
    call = await identified(request)
    interest, after, last = await _asked(call)
    async with contextlib.aclosing(request.app[FEED].watch(interest, after=after, last=last)) as chunks:
        # Before the first byte: what is raised here is still an answer.
        first = await anext(chunks)
        return await _stream(request, call.user, first, chunks)


async def _asked(call: Call) -> tuple[Interest, int | None, int]:
    """What to watch, after which event, or from how many exchanges back. Raises BadRequest and NotFound."""
    query = call.request.query
    dataset = query.get("dataset") or None
    if dataset is not None and await call.app[DATASETS].get(call.user, dataset) is None:
        raise NotFound("Dataset not found")
    after = call.request.headers.get("last-event-id") or query.get("after") or None
    last = min(_number("last", query.get("last") or "0"), MAX_REPLAYED)
    interest = Interest(call.user, dataset, query.get("refused", "0") not in ("", "0", "false"))
    return interest, None if after is None else _number("after", after), last


def _number(name: str, given: str) -> int:
    if not (given.isascii() and given.isdecimal() and len(given) <= _LONGEST_NUMBER):
        raise BadRequest(f"{name} must be a number from 0")
    return int(given)


async def _stream(
    request: web.Request, user: str, first: bytes, chunks: AsyncGenerator[bytes, None]
) -> web.StreamResponse:
    """Write until the watcher leaves, takes in nothing, may watch no longer, or the feed ends."""
    response = web.StreamResponse(headers=_HEADERS)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await _write(request, response, first)
        recheck = loop.time() + RECHECK
        async for chunk in chunks:
            if loop.time() >= recheck:
                if not await _may_still_watch(request, user):
                    break
                recheck = loop.time() + RECHECK
            await _write(request, response, chunk)
    return response


async def _write(request: web.Request, response: web.StreamResponse, chunk: bytes) -> None:
    """Raises ConnectionError where the watcher has gone, or has stopped reading."""
    try:
        async with asyncio.timeout(STALLED):
            await response.write(chunk)
    except TimeoutError:
        # Nothing that is still written would arrive, not even the end.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionError("the watcher has stopped reading") from None


async def _may_still_watch(request: web.Request, user: str) -> bool:
    """Whether the key or session is still good; where that cannot be told, it is not."""
    try:
        return (await identified(request)).user == user
    except (ProxyError, StoreError):
        return False
