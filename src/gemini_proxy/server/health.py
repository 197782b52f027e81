"""Answer whether the process is alive, and whether it is ready for exchanges."""

from typing import Any

import orjson
from aiohttp import web

from gemini_proxy.server.app_keys import RELOADS, STATE, STORAGE, TASKS
from gemini_proxy.server.metrics import oldest_seconds, queue_figures
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.push.worker import PushWorker


async def alive(request: web.Request) -> web.Response:
    """``/healthz``: the loop answers; nothing else is asked."""
    return _json(200, {"status": "ok"})


async def gateway(request: web.Request) -> web.Response:
    """``/api/v1/gateway/health``, as Invariant Gateway's users know it."""
    return _json(200, {"message": "Hello from gemini-proxy"})


async def ready(request: web.Request) -> web.Response:
    """``/readyz``: 503 while the server stops, while the trace store takes no writes, and while a task that must live
    has failed and was not started again yet.

    The following are shown but no reason for 503: traces that wait for an Explorer, which are safe in the store, so
    that taking this server out of service would help neither them nor its clients; a failed reload, since the previous
    configuration stays in force; a replica that is away, since the database answers instead; and an alert that was not
    delivered.
    """
    storage = request.app[STORAGE]
    if request.app[STATE].draining:
        return _json(503, {"status": "draining"})
    try:
        await storage.store.ping()
    except StoreError:
        return _json(503, {"status": "traces cannot be written"})
    if down := request.app[TASKS].down:
        return _json(503, {"status": "a background task has failed", "down": list(down)})
    shown: dict[str, Any] = {"push": await _push(storage.push)} if storage.push is not None else {}
    if storage.alerts.last_errors:
        shown["alerts"] = {name: error.value for name, error in sorted(storage.alerts.last_errors.items())}
    if storage.replica is not None:
        shown["read_database"] = "away" if storage.replica.away else "ok"
    if request.app[RELOADS].last_failed:
        shown["last_reload"] = "failed"
    return _json(200, {"status": "ready", **shown})


async def _push(push: PushWorker) -> dict[str, Any]:
    queued = await queue_figures(push)
    figures = {"waiting": queued.waiting, "oldest_seconds": oldest_seconds(queued)} if queued is not None else {}
    return {**figures, "last_error": push.last_error}


def _json(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
