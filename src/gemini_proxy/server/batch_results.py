"""Relays what has come of a batch: checked like the response of any other call, once there is one."""

import time

from aiohttp import web

from gemini_proxy.gemini.batches import has_output, results_request
from gemini_proxy.proxy.credentials import client_of
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.response import ClientResponse
from gemini_proxy.proxy.upstream import upstream_headers
from gemini_proxy.server.app_keys import ADDRESS, CALL, CONFIG, CREDENTIALS, MEMORY, OWNER, SETUPS, UPSTREAM
from gemini_proxy.server.exchanges import configured_key, run_exchange
from gemini_proxy.traces.handles import Kind


async def relay_results(request: web.Request) -> web.StreamResponse:
    """Relay how far a batch is; with what it has brought forth, it is an exchange of its requests and responses."""
    call, config, setup = request[CALL], request.app[CONFIG], request.app[SETUPS].current
    name = f"batches/{call.names['id']}"
    await setup.keeper.admit(setup.keeper.holder(request[CREDENTIALS], request[OWNER]), Kind.BATCH, name)
    headers = upstream_headers(request.headers, request[CREDENTIALS].gemini or "", config.upstream.forward_headers)
    upstream = await request.app[UPSTREAM].open(call.http_method, call.upstream_target, headers, None)
    try:
        answer = await upstream.read(config.upstream.max_answer_bytes)
    finally:
        upstream.close()
        request.app[MEMORY].freed(upstream.received)
    if upstream.status >= 400 or not has_output(answer):
        return web.Response(status=upstream.status, headers=upstream.headers, body=answer)
    client = client_of(request[CREDENTIALS], configured_key(request), request[ADDRESS])
    exchange = Exchange(call, request[CREDENTIALS], ClientResponse(request), request[OWNER], client)

    async def read() -> None:
        exchange.rules = await setup.reader.read_rules(exchange, request.headers)
        exchange.request = results_request(name)
        await setup.reader.follow_references(exchange)

    async def check() -> None:
        exchange.upstream_status = upstream.status
        exchange.head_at = time.perf_counter()
        setup.pipeline.open(exchange, upstream)
        await setup.pipeline.feed(exchange, answer)

    return await run_exchange(request, exchange, setup, read, check)
