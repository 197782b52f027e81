"""Servers with their callers: one that anybody may use, and one that two users have keys of."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from gemini_proxy.explorer.app_keys import DATABASE
from gemini_proxy.traces.keys import Keys, Role
from tests.conftest import StartProxy
from tests.explorer.api import Api
from tests.explorer.browsing import Browser
from tests.support.proxy import Proxy


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as opened:
        yield opened


@pytest.fixture
async def api(start_proxy: StartProxy, session: aiohttp.ClientSession, database_url: str) -> Api:
    """A caller of a server that is open to this machine."""
    return Api(session, (await start_proxy(traces={"database": database_url})).url)


@pytest.fixture
async def checker(proxy: Proxy, session: aiohttp.ClientSession) -> Api:
    """The same, where the kind of database makes no difference."""
    return Api(session, proxy.url)


@pytest.fixture
async def proxy(start_proxy: StartProxy) -> Proxy:
    """A server that is open to this machine."""
    return await start_proxy()


@pytest.fixture
async def browser(proxy: Proxy, session: aiohttp.ClientSession) -> Browser:
    """Somebody who looks at its pages."""
    return Browser(session, proxy.url)


@pytest.fixture
async def closed(start_proxy: StartProxy) -> Proxy:
    """A server that wants keys."""
    return await start_proxy(access={"mode": "keys"})


@pytest.fixture
async def alice(closed: Proxy, session: aiohttp.ClientSession) -> Api:
    return await caller(closed, session, "alice")


@pytest.fixture
async def bob(closed: Proxy, session: aiohttp.ClientSession) -> Api:
    return await caller(closed, session, "bob")


async def caller(proxy: Proxy, session: aiohttp.ClientSession, user: str, role: Role = "operator") -> Api:
    """A user with a key of their own."""
    _, key = await Keys(proxy.app[DATABASE]).add(user, role)
    return Api(session, proxy.url, key, user)
