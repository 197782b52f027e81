"""A server of the feed alone, over any store, that can be stopped and started again at one address."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import aiohttp
from aiohttp import web

from gemini_proxy.explorer.api import feed_api
from gemini_proxy.explorer.api.endpoints import api
from gemini_proxy.explorer.app_keys import ACCESS, DATASETS, FEED
from gemini_proxy.http.browser_guard import BROWSER_GUARD, BrowserGuard
from gemini_proxy.http.peers import PEERS, Peers
from gemini_proxy.traces.access import AccessControl
from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.feed import Feed
from gemini_proxy.traces.revision import Revisions
from gemini_proxy.traces.store import TraceStore
from tests.support.feed import SOON, Event, Traces, events, following

KEY = "inv-" + "0123456789abcdef" * 4
SHUTDOWN_SECONDS = 60.0
"""Longer than a test may take: a stop that waits for a watcher is seen."""


@dataclass(frozen=True)
class FeedServer:
    port: int
    feed: Feed
    runner: web.AppRunner

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def feed_server(
    store: TraceStore,
    *,
    source: Traces | None = None,
    mode: Literal["open", "keys"] = "open",
    port: int = 0,
) -> AsyncIterator[FeedServer]:
    """Serve the feed of ``source``, or of the store, which also knows the keys and the datasets."""
    app = web.Application()
    app[BROWSER_GUARD] = guard = BrowserGuard((), ("127.0.0.1:8005",))
    app[PEERS] = Peers(guard, (), open_access=mode == "open")
    app[ACCESS] = AccessControl(store.database, Revisions(store.database), mode)
    app[DATASETS] = Datasets(store.database)
    app[FEED] = feed = Feed(source or store, period=0.01, spacing=0.0)
    app.router.add_get("/api/v1/feed", api(feed_api.stream_feed), allow_head=False)

    async def end_watches(_: web.Application) -> None:
        feed.close()

    app.on_shutdown.append(end_watches)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        async with following(feed):
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            yield FeedServer(runner.addresses[0][1], feed, runner)
    finally:
        await asyncio.wait_for(runner.cleanup(), SOON)


class Listener:
    """Reads an answer of the feed event by event, positions left out."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> Event | None:
        """The next exchange or word on what was missed; None at the end of the stream."""
        while found := await self._block():
            if found[0].kind != "position":
                return found[0]
        return None

    async def joined(self) -> None:
        """Return when the feed has said how far it is."""
        while (found := await self._block()) and found[0].kind != "position":
            pass

    async def _block(self) -> list[Event]:
        """The next event; none at the end."""
        while True:
            try:
                block = await asyncio.wait_for(self.response.content.readuntil(b"\n\n"), SOON)
            except asyncio.IncompleteReadError:
                return []
            if not block:
                return []
            if found := events(block):
                return found


@contextlib.asynccontextmanager
async def listening(
    session: aiohttp.ClientSession, url: str, query: str = "", key: str | None = KEY, **headers: str
) -> AsyncIterator[Listener]:
    """Watch a server's feed with a key."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        sent["authorization"] = f"Bearer {key}"
    async with session.get(f"{url}/api/v1/feed{query}", headers=sent) as response:
        yield Listener(response)
