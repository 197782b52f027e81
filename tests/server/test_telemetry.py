"""OpenTelemetry: what a receiver of OTLP gets of exchanges, and what it does not."""

import asyncio
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gemini_proxy.config import Config, ConfigError, check_secrets
from gemini_proxy.server.telemetry import ExchangeTelemetry, plain
from tests.support.keys import GEMINI_KEYS
from tests.support.live import asks, running_live, says, session
from tests.support.otlp import OtlpReceiver, otlp_receiver
from tests.support.proxy import prompt, proxy_before
from tests.support.upstream import Reply, ScriptedUpstream, candidate, sse, stream, unary

NO_CANARY = """
raise PolicyViolation("said CANARY", m) if:
    (m: Message)
    m.role == "user"
    "CANARY" in m.content
"""
MASKED = """
raise "an address" if:
    (m: Message)
    any(find("ada@example.com", m.content))
"""
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
USAGE = {"promptTokenCount": 7, "candidatesTokenCount": 3, "thoughtsTokenCount": 2, "cachedContentTokenCount": 5}
CLIENT, SERVER = 3, 2


def telling(receiver: OtlpReceiver, **more: Any) -> dict[str, Any]:
    return {"telemetry": {"enabled": True, "endpoint": receiver.url, **more}}


async def test_an_exchange_is_a_trace_that_the_upstream_continues(
    upstream: ScriptedUpstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Below the client's span; with the conventions' attributes and metrics, and nothing of what was said."""
    answer = {**candidate("CANARY yes", "STOP"), "usageMetadata": USAGE, "modelVersion": "v1", "responseId": "r1"}
    async with (
        otlp_receiver() as receiver,
        proxy_before(upstream.url, tmp_path, policy=NO_CANARY, **telling(receiver)) as proxy,
    ):
        upstream.reply(stream(*sse(answer)))
        body = {
            **prompt("hello SECRETIVE"),
            "generationConfig": {"temperature": 0.5, "topK": 3, "maxOutputTokens": True},
        }
        headers = {"traceparent": PARENT, "tracestate": "rojo=00f067aa0ba902b7,congo=t61"}
        async with client.post(proxy.stream, json=body, headers=headers) as response:
            assert response.status == 200
            await response.read()
        trace = await proxy.trace()
    server, call = receiver.named("POST "), receiver.named("generate_content gemini-2.5-flash")
    assert (server.trace_id, server.parent_id) == (PARENT.split("-")[1], PARENT.split("-")[2])
    assert (call.trace_id, call.parent_id, call.kind, server.kind) == (server.trace_id, server.span_id, CLIENT, SERVER)
    assert upstream.calls[0].headers["traceparent"] == f"00-{call.trace_id}-{call.span_id}-01"
    assert upstream.calls[0].headers["tracestate"] == headers["tracestate"]
    assert server.attributes["http.response.status_code"] == 200
    assert server.name == "POST /{v}/models/{model}:streamGenerateContent"
    expected = {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": "gemini-2.5-flash",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 3,
        "gen_ai.response.id": "r1",
        "gen_ai.response.model": "v1",
        "gen_ai.response.finish_reasons": ["STOP"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 5,
        "gemini_proxy.outcome": "completed",
        "gemini_proxy.trace.id": trace.id,
        "server.address": "127.0.0.1",
    }
    assert {name: call.attributes.get(name) for name in expected} == expected
    assert "gen_ai.request.max_tokens" not in call.attributes and "error.type" not in call.attributes
    assert call.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert receiver.resources[0]["service.name"] == "gemini-proxy"
    tokens = {point["gen_ai.token.type"]: value for point, value in receiver.points["gen_ai.client.token.usage"]}
    assert tokens == {"input": (1, 7.0), "output": (1, 5.0)}
    [(labels, (count, _))] = receiver.points["gen_ai.client.operation.duration"]
    assert (labels["gen_ai.request.model"], count) == ("gemini-2.5-flash", 1)
    assert receiver.points["gemini_proxy.guardrail.check.duration"]
    for secret in (b"CANARY", b"SECRETIVE", b"AIzaTestKey"):
        assert secret not in receiver.raw


@pytest.mark.parametrize("state", [f"vendor=AIza{'S' * 35}", "=SECRETIVE", "vendor=SECRETIVE=", "v=SECRETIVE," * 100])
async def test_the_state_that_a_client_sends_with_its_trace(
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    state: str,
) -> None:
    """It is the client's own words: what holds a key or is out of form goes nowhere, the log included."""
    async with (
        otlp_receiver() as receiver,
        proxy_before(upstream.url, tmp_path, policy=NO_CANARY, **telling(receiver)) as proxy,
    ):
        upstream.reply(unary(candidate("yes", "STOP")))
        headers = {"traceparent": PARENT, "tracestate": state}
        async with client.post(proxy.method(), json=prompt("hi"), headers=headers) as response:
            assert response.status == 200
    assert receiver.named("POST ").parent_id == PARENT.split("-")[2]
    told = f"{receiver.raw!r}{caplog.text}"
    assert "SECRETIVE" not in told and "SSSSS" not in told and "exceeded" not in told


async def test_refusals_and_failures_are_told_apart(
    upstream: ScriptedUpstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A refusal is no fault of the server's. Without a client's trace the exchange begins one."""
    async with (
        otlp_receiver() as receiver,
        proxy_before(upstream.url, tmp_path, policy=NO_CANARY, **telling(receiver)) as proxy,
    ):
        async with client.post(proxy.method(), json=prompt("CANARY")) as response:
            assert response.status == 400
        upstream.reply(Reply([b"{}"], 503))
        async with client.post(proxy.method(), json=prompt("hi"), headers={"traceparent": "00-zz"}) as response:
            assert response.status == 503
    refused, failed = (span for span in receiver.spans if span.kind == CLIENT)
    assert (refused.attributes["error.type"], refused.status) == ("guardrail_refused", 0)
    [(name, result)] = refused.events
    assert name == "gen_ai.guardrail.result"
    assert result == {
        "gen_ai.guardrail.component.name": "gemini-proxy",
        "gen_ai.guardrail.policy.id": "test policy",
        "gen_ai.guardrail.policy.version": sha256(NO_CANARY.encode()).hexdigest()[:16],
        "gen_ai.guardrail.result.type": "action",
        "gen_ai.guardrail.result.value": "block",
        "gen_ai.guardrail.source": "request",
    }
    assert (failed.attributes["error.type"], failed.status) == ("503", 2)
    [(labels, value)] = receiver.points["gemini_proxy.guardrail.violations"]
    assert (labels["gen_ai.guardrail.result.value"], value) == ("block", 1)
    assert b"CANARY" not in receiver.raw


async def test_content_is_told_masked_and_only_where_it_is_wanted(
    upstream: ScriptedUpstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with otlp_receiver() as receiver:
        async with proxy_before(upstream.url, tmp_path, mask_policy=MASKED, **telling(receiver, content=True)) as proxy:
            upstream.reply(unary(candidate(f"Done, {GEMINI_KEYS[0]}", "STOP")))
            async with client.post(proxy.method(), json=prompt("Write to ada@example.com")) as response:
                assert response.status == 200
    attributes = receiver.named("generate_content").attributes
    asked = attributes["gen_ai.input.messages"]
    assert asked.startswith('[{"role":"user","parts":[{"type":"text","content":"Write to <')
    assert '"role":"assistant"' in attributes["gen_ai.output.messages"]
    assert b"ada@example.com" not in receiver.raw and GEMINI_KEYS[0].encode() not in receiver.raw


async def test_a_turn_of_a_live_session_is_told(tmp_path: Path) -> None:
    """It is no request of HTTP: its span has no other above it."""
    async with otlp_receiver() as receiver, running_live() as live:
        live.script = lambda frame: [says("Cork"), says(complete=True)]
        async with proxy_before(live.url, tmp_path, policy=NO_CANARY, **telling(receiver)) as proxy:
            async with session(proxy.url) as client:
                await client.send(asks("Where?"))
                await client.turn()
    [turn] = [span for span in receiver.spans if span.kind == CLIENT]
    assert (turn.parent_id, turn.attributes["gen_ai.operation.name"]) == ("", "generate_content")
    assert turn.attributes["gemini_proxy.outcome"] == "completed"


async def test_a_receiver_that_hangs_keeps_no_server_from_stopping() -> None:
    async with otlp_receiver() as receiver:
        receiver.gate.clear()
        settings = Config.model_validate(telling(receiver)).telemetry
        telemetry = ExchangeTelemetry(settings, "https://gemini.example", 1, patience=0.1)
        with telemetry.tracer.start_as_current_span("x"):
            pass
        async with asyncio.timeout(3):
            await telemetry.close()
        assert not receiver.spans


def test_switched_off_it_is_not_even_imported() -> None:
    """No module imports the SDK when it is itself imported."""
    imported = re.compile(r"^(?:import|from) opentelemetry", re.MULTILINE)
    sources = list((Path(__file__).parents[2] / "src").rglob("*.py"))
    assert sources and not [source for source in sources if imported.search(source.read_text())]


def test_without_the_extra_the_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"pip install \"gemini-proxy\[otel\]\""):
        check_secrets(Config.model_validate({"telemetry": {"enabled": True}}))


def test_names_are_cut_and_hold_no_keys() -> None:
    assert plain(f"a {GEMINI_KEYS[0]} \ud800" + "x" * 300).startswith("a [redacted] ?xxx")
    assert len(plain("x" * 300)) == 200
