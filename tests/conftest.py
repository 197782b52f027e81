"""The fixtures that stand for the world around the proxy."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.proxy import Proxy, proxy_before
from tests.support.upstream import ScriptedUpstream

StartProxy = Callable[..., Awaitable[Proxy]]


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    server = ScriptedUpstream()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def start_proxy(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[StartProxy]:
    """Start a proxy before the scripted upstream; it is stopped after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**options: Any) -> Proxy:
            return await stack.enter_async_context(proxy_before(upstream.url, tmp_path, **options))

        yield start


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client with a Gemini key."""
    async with aiohttp.ClientSession(headers={"x-goog-api-key": "AIzaTestKey"}) as session:
        yield session
