"""Masking, asking and byte fidelity on the OpenAI path, from outside."""

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest

from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.openai.wire import OPENAI
from gemini_proxy.guardrails.masking import FrameEditor, Masks, Restoring
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.explorer.asking import PAYMENTS
from tests.proxy.test_approvals import decide
from tests.proxy.test_masking import EMAIL, EVERYWHERE, OTHER, TO_THE_MODEL, echoes, in_pieces, placeholder_in
from tests.support.proxy import Proxy
from tests.support.upstream import Reply, ScriptedUpstream, unary


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def address(proxy: Proxy) -> str:
    return f"{proxy.url}/v1beta/openai/chat/completions"


def whole(message: dict[str, Any]) -> dict[str, Any]:
    return {"id": "r", "object": "chat.completion", "choices": [{"message": message, "finish_reason": "stop"}]}


def chunk(delta: dict[str, Any], **choice: Any) -> bytes:
    payload = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, **choice}]}
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def call(arguments: str, **fields: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "pay", "arguments": arguments}, **fields}


def deltas(body: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
    return [choice["delta"] for line in lines if line != b"[DONE]" for choice in orjson.loads(line)["choices"]]


ASKED = {
    "model": "m",
    "messages": [
        {"role": "system", "content": f"Mail {EMAIL}"},
        {"role": "user", "content": [{"type": "text", "text": f"Write to {EMAIL}"}]},
        {"role": "assistant", "tool_calls": [call(f'{{"to": "{EMAIL}"}}')]},
        {"role": "tool", "tool_call_id": "c", "content": f"sent to {EMAIL}"},
    ],
    "tools": [{"type": "function", "function": {"name": "pay", "description": f"For {EMAIL}"}}],
}

QUIET = 'raise "x" if:\n    (m: Message)\n    "xyzzy" in m.content\n'


async def test_values_go_masked_and_come_back(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """In every place of a request, and in the texts and arguments of a response."""
    proxy = await start_proxy(mask_policy=TO_THE_MODEL)
    upstream.reply(
        echoes(lambda name: unary(whole({"content": f"To {name}", "tool_calls": [call(f'{{"to":"{name}"}}')]})))
    )
    body = orjson.dumps(ASKED)
    async with client.post(address(proxy), data=body, headers={"content-type": "application/json"}) as response:
        message = (await response.json())["choices"][0]["message"]
        assert "masked=1" in response.headers["x-gemini-proxy-guardrails"]
    placeholder = placeholder_in(upstream.calls[0].body)
    assert upstream.calls[0].body == body.replace(EMAIL.encode(), placeholder.encode())
    assert message["content"] == f"To {EMAIL}"
    assert orjson.loads(message["tool_calls"][0]["function"]["arguments"]) == {"to": EMAIL}
    trace = await proxy.trace()
    assert trace.outcome is Outcome.COMPLETED
    assert EMAIL not in str(trace)


@pytest.mark.parametrize("stream_check", ["final", "window", "hold"])
async def test_a_stream_comes_back_however_it_is_split(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, stream_check: str
) -> None:
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails={"stream_check": stream_check})

    def answer(name: str) -> Reply:
        begun, *more = in_pieces(f'{{"to":"\\u003c{name[1:]}"}}', 4)
        steps = [chunk({"content": piece}) for piece in in_pieces(f"To {name}!", 3)]
        steps.append(chunk({"tool_calls": [call(begun, index=0)]}))
        steps += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in more]
        return Reply([*steps, chunk({}, finish_reason="stop"), b"data: [DONE]\n\n"], content_type="text/event-stream")

    upstream.reply(echoes(answer))
    async with client.post(address(proxy), json=chat(f"Write to {EMAIL}", stream=True)) as response:
        found = deltas(await response.read())
    assert "".join(delta.get("content", "") for delta in found) == f"To {EMAIL}!"
    pieces = [piece["function"]["arguments"] for delta in found for piece in delta.get("tool_calls", ())]
    assert orjson.loads("".join(pieces)) == {"to": EMAIL}


@pytest.mark.parametrize(
    ("arguments", "status"), [(f'{{"to":"{OTHER}"}}', 200), ('{"to":"charles.babbage\\u0040example.org"}', 400)]
)
async def test_a_response_is_masked_or_refused(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    arguments: str,
    status: int,
) -> None:
    """What a call spells another way cannot be masked in place: it does not leave."""
    proxy = await start_proxy(mask_policy=EVERYWHERE)
    upstream.reply(unary(whole({"content": f"From {OTHER}", "tool_calls": [call(arguments)]})))
    async with client.post(address(proxy), json=chat("hi")) as response:
        body = await response.read()
        assert response.status == status
    assert OTHER.encode() not in body and b"\\u0040" not in body
    if status == 200:
        assert placeholder_in(body)


async def test_a_person_is_asked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """An allowed call arrives byte for byte, with what keeps the connection alive in front of it; a denied one not."""
    proxy = await start_proxy(ask_policy=PAYMENTS)
    steps = [chunk({"tool_calls": [call('{"to":"ACME"}')]}), chunk({}, finish_reason="stop"), b"data: [DONE]\n\n"]
    upstream.reply(Reply(steps, content_type="text/event-stream"))

    async def ask() -> tuple[int, bytes]:
        async with client.post(address(proxy), json=chat("Pay them", stream=True)) as response:
            return response.status, await response.read()

    asking = asyncio.create_task(ask())
    await decide(proxy, allow=True)
    assert await asking == (200, b"".join(steps))
    asking = asyncio.create_task(ask())
    await decide(proxy, allow=False, reason="no money")
    status, body = await asking
    assert (status, orjson.loads(body)["error"]["code"]) == (400, "GUARDRAIL_DENIED")
    assert b"no money" in body and b"ACME" not in body


@pytest.mark.parametrize("stream_check", ["final", "window", "hold"])
async def test_allowed_bytes_are_untouched(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, stream_check: str
) -> None:
    proxy = await start_proxy(policy=QUIET, guardrails={"stream_check": stream_check})
    steps = [
        b'data: {"choices" : [{"delta":{"content":"\\u00e9 ","extra_content":{"google":{"thought":true}}}}]}\r\n\r\n',
        b'data:{"choices":[{"index":1,"delta":{"reasoning_content":"so"}}],"x_groq":{"id":"1"}}\n\n',
        chunk({"tool_calls": [call("{}", extra_content={"google": {"thought_signature": "c2ln"}})]}),
        chunk({}, finish_reason="tool_calls"),
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n',
        b"data: [DONE]\n\n",
    ]
    upstream.reply(Reply(steps, content_type="text/event-stream"))
    async with client.post(address(proxy), json=chat("hi", stream=True, n=2)) as response:
        assert await response.read() == b"".join(steps)
    trace = await proxy.trace()
    assert trace.metadata["usage"] == {"promptTokenCount": 1, "candidatesTokenCount": 2, "totalTokenCount": 3}


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_values_in_arguments_are_spelled_as_json(cut: int) -> None:
    value, placeholder = 'say "hi"\n\\', "<MASKED_0123456789>"
    arguments = f'{{"a":"{placeholder}","b":"[{placeholder}]"}}'
    pieces = [arguments[:cut], arguments[cut:]]
    editor = FrameEditor(SseFraming(), Restoring(Masks({value: placeholder})), places=OPENAI.places)
    body = b"".join(chunk({"tool_calls": [call(piece, index=0)]}) for piece in pieces)
    found = [piece["function"]["arguments"] for delta in deltas(editor.edit(body)) for piece in delta["tool_calls"]]
    assert orjson.loads("".join(found)) == {"a": value, "b": f"[{value}]"}
