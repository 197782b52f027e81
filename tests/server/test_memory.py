"""What a server holds when its exchanges are over."""

import asyncio
import gc
import platform

import aiohttp
import pytest

from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.server.process import Memory, usage
from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

PIECE = 65_536
[EVENT] = sse(candidate("Hel"))


async def test_an_idle_connection_holds_nothing_of_its_last_exchange(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Body and messages are let go with the last byte, not when the client asks again."""
    proxy = await start_proxy()
    upstream.reply(unary(candidate("ok", "STOP")))
    async with client.post(proxy.method(), json=prompt("hi")) as response:
        assert response.status == 200
        await response.read()
    # Over another connection, and answered when the first request's handler has returned.
    async with aiohttp.request("GET", f"{proxy.url}/healthz") as response:
        assert response.status == 200
    assert not [held for held in gc.get_objects() if isinstance(held, Exchange)]


async def test_an_exchange_lets_its_body_go_when_the_upstream_has_it(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The answer may take minutes."""
    proxy = await start_proxy()
    going_on = asyncio.Event()
    upstream.reply(stream(EVENT, going_on, *sse(candidate("", "STOP"))))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert await response.content.readany() == EVENT
        [held] = [one for one in gc.get_objects() if isinstance(one, Exchange)]
        assert held.body == b""
        going_on.set()
        await response.read()
    [trace] = await proxy.store.recent(1)
    assert trace.outcome == "completed"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed until it is told")
async def test_what_large_bodies_took_goes_back_to_the_system() -> None:
    """Their pieces lie between others that are still in use, and the C library would keep their pages."""
    pieces = [b"x" * PIECE + b"%d" % number for number in range(1_600)]
    last = [b"y" * PIECE + b"%d" % number for number in range(8)]
    held = resident_bytes()
    pieces.clear()
    Memory().freed(1_600 * PIECE)
    async with asyncio.timeout(30):
        while await asyncio.to_thread(resident_bytes) > held - 50_000_000:
            pass
    assert last


def resident_bytes() -> int:
    resident = usage().resident_bytes
    assert resident is not None
    return resident
