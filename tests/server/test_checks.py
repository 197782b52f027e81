"""What is checked, what is not and why, and what happens when a check cannot be made."""

import asyncio
import base64
from collections.abc import Awaitable

import aiohttp
import orjson
import pytest

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.engine import Check, FailOpenEngine, GuardSession
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import Abort, Hang, Reply, ScriptedUpstream, candidate, sse, stream, unary
from tests.traces.samples import locked

NO_DUBLIN = 'raise "no Dublin" if:\n    (m: Message)\n    m.role == "assistant"\n    "Dublin" in m.content\n'
LOG_CORK = 'raise "Cork was named" if:\n    (m: Message)\n    "Cork" in m.content\n'
# 600 calls before, each compared with each: far over the deadline below, whatever the machine.
SLOW = """
raise "slow" if:
    (a: ToolCall) -> (b: ToolCall)
    b -> (c: ToolCall)
    a.function.arguments == b.function.arguments
    b.function.arguments == c.function.arguments
    c.function.name == "never"
"""
MANY_CALLS = {
    "contents": [{"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"n": 1}}}]} for _ in range(600)]
}


async def test_no_verdict_refuses(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A check past its deadline is neither a violation nor clean: blocked by default, and said so."""
    proxy = await start_proxy(policy=SLOW, guardrails={"timeout": 0.05})
    upstream.reply(unary(candidate("fine", "STOP")))
    async with client.post(proxy.method(), json=MANY_CALLS) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert error["details"][0]["reason"] == "GUARDRAIL_UNAVAILABLE"
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_REQUEST
    assert not trace.annotations


async def test_no_verdict_passes_where_the_operator_chose_so(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """With unavailable = "allow" the answer passes, and header and trace say that it was not checked."""
    proxy = await start_proxy(policy=SLOW, guardrails={"timeout": 0.05, "unavailable": "allow"})
    upstream.reply(unary(candidate("fine", "STOP")))
    async with client.post(proxy.method(), json=MANY_CALLS) as response:
        assert response.status == 200
        assert "verdict=unchecked" in response.headers["x-gemini-proxy-guardrails"]
    trace = await proxy.trace()
    assert trace.outcome is Outcome.UNCHECKED
    assert trace.metadata["coverage"]["checked_messages"] == 0
    assert "deadline" in trace.metadata["coverage"]["unchecked"] or "time" in trace.metadata["coverage"]["unchecked"]


async def test_long_check_overlaps_and_stalls_nobody(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """While a long request check runs elsewhere, the upstream is called, no byte leaves, and a neighbor is served."""
    proxy = await start_proxy(policy=SLOW, guardrails={"timeout": 2.0})
    upstream.reply(unary(candidate("fine", "STOP")))
    slow = asyncio.ensure_future(client.post(proxy.method(), json=MANY_CALLS))
    await asyncio.wait_for(upstream.called.wait(), 10)
    assert not slow.done()
    async with client.post(proxy.method(), json=prompt("hello")) as response:
        assert response.status == 200
    assert not slow.done()
    async with await slow as response:
        assert response.status == 400


async def test_before_keeps_a_prompt_home(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """With request_check = "before" nothing is sent upstream until the verdict, however long it takes."""
    proxy = await start_proxy(policy=SLOW, guardrails={"timeout": 0.2, "request_check": "before"})
    async with client.post(proxy.method(), json=MANY_CALLS) as response:
        assert response.status == 400
    assert not upstream.calls


async def test_every_candidate_is_checked_by_itself(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A violation in the second candidate refuses the answer; its range points into that candidate's message."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    answer = {
        "candidates": [
            {"index": 1, "content": {"parts": [{"text": "In Dublin"}]}, "finishReason": "STOP"},
            {"index": 0, "content": {"parts": [{"text": "In Cork"}]}, "finishReason": "STOP"},
        ]
    }
    upstream.reply(stream(*sse(answer)))
    async with client.post(proxy.stream, json={**prompt("Where?"), "generationConfig": {"candidateCount": 2}}) as got:
        event = orjson.loads((await got.read()).removeprefix(b"data: "))
    assert [one["index"] for one in event["candidates"]] == [0, 1]
    trace = await proxy.trace()
    assert [message.get("candidate") for message in trace.messages] == [None, 0, 1]
    assert trace.annotations[0].address == "messages.2.content:3-9"


async def test_thoughts_are_checked_unless_skipped(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    thought = {"candidates": [{"content": {"parts": [{"text": "Dublin?", "thought": True}, {"text": "Cork"}]}}]}
    upstream.reply(unary(thought))
    checking = await start_proxy(policy=NO_DUBLIN)
    async with client.post(checking.method(), json=prompt("Where?")) as response:
        assert response.status == 400


async def test_skipped_thoughts_are_named(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A skipped thought passes, stays in the trace, and the coverage says that it was skipped."""
    thought = {"candidates": [{"content": {"parts": [{"text": "Dublin?", "thought": True}, {"text": "Cork"}]}}]}
    upstream.reply(unary(thought))
    proxy = await start_proxy(policy=NO_DUBLIN, guardrails={"thoughts": "skip"})
    async with client.post(proxy.method(), json=prompt("Where?")) as response:
        assert response.status == 200
    trace = await proxy.trace()
    assert trace.messages[1]["content"] == "Dublin?"
    assert trace.metadata["coverage"]["not_checked"][0]["reason"].startswith("thoughts")


@pytest.mark.parametrize("unseen_content", ["allow", "block"])
async def test_unseen_content(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, unseen_content: str
) -> None:
    """An image is named as not checked; with unseen_content = "block" it does not pass."""
    proxy = await start_proxy(policy=NO_DUBLIN, guardrails={"unseen_content": unseen_content})
    upstream.reply(unary(candidate("Cork", "STOP")))
    image = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(b"png").decode()}}
    async with client.post(proxy.method(), json={"contents": [{"parts": [{"text": "see"}, image]}]}) as response:
        assert response.status == (200 if unseen_content == "allow" else 400)
        assert "unseen=1" in response.headers["x-gemini-proxy-guardrails"]
    unseen = (await proxy.trace()).metadata["coverage"]["not_checked"]
    assert unseen == [{"address": "messages.0.content.1", "reason": "inline image/png"}]


async def test_logging_rules_annotate_and_never_refuse(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A logging rule runs after the exchange and adds its annotation to the trace."""
    proxy = await start_proxy(log_policy=LOG_CORK)
    upstream.reply(unary(candidate("In Cork", "STOP")))
    async with client.post(proxy.method(), json=prompt("Where?")) as response:
        assert response.status == 200
    trace = await proxy.eventually(lambda trace: trace.annotations)
    assert trace.outcome is Outcome.COMPLETED
    assert trace.annotations[0].address == "messages.1.content:3-7"
    assert trace.annotations[0].guardrail["action"] == "log"


async def test_header_policy_is_added(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A client may tighten the rules by a header, and cannot loosen them."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    header = {"Invariant-Guardrails": 'raise "no Cork" if:\n    (m: Message)\n    "Cork" in m.content'}
    escaped = {name: value.encode("unicode_escape").decode() for name, value in header.items()}
    for city in ("Cork", "Dublin"):
        upstream.reply(unary(candidate(f"In {city}", "STOP")))
        async with client.post(proxy.method(), json=prompt("Where?"), headers=escaped) as response:
            assert response.status == 400
            assert f"no {city}" in (await response.json())["error"]["message"]
    assert not any("invariant" in name for call in upstream.calls for name in call.headers)


async def test_header_policy_that_does_not_load(start_proxy: StartProxy, client: aiohttp.ClientSession) -> None:
    proxy = await start_proxy()
    headers = {"Invariant-Guardrails": 'raise "x" if:\\n    nonsense(1)'}
    async with client.post(proxy.method(), json=prompt("hi"), headers=headers) as response:
        assert response.status == 400
        message = (await response.json())["error"]["message"]
    assert message.startswith("Invariant-Guardrails: Invariant-Guardrails:2:5:") or ":2:" in message


@pytest.mark.parametrize("mode", ["off", "replace"])
async def test_header_policy_modes(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, mode: str
) -> None:
    """ "off" ignores the header; "replace" puts it in the place of the files' rules."""
    proxy = await start_proxy(policy=NO_DUBLIN, guardrails={"header_policies": mode})
    upstream.reply(unary(candidate("In Dublin", "STOP")))
    headers = {"Invariant-Guardrails": 'raise "never" if:\\n    (m: Message)\\n    m.role == "nobody"'}
    async with client.post(proxy.method(), json=prompt("Where?"), headers=headers) as response:
        assert response.status == (400 if mode == "off" else 200)


async def test_counting_tokens_is_checked_as_a_request(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """What only counts tokens carries the prompt all the same; its answer passes as it is."""
    proxy = await start_proxy(policy='raise "no secrets" if:\n    (m: Message)\n    "hunter2" in m.content\n')
    upstream.reply(unary({"totalTokens": 3}))
    body = {"generateContentRequest": {"model": "models/m", **prompt("hunter2")}}
    async with client.post(proxy.method("countTokens"), json=body) as response:
        assert response.status == 400
    async with client.post(proxy.method("countTokens"), json=prompt("hello")) as response:
        assert await response.json(content_type=None) == {"totalTokens": 3}
    assert len(upstream.calls) == 1


async def test_required_traces(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """With traces.required an exchange that cannot be recorded gets no answer; without, it does."""
    upstream.reply(unary(candidate("Cork", "STOP")))
    proxy = await start_proxy(traces={"required": True})
    await proxy.store.close()
    async with client.post(proxy.method(), json=prompt("Where?")) as response:
        assert response.status == 503
        assert (await response.json())["error"]["status"] == "UNAVAILABLE"


async def test_with_deferred_durability_the_answer_leaves_before_its_trace_is_written(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    upstream.reply(unary(candidate("Cork", "STOP")))
    proxy = await start_proxy(traces={"durability": "deferred"})
    async with locked(proxy.database):
        async with client.post(proxy.method(), json=prompt("Where?")) as response:
            assert (response.status, await response.json(content_type=None)) == (200, candidate("Cork", "STOP"))
        assert await proxy.store.recent(1) == []
    trace = await proxy.eventually(lambda trace: True)
    assert trace.outcome is Outcome.COMPLETED


async def test_traces_that_cannot_be_written_break_nothing(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    upstream.reply(unary(candidate("Cork", "STOP")))
    proxy = await start_proxy()
    await proxy.store.close()
    async with client.post(proxy.method(), json=prompt("Where?")) as response:
        assert response.status == 200
    async with client.get(f"{proxy.url}/readyz") as response:
        assert response.status == 503


async def test_too_many_at_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Over max_exchanges the answer is 503 with Retry-After; those under way go on."""
    proxy = await start_proxy(server={"max_exchanges": 1})
    go = asyncio.Event()
    upstream.reply(Reply(before_head=go, steps=[orjson.dumps(candidate("a", "STOP"))]))
    first = asyncio.ensure_future(client.post(proxy.method(), json=prompt("1")))
    await upstream.called.wait()
    async with client.post(proxy.method(), json=prompt("2")) as response:
        assert (response.status, response.headers["retry-after"]) == (503, "1")
    go.set()
    async with await first as response:
        assert response.status == 200


async def test_answer_over_the_limit(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(upstream={"max_answer_bytes": 2000})
    events = sse(*[candidate("x" * 500) for _ in range(10)])
    upstream.reply(stream(*events, Hang()))
    async with client.post(proxy.stream, json=prompt("go")) as response:
        body = await response.read()
    assert body.count(b"data: ") <= 4
    assert b"larger than upstream.max_answer_bytes allows" in body


@pytest.mark.parametrize("mode", ["final", "hold"])
@pytest.mark.parametrize("city", ["Cork", "Dublin"])
async def test_a_waiting_client_is_kept_alive(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, mode: str, city: str
) -> None:
    """While a verdict takes longer than a second, the event that will come is begun and spaces are added to it."""
    engine = Unhurried()
    proxy = await start_proxy(policy=NO_DUBLIN, guardrails={"stream_check": mode}, engine=engine)
    (event,) = sse(candidate(f"In {city}", "STOP"))
    upstream.reply(stream(event))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        assert await response.content.readexactly(7) == b"data:  "
        assert response.headers["x-gemini-proxy-guardrails"].startswith("verdict=pending")
        engine.decide.set()
        body = await response.read()
    payload = orjson.loads(body)
    assert body.endswith(b"}\r\n\r\n")
    if city == "Cork":
        assert body.lstrip() == event.removeprefix(b"data: ")
    else:
        assert payload["candidates"][0]["finishReason"] == "SAFETY"


class Unhurried:
    """The real engine, whose verdicts on answers wait until they are let go."""

    def __init__(self) -> None:
        self.engine = NativeEngine(Workers(), 5.0)
        self.decide = asyncio.Event()

    def check(self, check: Check) -> Verdict | Awaitable[Verdict]:
        verdict = self.engine.check(check)
        return self.wait(verdict) if len(check.messages) > 1 else verdict

    async def wait(self, verdict: Verdict | Awaitable[Verdict]) -> Verdict:
        await self.decide.wait()
        return verdict if isinstance(verdict, Verdict) else await verdict

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        return self.engine.open_session(check, overlap)


class Broken:
    """An engine that never has a verdict, at once or later."""

    def __init__(self, later: bool) -> None:
        self.later = later

    def check(self, check: Check) -> Verdict | Awaitable[Verdict]:
        if self.later:
            return self.wait()
        raise EngineUnavailable("broken")

    async def wait(self) -> Verdict:
        raise EngineUnavailable("broken")

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        return None


@pytest.mark.parametrize("later", [False, True])
async def test_failing_open_is_said(later: bool) -> None:
    verdict = FailOpenEngine(Broken(later)).check(Check((), ()))
    if not isinstance(verdict, Verdict):
        verdict = await verdict
    assert verdict.unchecked == "broken"


async def test_aborted_stream_gives_what_passed_before_it_breaks(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A refusal ends a broken stream too: what came is checked before anything withheld could leave."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    seen = asyncio.Event()
    events = sse(candidate("In "), candidate("Dublin", "STOP"))
    upstream.reply(stream(events[0], seen, events[1], Abort()))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        assert await response.content.readany() == events[0]
        seen.set()
        assert b"no Dublin" in await response.read()
