"""Values of earlier exchanges: what comes back in a later one, to whom, and what never does."""

import base64
from typing import Any

import aiohttp
import pytest

from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.gemini.interactions.streams import interaction, text_step
from tests.proxy.test_history import chat
from tests.proxy.test_masking import EMAIL, EVERYWHERE, OTHER, TO_THE_MODEL, echoes, placeholder_in, said
from tests.support.proxy import MODEL, Proxy, prompt
from tests.support.upstream import Reply, ScriptedUpstream, candidate, sse, unary
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


async def test_a_placeholder_of_the_conversation_comes_back_in_another_process(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, database_url: str
) -> None:
    """By the client's name of the conversation, or by how it began; unary and as a stream, and masked again after."""
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


@pytest.mark.parametrize("guardrails", [{"mask_key": "placeholders"}, {**KEPT, "restore": "off"}])
async def test_nothing_is_kept_without_a_key_or_without_restoring(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, guardrails: Any
) -> None:
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails=guardrails)
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
