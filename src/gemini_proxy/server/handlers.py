"""Relay calls upstream and their responses back, chunk by chunk through the pipeline. Knows nothing of rules."""

import asyncio
import time
from functools import partial
from typing import Final

from aiohttp import web

from gemini_proxy.gemini.doors import Method
from gemini_proxy.gemini.upstream_fault import fault_in
from gemini_proxy.proxy.credentials import goes_as_bearer
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.made_objects import made_by
from gemini_proxy.proxy.upstream import UpstreamResponse, upstream_headers
from gemini_proxy.server.app_keys import CALL, CONFIG, CREDENTIALS, EXCHANGE, MEMORY, PIPELINE, TASKS
from gemini_proxy.server.exchanges import upstream_of
from gemini_proxy.server.kept_calls import relay_kept, relay_results
from gemini_proxy.server.live import serve_session
from gemini_proxy.server.uploads import take_upload

_MAKING: Final = frozenset({Method.CREATE_CACHED_CONTENT, Method.BATCH_GENERATE, Method.BATCH_EMBED_LATER})
"""Methods whose response says the name of what was made."""


async def relay(request: web.Request) -> web.StreamResponse:
    """Relay a call that the allow-list let through."""
    exchange: Exchange | None = request.get(EXCHANGE)
    if exchange is None:
        row = request[CALL].row
        if row.transport == "websocket":
            return await serve_session(request)
        if row.transport == "upload":
            return await take_upload(request)
        if row.method is Method.GET_BATCH:
            return await relay_results(request)
        return await (relay_kept(request) if row.kept else _relay_bare(request))
    pipeline = request[PIPELINE]
    upstream = await _call(request, exchange)
    try:
        exchange.upstream_status = upstream.status
        if exchange.call.generates and upstream.status < 400:
            pipeline.open(exchange, upstream)
            while (data := await upstream.flow(partial(pipeline.pass_on, exchange))) is not None:
                if leaving := await pipeline.feed(exchange, data):
                    await pipeline.send(exchange, leaving)
                # None of these are kept while the stream is silent.
                data = leaving = b""
        else:
            body = await upstream.read(_most_bytes(request))
            if upstream.status >= 400:
                exchange.upstream_error = fault_in(body)
            elif exchange.call.method in _MAKING:
                exchange.made += made_by(exchange.call, body)
                body = pipeline.restored(exchange, body)
            await pipeline.answer(exchange, upstream, body)
    finally:
        upstream.close()
        request.app[MEMORY].freed(upstream.received)
    return exchange.response.http


async def _call(request: web.Request, exchange: Exchange) -> UpstreamResponse:
    """Call the upstream; a request check under way beside it ends the call as soon as it refuses."""
    body = exchange.body if exchange.body or exchange.call.http_method == "POST" else None
    opening = upstream_of(request, exchange.call).open(
        exchange.call.http_method, exchange.call.upstream_target, exchange.headers, body
    )
    if exchange.request_check is None:
        upstream = await opening
    else:
        call = request.app[TASKS].beside(opening, "upstream call")
        try:
            await asyncio.wait({call, exchange.request_check}, return_when=asyncio.FIRST_COMPLETED)
            if exchange.request_check.done():
                await request[PIPELINE].admit(exchange)
            upstream = await call
        except BaseException:
            _abandon(call)
            raise
    exchange.head_at = time.perf_counter()
    # The upstream has the body; the response may take minutes.
    exchange.body = b""
    return upstream


def _abandon(call: "asyncio.Task[UpstreamResponse]") -> None:
    if not call.cancel() and not call.cancelled() and call.exception() is None:
        call.result().close()


async def _relay_bare(request: web.Request) -> web.StreamResponse:
    """Relay a call with nothing of a user's in it, such as ``GET models``."""
    call, extra = request[CALL], request.app[CONFIG].upstream.forward_headers
    given = request[CREDENTIALS]
    headers = upstream_headers(request.headers, given.gemini or "", extra, bearer=goes_as_bearer(given, call))
    upstream = await upstream_of(request, call).open(call.http_method, call.upstream_target, headers, None)
    try:
        body = await upstream.read(_most_bytes(request))
        return web.Response(status=upstream.status, headers=upstream.headers, body=body)
    finally:
        upstream.close()


def _most_bytes(request: web.Request) -> int:
    return request.app[CONFIG].upstream.max_answer_bytes
