"""Interactions on the wire: allowed bytes are untouched, verdicts may take long, and clients may leave."""

import asyncio
import re
from typing import Any

import aiohttp
import orjson
import pytest

from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.interactions.wire import INTERACTIONS
from gemini_proxy.guardrails.masking import FrameEditor, Masks, Restoring
from tests.conftest import StartProxy
from tests.gemini.interactions.streams import (
    DONE,
    call_step,
    completed,
    created,
    delta,
    interaction,
    sse,
    start,
    stop,
    text_step,
)
from tests.proxy.test_approvals import decide, waiting
from tests.support.proxy import MODEL, Proxy
from tests.support.upstream import Abort, Hang, Reply, ScriptedUpstream, unary

QUIET = 'raise "never" if:\n    (m: Message)\n    "never said" in m.content\n'
PAYMENTS = 'raise "a payment" if:\n    (call: ToolCall)\n    call is tool:pay\n'
ODD = [
    b": hello\n\n",
    b'event: interaction.created\r\ndata: {"interaction" : {"id":"v1_abc","status":"in_progress"},'
    b'"event_type":"interaction.created"}\r\n\r\n',
    b'event: step.start\ndata: {"event_type":"step.start","index":0,"step":{"type":"model_output",'
    b'"content":[{"type":"text","text":"\\u00e9 "}]}}\n\n',
    b'id: 7\nevent: step.delta\ndata: {"index":0,"event_type":"step.delta","event_id":"7",\n'
    b'data: "delta":{"text":"so","type":"text"}}\n\n',
    b'data: {"event_type":"step.start","index":1,"step":{"id":"c","type":"function_call","name":"f"}}\n\n',
    b'data: {"event_type":"step.delta","index":1,"delta":{"type":"arguments_delta","arguments":" {} "}}\n\n',
    b'data: {"event_type":"step.stop","index":1}\n\ndata: {"event_type":"step.stop","index":0}\n\n',
    b'event: interaction.status_update\ndata: {"event_type":"interaction.status_update","interaction_id":"v1_abc",'
    b'"status":"in_progress","continuation_token":"dG9rZW4="}\n\n',
    b'event: interaction.completed\ndata: {"event_type":"interaction.completed","interaction":{"id":"v1_abc",'
    b'"status":"requires_action"}}\n\n',
    DONE,
]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "hi", **fields}


def address(proxy: Proxy) -> str:
    return f"{proxy.url}/v1/interactions"


@pytest.mark.parametrize("stream_check", ["final", "window", "hold"])
async def test_allowed_bytes_are_untouched(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, stream_check: str
) -> None:
    """However they are spelled, and whatever is between them."""
    proxy = await start_proxy(policy=QUIET, guardrails={"stream_check": stream_check})
    upstream.reply(Reply(ODD, content_type="text/event-stream"))
    async with client.post(address(proxy), json=body(stream=True)) as response:
        assert await response.read() == b"".join(ODD)
        assert "verdict=" in response.headers["x-gemini-proxy-guardrails"]
    assert [message.get("content") for message in (await proxy.trace()).messages[1:]] == ["é so", None]
    whole = b' {"id":"v1_abc", "status" : "completed","steps":[{"type":"model_output","content":[]}]}\n'
    upstream.reply(Reply([whole]))
    async with client.post(address(proxy), json=body()) as response:
        assert await response.read() == whole
    async with client.get(f"{address(proxy)}/v1_abc?include_input=true") as response:
        assert await response.read() == whole


async def test_a_stream_shows_life_while_a_person_is_asked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(ask_policy=PAYMENTS)
    text = [start(0, {"type": "model_output"}), delta(0, type="text", text="I pay."), stop(0)]
    events = [created(), *text, start(1, call_step("pay", {"to": "ACME"})), stop(1), completed("requires_action")]
    upstream.reply(Reply([sse(events)], content_type="text/event-stream"))
    async with client.post(address(proxy), json=body(stream=True)) as response:
        received = bytearray()
        async with asyncio.timeout(20):
            # Nothing ends this but a sign of life: no byte of the call is there before the decision.
            while not received.endswith(b"\n:\n"):
                received += await response.content.readany()
        assert b"ACME" not in received
        await decide(proxy, allow=True)
        received += await response.read()
    assert re.sub(rb"(?m)^:\n", b"", received) == sse(events)


