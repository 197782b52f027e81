"""The judge: the whole proxy, whose policies ask a model at a scripted Gemini."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gemini_proxy.config import ConfigError, load_config
from gemini_proxy.server.sources import compile_sources, read_sources
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.server.test_key_leaks import stored_bytes
from tests.server.test_metrics import scrape
from tests.support.proxy import prompt
from tests.support.upstream import Call, Hang, Reply, ScriptedUpstream, candidate, sse, stream, unary

POLICY = """
from invariant.detectors import decision

raise "a secret plan" if:
    (m: Message)
    decision("Is this about a secret plan?", m)
"""
CLIENTS, CONFIGURED = "AIzaTestKey", "AIzaCANARY-judge-0123456789"
OK = unary(candidate("fine", "STOP"))


@pytest.fixture
async def judge() -> AsyncIterator[ScriptedUpstream]:
    server = ScriptedUpstream()
    await server.start()
    server.reply(lambda call: decided("plan" in asked_about(call)["text"]))
    yield server
    await server.stop()


def decided(decision: Any) -> Reply:
    return unary(candidate(orjson.dumps({"decision": decision}).decode(), "STOP"))


def asked_about(call: Call) -> Any:
    return orjson.loads(call.json["contents"][0]["parts"][0]["text"])


def judging(judge: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    return {"judge": {"model": "judge-1", "url": judge.url, "api_key": CONFIGURED, **more}}


async def said(client: aiohttp.ClientSession, url: str, text: str) -> tuple[int, str]:
    async with client.post(url, json=prompt(text)) as response:
        return response.status, await response.text()


async def test_the_judge_decides(
    start_proxy: StartProxy, upstream: ScriptedUpstream, judge: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """One call for each text, with the question, the text and a schema; what was decided is refused or passes."""
    proxy = await start_proxy(policy=POLICY, guardrails=judging(judge))
    upstream.reply(OK)
    assert (await said(client, proxy.method(), "hello"))[0] == 200
    status, body = await said(client, proxy.method(), "the plan is ready")
    assert status == 400 and "a secret plan" in body
    assert [asked_about(call)["text"] for call in judge.calls] == ["hello", "fine", "the plan is ready"]
    call = judge.calls[0]
    assert call.target == "/v1beta/models/judge-1:generateContent"
    assert call.headers["x-goog-api-key"] == CONFIGURED
    assert asked_about(call)["question"] == "Is this about a secret plan?"
    assert call.json["generationConfig"]["responseSchema"]["required"] == ["decision"]
    figures = await scrape(client, proxy)
    assert figures["gemini_proxy_questions_total{detector=decision,result=answered}"] == 3


async def test_the_clients_key_pays_where_none_is_configured(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """It goes to the upstream, where it goes anyway. The judge's own call is not checked: there would be no end."""
    proxy = await start_proxy(policy=POLICY, guardrails={"judge": {"model": "judge-1"}, "request_check": "before"})
    upstream.reply(lambda call: decided(False) if "judge-1" in call.target else OK)
    assert (await said(client, proxy.method(), "hello"))[0] == 200
    judged = [call for call in upstream.calls if "judge-1" in call.target]
    assert [call.headers["x-goog-api-key"] for call in judged] == [CLIENTS, CLIENTS]
    assert len(upstream.calls) == 3


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (unary({"error": {"message": "quota"}}, status=429), "HTTP 429"),
        (Reply([b"<html>"]), "not a JSON object"),
        (unary({"candidates": []}), "cannot be read"),
        (unary(candidate('{"decision": tr', "MAX_TOKENS")), "did not finish"),
        (decided("yes"), "not a decision"),
        (unary({"promptFeedback": {"blockReason": "SAFETY"}}), "refused to read"),
        (Reply([Hang()]), "not answered in time"),
        (Reply(status=302, headers={"location": "http://127.0.0.1:9/"}), "HTTP 302"),
    ],
)
async def test_no_answer_is_no_verdict(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    judge: ScriptedUpstream,
    client: aiohttp.ClientSession,
    reply: Reply,
    why: str,
) -> None:
    """Whatever it says instead of a decision blocks, and nobody sees the key."""
    proxy = await start_proxy(policy=POLICY, guardrails=judging(judge, timeout=0.2))
    upstream.reply(OK)
    judge.reply(reply)
    status, body = await said(client, proxy.method(), "hello")
    assert status == 400 and "GUARDRAIL_UNAVAILABLE" in body and why in body
    assert CONFIGURED not in body
    assert CONFIGURED.encode() not in stored_bytes(Path(proxy.database.removeprefix("sqlite:///")).parent)


async def test_no_answer_passes_where_the_operator_chose_so(
    start_proxy: StartProxy, upstream: ScriptedUpstream, judge: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=POLICY, guardrails={**judging(judge), "unavailable": "allow"})
    upstream.reply(OK)
    judge.reply(Reply(status=500))
    assert (await said(client, proxy.method(), "hello"))[0] == 200
    trace = await proxy.eventually(lambda trace: trace.outcome is Outcome.COMPLETED or trace.outcome)
    assert trace.outcome is Outcome.UNCHECKED


async def test_a_stream_is_asked_about_at_its_end(
    start_proxy: StartProxy, upstream: ScriptedUpstream, judge: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Once for the whole answer, not for each piece of it; "window" then withholds all of it."""
    proxy = await start_proxy(policy=POLICY, guardrails={**judging(judge), "stream_check": "window"})
    upstream.reply(stream(*sse(candidate("the "), candidate("pl"), candidate("an", "STOP"))))
    async with client.post(proxy.stream, json=prompt("hello")) as response:
        body = await response.text()
    assert "a secret plan" in body and 'pl"' not in body
    assert [asked_about(call)["text"] for call in judge.calls] == ["hello", "the plan"]


async def test_llm_and_moderated(
    start_proxy: StartProxy, upstream: ScriptedUpstream, judge: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A free text as in the stock language; a text that the model may not even read is one to moderate."""
    policy = (
        'from invariant import llm\nfrom invariant.detectors import moderated\nraise "rated" if:\n    (m: Message)\n'
        '    moderated(m)\n    "9" in llm(f"Rate: {m.content}", system_prompt="Be brief.", max_tokens=5)\n'
    )
    proxy = await start_proxy(policy=policy, guardrails=judging(judge))
    blocked = unary({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}})
    rated = unary(candidate("9/10", "STOP"))
    judge.reply(lambda call: blocked if "responseSchema" in call.json["generationConfig"] else rated)
    upstream.reply(OK)
    status, body = await said(client, proxy.method(), "grim")
    assert status == 400 and "rated" in body
    free = judge.calls[1].json
    assert free["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert free["contents"][0]["parts"][0]["text"] == "Rate: grim"
    assert free["generationConfig"]["maxOutputTokens"] == 5


def test_a_policy_that_asks_needs_a_judge(tmp_path: Path) -> None:
    (tmp_path / "p.gr").write_text(POLICY)
    file = tmp_path / "config.toml"
    file.write_text('[guardrails]\npolicies = ["p.gr"]\n')
    with pytest.raises(ConfigError, match=r"p\.gr: decision\(\.\.\.\) needs a judge: set guardrails\.judge\.model"):
        compile_sources(read_sources(load_config(file), file))
    file.write_text('[guardrails]\npolicies = ["p.gr"]\n[guardrails.judge]\nmodel = "gemini-2.5-flash-lite"\n')
    assert len(compile_sources(read_sources(load_config(file), file)).blocking) == 1
