"""What one client may do, and that another one never pays for it."""

import asyncio
import functools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.sections import Limits
from gemini_proxy.server.app_keys import LIMITER
from gemini_proxy.server.limiter import network
from gemini_proxy.server.limits import MAX_CLIENTS, MINUTE, Budgets
from gemini_proxy.traces.keys import Keys
from tests.conftest import StartProxy
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import Call, Reply, ScriptedUpstream, candidate, sse, stream, unary

GOOD = unary(candidate("hello", "STOP"))
BAD_KEY = unary(
    {"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}, status=400
)


def only_good_keys(call: Call) -> Reply:
    return GOOD if call.headers["x-goog-api-key"].startswith("good") else BAD_KEY


async def ask(proxy: Proxy, key: str, text: str = "hi", address: str = "127.0.0.1", **headers: str) -> int:
    return (await answer(proxy, key, text, address, **headers)).status


async def answer(
    proxy: Proxy, key: str, text: str = "hi", address: str = "127.0.0.1", **headers: str
) -> aiohttp.ClientResponse:
    """Ask once, over a connection from ``address``; the response has been read."""
    headers = {"x-goog-api-key": key, **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0))) as session:
        async with session.post(proxy.method(), json=prompt(text), headers=headers) as response:
            await response.read()
            return response


NOON = 1_800_014_400.0


@pytest.fixture
def start_proxy(start_proxy: StartProxy) -> StartProxy:
    """The clock of limits stands still: windows begin with its minute, and a test of one must not see two."""
    return functools.partial(start_proxy, clock=lambda: NOON)


