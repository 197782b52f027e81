"""Begin an exchange, take it through the pipeline, and remember what it made."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from gemini_proxy.config import Config
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.proxy.credentials import client_of
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.response import ClientResponse
from gemini_proxy.proxy.upstream import UpstreamClient
from gemini_proxy.server.app_keys import (
    ADDRESS,
    CALL,
    CONFIG,
    CREDENTIALS,
    EXCHANGE,
    OWNER,
    PIPELINE,
    STATE,
    TASKS,
    TELEMETRY,
    UPSTREAM,
    VERTEX,
)
from gemini_proxy.server.interactions import delete_refused
from gemini_proxy.server.reload import Setup
from gemini_proxy.traces.trace import Outcome


def operators_key(config: Config, call: ModelCall) -> str | None:
    """Return the key for clients that bring none: it is one for the Gemini API, and of no use elsewhere."""
    return configured_key(config) if call.host == "gemini" else None


def configured_key(config: Config) -> str | None:
    """Return the operator's own Gemini key."""
    key = config.upstream.api_key
    return key.get_secret_value() if key else None


def new_exchange(request: web.Request) -> Exchange:
    """Return an exchange for a request whose call and credentials have been read."""
    credentials = request[CREDENTIALS]
    client = client_of(credentials, configured_key(request.app[CONFIG]), request[ADDRESS])
    return Exchange(request[CALL], credentials, ClientResponse(request), request[OWNER], client)


def upstream_of(request: web.Request, call: ModelCall) -> UpstreamClient:
    """Return what a call goes to: the Gemini API, or Vertex AI at the location of its path."""
    return request.app[VERTEX].at(call.location) if call.host == "vertex" else request.app[UPSTREAM]


async def run_exchange(
    request: web.Request,
    exchange: Exchange,
    setup: Setup,
    read: Callable[[], Awaitable[object]],
    answer: Callable[[], Awaitable[object]],
) -> web.StreamResponse:
    """Take an exchange to its end: ``read`` fills it, ``answer`` calls the upstream. Return the client's response."""
    app, pipeline = request.app, setup.pipeline
    request[EXCHANGE], request[PIPELINE] = exchange, pipeline

    def give_up(outcome: Outcome) -> None:
        if not exchange.recorded:
            pipeline.give_up(exchange, outcome)
            if exchange.made:
                app[TASKS].spawn(setup.keeper.remember(exchange), "remember")

    await read()
    if (telemetry := app[TELEMETRY]) is not None:
        spans = exchange.spans = telemetry.begin(exchange, request)
        exchange.headers = {**exchange.headers, **spans.headers}
    try:
        last = await pipeline.run(exchange, answer)
        if exchange.made:
            await setup.keeper.remember(exchange)
            delete_refused(request, exchange)
        return await exchange.response.finish(last)
    except (asyncio.CancelledError, ConnectionError):
        give_up(Outcome.FAILED if app[STATE].draining else Outcome.CLIENT_GONE)
        raise
    except Exception:
        give_up(Outcome.FAILED)
        raise
    finally:
        if exchange.request_check is not None:
            exchange.request_check.cancel()
        if exchange.spans is not None:
            exchange.spans.end(exchange, exchange.response.status)
