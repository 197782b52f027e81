"""What Google says of its own errors, and which conversation an exchange belongs to, as the trace keeps them."""

from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.gemini.upstream_fault import UpstreamFault, fault_in, read_fault
from gemini_proxy.traces.headline import headline_of
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.keys import GEMINI_KEYS
from tests.support.proxy import prompt
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

QUOTA = {"error": {"code": 429, "message": "No quota is left.", "status": "RESOURCE_EXHAUSTED"}}
JSON = st.recursive(
    st.none() | st.text(max_size=5) | st.integers(),
    lambda inner: (
        st.dictionaries(st.sampled_from(["error", "message", "status", "x"]), inner, max_size=3)
        | st.lists(inner, max_size=2)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("streams", [False, True])
async def test_the_message_of_an_error_is_kept(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream, streams: bool
) -> None:
    """An HTTP error reaches the client as it is; the trace, the log's outcome and the metric tell which it was."""
    proxy = await start_proxy()
    upstream.reply(unary(QUOTA, status=429))
    async with client.post(proxy.stream if streams else proxy.method(), json=prompt("hello")) as response:
        assert (response.status, await response.json()) == (429, QUOTA)
    trace = await proxy.trace()
    assert (trace.outcome, trace.metadata["upstream_status"]) == (Outcome.UPSTREAM_ERROR, 429)
    assert trace.metadata["upstream_error"] == {"status": "RESOURCE_EXHAUSTED", "message": "No quota is left."}
    assert headline_of(trace.metadata, "").failure == "No quota is left."
    async with client.get(f"{proxy.url}/metrics") as response:
        assert 'gemini_proxy_upstream_responses_total{status="4xx"} 1.0' in await response.text()


async def test_an_error_within_a_stream_is_kept(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy()
    upstream.reply(stream(*sse({"error": {"code": 503, "message": "overloaded"}})))
    async with client.post(proxy.stream, json=prompt("hello")) as response:
        await response.read()
    trace = await proxy.trace()
    assert trace.metadata["upstream_error"] == {"status": "", "message": "overloaded"}


async def test_keys_in_an_errors_message_are_not_kept(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy()
    said = " ".join(GEMINI_KEYS)
    upstream.reply(unary({"error": {"message": f"bad keys {said}"}}, status=400))
    async with client.post(proxy.method(), json=prompt("hello")) as response:
        await response.read()
    kept = (await proxy.trace()).metadata["upstream_error"]["message"]
    assert kept.startswith("bad keys [redacted]") and not any(key in kept for key in GEMINI_KEYS)


@settings(max_examples=50)
@given(JSON)
def test_no_error_is_too_odd(error: Any) -> None:
    found = read_fault(error)
    assert found is None or found.status or found.message


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": 3}', b"\xff", b"{" * 99_999, b'{"a":1}'])
def test_a_body_that_is_no_error_says_nothing(body: bytes) -> None:
    assert fault_in(body) is None
    assert fault_in(b'[{"error": {"message": "late"}}]') == UpstreamFault("", "late")


async def test_a_chat_is_one_conversation(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    """The next turn repeats how it began; a client may also name it."""
    proxy = await start_proxy()
    turn = {"role": "user", "parts": [{"text": "hello"}]}
    answer = {"role": "model", "parts": [{"text": "good day"}]}
    upstream.reply(stream(*sse(candidate("good "), candidate("day", "STOP"))), unary(candidate("fine", "STOP")))
    found: list[str] = []
    bodies: list[dict[str, Any]] = [{"contents": [turn]}, {"contents": [turn, answer, turn]}]
    for url, body in zip((proxy.stream, proxy.method()), bodies, strict=True):
        async with client.post(url, json=body) as response:
            assert response.status == 200
            await response.read()
        metadata = (await proxy.trace()).metadata
        assert metadata["asked"] == "hello"
        found.append(metadata["conversation"])
    assert found[0] == found[1] and len(found[0]) == 24
    upstream.reply(unary(candidate("fine", "STOP")))
    async with client.post(proxy.method(), json=bodies[0], headers={"x-gemini-proxy-conversation": "c/1"}) as response:
        assert response.status == 200
    assert (await proxy.trace()).metadata["conversation"] == "c/1"
    assert "x-gemini-proxy-conversation" not in upstream.calls[-1].headers
    for wrong in ("", "a b", "x" * 129):
        async with client.post(
            proxy.method(), json=bodies[0], headers={"x-gemini-proxy-conversation": wrong}
        ) as response:
            assert (response.status, "x-gemini-proxy-conversation" in await response.text()) == (400, True)
