"""An exchange leaves nothing to the cyclic garbage collector, which would stop the loop to look for it."""

import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest

from tests.conftest import StartProxy
from tests.server.test_lifecycle import EVENTS, NO_DUBLIN, NO_SECRET
from tests.support.proxy import prompt
from tests.support.upstream import Reply, ScriptedUpstream, candidate, stream, unary

EXCHANGES = 40


@pytest.mark.parametrize(
    ("call", "says", "reply"),
    [
        pytest.param("unary", "hello", unary(candidate("Cork", "STOP")), id="unary"),
        pytest.param("stream", "hello", stream(*EVENTS), id="stream"),
        pytest.param("unary", "hunter2", unary(candidate("Cork", "STOP")), id="request refused"),
        pytest.param("stream", "hunter2", stream(*EVENTS), id="request refused in a stream"),
        pytest.param("unary", "hello", unary(candidate("Dublin", "STOP")), id="response refused"),
        pytest.param("unary", "hello", unary({"error": {}}, status=503), id="upstream's error"),
    ],
)
async def test_an_exchange_leaves_nothing_to_the_collector(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    call: str,
    says: str,
    reply: Reply,
) -> None:
    proxy = await start_proxy(policy=NO_SECRET + NO_DUBLIN, explorer={"enabled": False})
    upstream.reply(reply)

    async def exchange() -> None:
        url = proxy.stream if call == "stream" else proxy.method()
        async with client.post(url, json=prompt(says)) as response:
            await response.read()

    assert await _garbage(exchange) == {}


async def _garbage(act: Callable[[], Awaitable[None]]) -> "Counter[str]":
    """Count what each of EXCHANGES times ``act`` leaves, by type.

    The first times, when connections and caches are made, are left out, and so is what is fewer than the exchanges:
    the server's background work runs beside them.
    """
    for _ in range(4):
        await act()
    with _collected() as garbage:
        for _ in range(EXCHANGES):
            await act()
    counts = Counter(type(one).__name__ for one in garbage)
    return Counter({name: count for name, count in counts.items() if count >= EXCHANGES})


@contextmanager
def _collected() -> Iterator[list[Any]]:
    """A list that at the end has what only the collector found."""
    found: list[Any] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