async def test_what_was_allowed_is_not_asked_again_when_it_is_gone_on_from(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Nor when it is read again with a response."""
    proxy = await start_proxy(ask_policy=PAYMENTS, guardrails={"ask_timeout": 5})
    upstream.reply(Reply([orjson.dumps(interaction([call_step("pay", {"to": "ACME"})]))]))

    async def ask() -> int:
        async with client.post(address(proxy), json=body()) as response:
            return response.status

    asking = asyncio.create_task(ask())
    await decide(proxy, allow=True)
    assert await asking == 200
    upstream.reply(Reply([orjson.dumps({**interaction([text_step("paid")]), "id": "v1_b"})]))
    step = {"type": "function_result", "call_id": "c1", "name": "pay", "result": "ok"}
    async with client.post(address(proxy), json=body(input=[step], previous_interaction_id="v1_abc")) as response:
        assert response.status == 200
    async with client.get(f"{address(proxy)}/v1_b") as response:
        assert response.status == 200
    assert await waiting(proxy, 0) == []


async def test_a_deletion_that_fails_is_asked_for_again(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The interaction may be under way still."""
    proxy = await start_proxy(policy=QUIET)
    upstream.reply(
        Reply([orjson.dumps(interaction([text_step("never said")]))]), Reply([b"{}"], status=409), Reply([b"{}"])
    )
    async with client.post(address(proxy), json=body()) as response:
        assert response.status == 400
    async with asyncio.timeout(10):
        while len(upstream.calls) < 3:
            upstream.called.clear()
            await upstream.called.wait()
    assert [call.method for call in upstream.calls] == ["POST", "DELETE", "DELETE"]


@pytest.mark.parametrize("name", ["v1_a==", "a:b+c", "." * 2, "a" * 257])
async def test_nobody_goes_on_from_what_was_refused_whatever_its_id(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, name: str
) -> None:
    proxy = await start_proxy(policy=PAYMENTS)
    refused = {**interaction([call_step("pay", {})]), "id": name}
    upstream.reply(unary(refused), unary({}), unary(interaction([text_step("fine")])))
    for fields in ({}, {"previous_interaction_id": name}):
        async with client.post(address(proxy), json=body(**fields)) as response:
            assert response.status == 400
    assert [call.method for call in upstream.calls].count("POST") == 1


async def test_a_response_that_was_not_read_is_unread_when_it_is_gone_on_from(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The upstream breaks off, or the client leaves."""
    proxy = await start_proxy(policy=QUIET)
    head = sse([created(), start(0, {"type": "model_output"})]).removesuffix(DONE)
    for last in (Abort(), Hang()):
        upstream.reply(Reply([head, last], content_type="text/event-stream"))
        async with client.post(address(proxy), json=body(stream=True)) as response:
            await response.content.readany()
            if isinstance(last, Abort):
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
        await proxy.eventually(lambda trace: trace.outcome in ("upstream_cut", "client_gone"))
        upstream.reply(Reply([orjson.dumps(interaction([text_step("ok")]))]))
        async with client.post(address(proxy), json=body(previous_interaction_id="v1_abc")) as response:
            assert response.status == 200
        assert (await proxy.trace()).metadata["coverage"]["not_checked"]


@pytest.mark.parametrize("cut", range(1, 36, 5))
def test_values_come_back_wherever_a_placeholder_is_cut(cut: int) -> None:
    """In text, thoughts and arguments, where they are spelled as JSON."""
    value, placeholder = 'say "hi"\n\\', "<MASKED_0123456789>"
    texts = f"a {placeholder} b {placeholder}"
    arguments = f'{{"a":"{placeholder}","b":1}}'
    editor = FrameEditor(SseFraming(), Restoring(Masks({value: placeholder})), places=INTERACTIONS.places)
    events = [start(0, {"type": "model_output", "content": [{"type": "text", "text": texts[:cut]}]})]
    events += [delta(0, type="text", text=texts[cut:]), stop(0), start(1, {"type": "thought"})]
    events += [
        delta(1, type="thought_summary", content={"type": "text", "text": text}) for text in (texts[:cut], texts[cut:])
    ]
    events += [stop(1), start(2, call_step("f", {}))]
    events += [delta(2, type="arguments_delta", arguments=text) for text in (arguments[:cut], arguments[cut:])]
    events += [stop(2), completed(steps=[text_step(texts)])]
    edited = editor.edit(sse(events))
    framing = SseFraming()
    found = [frame.payload for frame in framing.feed(edited) if frame.payload is not None]
    deltas = [each["delta"] for each in found if each["event_type"] == "step.delta"]
    expected = texts.replace(placeholder, value)
    assert found[0]["step"]["content"][0]["text"] + deltas[0]["text"] == expected
    assert "".join(one["content"]["text"] for one in deltas[1:3]) == expected
    assert orjson.loads("".join(one["arguments"] for one in deltas[3:])) == {"a": value, "b": 1}
    assert found[-1]["interaction"]["steps"][0]["content"][0]["text"] == expected


async def test_a_chain_is_one_conversation(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """By the name that its first request gave, or else by how it began; what is read again is in it too."""
    proxy = await start_proxy()
    found: list[Any] = []
    for first, headers in (("v1_a", {"x-gemini-proxy-conversation": "mine"}), ("v1_c", {})):
        chain = [(first, body(), headers), (f"{first}b", body(input="and?", previous_interaction_id=first), {})]
        for name, sent, more in chain:
            upstream.reply(Reply([orjson.dumps({**interaction([text_step(name)]), "id": name})]))
            async with client.post(address(proxy), json=sent, headers=more) as response:
                assert response.status == 200
            found.append((await proxy.trace()).metadata["conversation"])
        async with client.get(f"{address(proxy)}/{first}b") as response:
            assert response.status == 200
        found.append((await proxy.trace()).metadata["conversation"])
    assert found[:3] == ["mine"] * 3 and found[3] and found[3:] == [found[3]] * 3
