"""Large bodies together take no more memory than they may, and take nothing from anybody's small ones."""

import asyncio
import gzip

import aiohttp
import orjson
import pytest
from aiohttp.test_utils import make_mocked_request

from gemini_proxy.config import Config
from gemini_proxy.errors import Unavailable
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.http.request_body import MEMORY_BUDGET, SMALL
from gemini_proxy.sections import Server
from gemini_proxy.server.app import create_app
from gemini_proxy.server.app_keys import Group
from tests.conftest import StartProxy
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import Reply, ScriptedUpstream, candidate

LARGE = prompt("x" * 3 * SMALL)
READ_AHEAD = prompt("x" * (SMALL + SMALL // 4))
ANSWER = orjson.dumps(candidate("a", "STOP"))
GZIP = {"content-encoding": "gzip", "content-type": "application/json"}


async def status(client: aiohttp.ClientSession, proxy: Proxy, said: object) -> int:
    async with client.post(proxy.method(), json=said) as response:
        await response.read()
        return response.status


async def test_a_large_body_waits_for_room_and_a_small_one_does_not(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """While one is under way another gets 503 with Retry-After; when it has been answered there is room again."""
    proxy = await start_proxy(server={"max_held_bytes": 4 * SMALL})
    go = asyncio.Event()
    upstream.reply(Reply(before_head=go, steps=[ANSWER]), Reply([ANSWER]))
    first = asyncio.ensure_future(status(client, proxy, LARGE))
    await upstream.called.wait()
    async with client.post(proxy.method(), json=LARGE) as response:
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert (await response.json())["error"]["status"] == "UNAVAILABLE"
    assert await status(client, proxy, prompt("small")) == 200
    assert await status(client, proxy, READ_AHEAD) == 503
    go.set()
    assert await first == 200
    assert await status(client, proxy, LARGE) == 200
    assert proxy.app[MEMORY_BUDGET].used == 0


async def test_what_a_body_inflates_to_is_counted(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """And it is given back as well, for a body that is refused in the middle too."""
    proxy = await start_proxy(server={"max_held_bytes": 4 * SMALL, "max_request_bytes": 8 * SMALL})
    go = asyncio.Event()
    upstream.reply(Reply(before_head=go, steps=[ANSWER]), Reply([ANSWER]))
    first = asyncio.ensure_future(status(client, proxy, LARGE))
    await upstream.called.wait()
    zipped = gzip.compress(orjson.dumps(LARGE))
    assert len(zipped) < SMALL
    async with client.post(proxy.method(), data=zipped, headers=GZIP) as response:
        assert response.status == 503
    go.set()
    assert await first == 200
    async with client.post(proxy.method(), data=zipped, headers=GZIP) as response:
        assert response.status == 200
    assert await status(client, proxy, prompt("x" * 9 * SMALL)) == 413
    assert proxy.app[MEMORY_BUDGET].used == 0


@pytest.mark.parametrize("size", [3 * SMALL, 12 * SMALL])
async def test_one_alone_is_taken_whatever_its_size(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, size: int
) -> None:
    """What a single request may bring is said by max_request_bytes."""
    proxy = await start_proxy(server={"max_held_bytes": 4 * SMALL})
    upstream.reply(Reply([ANSWER]))
    assert await status(client, proxy, prompt("x" * size)) == 200


async def test_what_is_pushed_counts_as_well(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The bodies of the Explorer's API are held beside those of model calls."""
    proxy = await start_proxy(server={"max_held_bytes": 4 * SMALL})
    go = asyncio.Event()
    upstream.reply(Reply(before_head=go, steps=[ANSWER]))
    first = asyncio.ensure_future(status(client, proxy, LARGE))
    await upstream.called.wait()
    said = {"messages": [[{"role": "user", "content": "x" * 3 * SMALL}]], "dataset": "pushed"}
    headers = {"authorization": "Bearer inv-test"}
    async with client.post(f"{proxy.url}/api/v1/push/trace", json=said, headers=headers) as response:
        assert response.status == 503
    go.set()
    assert await first == 200
    async with client.post(f"{proxy.url}/api/v1/push/trace", json=said, headers=headers) as response:
        assert response.status == 200
    assert proxy.app[MEMORY_BUDGET].used == 0


async def test_each_of_several_processes_has_an_equal_part() -> None:
    """It is the machine's memory that is bounded."""
    config = Config.model_construct(server=Server(max_held_bytes=4 * SMALL))
    budget = create_app(config, GuardrailSet(), group=Group(number=2, processes=4))[MEMORY_BUDGET]
    budget.reserve(make_mocked_request("POST", "/"), SMALL)
    with pytest.raises(Unavailable):
        budget.reserve(make_mocked_request("POST", "/"), 1)
