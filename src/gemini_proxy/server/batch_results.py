"""Relay the results of a batch, checked like the response of any other call, once there are any."""

import time
from typing import Final

from aiohttp import web

from gemini_proxy.gemini.batches import has_output, results_file, results_request
from gemini_proxy.proxy.exchange import Exchange, Made
from gemini_proxy.proxy.upstream import UpstreamResponse, upstream_headers
from gemini_proxy.server.app_keys import CALL, CONFIG, CREDENTIALS, MEMORY, OWNER, SETUPS, UPSTREAM
from gemini_proxy.server.exchanges import new_exchange, run_exchange
from gemini_proxy.server.reload import Setup
from gemini_proxy.traces.handles import Handle, Kind

_FILE_SECONDS: Final = 30 * 86_400.0
"""Seconds for which a results file is remembered: Google states no end."""
_RESULTS: Final = "results of a batch, which are read where they are downloaded"


async def relay_results(request: web.Request) -> web.StreamResponse:
    """Relay how far a batch is; with what it has brought forth, it is an exchange of its requests and responses."""
    call, config, setup = request[CALL], request.app[CONFIG], request.app[SETUPS].current
    name = f"batches/{call.names['id']}"
    await setup.keeper.admit(setup.keeper.holder(call, request[CREDENTIALS], request[OWNER]), Kind.BATCH, name)
    headers = upstream_headers(request.headers, request[CREDENTIALS].gemini or "", config.upstream.forward_headers)
    upstream = await request.app[UPSTREAM].open(call.http_method, call.upstream_target, headers, None)
    try:
        answer = await upstream.read(config.upstream.max_answer_bytes)
    finally:
        upstream.close()
        request.app[MEMORY].freed(upstream.received)
    if upstream.status >= 400 or not has_output(answer):
        return web.Response(status=upstream.status, headers=upstream.headers, body=answer)
    exchange = new_exchange(request)

    async def read() -> None:
        await _read(request, exchange, setup, name)

    async def check() -> None:
        exchange.upstream_status = upstream.status
        exchange.head_at = time.perf_counter()
        setup.pipeline.open(exchange, upstream)
        await setup.pipeline.feed(exchange, answer)
        if (file := results_file(answer)) is not None:
            exchange.made.append(_made(file, name, exchange))

    return await run_exchange(request, exchange, setup, read, check)


async def relay_result_file(
    request: web.Request, upstream: UpstreamResponse, first: bytes, handle: Handle | None
) -> web.StreamResponse:
    """Relay a file with the responses of a batch, one a line: all of it is checked before any of it leaves.

    ``first`` is the part of it that was read already. The handle names the batch.
    """
    setup, exchange = request.app[SETUPS].current, new_exchange(request)

    async def read() -> None:
        await _read(request, exchange, setup, handle.details.get("results_of") if handle else None)

    async def check() -> None:
        exchange.upstream_status = upstream.status
        exchange.head_at = time.perf_counter()
        setup.pipeline.open(exchange, upstream)
        data = first
        while data:
            if leaving := await setup.pipeline.feed(exchange, data):
                await setup.pipeline.send(exchange, leaving)
            data = await upstream.receive()

    try:
        return await run_exchange(request, exchange, setup, read, check)
    finally:
        request.app[MEMORY].freed(upstream.received)


async def _read(request: web.Request, exchange: Exchange, setup: Setup, batch: str | None) -> None:
    """Read the rules that hold for the responses of a batch, and what it was asked."""
    exchange.rules = await setup.reader.read_rules(exchange, request.headers)
    exchange.request = results_request(batch)
    await setup.reader.follow_references(exchange)


def _made(file: str, batch: str, exchange: Exchange) -> Made:
    """Return the file that responses are in, which is whose the batch is. It is read when it is downloaded."""
    return Made(Kind.FILE, file, exchange.created + _FILE_SECONDS, unchecked=_RESULTS, details={"results_of": batch})
