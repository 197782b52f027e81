"""A check that gave no verdict and let its exchange pass (``unavailable = "allow"``) is said, whatever comes after."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.engine import Check, Engine, FailOpenEngine, GuardSession
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import Abort, Hang, Reply, ScriptedUpstream, call_part, candidate, sse, stream, unary

POLICY = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n'
EVENTS = sse(candidate("Hel"), candidate("lo", "STOP"))


CUT = stream(EVENTS[0], Abort())
READ_TO_THE_END = [
    stream(*EVENTS),
    stream(EVENTS[0]),
    Reply([b'{"error": {"code": 429}}'], status=429),
    stream(*sse({"error": {"code": 503, "message": "overloaded"}})),
]


@dataclass
class FailingOnce:
    """The native engine, but its check number ``fails`` gives no verdict, for ``reason``."""

    fails: int
    reason: str = "out of order"
    engine: Engine = field(default_factory=lambda: NativeEngine(Workers(), 5.0))
    checks: int = 0

    def check(self, check: Check) -> Verdict | Awaitable[Verdict]:
        self.checks += 1
        if self.checks == self.fails:
            raise EngineUnavailable(self.reason)
        return self.engine.check(check)

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        return self.engine.open_session(check, overlap)


async def assert_unchecked(proxy: Proxy, client: aiohttp.ClientSession, reason: str = "out of order") -> None:
    """The newest trace, its coverage and the figures say so."""
    trace = await proxy.eventually(lambda trace: True)
    assert trace.outcome is Outcome.UNCHECKED
    coverage = trace.metadata["coverage"]
    assert (coverage["verdict"], coverage["unchecked"], coverage["checked_messages"]) == ("unchecked", reason, 0)
    async with client.get(f"{proxy.url}/metrics") as response:
        figures = await response.text()
    counted = [line for line in figures.splitlines() if line.startswith("gemini_proxy_exchanges_total{")]
    assert [line.rpartition(" ")[2] for line in counted] == ["1.0"]
    assert 'outcome="unchecked"' in counted[0]


async def leave(response: aiohttp.ClientResponse) -> None:
    assert await response.content.readany() == EVENTS[0]
    response.close()


async def read(response: aiohttp.ClientResponse) -> None:
    assert await response.read()


async def read_broken(response: aiohttp.ClientResponse) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await response.read()


@pytest.mark.parametrize("request_check", ["before", "overlap"])
@pytest.mark.parametrize(
    ("stream_check", "reply", "reading"),
    [
        *((mode, reply, read) for mode in ("final", "window", "hold") for reply in READ_TO_THE_END),
        ("final", CUT, read_broken),
        # Nothing has left: the client gets an error.
        ("window", CUT, read),
        ("hold", CUT, read),
        ("final", stream(EVENTS[0], Hang()), leave),
    ],
)
async def test_an_unchecked_request_stays_unchecked_however_the_exchange_ends(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    request_check: str,
    stream_check: str,
    reply: Reply,
    reading: Callable[[aiohttp.ClientResponse], Awaitable[None]],
) -> None:
    """A good check of the answer, and any way in which the upstream or the client ends it, hide nothing."""
    guardrails = {"stream_check": stream_check, "request_check": request_check}
    proxy = await start_proxy(policy=POLICY, guardrails=guardrails, engine=FailOpenEngine(FailingOnce(1)))
    upstream.reply(reply)
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert response.headers["x-gemini-proxy-guardrails"].startswith("verdict=unchecked; ")
        await reading(response)
    await assert_unchecked(proxy, client)


@pytest.mark.parametrize("fails", [1, 2, 3])
async def test_one_of_several_candidates_unchecked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, fails: int
) -> None:
    """Whether it is the request, the first candidate or the last."""
    proxy = await start_proxy(policy=POLICY, engine=FailOpenEngine(FailingOnce(fails)))
    both = [{**candidate(text, "STOP")["candidates"][0], "index": index} for index, text in enumerate(("a", "b"))]
    upstream.reply(unary({"candidates": both}))
    async with client.post(proxy.method(), json=prompt("hi")) as response:
        assert response.status == 200
        assert response.headers["x-gemini-proxy-guardrails"].startswith("verdict=unchecked; ")
    await assert_unchecked(proxy, client)


@pytest.mark.parametrize("stream_check", ["final", "window"])
async def test_a_call_that_leaves_unchecked_stays_so(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, stream_check: str
) -> None:
    """The check that let a function call go was not made; the one at the end was, and is good."""
    guardrails = {"stream_check": stream_check}
    proxy = await start_proxy(policy=POLICY, guardrails=guardrails, engine=FailOpenEngine(FailingOnce(2)))
    seen = asyncio.Event()
    events = sse(call_part("send", to="x"), candidate("Done", "STOP"))
    upstream.reply(stream(events[0], seen, events[1]))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert await response.content.readany() == events[0]
        seen.set()
        assert await response.read() == events[1]
    await assert_unchecked(proxy, client)


async def test_a_check_that_failed_without_a_reason_was_not_made(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """What an engine says of its failure is not what decides."""
    proxy = await start_proxy(policy=POLICY, engine=FailOpenEngine(FailingOnce(1, reason="")))
    upstream.reply(unary(candidate("fine", "STOP")))
    async with client.post(proxy.method(), json=prompt("hi")) as response:
        assert response.headers["x-gemini-proxy-guardrails"].startswith("verdict=unchecked; ")
    await assert_unchecked(proxy, client, reason="")


async def test_a_refusal_after_an_unchecked_request_says_both(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=POLICY, engine=FailOpenEngine(FailingOnce(1)))
    upstream.reply(unary(candidate("In Dublin", "STOP")))
    async with client.post(proxy.method(), json=prompt("hi")) as response:
        assert response.status == 400
    trace = await proxy.trace()
    coverage: Any = trace.metadata["coverage"]
    assert trace.outcome is Outcome.REFUSED_RESPONSE
    assert (coverage["verdict"], coverage["unchecked"]) == ("refused", "out of order")


@pytest.mark.parametrize(("policy", "verdict", "checked"), [(POLICY, "pending", 1), (None, "off", 0)])
async def test_an_answer_that_the_client_did_not_wait_for_has_no_verdict(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    policy: str | None,
    verdict: str,
    checked: int,
) -> None:
    """Its final check was never made: that it passed would not be true."""
    proxy = await start_proxy(policy=policy)
    upstream.reply(stream(EVENTS[0], Hang()))
    response = await client.post(proxy.stream, json=prompt("hi"))
    await leave(response)
    trace = await proxy.eventually(lambda trace: True)
    assert trace.outcome is Outcome.CLIENT_GONE
    coverage = trace.metadata["coverage"]
    assert (coverage["verdict"], coverage["checked_messages"]) == (verdict, checked)
