"""The SDK's blocking and asyncio halves, one after the other."""

import contextlib
from collections.abc import AsyncIterator

import pytest
from google import genai
from google.genai import types

from tests.clients.sdk import KEY, Connect, Sdk
from tests.support.proxy import Proxy


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connect]:
    """Make an SDK client for a proxy, told nothing but where it is and which key to send."""
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    async with contextlib.AsyncExitStack() as stack:

        def make(proxy: Proxy, prefix: str = "", key: str = KEY, headers: dict[str, str] | None = None) -> Sdk:
            options = types.HttpOptions(base_url=proxy.url + prefix, headers=headers)
            client = genai.Client(api_key=key, http_options=options)
            stack.callback(client.close)
            stack.push_async_callback(client.aio.aclose)
            return Sdk(client, request.param == "blocking")

        yield make