async def counted(proxy: Proxy, kind: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{proxy.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    (line,) = (line for line in lines if line.startswith(f'gemini_proxy_limited_requests_total{{limit="{kind}"}}'))
    return float(line.split()[-1])


async def test_one_request_too_many_is_told_when_to_come_again(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """In Google's form, with the delay as clients read it; another client is not concerned."""
    upstream.reply(GOOD)
    proxy = await start_proxy(limits={"requests_per_minute": 3})
    assert [await ask(proxy, "good") for _ in range(4)] == [200] * 3 + [429]
    refused = await answer(proxy, "good")
    error: dict[str, Any] = (await refused.json())["error"]
    assert (refused.status, error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert "limits.requests_per_minute = 3" in error["message"]
    seconds = int(refused.headers["retry-after"])
    assert 1 <= seconds <= 60
    assert error["details"] == [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{seconds}s"}]
    assert await ask(proxy, "good2", address="127.0.0.2") == 200
    assert await counted(proxy, "requests") == 2
    assert len(upstream.calls) == 4


async def test_made_up_keys_are_one_client(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """Whoever invents a key with each request stores no more than one who does not; good keys of that address go on."""
    upstream.reply(only_good_keys)
    proxy = await start_proxy(limits={"unproven_requests_per_minute": 5})
    assert await ask(proxy, "good-before") == 200
    assert [await ask(proxy, f"made-up-{number}") for number in range(7)] == [400] * 5 + [429] * 2
    assert await ask(proxy, "good-before") == 200
    assert await ask(proxy, "good-new") == 429
    assert await ask(proxy, "good-new", address="127.0.0.2") == 200
    assert await counted(proxy, "unproven_requests") == 3


async def test_a_key_that_is_refused_stores_prompts_within_a_limit(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """The bytes of requests count as well, however few they are, and by one address for all its keys."""
    upstream.reply(only_good_keys)
    proxy = await start_proxy(limits={"unproven_bytes_per_minute": 100_000})
    statuses = [await ask(proxy, f"made-up-{number}", "x" * 30_000) for number in range(8)]
    assert statuses == [400] * 4 + [429] * 4
    assert len(await proxy.store.recent(20)) == 4
    assert [await ask(proxy, "good", "x" * 30_000, "127.0.0.2") for _ in range(8)] == [200] * 8


async def test_a_body_of_no_declared_length_counts_when_it_is_known(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """Sent in chunks it costs what it would have cost with a length."""
    upstream.reply(only_good_keys)
    proxy = await start_proxy(limits={"unproven_bytes_per_minute": 100_000})

    async def chunks() -> AsyncIterator[bytes]:
        yield json.dumps(prompt("x" * 30_000)).encode()

    statuses = []
    async with aiohttp.ClientSession() as session:
        for number in range(6):
            headers = {"x-goog-api-key": f"made-up-{number}", "content-type": "application/json"}
            async with session.post(proxy.method(), data=chunks(), headers=headers) as response:
                statuses.append(response.status)
    assert statuses == [400] * 4 + [429] * 2


async def test_a_key_that_was_good_and_is_refused_counts_by_its_address_again(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    upstream.reply(GOOD, BAD_KEY)
    proxy = await start_proxy(limits={"unproven_requests_per_minute": 2})
    assert [await ask(proxy, "key") for _ in range(5)] == [200, 400, 400, 400, 429]


async def test_a_user_counts_by_their_own_key(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """An Invariant key that this server knows is known to be good, and which address it comes from does not matter."""
    upstream.reply(GOOD)
    proxy = await start_proxy(
        access={"mode": "keys"}, upstream={"api_key": "AIzaOperator"}, limits={"requests_per_minute": 2}
    )
    ann, bob = [(await Keys(proxy.store.database).add(user))[1] for user in ("ann", "bob")]
    assert [await ask(proxy, ann, address=f"127.0.0.{number}") for number in (1, 2, 3)] == [200, 200, 429]
    assert await ask(proxy, bob) == 200


async def test_clients_of_a_trusted_proxy_count_by_their_own_addresses(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """By what the proxy says, and never by what a client put before it."""
    upstream.reply(GOOD)
    proxy = await start_proxy(
        access={"trusted_proxies": ["127.0.0.1"]},
        upstream={"api_key": "AIzaOperator"},
        limits={"requests_per_minute": 1},
    )

    async def through(forwarded: str) -> int:
        return await ask(proxy, "AIzaOperator", x_forwarded_for=forwarded)

    assert [await through("198.51.100.1"), await through("198.51.100.2")] == [200, 200]
    assert [await through(f"198.51.100.{number}, 198.51.100.1") for number in (3, 4)] == [429, 429]


async def test_exchanges_at_once(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """One more than the limit is refused; when one has ended, by whatever way, the next is served."""
    gone_on = asyncio.Event()
    first, last = sse(candidate("a"), candidate("b", "STOP"))
    upstream.reply(stream(first, gone_on, last))
    proxy = await start_proxy(limits={"exchanges_at_once": 2}, upstream={"api_key": "AIzaOperator"})
    async with aiohttp.ClientSession() as session:

        async def begin() -> aiohttp.ClientResponse:
            response = await session.post(proxy.stream, json=prompt("hi"))
            if response.status == 200:
                await response.content.readexactly(len(first))
            return response

        one, two, three = [await begin() for _ in range(3)]
        assert [one.status, two.status, three.status] == [200, 200, 429]
        assert three.headers["retry-after"] == "1"
        two.close()
        async with asyncio.timeout(10):
            while (again := await begin()).status == 429:
                pass
        gone_on.set()
        assert (await one.read(), await again.read()) == (last, last)
    assert await counted(proxy, "exchanges") >= 1


UNFINISHED = b"POST /v1beta/models/m:generateContent HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"


async def test_requests_that_never_end_are_an_addresss_own_loss(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """With all its places taken by one address, the server serves another, and that one's whole requests."""
    upstream.reply(GOOD)
    limits = {"unfinished_connections": 3}
    proxy = await start_proxy(limits=limits, server={"max_exchanges": 5}, upstream={"api_key": "AIzaOperator"})
    port = int(proxy.url.rpartition(":")[2])
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
    for _, writer in connections:
        writer.write(UNFINISHED)
    async with asyncio.timeout(30):
        # Those whose heads come while more than three others wait; three are left to be waited for.
        heads = [await reader.readuntil(b"\r\n\r\n") for reader, _ in connections[:5]]
    assert {head.split(b" ")[1] for head in heads} == {b"429"}
    assert all(b"\r\nretry-after: 2\r\n" in head.lower() for head in heads)
    assert await ask(proxy, "good", address="127.0.0.2") == 200
    assert await ask(proxy, "good") == 200
    assert await counted(proxy, "connections") == 5
    for _, writer in connections:
        writer.close()


async def look(
    proxy: Proxy, path: str, address: str = "127.0.0.1", key: str | None = None
) -> tuple[int, str, str | None]:
    """Status, text and ``retry-after`` of a page or a call of the Explorer's API."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0))) as session:
        async with session.get(f"{proxy.url}{path}", headers=headers, allow_redirects=False) as response:
            return response.status, await response.text(), response.headers.get("retry-after")


@pytest.mark.parametrize("path", ["/api/v1/user/identity", "/explorer", "/explorer/static/style.css"])
async def test_the_explorer_counts_as_the_models_do(
    start_proxy: StartProxy, upstream: ScriptedUpstream, path: str
) -> None:
    """Whatever a client asks for, it has one budget; what says that the server is well is always told."""
    upstream.reply(GOOD)
    proxy = await start_proxy(limits={"requests_per_minute": 3}, upstream={"api_key": "AIzaOperator"})
    assert await ask(proxy, "AIzaOperator") == 200
    assert [(await look(proxy, path))[0] for _ in range(3)] == [200, 200, 429]
    assert await ask(proxy, "AIzaOperator") == 429
    assert (await look(proxy, path, "127.0.0.2"))[0] == 200
    for watched in ("/healthz", "/readyz", "/metrics", "/api/v1/gateway/health"):
        assert (await look(proxy, watched))[0] == 200
    _, text, retry_after = await look(proxy, path)
    assert retry_after is not None and 1 <= int(retry_after) <= 60
    message = "You have reached the limit limits.requests_per_minute = 3 of this server"
    if path.startswith("/api/"):
        assert json.loads(text) == {"detail": message}
    else:
        assert message in text and "<h1>Too many requests</h1>" in text
    assert await counted(proxy, "requests") == 3


async def test_a_call_of_the_api_counts_by_its_key(start_proxy: StartProxy) -> None:
    """Once it was accepted; keys that are made up are their address's, and pages are, whatever key they are sent."""
    proxy = await start_proxy(
        access={"mode": "keys"}, limits={"requests_per_minute": 5, "unproven_requests_per_minute": 2}
    )
    ann, bob = [(await Keys(proxy.store.database).add(user))[1] for user in ("ann", "bob")]
    path = "/api/v1/user/identity"
    assert [(await look(proxy, path, key=ann))[0] for _ in range(6)] == [200] * 5 + [429]
    assert (await look(proxy, path, key=bob))[0] == 200
    assert [(await look(proxy, path, key=f"inv-made-up-{number}"))[0] for number in range(3)] == [401, 401, 429]
    assert (await look(proxy, path, key=bob))[0] == 200
    pages = [(await look(proxy, "/explorer/sign-in", "127.0.0.2", f"inv-{number}"))[0] for number in range(6)]
    assert pages == [200] * 5 + [429]


async def test_bytes_that_are_sent_to_the_api_count(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(limits={"bytes_per_minute": 1000})

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"name": "' + b"x" * 600 + b'"}'

    async with aiohttp.ClientSession() as session:
        statuses = []
        for _ in range(3):
            async with session.post(f"{proxy.url}/api/v1/dataset/create", data=chunks()) as response:
                statuses.append(response.status)
    assert statuses[2] == 429 and 429 not in statuses[:2]


async def test_whoever_watches_is_one_request(start_proxy: StartProxy) -> None:
    """However long the connection of the feed lasts; nor is it an exchange at once."""
    proxy = await start_proxy(limits={"requests_per_minute": 3, "exchanges_at_once": 1})
    async with aiohttp.ClientSession() as session:
        watchers = [await session.get(f"{proxy.url}/api/v1/feed") for _ in range(2)]
        assert [watcher.status for watcher in watchers] == [200, 200]
        statuses = [(await look(proxy, "/api/v1/user/identity"))[0] for _ in range(2)]
        for watcher in watchers:
            watcher.close()
    assert statuses == [200, 429]


async def test_a_limit_of_none(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    upstream.reply(BAD_KEY)
    proxy = await start_proxy(limits=dict.fromkeys(Limits.model_fields, 0))
    assert [await ask(proxy, f"made-up-{number}") for number in range(5)] == [400] * 5


clients = st.sampled_from(["a", "b", "c"])
steps = st.lists(st.tuples(clients, st.integers(1, 30), st.floats(0, 20)), max_size=60)


@given(steps, st.integers(1, 100))
def test_a_budget_is_used_up_and_is_whole_again_with_the_next_window(
    steps: list[tuple[str, int, float]], limit: int
) -> None:
    """Each client gets its limit in each window, and at most one request's cost over it; nobody takes another's."""
    budgets, now = Budgets("test", MINUTE), 1000.0
    used: dict[tuple[str, float], int] = {}
    for client, cost, later in steps:
        now += later
        window = (client, now // MINUTE)
        before = used.get(window, 0)
        assert budgets.take(client, cost, limit, now) is (before < limit)
        if before < limit:
            used[window] = before + cost
        assert 0 < budgets.retry_after(now) <= MINUTE


def test_budgets_take_bounded_memory() -> None:
    budgets = Budgets("test", MINUTE)
    for number in range(MAX_CLIENTS + 10):
        budgets.take(str(number), 1, 1, 0.0)
    assert len(budgets._uses) == MAX_CLIENTS


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_who_has_an_ipv6_network_is_one_client(address: Any, host: int) -> None:
    prefix = int(address) >> 64 << 64
    assert network(str(type(address)(prefix | host))) == network(str(address))


async def test_a_request_costs_microseconds(start_proxy: StartProxy) -> None:
    """Far below a hundredth of what an exchange costs; the bound is generous for a machine that is busy."""
    proxy = await start_proxy()
    limiter = proxy.app[LIMITER]

    async def times(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            client = limiter.client(None, "key", "127.0.0.1")
            limiter.leave(await limiter.enter(client, 100), 100, accepted=True)
        return (time.perf_counter() - started) / count

    assert min([await times(200) for _ in range(20)]) < 50e-6
