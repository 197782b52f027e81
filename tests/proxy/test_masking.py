"""Masking from outside: what the upstream is asked, what the client gets, what the trace keeps."""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import orjson
import pytest

from gemini_proxy.traces.approvals import Approvals
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.proxy.test_approvals import waiting
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import Abort, Call, Reply, ScriptedUpstream, call_part, candidate, sse, unary

EMAIL, OTHER = "ada.lovelace@example.com", "charles.babbage@example.org"
PLACEHOLDER = re.compile(r"<EMAIL_ADDRESS_[0-9a-f]{10}>")

TO_THE_MODEL = """
from invariant.detectors import pii

raise "personal data" if:
    (m: Message)
    m.role != "assistant"
    any(pii(m, entities=["EMAIL_ADDRESS"]))

raise "personal data in a call" if:
    (c: ToolCall)
    any(pii(c.function.arguments, entities=["EMAIL_ADDRESS"]))
"""
EVERYWHERE = """
from invariant.detectors import pii

raise "personal data" if:
    (m: Message)
    any(pii(m, entities=["EMAIL_ADDRESS"]))
"""


def placeholder_in(body: bytes) -> str:
    found = set(PLACEHOLDER.findall(body.decode()))
    assert len(found) == 1
    return str(found.pop())


def echoes(answer: Callable[[str], Reply]) -> Callable[[Call], Reply]:
    """An upstream that answers with the placeholder it was sent."""
    return lambda call: answer(placeholder_in(call.body))


def in_pieces(text: str, size: int = 1) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def streamed(texts: Sequence[str], form: str) -> Reply:
    payloads = [candidate(text) for text in texts] + [candidate(".", "STOP")]
    if form == "sse":
        return Reply(sse(*payloads), content_type="text/event-stream")
    elements = [(b"[" if not index else b",\r\n") + orjson.dumps(one) for index, one in enumerate(payloads)]
    return Reply([*elements, b"\n]"])


def said(body: bytes, form: str) -> str:
    if form == "sse":
        payloads = [orjson.loads(line[5:]) for line in body.splitlines() if line.startswith(b"data:")]
    else:
        payloads = orjson.loads(body) if form == "array" else [orjson.loads(body)]
    return "".join(
        part.get("text", "")
        for payload in payloads
        for one in payload["candidates"]
        for part in one["content"]["parts"]
    )


def address(proxy: Proxy, form: str) -> str:
    return {"sse": proxy.stream, "array": proxy.method("streamGenerateContent"), "unary": proxy.method()}[form]


async def test_a_value_goes_masked_and_comes_back(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(mask_policy=TO_THE_MODEL)
    upstream.reply(echoes(lambda placeholder: unary(candidate(f"I wrote to {placeholder}", "STOP"))))
    body = b'{ "contents" : [ {"parts":[{"text":"Write to ' + EMAIL.encode() + b' \\u00e9"}]} ] }'
    headers = {"content-type": "application/json"}
    async with client.post(proxy.method(), data=body, headers=headers) as response:
        assert response.status == 200
        assert said(await response.read(), "unary") == f"I wrote to {EMAIL}"
        assert "verdict=passed" in response.headers["x-gemini-proxy-guardrails"]
        assert "masked=1" in response.headers["x-gemini-proxy-guardrails"]
    (call,) = upstream.calls
    placeholder = placeholder_in(call.body)
    assert call.body == body.replace(EMAIL.encode(), placeholder.encode())
    trace = await proxy.trace()
    assert trace.outcome is Outcome.COMPLETED
    assert EMAIL not in str(trace)
    assert trace.messages[0]["content"][0]["text"] == f"Write to {placeholder} é"
    assert trace.messages[1]["content"] == f"I wrote to {placeholder}"
    (annotation,) = trace.annotations
    assert annotation.address == f"messages.0.content.0.text:9-{9 + len(placeholder)}"
    assert (annotation.content, annotation.guardrail["action"]) == ("personal data", "mask")
    assert trace.metadata["coverage"]["masked_values"] == 1


@pytest.mark.parametrize("form", ["sse", "array"])
@pytest.mark.parametrize("stream_check", ["final", "window", "hold"])
async def test_a_stream_comes_back_however_it_is_split(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, form: str, stream_check: str
) -> None:
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails={"stream_check": stream_check})
    upstream.reply(echoes(lambda placeholder: streamed(in_pieces(f"To {placeholder}, now"), form)))
    async with client.post(address(proxy, form), json=prompt(f"Write to {EMAIL}")) as response:
        assert said(await response.read(), form) == f"To {EMAIL}, now."
    trace = await proxy.trace()
    assert trace.messages[-1]["content"] == f"To {placeholder_in(upstream.calls[0].body)}, now."
    assert trace.outcome is Outcome.COMPLETED


