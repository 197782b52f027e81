"""Guardrails that ask: the exchange waits until a person has decided."""

import asyncio
import os
from typing import Any

import aiohttp
import orjson
import pytest
from google import genai
from google.genai import types

from gemini_proxy.traces.approvals import Approval, Approvals
from gemini_proxy.traces.trace import Outcome
from tests.clients.sdk import QUIET
from tests.conftest import StartProxy
from tests.explorer.asking import PAY, PAYMENTS
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import Reply, ScriptedUpstream, call_part, candidate, sse, stream, unary

WAIT = float(os.environ.get("TEST_APPROVAL_SECONDS", "0.7"))
"""Seconds that a person takes."""
SECRET_PROMPT = """
raise "asks about the merger" if:
    (m: Message)
    m.role == "user"
    "merger" in m.content
"""
PAYING_PROMPT = SECRET_PROMPT.replace("merger", "Pay")


async def waiting(proxy: Proxy, count: int = 1) -> list[Approval]:
    """The approvals that wait, once there are so many."""
    async with asyncio.timeout(10):
        # What waits is in the database, and says nothing of itself.
        while len(found := await Approvals(proxy.store.database).latest(10, waiting=True)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


async def decide(proxy: Proxy, allow: bool, **how: Any) -> None:
    [approval] = await waiting(proxy)
    decided = await Approvals(proxy.store.database).decide(approval.id, allow=allow, by="ada", **how)
    assert decided is not None


async def ask(client: aiohttp.ClientSession, url: str, text: str = "Pay them") -> tuple[int, bytes]:
    async with client.post(url, json=prompt(text)) as response:
        return response.status, await response.read()


async def test_an_allowed_call_arrives_as_it_was(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(ask_policy=PAYMENTS)
    reply = unary(PAY)
    upstream.reply(reply)
    asking = asyncio.create_task(ask(client, proxy.method()))
    [approval] = await waiting(proxy)
    assert approval.request.shown == {"asked": [{"tool": "pay", "arguments": {"to": "ACME", "amount": 12}}]}
    assert (approval.request.message, approval.request.guardrail) == ("a payment", "test ask policy")
    await decide(proxy, allow=True)
    assert await asking == (200, reply.steps[0])
    trace = await proxy.trace()
    assert (trace.outcome, approval.request.trace) == (Outcome.COMPLETED, trace.id)
    [kept] = trace.metadata["approvals"]
    assert (kept["state"], kept["decided_by"], kept["id"]) == ("allowed", "ada", approval.id)
    assert [annotation.guardrail["action"] for annotation in trace.annotations] == ["ask"]


async def test_a_denied_call_is_refused_with_the_reason(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(ask_policy=PAYMENTS)
    upstream.reply(unary(PAY))
    asking = asyncio.create_task(ask(client, proxy.method()))
    await decide(proxy, allow=False, reason="ask accounting first")
    status, body = await asking
    assert status == 400
    message = orjson.loads(body)["error"]["message"]
    assert message.endswith("a payment; denied: ask accounting first")
    assert b"GUARDRAIL_DENIED" in body
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_RESPONSE
    assert trace.metadata["approvals"][0]["state"] == "denied"


async def test_without_a_decision_it_is_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(ask_policy=PAYMENTS, guardrails={"ask_timeout": 0.2})
    upstream.reply(unary(PAY))
    status, body = await ask(client, proxy.method())
    assert status == 400
    assert b"nobody allowed it within 0.2 seconds" in body
    assert (await proxy.trace()).metadata["approvals"][0]["state"] == "expired"


@pytest.mark.parametrize("stream_check", ["final", "window", "hold"])
async def test_a_stream_shows_life_while_it_waits(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, stream_check: str
) -> None:
    """White space within the event that will come; then the bytes as they were."""
    proxy = await start_proxy(ask_policy=PAYMENTS, guardrails={"stream_check": stream_check})
    upstream.reply(stream(*sse(candidate("I pay."), PAY)))
    async with client.post(proxy.stream, json=prompt("Pay them")) as response:
        received = bytearray()
        async with asyncio.timeout(20):
            # Nothing ends this but a sign of life: no byte of the call is there before the decision.
            while not received.endswith(b" "):
                received += await response.content.readany()
        assert b"functionCall" not in received
        await decide(proxy, allow=True)
        received += await response.read()
    said = [orjson.loads(line[5:]) for line in bytes(received).splitlines() if line.startswith(b"data:")]
    assert said == [candidate("I pay."), PAY]


@pytest.mark.parametrize(("allow", "begun"), [(True, False), (False, True)])
async def test_an_array_shows_life_while_it_waits(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, allow: bool, begun: bool
) -> None:
    """White space before the element that will come, or before the array; then the bytes, or a refusal within it."""
    proxy = await start_proxy(ask_policy=PAYMENTS)
    elements = [candidate("I pay."), PAY] if begun else [PAY]
    upstream.reply(Reply([b"[" + b",\r\n".join(map(orjson.dumps, elements)) + b"]"]))
    async with client.post(proxy.method("streamGenerateContent"), json=prompt("Pay them")) as response:
        received = bytearray()
        async with asyncio.timeout(20):
            while not received.endswith(b" "):
                received += await response.content.readany()
        assert b"functionCall" not in received
        await decide(proxy, allow=allow)
        received += await response.read()
    said = orjson.loads(received)
    if allow:
        assert said == elements
    else:
        assert said[:-1] == elements[:-1] and "denied" in str(said[-1]) and b"functionCall" not in received


async def test_where_a_refusal_is_an_error_no_byte_shows_life(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A space would be a 200."""
    proxy = await start_proxy(
        ask_policy=PAYMENTS, guardrails={"ask_timeout": 0.7}, refusals={"before_stream": "http_400"}
    )
    upstream.reply(Reply([orjson.dumps([PAY])]))
    async with client.post(proxy.method("streamGenerateContent"), json=prompt("Pay them")) as response:
        assert response.status == 400
        assert b"nobody allowed it" in await response.read()


async def test_a_prompt_waits_before_it_goes_upstream(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(ask_policy=SECRET_PROMPT)
    upstream.reply(unary(candidate("yes", "STOP")))
    asking = asyncio.create_task(ask(client, proxy.method(), "When is the merger?"))
    [approval] = await waiting(proxy)
    assert approval.request.shown == {"asked": [{"role": "user", "texts": ["merger"]}]}
    assert not upstream.calls
    await decide(proxy, allow=True)
    assert (await asking)[0] == 200


async def test_a_decision_holds_for_exactly_what_was_asked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Once, or for a time; with another argument it is asked again."""
    proxy = await start_proxy(ask_policy=PAYMENTS)
    upstream.reply(unary(PAY))
    asking = asyncio.create_task(ask(client, proxy.method()))
    await decide(proxy, allow=True, seconds=60.0)
    assert (await asking)[0] == 200
    assert (await ask(client, proxy.method()))[0] == 200
    assert (await ask(client, proxy.method()))[0] == 200
    upstream.reply(unary(call_part("pay", "STOP", to="ACME", amount=13)))
    asking = asyncio.create_task(ask(client, proxy.method()))
    await decide(proxy, allow=True)
    assert (await asking)[0] == 200
    asking = asyncio.create_task(ask(client, proxy.method()))
    await decide(proxy, allow=False)
    assert (await asking)[0] == 400


@pytest.mark.parametrize("named", [True, False])
async def test_an_allowance_may_hold_for_the_conversation(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, named: bool
) -> None:
    """As often as it asks for exactly this, whatever else was said; another conversation is asked again.

    It is the one that the client names, or one that began with the same words.
    """
    proxy = await start_proxy(ask_policy=PAYMENTS)
    answered = {"role": "model", "parts": [{"text": "Whom?"}]}

    async def pay(first: str, *more: str, conversation: str) -> int:
        contents = [*prompt(first)["contents"], answered, *(prompt(text)["contents"][0] for text in ("ACME", *more))]
        headers = {"x-gemini-proxy-conversation": conversation} if named else {}
        async with client.post(proxy.method(), json={"contents": contents}, headers=headers) as response:
            await response.read()
            return response.status

    upstream.reply(unary(PAY))
    asking = asyncio.create_task(pay("Pay", conversation="one"))
    await decide(proxy, allow=True, for_conversation=True)
    assert await asking == 200
    for more in ((), ("and again",)):
        assert await pay("Pay", *more, conversation="one") == 200
    assert (await proxy.trace()).metadata["approvals"][0]["for_conversation"] is True
    asking = asyncio.create_task(pay("Pay at once", conversation="other"))
    await decide(proxy, allow=False)
    assert await asking == 400
    upstream.reply(unary(call_part("pay", "STOP", to="ACME", amount=13)))
    asking = asyncio.create_task(pay("Pay", conversation="one"))
    await decide(proxy, allow=False)
    assert await asking == 400


@pytest.mark.parametrize("points_at", ["m", "m.tool_calls"])
@pytest.mark.parametrize(("tool", "amount"), [("refund", 12), ("pay", 13)])
async def test_a_rule_that_points_at_a_message_asks_for_its_calls(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    points_at: str,
    tool: str,
    amount: int,
) -> None:
    """With their names and all of their arguments, not only the texts in them: another call is asked for again."""
    policy = f'raise PolicyViolation("acts", {points_at}) if:\n    (m: Message)\n    m.tool_calls\n'
    proxy = await start_proxy(ask_policy=policy)
    upstream.reply(unary(PAY))
    asking = asyncio.create_task(ask(client, proxy.method()))
    [approval] = await waiting(proxy)
    assert {"tool": "pay", "arguments": {"to": "ACME", "amount": 12}} in approval.request.shown["asked"]
    await decide(proxy, allow=True, seconds=60.0)
    assert (await asking)[0] == 200
    upstream.reply(unary(call_part(tool, "STOP", to="ACME", amount=amount)))
    asking = asyncio.create_task(ask(client, proxy.method()))
    await decide(proxy, allow=False)
    assert (await asking)[0] == 400


async def test_what_is_no_text_is_part_of_what_is_asked_for(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """An allowance does not hold for the same words with another image; and the person is told that there is one."""
    policy = 'raise PolicyViolation("asks", a, b) if:\n    (a: Message) -> (b: Message)\n    b.role == "user"\n'
    proxy = await start_proxy(ask_policy=policy, guardrails={"ask_timeout": 5.0})
    upstream.reply(unary(candidate("yes", "STOP")))
    texts = {"role": "user", "parts": [{"text": "Send this"}]}

    async def asks(data: str) -> int:
        image = {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": data}}]}
        async with client.post(proxy.method(), json={"contents": [texts, image]}) as response:
            return response.status

    asking = asyncio.create_task(asks("AAAA"))
    [approval] = await waiting(proxy)
    assert approval.request.shown == {"asked": [{"role": "user", "texts": ["Send this"]}], "unshown": True}
    await decide(proxy, allow=True, seconds=60.0)
    assert await asking == 200
    assert await asks("AAAA") == 200
    asking = asyncio.create_task(asks("BBBB"))
    await decide(proxy, allow=False)
    assert await asking == 400


async def test_it_is_said_how_much_of_a_long_text_is_not_shown(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """An ellipsis alone could be the text's own."""
    proxy = await start_proxy(ask_policy=PAYMENTS)
    upstream.reply(unary(call_part("pay", "STOP", to="A" * 5500)))
    asking = asyncio.create_task(ask(client, proxy.method()))
    [approval] = await waiting(proxy)
    [call] = approval.request.shown["asked"]
    assert call["arguments"]["to"] == f"{'A' * 4000}… (1,500 more characters)"
    await decide(proxy, allow=False)
    assert (await asking)[0] == 400


async def test_a_client_that_gave_up_finds_the_decision(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(ask_policy=PAYMENTS)
    upstream.reply(unary(PAY))
    asking = asyncio.create_task(ask(client, proxy.method()))
    [approval] = await waiting(proxy)
    asking.cancel()
    await proxy.eventually(lambda trace: trace.outcome is Outcome.CLIENT_GONE)
    await decide(proxy, allow=True)
    assert (await ask(client, proxy.method()))[0] == 200
    assert (await proxy.trace()).metadata["approvals"][0]["id"] == approval.id


async def test_what_was_allowed_is_not_asked_for_again_in_the_history(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The client sends the call and its output back; a call that nobody allowed is asked for."""
    proxy = await start_proxy(ask_policy=PAYMENTS, guardrails={"ask_timeout": 5.0})
    upstream.reply(unary(PAY))
    asking = asyncio.create_task(ask(client, proxy.method()))
    await decide(proxy, allow=True)
    assert (await asking)[0] == 200
    upstream.reply(unary(candidate("paid", "STOP")))

    def turns(amount: int) -> dict[str, Any]:
        call = {"functionCall": {"name": "pay", "args": {"to": "ACME", "amount": amount}}}
        output = {"functionResponse": {"name": "pay", "response": {"result": "done"}}}
        contents = [{"role": "model", "parts": [call]}, {"role": "user", "parts": [output]}]
        return {"contents": [*prompt("Pay them")["contents"], *contents]}

    for _ in range(2):
        async with client.post(proxy.method(), json=turns(12)) as response:
            assert response.status == 200
    async with client.post(proxy.method(), json=turns(13)) as response:
        assert response.status == 400


async def test_two_that_wait_for_one_decision_do_not_share_it(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """An allowance for one exchange lets one pass; the other is asked for again."""
    proxy = await start_proxy(ask_policy=PAYMENTS)
    upstream.reply(unary(PAY))
    asking = [asyncio.create_task(ask(client, proxy.method())) for _ in range(2)]
    await decide(proxy, allow=True)
    first, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    assert [done.result()[0] for done in first] == [200]
    await decide(proxy, allow=False)
    assert sorted([(await one)[0] for one in asking]) == [200, 400]


async def test_a_decision_outlives_the_process(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    first, second = await start_proxy(ask_policy=PAYMENTS), await start_proxy(ask_policy=PAYMENTS)
    upstream.reply(unary(PAY))
    asking = asyncio.create_task(ask(client, first.method()))
    await decide(second, allow=True)
    assert (await asking)[0] == 200


async def test_what_blocks_is_not_asked_for(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=PAYMENTS.replace("a payment", "no"), ask_policy=PAYMENTS)
    upstream.reply(unary(PAY))
    assert (await ask(client, proxy.method()))[0] == 400
    assert await Approvals(proxy.store.database).latest(10) == []


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize(
    ("streams", "policy"),
    [(False, PAYMENTS), (True, PAYMENTS), (True, PAYING_PROMPT)],
    ids=["unary", "stream", "prompt of a stream"],
)
async def test_the_sdk_waits_for_the_decision(
    start_proxy: StartProxy, upstream: ScriptedUpstream, streams: bool, policy: str
) -> None:
    """google-genai gets the call as it was, also in a stream in which white space came before it."""
    proxy = await start_proxy(ask_policy=policy)
    upstream.reply(stream(*sse(candidate("I pay."), PAY)) if streams else unary(PAY))
    models = genai.Client(api_key="AIzaTestKey", http_options=types.HttpOptions(base_url=proxy.url)).aio.models
    question: Any = {"model": "gemini-2.5-flash", "contents": "Pay them"}

    async def called() -> list[types.FunctionCall]:
        if not streams:
            return (await models.generate_content(**question)).function_calls or []
        chunks = [chunk async for chunk in await models.generate_content_stream(**question)]
        return [call for chunk in chunks for call in chunk.function_calls or []]

    asking = asyncio.create_task(called())
    await waiting(proxy)
    # Past the first sign of life, which comes with the first look at whether it was decided.
    await asyncio.wait({asking}, timeout=WAIT)
    assert not asking.done()
    await decide(proxy, allow=True)
    [call] = await asking
    assert (call.name, call.args) == ("pay", {"to": "ACME", "amount": 12})
    assert len(upstream.calls) == 1
