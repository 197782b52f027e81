"""``stream_check = "window"`` over sockets."""

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest

from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import Hang, Reply, ScriptedUpstream, call_part, candidate, sse, stream

SECRET = "ghp_" + "a1B2" * 9
RULES = """
from invariant.detectors import secrets
raise "a secret in the answer" if:
    (m: Message)
    m.role == "assistant"
    any(secrets(m))
raise "no deletions" if:
    (c: ToolCall)
    c is tool:delete_file
"""
WHOLE = 'raise "no thanks" if:\n    (m: Message)\n    m.role == "assistant"\n    not "thank" in m.content\n'
WINDOW = {"stream_check": "window", "window_overlap": 50}
FILLER = "All quiet here, and nothing to see in this. " * 2


async def test_events_leave_before_the_end(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """An event leaves as soon as enough text has followed it, while the upstream has more to say."""
    proxy = await start_proxy(policy=RULES, guardrails=WINDOW)
    events = sse(*[candidate(FILLER)] * 4, candidate("", "STOP"))
    seen = [asyncio.Event() for _ in range(3)]
    upstream.reply(stream(events[0], events[1], seen[0], events[2], seen[1], events[3], seen[2], events[4]))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert "mode=window" in response.headers["x-gemini-proxy-guardrails"]
        for event, one in zip(events, seen, strict=False):
            assert await response.content.readexactly(len(event)) == event
            one.set()
        assert await response.read() == b"".join(events[3:])
    trace = await proxy.trace()
    assert (trace.outcome, trace.metadata["coverage"]["mode"]) == (Outcome.COMPLETED, "window")


@pytest.mark.parametrize("cut", [1, 3, 20, 39])
async def test_a_secret_split_over_events_never_leaves(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, cut: int
) -> None:
    """The refusal comes while the upstream still talks, in the place of the first event with a part of the secret; its
    range is that in the whole answer."""
    proxy = await start_proxy(policy=RULES, guardrails=WINDOW)
    events = sse(*[candidate(FILLER)] * 3, candidate(SECRET[:cut]), candidate(SECRET[cut:]), *[candidate(FILLER)] * 3)
    first = asyncio.Event()
    upstream.reply(stream(*events[:2], first, *events[2:], Hang()))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        body = await response.content.readexactly(len(events[0]))
        first.set()
        body += await response.read()
    *left, refusal = body.split(b"\r\n\r\n")[:-1]
    assert [one + b"\r\n\r\n" for one in left] == events[: len(left)] and 0 < len(left) <= 3
    answer = orjson.loads(refusal.removeprefix(b"data: "))["candidates"][0]
    assert answer["finishReason"] == "SAFETY"
    assert "a secret in the answer" in answer["content"]["parts"][0]["text"]
    assert SECRET[:cut].encode() not in b"".join(left) or cut < 4
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_RESPONSE
    start = 3 * len(FILLER)
    assert [one.address for one in trace.annotations] == [f"messages.1.content:{start}-{start + len(SECRET)}"]


async def test_the_second_candidates_range_counts_all_messages(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=RULES, guardrails=WINDOW)

    def say(text: str, index: int, **extra: Any) -> dict[str, Any]:
        return {"candidates": [{"index": index, "content": {"parts": [{"text": text, **extra}]}}]}

    upstream.reply(stream(*sse(say("hm", 0, thought=True), say("a", 0), say("b", 1), say(SECRET, 1)), Hang()))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert b"did not pass" in await response.read()
    assert [one.address for one in (await proxy.trace()).annotations] == [f"messages.3.content:1-{1 + len(SECRET)}"]


async def test_calls_wait_for_their_verdict_and_go_on(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """An allowed call leaves while the stream goes on; a refused one never does."""
    proxy = await start_proxy(policy=RULES, guardrails=WINDOW)
    events = sse(call_part("read_file", path="/"), candidate("Done", "STOP"))
    seen = asyncio.Event()
    upstream.reply(stream(events[0], seen, events[1]))
    async with client.post(proxy.stream, json=prompt("go")) as response:
        assert await response.content.readany() == events[0]
        seen.set()
        assert await response.read() == events[1]
    seen.clear()
    upstream.reply(stream(events[0], seen, *sse(call_part("delete_file", path="/")), Hang()))
    async with client.post(proxy.stream, json=prompt("go")) as response:
        assert await response.content.readany() == events[0]
        seen.set()
        body = await response.read()
    assert b"delete_file" not in body and b"no deletions" in body


async def test_a_rule_about_the_whole_withholds_the_whole(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Where a rule can say nothing before the end, nothing leaves before it; the trace names the rule."""
    proxy = await start_proxy(policy=WHOLE, guardrails=WINDOW)
    events = sse(*[candidate(FILLER)] * 4, candidate("bye", "STOP"))
    upstream.reply(stream(*events))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        body = await response.read()
    assert body.count(b"data: ") == 1 and b"no thanks" in body
    coverage = (await proxy.trace()).metadata["coverage"]
    assert (coverage["mode"], coverage["judged_only_at_the_end"]) == ("hold", ["test policy"])
    events = sse(candidate(FILLER), candidate("thank you", "STOP"))
    upstream.reply(stream(*events))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert await response.read() == b"".join(events)


async def test_without_rules_everything_but_the_end_leaves_at_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(guardrails=WINDOW)
    events = sse(candidate("a"), candidate("b", "STOP"))
    seen = asyncio.Event()
    upstream.reply(stream(events[0], seen, events[1]))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert await response.content.readany() == events[0]
        seen.set()
        assert await response.read() == events[1]


async def test_a_refusal_inside_an_array_is_its_last_element(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Without alt=sse what left and the refusal make one array."""
    proxy = await start_proxy(policy=RULES, guardrails=WINDOW)
    elements = [candidate(FILLER), candidate(FILLER), candidate(SECRET), candidate(FILLER)]
    bodies = [orjson.dumps(one) + b"\n,\r\n" for one in elements]
    first = asyncio.Event()
    upstream.reply(Reply([b"[", *bodies[:2], first, *bodies[2:], Hang()]))
    async with client.post(proxy.method("streamGenerateContent"), json=prompt("hi")) as response:
        body = await response.content.readexactly(1 + len(orjson.dumps(elements[0])))
        first.set()
        answer = orjson.loads(body + await response.read())
    assert answer[:-1] == elements[: len(answer) - 1]
    assert 1 < len(answer) <= 3
    assert answer[-1]["candidates"][0]["finishReason"] == "SAFETY"