@pytest.mark.parametrize(("restore", "text", "argument"), [("all", True, True), ("text", True, False), ("off", 0, 0)])
async def test_what_is_restored_is_the_operators_choice(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    restore: str,
    text: bool,
    argument: bool,
) -> None:
    proxy = await start_proxy(mask_policy=TO_THE_MODEL, guardrails={"restore": restore})

    def answer(placeholder: str) -> Reply:
        call = {"functionCall": {"name": "send", "args": {"to": placeholder}}}
        content = {"role": "model", "parts": [{"text": f"to {placeholder}"}, call]}
        return unary({"candidates": [{"content": content, "finishReason": "STOP"}]})

    upstream.reply(echoes(answer))
    async with client.post(proxy.method(), json=prompt(f"Write to {EMAIL}")) as response:
        parts = (await response.json())["candidates"][0]["content"]["parts"]
    placeholder = placeholder_in(upstream.calls[0].body)
    assert parts[0]["text"] == f"to {EMAIL if text else placeholder}"
    assert parts[1]["functionCall"]["args"]["to"] == (EMAIL if argument else placeholder)
    assert EMAIL not in str(await proxy.trace())


async def test_a_restored_value_is_judged_as_the_client_gets_it(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A rule that blocks reads the value, not its placeholder; the trace of the refusal keeps the placeholder."""
    policy = f'raise "to ada" if:\n    (m: Message)\n    m.role == "assistant"\n    "{EMAIL}" in m.content\n'
    proxy = await start_proxy(policy=policy, mask_policy=TO_THE_MODEL)
    upstream.reply(echoes(lambda placeholder: unary(candidate(f"to {placeholder}", "STOP"))))
    async with client.post(proxy.method(), json=prompt(f"Write to {EMAIL}")) as response:
        assert response.status == 400
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_RESPONSE
    placeholder = placeholder_in(upstream.calls[0].body)
    (blocked,) = (one for one in trace.annotations if one.guardrail["action"] == "block")
    assert blocked.address == f"messages.1.content:3-{3 + len(placeholder)}"
    assert EMAIL not in str(trace.messages)


LEAVES = """
raise "private data leaves" if:
    (c: ToolCall)
    (a: dict) in untrusted(c, shapes=["email", "url"], fields=False)
    (p: dict) in private(c)
    p.path != a.path or a.shape == "url"
"""


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("restore", "args", "refused"),
    [
        ("all", {"to": "eve@evil.test", "body": "from $"}, True),
        ("all", {"url": "https://evil.test/?who=$"}, True),
        ("all", {"to": "$", "body": "Hello"}, False),
        ("all", {"to": "$", "body": "I am $"}, False),
        ("text", {"to": "eve@evil.test", "body": "from $"}, False),
    ],
)
async def test_what_is_restored_in_a_call_is_private(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    restore: str,
    args: dict[str, str],
    refused: bool,
    streams: bool,
) -> None:
    """It may go to whom the user named, also by what was masked; a placeholder that stays one tells nobody anything."""
    proxy = await start_proxy(policy=LEAVES, mask_policy=TO_THE_MODEL, guardrails={"restore": restore})

    def answer(placeholder: str) -> Reply:
        said = {name: value.replace("$", placeholder) for name, value in args.items()}
        called = call_part("send", "STOP", **said)
        return Reply(sse(called), content_type="text/event-stream") if streams else unary(called)

    upstream.reply(echoes(answer))
    async with client.post(proxy.stream if streams else proxy.method(), json=prompt(f"Mail {EMAIL}")) as response:
        body = await response.read()
    assert (b"private data leaves" in body) is refused
    assert (b"functionCall" in body) is not refused
    trace = await proxy.trace()
    assert trace.outcome is (Outcome.REFUSED_RESPONSE if refused else Outcome.COMPLETED)
    assert EMAIL not in str(trace)


@pytest.mark.parametrize("streams", [False, True])
async def test_a_placeholder_in_a_link_is_judged_with_its_value(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, streams: bool
) -> None:
    policy = 'raise "a link with an address" if:\n    (m: Message)\n    find("https://[^ ]*@example", m.content)\n'
    proxy = await start_proxy(policy=policy, mask_policy=TO_THE_MODEL)
    pieces = "See ![x](https://evil.test/?", "$)."

    def answer(placeholder: str) -> Reply:
        texts = [piece.replace("$", placeholder) for piece in pieces]
        return streamed(texts, "sse") if streams else unary(candidate("".join(texts), "STOP"))

    upstream.reply(echoes(answer))
    async with client.post(proxy.stream if streams else proxy.method(), json=prompt(f"Mail {EMAIL}")) as response:
        body = await response.read()
    assert b"a link with an address" in body and EMAIL.encode() not in body
    assert (await proxy.trace()).outcome is Outcome.REFUSED_RESPONSE


async def test_the_whole_conversation_is_masked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """System instruction, declarations, calls and outputs of the history: no byte of a value goes upstream."""
    proxy = await start_proxy(mask_policy=TO_THE_MODEL)
    upstream.reply(unary(candidate("done", "STOP")))
    args = {"to": EMAIL, "deep": [{"cc": OTHER}]}
    body = {
        "systemInstruction": {"parts": [{"text": f"Ada is {EMAIL}"}]},
        "contents": [
            {"role": "user", "parts": [{"text": f"Mail {EMAIL}"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "send", "args": args}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "send", "response": {"sent": [EMAIL, OTHER]}}}]},
        ],
    }
    async with client.post(proxy.method(), json=body) as response:
        assert response.status == 200
    (call,) = upstream.calls
    for value in (EMAIL, OTHER):
        assert value.encode() not in call.raw_head + call.body
        assert value.encode() not in orjson.dumps((await proxy.trace()).messages)


@pytest.mark.parametrize(
    "part",
    [
        {"functionCall": {"name": "send", "args": {EMAIL: 1}}},
        {"functionCall": {"name": EMAIL, "args": {"to": EMAIL}}},
        {"inlineData": {"mimeType": "text/plain", "data": "YWRhLmxvdmVsYWNlQGV4YW1wbGUuY29t"}},
    ],
)
async def test_what_cannot_be_masked_is_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, part: dict[str, Any]
) -> None:
    policy = TO_THE_MODEL + (
        '\nraise "in a name" if:\n    (c: ToolCall)\n    any(pii(c.function.name, entities=["EMAIL_ADDRESS"]))\n'
    )
    proxy = await start_proxy(mask_policy=policy)
    upstream.reply(unary(candidate("done", "STOP")))
    role = "model" if "functionCall" in part else "user"
    body = {"contents": [{"role": "user", "parts": [{"text": f"to {EMAIL}"}]}, {"role": role, "parts": [part]}]}
    async with client.post(proxy.method(), json=body) as response:
        assert response.status == 400
        assert "cannot be masked" in await response.text()
    assert not upstream.calls
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_REQUEST


async def test_an_image_cannot_be_masked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(mask_policy='raise "an image" if:\n    (i: Image)\n')
    upstream.reply(unary(candidate("done", "STOP")))
    body = {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}]}]}
    async with client.post(proxy.method(), json=body) as response:
        assert response.status == 400
    assert not upstream.calls


async def test_a_stranger_placeholder_restores_nothing(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """What was masked in another request stays hidden in this one."""
    proxy = await start_proxy(mask_policy=TO_THE_MODEL)
    upstream.reply(unary(candidate("noted", "STOP")))
    async with client.post(proxy.method(), json=prompt(f"Remember {EMAIL}")) as response:
        assert response.status == 200
    placeholder = placeholder_in(upstream.calls[0].body)
    upstream.reply(unary(candidate(f"It is {placeholder}", "STOP")))
    async with client.post(proxy.method(), json=prompt(f"Who is {placeholder}? Not {OTHER}")) as response:
        assert said(await response.read(), "unary") == f"It is {placeholder}"


@pytest.mark.parametrize("form", ["unary", "sse", "array"])
async def test_what_the_model_says_is_masked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, form: str
) -> None:
    proxy = await start_proxy(mask_policy=EVERYWHERE)
    text = f"{'lorem ipsum ' * 40}ask {OTHER} about {EMAIL}."
    reply = unary(candidate(text, "STOP")) if form == "unary" else streamed(in_pieces(text, 7), form)
    upstream.reply(reply)
    async with client.post(address(proxy, form), json=prompt("Who knows?")) as response:
        assert response.status == 200
        read = said(await response.read(), form).removesuffix(".") + "."
    assert EMAIL not in read
    assert OTHER not in read
    assert PLACEHOLDER.sub("X", read).endswith("lorem ipsum ask X about X.") or PLACEHOLDER.sub("X", read).endswith(
        "ask X about X.."
    )
    trace = await proxy.trace()
    assert trace.outcome is Outcome.COMPLETED
    assert EMAIL not in str(trace.messages)
    assert len(trace.annotations) == 2


async def test_a_restored_value_is_not_masked_again(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The client has sent it itself; another one in the same response is masked."""
    proxy = await start_proxy(mask_policy=EVERYWHERE)
    upstream.reply(echoes(lambda placeholder: unary(candidate(f"{placeholder} knows", "STOP"))))
    async with client.post(proxy.method(), json=prompt(f"Who is {EMAIL}?")) as response:
        assert said(await response.read(), "unary") == f"{EMAIL} knows"


async def test_a_masked_call_argument_of_the_model_is_a_placeholder(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(mask_policy=TO_THE_MODEL)
    upstream.reply(unary(call_part("send", "STOP", to=OTHER)))
    async with client.post(proxy.method(), json=prompt("Send it")) as response:
        part = (await response.json())["candidates"][0]["content"]["parts"][0]
    assert PLACEHOLDER.fullmatch(part["functionCall"]["args"]["to"])


async def test_a_cut_response_is_restored_as_far_as_it_came(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(mask_policy=TO_THE_MODEL)

    def cut(placeholder: str) -> Reply:
        text = "lorem ipsum " * 40
        steps = sse(candidate(text), candidate(f"to {placeholder} and {placeholder[:7]}"))
        return Reply([*steps, Abort()], content_type="text/event-stream")

    upstream.reply(echoes(cut))
    received = b""
    with pytest.raises(aiohttp.ClientPayloadError):
        async with client.post(proxy.stream, json=prompt(f"Write to {EMAIL}")) as response:
            async for chunk in response.content.iter_any():
                received += chunk
    assert said(received, "sse").endswith(f"to {EMAIL} and <EMAIL_")
    assert (await proxy.trace()).outcome is Outcome.UPSTREAM_CUT


# Actions --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy_action", "rule_action", "outcome"),
    [
        ("block", None, "refused"),
        ("block", "mask", "refused"),
        ("block", "log", "refused"),
        ("mask", None, "masked"),
        ("mask", "log", "masked"),
        ("mask", "block", "refused"),
        ("log", None, "passed"),
        ("log", "mask", "masked"),
        ("log", "block", "refused"),
        ("log", "weird", "passed"),
    ],
)
async def test_a_rule_may_ask_for_a_stronger_action_than_its_policys(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    policy_action: str,
    rule_action: str | None,
    outcome: str,
) -> None:
    raised = f'PolicyViolation("x", action="{rule_action}")' if rule_action else '"x"'
    policy = f'raise {raised} if:\n    (m: Message)\n    m.role == "user"\n    "swordfish" in m.content\n'
    name = {"block": "policy", "mask": "mask_policy", "log": "log_policy"}[policy_action]
    proxy = await start_proxy(**{name: policy})
    upstream.reply(unary(candidate("done", "STOP")))
    async with client.post(proxy.method(), json=prompt("say swordfish")) as response:
        assert response.status == (400 if outcome == "refused" else 200)
    reached = b"".join(call.body for call in upstream.calls)
    assert (b"swordfish" in reached) == (outcome == "passed")
    trace = await proxy.eventually(lambda trace: trace.annotations)
    assert trace.outcome is (Outcome.REFUSED_REQUEST if outcome == "refused" else Outcome.COMPLETED)


async def test_what_blocks_goes_before_what_masks(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    block = 'raise "no" if:\n    (m: Message)\n    "swordfish" in m.content\n'
    proxy = await start_proxy(policy=block, mask_policy=TO_THE_MODEL)
    upstream.reply(unary(candidate("done", "STOP")))
    async with client.post(proxy.method(), json=prompt(f"swordfish to {EMAIL}")) as response:
        assert response.status == 400
    assert not upstream.calls


@pytest.mark.parametrize("form", ["unary", "sse"])
async def test_a_trace_of_a_refused_response_hides_what_was_to_be_masked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, form: str
) -> None:
    block = 'raise "no" if:\n    (m: Message)\n    "swordfish" in m.content\n'
    proxy = await start_proxy(policy=block, mask_policy=EVERYWHERE)
    text = f"{'lorem ipsum ' * 40}ask {OTHER} about swordfish."
    upstream.reply(unary(candidate(text, "STOP")) if form == "unary" else streamed(in_pieces(text, 7), form))
    async with client.post(address(proxy, form), json=prompt("Who knows?")) as response:
        assert OTHER.encode() not in await response.read()
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_RESPONSE
    assert OTHER not in str(trace)
    assert "swordfish" in str(trace.messages)


async def test_so_does_a_trace_of_an_exchange_that_broke_off(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Where the client leaves, a person says no, or the upstream ends before a check."""
    asks = 'raise "may it?" if:\n    (m: Message)\n    any(find("merger|sale", m.content))\n'
    proxy = await start_proxy(ask_policy=asks, mask_policy=EVERYWHERE)
    told = sse(candidate(f"ask {OTHER} or"))
    upstream.reply(Reply([*told, Abort()], content_type="text/event-stream"))
    async with client.post(proxy.stream, json=prompt("Who knows?")) as response:
        assert response.status == 502
    asking = asyncio.create_task(client.post(proxy.method(), json=prompt(f"Write of the merger to {OTHER}")))
    await waiting(proxy)
    asking.cancel()
    await proxy.eventually(lambda trace: trace.outcome is Outcome.CLIENT_GONE)
    # Of another thing: the approval of the request that is gone still waits, and would be decided before this one asks.
    asking = asyncio.create_task(client.post(proxy.method(), json=prompt(f"Tell {OTHER} of the sale")))
    newest, _ = await waiting(proxy, 2)
    await Approvals(proxy.store.database).decide(newest.id, allow=False, by="ada")
    assert (await asking).status == 400
    traces = [await proxy.store.get(one.id) for one in await proxy.store.recent(9)]
    assert len(traces) == 3
    assert OTHER not in str(traces)
    assert len(PLACEHOLDER.findall(str([trace.messages for trace in traces if trace]))) == 3
