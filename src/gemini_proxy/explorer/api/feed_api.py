"""Serve the API's route for exchanges as they happen, in Server-Sent Events, to the live view and ``tail``."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound, ProxyError
from gemini_proxy.explorer.api.endpoints import ApiCall, identified
from gemini_proxy.explorer.app_keys import DATASETS, FEED
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.feed import MAX_REPLAYED
from gemini_proxy.traces.feed_events import Interest

RECHECK: Final = 5.0
"""Seconds after which a watcher's key or session is checked again: once revoked, it ends the stream."""
STALLED: Final = 60.0
"""Seconds for which a watcher may read nothing, as for nginx: one that sleeps comes back and gets the rest."""
_LONGEST_NUMBER: Final = 18
_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
    "x-content-type-options": "nosniff",
}


async def stream_feed(call: ApiCall) -> web.StreamResponse:
    """Stream the caller's exchanges as they end.

    The header ``Last-Event-ID`` takes precedence over ``after`` and ``last``. 404 for a dataset that does not exist;
    503 if there are too many watchers or the database does not answer.
    """
    interest, after, last = await _asked(call)
    async with contextlib.aclosing(call.app[FEED].watch(interest, after=after, last=last)) as chunks:
        # Before the first byte: errors raised here still become error responses.
        first = await anext(chunks)
        return await _stream(call.request, call.user, first, chunks)


async def _asked(call: ApiCall) -> tuple[Interest, int | None, int]:
    """Return what to watch, the event to begin after, and how many past exchanges to begin with.

    Raise BadRequest and NotFound.
    """
    query = call.request.query
    dataset = query.get("dataset") or None
    if dataset is not None and await call.app[DATASETS].get(call.user, dataset) is None:
        raise NotFound("Dataset not found")
    after = call.request.headers.get("last-event-id") or query.get("after") or None
    last = min(_number("last", query.get("last") or "0"), MAX_REPLAYED)
    interest = Interest(call.user, dataset, query.get("refused", "0") not in ("", "0", "false"))
    return interest, None if after is None else _number("after", after), last


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER):
        raise BadRequest(f"{name} must be a number from 0")
    return int(text)


async def _stream(
    request: web.Request, user: str, first: bytes, chunks: AsyncGenerator[bytes, None]
) -> web.StreamResponse:
    """Write chunks until the feed ends, or the watcher leaves, stops reading or may watch no longer."""
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
    """Write a chunk. Raise ConnectionError if the watcher has gone, or has read nothing for ``STALLED`` seconds."""
    try:
        async with asyncio.timeout(STALLED):
            await response.write(chunk)
    except TimeoutError:
        # No further bytes would arrive, not even the end.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionError("the watcher has stopped reading") from None


async def _may_still_watch(request: web.Request, user: str) -> bool:
    """Return whether the key or session is still valid; False if that cannot be found out."""
    try:
        return (await identified(request)).user == user
    except (ProxyError, StoreError):
        return False
