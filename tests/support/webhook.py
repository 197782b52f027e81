"""A webhook on a real socket: it keeps what is posted, or fails in the way a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer

PATH = "/hooks/T0/xoxb-secret-path"
"""Of which nothing may be shown anywhere: it is what Slack's URLs keep their secret in."""


@dataclass
class WebhookDouble:
    """``script`` are the statuses of its next answers, one a call, 0 for none at all; then all are ``status``."""

    url: str = ""
    status: int = 200
    script: list[int] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    calls: int = 0
    taken: list[Any] = field(default_factory=list)
    received: list[tuple[Mapping[str, str], bytes]] = field(default_factory=list)
    elsewhere: int = 0
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def post(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.calls += 1
        self.received.append((dict(request.headers), body))
        status = self.script.pop(0) if self.script else self.status
        if not status:
            await asyncio.Event().wait()
        if status < 300:
            self.taken.append(orjson.loads(body))
        self._arrived.set()
        return web.Response(status=status, headers=self.headers, text="no_service")

    async def redirected(self, request: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()

    async def until(self, count: int) -> list[Any]:
        """Return the messages that were taken once there are so many."""
        async with asyncio.timeout(15):
            while len(self.taken) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.taken


@contextlib.asynccontextmanager
async def webhook_double() -> AsyncIterator[WebhookDouble]:
    double = WebhookDouble()
    app = web.Application()
    app.router.add_post(PATH, double.post)
    app.router.add_route("*", "/elsewhere", double.redirected)
    async with TestServer(app, host="127.0.0.1") as server:
        double.url = f"http://127.0.0.1:{server.port}{PATH}"
        double.headers = {"location": "/elsewhere"}
        yield double
