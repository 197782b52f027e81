"""Is the process alive, and is it ready for exchanges."""

import orjson
from aiohttp import web

from gemini_proxy.server.keys import STATE, STORE
from gemini_proxy.traces.errors import StoreError


async def alive(request: web.Request) -> web.Response:
    """``/healthz``: the loop answers; nothing else is asked."""
    return _json(200, {"status": "ok"})


async def gateway(request: web.Request) -> web.Response:
    """``/api/v1/gateway/health``, as Invariant Gateway's users know it."""
    return _json(200, {"message": "Hello from gemini-proxy"})


async def ready(request: web.Request) -> web.Response:
    """``/readyz``: 503 while the server stops, and while the trace store takes no writes."""
    if request.app[STATE].draining:
        return _json(503, {"status": "draining"})
    try:
        await request.app[STORE].ping()
    except StoreError:
        return _json(503, {"status": "traces cannot be written"})
    return _json(200, {"status": "ready"})


def _json(status: int, body: dict[str, str]) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
