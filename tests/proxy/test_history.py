"""Chats that go on after a refusal: what was refused stays in the client's history, and never goes upstream again."""

from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson
import pytest
from google import genai
from google.genai import types

from gemini_proxy.traces.trace import Outcome
from tests.clients.sdk import QUIET
from tests.conftest import StartProxy
from tests.server.test_lifecycle import NO_SECRET
from tests.support.proxy import Proxy
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

NO_DUBLIN = """
raise "not about that town" if:
    (m: Message)
    m.role == "assistant"
    "Dublin" in m.content
"""
Turn = tuple[str, str]


def chat(*turns: Turn) -> dict[str, Any]:
    return {"contents": [{"role": role, "parts": [{"text": text}]} for role, text in turns]}


async def status(client: aiohttp.ClientSession, proxy: Proxy, *turns: Turn, prefix: str = "") -> int:
    async with client.post(proxy.method(prefix=prefix), json=chat(*turns)) as response:
        await response.read()
        return response.status


@pytest.fixture(autouse=True)
def _answers(upstream: ScriptedUpstream) -> None:
    upstream.reply(unary(candidate("fine", "STOP")))


REFUSED, SORRY, NEXT = ("user", "my password is hunter2, keep it"), ("model", "no"), ("user", "and now?")


async def test_a_refused_turn_no_longer_poisons_the_chat(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=NO_SECRET)
    assert await status(client, proxy, REFUSED) == 400
    for turns in ((NEXT,), (NEXT, ("model", "fine"), ("user", "still there?"))):
        assert await status(client, proxy, REFUSED, SORRY, *turns) == 200
        sent = upstream.calls[-1].json["contents"]
        assert sent[0]["parts"][0]["text"] == "my password is <REMOVED>, keep it"
        assert [content["parts"][0]["text"] for content in sent[2:]] == [text for _, text in turns]
    assert not any(b"hunter2" in call.body for call in upstream.calls)
    trace = await proxy.trace()
    assert trace.outcome is Outcome.COMPLETED
    assert "hunter2" not in str(trace.messages)
    (annotation,) = trace.annotations
    assert (annotation.guardrail["action"], annotation.address) == ("mask", "messages.0.content.0.text:15-24")


async def test_what_is_new_is_refused_as_ever(start_proxy: StartProxy, client: aiohttp.ClientSession) -> None:
    """The same text as the newest turn, and another one in the history that this server never refused."""
    proxy = await start_proxy(policy=NO_SECRET + NO_SECRET.replace("hunter2", "swordfish"))
    assert await status(client, proxy, REFUSED) == 400
    assert await status(client, proxy, REFUSED, SORRY, REFUSED) == 400
    assert await status(client, proxy, REFUSED, SORRY, ("user", "swordfish"), SORRY, NEXT) == 400


async def test_a_refusal_in_a_history_proves_nothing(start_proxy: StartProxy, client: aiohttp.ClientSession) -> None:
    proxy = await start_proxy(policy=NO_SECRET)
    said = "[Invariant] The request did not pass the guardrails: secret in the prompt"
    assert await status(client, proxy, REFUSED, ("model", said), NEXT) == 400


async def test_another_dataset_knows_nothing_of_it(start_proxy: StartProxy, client: aiohttp.ClientSession) -> None:
    client.headers["x-goog-api-key"] = "AIzaTestKey;invariant-auth=inv-1"
    proxy = await start_proxy(policy=NO_SECRET)
    one, other = ("/api/v1/gateway/one/gemini", "/api/v1/gateway/other/gemini")
    assert await status(client, proxy, REFUSED, prefix=one) == 400
    assert await status(client, proxy, REFUSED, SORRY, NEXT, prefix=other) == 400
    assert await status(client, proxy, REFUSED, SORRY, NEXT, prefix=one) == 200


async def test_as_before_where_that_is_chosen(start_proxy: StartProxy, client: aiohttp.ClientSession) -> None:
    proxy = await start_proxy(policy=NO_SECRET, guardrails={"history": "refuse"})
    assert await status(client, proxy, REFUSED) == 400
    assert await status(client, proxy, REFUSED, SORRY, NEXT) == 400


async def test_it_heals_after_a_restart(start_proxy: StartProxy, client: aiohttp.ClientSession) -> None:
    first = await start_proxy(policy=NO_SECRET)
    assert await status(client, first, REFUSED) == 400
    second = await start_proxy(policy=NO_SECRET)
    assert await status(client, second, REFUSED, SORRY, NEXT) == 200


@pytest.mark.parametrize("stream_check", ["final", "window", "hold"])
async def test_a_refused_answer_no_longer_poisons_the_chat(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, stream_check: str
) -> None:
    """What left of it before the verdict is in the client's history, with the refusal behind it."""
    proxy = await start_proxy(policy=NO_DUBLIN, guardrails={"stream_check": stream_check})
    upstream.reply(stream(*sse(candidate("It is "), candidate("Dublin, of "), candidate("course.", "STOP"))))
    async with client.post(proxy.stream, json=chat(("user", "Which town?"))) as response:
        body = await response.read()
    said = "".join(
        part["text"]
        for line in body.splitlines()
        if line.startswith(b"data:")
        for part in orjson.loads(line[5:])["candidates"][0]["content"]["parts"]
    )
    assert "did not pass" in said
    assert ("Dublin" in said) == (stream_check == "final")
    upstream.reply(unary(candidate("fine", "STOP")))
    turns: list[Turn] = [("user", "Which town?"), ("model", said)]
    for number in range(3):
        turns.append(("user", f"Something else, {number}"))
        assert await status(client, proxy, *turns) == 200
        assert b"Dublin" not in upstream.calls[-1].body
        turns.append(("model", "fine"))


async def test_a_word_that_is_refused_of_the_model_may_be_said_by_the_user(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """It is removed where it was refused, and nowhere else."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    upstream.reply(unary(candidate("Dublin", "STOP")))
    assert await status(client, proxy, ("user", "Which town?")) == 400
    upstream.reply(unary(candidate("fine", "STOP")))
    turns = (("user", "Is it Dublin?"), ("model", "Dublin it is"), ("user", "Not Dublin?"))
    assert await status(client, proxy, *turns) == 200
    sent = [content["parts"][0]["text"] for content in upstream.calls[-1].json["contents"]]
    assert sent == ["Is it Dublin?", "<REMOVED> it is", "Not Dublin?"]


IMAGE = {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}]}
NO_IMAGE = 'raise "an image" if:\n    (i: Image)\n'


async def send(client: aiohttp.ClientSession, proxy: Proxy, contents: Sequence[dict[str, Any]]) -> int:
    async with client.post(proxy.method(), json={"contents": contents}) as response:
        await response.read()
        return response.status


async def test_what_cannot_be_masked_goes_with_its_turn(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """An image that was refused before, and no other one; the rest is sent as it came."""
    proxy = await start_proxy(policy=NO_IMAGE)
    rest = chat(NEXT, ("model", "fine"), ("user", "bye"))["contents"]
    assert await send(client, proxy, [IMAGE]) == 400
    assert await send(client, proxy, [IMAGE, *chat(SORRY)["contents"], *rest]) == 200
    assert upstream.calls[-1].json["contents"] == rest
    trace = await proxy.trace()
    assert "iVBOR" not in str(trace.messages)
    (annotation,) = trace.annotations
    assert (annotation.guardrail["action"], annotation.address) == ("mask", "")
    other = {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgp="}}]}
    assert await send(client, proxy, [other, *chat(SORRY)["contents"], *rest]) == 400
    assert await send(client, proxy, [*rest, *chat(("model", "fine"))["contents"], IMAGE]) == 400


async def test_a_call_that_is_found_again_goes_with_its_turn(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Its arguments can be removed, the call cannot: question, call, output and answer go together."""
    proxy = await start_proxy(policy='raise "no deleting" if:\n    (c: ToolCall)\n    c is tool:delete\n')
    call = {"role": "model", "parts": [{"functionCall": {"name": "delete", "args": {"path": "all"}}}]}
    output = {"role": "user", "parts": [{"functionResponse": {"name": "delete", "response": {"done": True}}}]}
    upstream.reply(unary({"candidates": [{"content": call, "finishReason": "STOP"}]}))
    question, *rest = chat(("user", "Delete all"), NEXT)["contents"]
    assert await send(client, proxy, [question]) == 400
    upstream.reply(unary(candidate("fine", "STOP")))
    assert await send(client, proxy, [question, call, output, *chat(SORRY)["contents"], *rest]) == 200
    assert upstream.calls[-1].json["contents"] == rest


async def test_a_turn_is_cut_out_in_place(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """With ``history = "drop"`` question and answer go, and every other byte of the body is the client's."""
    proxy = await start_proxy(policy=NO_SECRET, guardrails={"history": "drop"})
    assert await status(client, proxy, REFUSED) == 400
    refused, sorry, following = (orjson.dumps(content).decode() for content in chat(REFUSED, SORRY, NEXT)["contents"])
    json_type = {"content-type": "application/json"}
    body = f' {{"labels": {{}}, "contents" : [ {refused},{sorry} ,\n\t{following} ] }}'
    async with client.post(proxy.method(), data=body, headers=json_type) as response:
        assert response.status == 200
    assert upstream.calls[-1].body.decode() == f' {{"labels": {{}}, "contents" : [ {following} ] }}'


async def test_what_a_dropped_turn_says_is_removed_in_the_turn_that_goes_on(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Without its question an output would answer nothing."""
    proxy = await start_proxy(policy=NO_SECRET, guardrails={"history": "drop"})
    assert await status(client, proxy, REFUSED) == 400
    call = {"role": "model", "parts": [{"functionCall": {"name": "look", "args": {}}}]}
    output = {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"done": True}}}]}
    assert await send(client, proxy, [*chat(REFUSED)["contents"], call, output]) == 200
    sent = upstream.calls[-1].json["contents"]
    assert (sent[0]["parts"][0]["text"], sent[1:]) == ("my password is <REMOVED>, keep it", [call, output])


@pytest.mark.filterwarnings(QUIET)
async def test_the_sdks_chat_goes_on(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """google-genai keeps a refused stream in its history: three harmless turns are answered after it."""
    proxy = await start_proxy(policy=NO_SECRET + NO_DUBLIN)
    sdk = genai.Client(api_key="AIzaTestKey", http_options=types.HttpOptions(base_url=proxy.url)).aio
    session = sdk.chats.create(model="gemini-2.5-flash")

    async def ask(text: str) -> str:
        return "".join([chunk.text or "" async for chunk in await session.send_message_stream(text)])

    upstream.reply(stream(*sse(candidate("fine", "STOP"))))
    assert "did not pass" in await ask("my password is hunter2")
    for number in range(3):
        assert await ask(f"Something else, {number}") == "fine"
    upstream.reply(stream(*sse(candidate("It is "), candidate("Dublin", "STOP"))))
    assert "did not pass" in await ask("Which town?")
    upstream.reply(stream(*sse(candidate("fine", "STOP"))))
    for number in range(3):
        assert await ask(f"Something else, {number}") == "fine"
    assert "hunter2" in str(session.get_history())
    assert not any(b"hunter2" in call.body for call in upstream.calls)
