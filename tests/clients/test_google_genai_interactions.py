"""Interactions through Google's SDK: what passes is untouched, what is refused stays unreachable, and calls wait."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pytest
from google.genai._interactions_errors import APIStatusError, BadRequestError, NotFoundError

from gemini_proxy.traces.keys import Keys
from tests.clients.sdk import KEY, QUIET, Connect, Sdk
from tests.conftest import StartProxy
from tests.gemini.interactions.streams import (
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
from tests.support.proxy import MODEL, Proxy
from tests.support.upstream import Call, Reply, ScriptedUpstream

pytestmark = pytest.mark.filterwarnings(QUIET, "ignore::DeprecationWarning:google.genai", "ignore:.*experimental.*")

POLICY = """raise "no Dublin" if:
    (m: Message)
    "Dublin" in m.content

raise "no mail to b" if:
    (call: ToolCall)
    call is tool:send({to: "b@example.org"})

raise "no mail after Cork" if:
    (m: Message) -> (call: ToolCall)
    "Cork" in m.content
    call is tool:send
"""
MASKED = """from invariant.detectors import pii

raise "an address" if:
    (m: Message)
    m.role == "user"
    any(pii(m, entities=["EMAIL_ADDRESS"]))
"""
ONE_HALF = pytest.mark.parametrize("connect", ["asyncio"], indirect=True)
CANARY = "AIzaCanary0123456789"


def whole(found: dict[str, Any]) -> Reply:
    return Reply([orjson.dumps(found)], chunked=False)


def streamed(events: Iterable[dict[str, Any]]) -> Reply:
    return Reply([sse(events)], content_type="text/event-stream")


def stream_of(*pieces: str) -> list[dict[str, Any]]:
    """Events of one step of text."""
    deltas = [delta(0, type="text", text=piece) for piece in pieces]
    return [created(), start(0, {"type": "model_output"}), *deltas, stop(0), completed()]


async def create(sdk: Sdk, **arguments: Any) -> Any:
    """Create an interaction; the events of a stream are read to their end."""
    arguments = {"model": MODEL, "input": "hi", **arguments}
    if sdk.blocking:
        work: Callable[[], Any] = lambda: sdk.client.interactions.create(**arguments)  # noqa: E731
        found = await asyncio.to_thread(work)
        return await asyncio.to_thread(list, found) if arguments.get("stream") else found
    found = await sdk.client.aio.interactions.create(**arguments)
    return [event async for event in found] if arguments.get("stream") else found


async def get(sdk: Sdk, name: str, **arguments: Any) -> Any:
    if sdk.blocking:
        found = await asyncio.to_thread(lambda: sdk.client.interactions.get(id=name, **arguments))
        return await asyncio.to_thread(list, found) if arguments.get("stream") else found
    found = await sdk.client.aio.interactions.get(id=name, **arguments)
    return [event async for event in found] if arguments.get("stream") else found


async def deleted(upstream: ScriptedUpstream) -> Call:
    """The call that deletes an interaction, once it has come."""
    async with asyncio.timeout(10):
        while True:
            for call in upstream.calls:
                if call.method == "DELETE":
                    return call
            upstream.called.clear()
            await upstream.called.wait()


@pytest.fixture
async def proxy(start_proxy: StartProxy) -> Proxy:
    return await start_proxy(policy=POLICY)


async def test_what_passes_is_untouched(proxy: Proxy, connect: Connect, upstream: ScriptedUpstream) -> None:
    """The SDK reads what the upstream said, and the trace has it all."""
    sdk = connect(proxy)
    upstream.reply(whole(interaction([text_step("Hello")])))
    found = await create(sdk, system_instruction="be brief")
    assert (found.id, found.output_text) == ("v1_abc", "Hello")
    assert upstream.calls[0].target == "/v1/interactions" and upstream.calls[0].json["input"] == "hi"
    trace = await proxy.trace()
    assert (trace.outcome, trace.model, trace.stream) == ("completed", MODEL, False)
    assert [message["content"] for message in trace.messages] == ["be brief", [{"type": "text", "text": "hi"}], "Hello"]
    assert trace.metadata["usage"]["totalTokenCount"] == 7 and trace.metadata["method"] == "createInteraction"
    upstream.reply(streamed(stream_of("Hel", "lo")))
    events = await create(sdk, stream=True)
    assert [event.event_type for event in events] == [event["event_type"] for event in stream_of("Hel", "lo")]
    trace = await proxy.trace()
    assert trace.stream and trace.messages[-1]["content"] == "Hello"


async def test_a_refused_request(proxy: Proxy, connect: Connect, upstream: ScriptedUpstream) -> None:
    """HTTP 400, asked once, and nothing of it went upstream."""
    upstream.reply(whole(interaction([text_step("Hello")])))
    for stream in (False, True):
        with pytest.raises(BadRequestError, match="no Dublin") as raised:
            await create(connect(proxy), input="Tell me of Dublin", stream=stream)
        assert raised.value.status_code == 400
    assert upstream.calls == []


async def test_a_refused_response(proxy: Proxy, connect: Connect, upstream: ScriptedUpstream) -> None:
    """It is deleted at Google, cannot be read again, and nothing follows it."""
    sdk = connect(proxy)
    upstream.reply(whole(interaction([text_step("It is Dublin")])))
    with pytest.raises(BadRequestError, match="no Dublin"):
        await create(sdk)
    call = await deleted(upstream)
    assert call.target == "/v1/interactions/v1_abc" and call.headers["x-goog-api-key"] == KEY
    before = len(upstream.calls)
    with pytest.raises(NotFoundError):
        await get(sdk, "v1_abc")
    with pytest.raises(BadRequestError, match="was refused"):
        await create(sdk, previous_interaction_id="v1_abc")
    assert len(upstream.calls) == before


async def test_a_refused_stream(proxy: Proxy, connect: Connect, upstream: ScriptedUpstream) -> None:
    """Where text has left the steps are ended, the reason is shown, and an error ends it; nothing is sent twice."""
    sdk = connect(proxy)
    upstream.reply(streamed(stream_of("It is ", "Dub", "lin")))
    events = await create(sdk, stream=True)
    assert [event.event_type for event in events][-4:] == ["step.start", "step.delta", "step.stop", "error"]
    assert "no Dublin" in events[-3].delta.text and events[-1].error.code == "content_blocked"
    assert "no Dublin" in events[-1].error.message
    await deleted(upstream)
    assert [call.method for call in upstream.calls] == ["POST", "DELETE"]
    assert (await proxy.trace()).outcome == "refused_response"


@ONE_HALF
@pytest.mark.parametrize("stream_check", ["final", "window", "hold"])
async def test_a_call_waits_for_its_verdict(
    start_proxy: StartProxy, connect: Connect, upstream: ScriptedUpstream, stream_check: str
) -> None:
    """No piece of a refused call leaves, and one that passes comes as it was."""
    proxy = await start_proxy(policy=POLICY, guardrails={"stream_check": stream_check})
    sdk = connect(proxy)

    def events(recipient: str) -> list[dict[str, Any]]:
        pieces = ['{"to":', f' "{recipient}', '@example.org"}']
        deltas = [delta(1, type="arguments_delta", arguments=piece) for piece in pieces]
        text = [start(0, {"type": "model_output"}), delta(0, type="text", text="I send it."), stop(0)]
        return [created(), *text, start(1, call_step("send", {})), *deltas, stop(1), completed("requires_action")]

    upstream.reply(streamed(events("a")))
    passed = await create(sdk, stream=True)
    assert [event.event_type for event in passed] == [event["event_type"] for event in events("a")]
    upstream.reply(streamed(events("b")))
    if stream_check != "final":
        # Nothing has left: in a window the text is too short to.
        with pytest.raises(BadRequestError, match="no mail to b"):
            await create(sdk, stream=True)
        return
    refused = await create(sdk, stream=True)
    assert "no mail to b" in refused[-1].error.message
    assert not any("send" in str(event.step) for event in refused if event.event_type == "step.start")
    assert not any("arguments" in str(event.delta) for event in refused if event.event_type == "step.delta")


@ONE_HALF
async def test_a_chain_is_checked_from_its_beginning(
    proxy: Proxy, connect: Connect, upstream: ScriptedUpstream
) -> None:
    """Rules over flows see what was said before; what is not known is named as not checked."""
    sdk = connect(proxy)
    upstream.reply(whole(interaction([text_step("ok")])))
    await create(sdk, input="I live in Cork")
    upstream.reply(whole({**interaction([call_step("send", {"to": "a"})]), "id": "v1_b"}))
    with pytest.raises(BadRequestError, match="no mail after Cork"):
        await create(sdk, input="mail it", previous_interaction_id="v1_abc")
    trace = await proxy.trace()
    assert [message.get("content") for message in trace.messages] == [
        [{"type": "text", "text": "I live in Cork"}],
        "ok",
        [{"type": "text", "text": "mail it"}],
        None,
    ]
    assert trace.metadata["coverage"]["not_checked"] == []
    upstream.reply(whole(interaction([text_step("ok")])))
    await create(sdk, previous_interaction_id="v1_unknown")
    [unchecked] = (await proxy.trace()).metadata["coverage"]["not_checked"]
    assert unchecked == {"address": "request.previous_interaction_id", "reason": "an earlier interaction"}


@ONE_HALF
async def test_what_comes_later_is_checked_when_it_is_read(
    proxy: Proxy, connect: Connect, upstream: ScriptedUpstream
) -> None:
    """An interaction in the background; the rules see what it was asked with what it says."""
    sdk = connect(proxy)
    upstream.reply(whole(interaction(status="in_progress")))
    assert (await create(sdk, input="I live in Cork", background=True)).status == "in_progress"
    upstream.reply(whole(interaction([text_step("fine")])))
    assert (await get(sdk, "v1_abc")).output_text == "fine"
    upstream.reply(streamed(stream_of("fine")))
    assert len(await get(sdk, "v1_abc", stream=True, last_event_id="e1")) == 5
    assert upstream.calls[-1].target.startswith("/v1/interactions/v1_abc?")
    assert {"stream=true", "last_event_id=e1"} <= set(upstream.calls[-1].target.partition("?")[2].split("&"))
    upstream.reply(whole(interaction([call_step("send", {"to": "a"})])))
    with pytest.raises(BadRequestError, match="no mail after Cork"):
        await get(sdk, "v1_abc")
    await deleted(upstream)
    with pytest.raises(NotFoundError):
        await get(sdk, "v1_abc")


@ONE_HALF
async def test_interactions_are_their_makers(
    start_proxy: StartProxy, connect: Connect, upstream: ScriptedUpstream
) -> None:
    """Who shares the operator's key sees their own alone; who brings a key of their own cannot name another's."""
    proxy = await start_proxy(policy=POLICY, access={"mode": "keys"}, upstream={"api_key": "AIzaOperator"})
    keys = Keys(proxy.store.database)
    first, second = [(await keys.add(name))[1] for name in ("ann", "bob")]
    mine, theirs = connect(proxy, key=first), connect(proxy, key=second)
    upstream.reply(whole(interaction([text_step("ok")])))
    await create(mine)
    assert (await get(mine, "v1_abc")).output_text == "ok"
    before = len(upstream.calls)
    for work in (
        get(theirs, "v1_abc"),
        create(theirs, previous_interaction_id="v1_abc"),
        asyncio.to_thread(lambda: theirs.client.interactions.delete(id="v1_abc")),
        asyncio.to_thread(lambda: theirs.client.interactions.cancel(id="v1_abc")),
    ):
        with pytest.raises(NotFoundError):
            await work
    assert len(upstream.calls) == before


@ONE_HALF
async def test_cancel_and_delete(proxy: Proxy, connect: Connect, upstream: ScriptedUpstream) -> None:
    """What a cancelled interaction has said is checked; one that was deleted is not known any more."""
    client = connect(proxy).client
    upstream.reply(whole(interaction(status="in_progress")))
    await create(connect(proxy), background=True)
    upstream.reply(whole(interaction([text_step("so far")], "cancelled")))
    found = await asyncio.to_thread(lambda: client.interactions.cancel(id="v1_abc"))
    assert found.status == "cancelled" and upstream.calls[-1].target == "/v1/interactions/v1_abc/cancel"
    upstream.reply(whole({}))
    await asyncio.to_thread(lambda: client.interactions.delete(id="v1_abc"))
    upstream.reply(whole(interaction([text_step("Dublin")])))
    with pytest.raises(BadRequestError):
        await get(connect(proxy), "v1_abc")


@ONE_HALF
async def test_values_are_masked_and_put_back(
    start_proxy: StartProxy, connect: Connect, upstream: ScriptedUpstream
) -> None:
    """In texts and in arguments, whole and streamed; where they cannot be put back, the request is refused."""
    proxy = await start_proxy(mask_policy=MASKED)
    sdk = connect(proxy)
    asked = "write to jo@example.org"

    def echo(call: Call) -> Reply:
        said = call.json["input"].removeprefix("write to ")
        if not call.json.get("stream"):
            return whole(interaction([text_step(f"To {said}"), call_step("send", {"to": said})]))
        halves = said[:9], said[9:]
        arguments = [
            delta(1, type="arguments_delta", arguments=piece) for piece in (f'{{"to":"{halves[0]}', f'{halves[1]}"}}')
        ]
        texts = [delta(0, type="text", text=piece) for piece in halves]
        steps = [
            start(0, {"type": "model_output"}),
            *texts,
            stop(0),
            start(1, call_step("send", {})),
            *arguments,
            stop(1),
        ]
        return streamed([created(), *steps, completed("requires_action")])

    upstream.reply(echo)
    found = await create(sdk, input=asked)
    assert b"jo@example.org" not in upstream.calls[-1].body
    assert found.output_text == "To jo@example.org" and found.steps[-1].arguments == {"to": "jo@example.org"}
    events = await create(sdk, input=asked, stream=True)
    deltas = [event.delta for event in events if event.event_type == "step.delta"]
    assert "".join(one.text for one in deltas if one.type == "text") == "jo@example.org"
    assert "".join(one.arguments for one in deltas if one.type == "arguments_delta") == '{"to":"jo@example.org"}'
    before = len(upstream.calls)
    with pytest.raises(BadRequestError, match="cannot be masked"):
        await create(sdk, input=asked, background=True)
    with pytest.raises(BadRequestError, match="masked values"):
        await create(sdk, previous_interaction_id="v1_abc")
    with pytest.raises(BadRequestError, match="masked values"):
        await get(sdk, "v1_abc")
    assert len(upstream.calls) == before


@ONE_HALF
@pytest.mark.parametrize(
    ("fields", "setting"),
    [
        ({"agent": "deep-research-pro-preview-12-2025", "model": None}, "agents"),
        ({"environment": {"type": "remote"}}, "environments"),
        ({"webhook_config": {"uris": ["https://example.org"]}}, "outbound_fields"),
    ],
)
async def test_what_runs_elsewhere_is_refused_unless_it_is_allowed(
    start_proxy: StartProxy, connect: Connect, upstream: ScriptedUpstream, fields: dict[str, Any], setting: str
) -> None:
    upstream.reply(whole(interaction([text_step("ok")])))
    arguments = {"model": MODEL, **fields}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    with pytest.raises(BadRequestError, match=f'guardrails.{setting} = "allow"'):
        await _create(connect(await start_proxy()), arguments)
    assert upstream.calls == []
    await _create(connect(proxy := await start_proxy(guardrails={setting: "allow"})), arguments)
    assert (await proxy.trace()).metadata["coverage"]["not_checked"]


async def _create(sdk: Sdk, arguments: dict[str, Any]) -> Any:
    return await asyncio.to_thread(lambda: sdk.client.interactions.create(input="hi", **arguments))


@ONE_HALF
async def test_a_value_in_a_response_is_masked(
    start_proxy: StartProxy, connect: Connect, upstream: ScriptedUpstream
) -> None:
    """Wherever the stream repeats it."""
    proxy = await start_proxy(mask_policy=MASKED.replace('"user"', '"assistant"'))
    steps = [text_step("Write to jo@example.org")]
    events = [created(), start(0, {"type": "model_output"}), delta(0, type="text", text="Write to jo@")]
    events += [delta(0, type="text", text="example.org"), stop(0), completed(steps=steps)]
    upstream.reply(whole({**interaction(steps), "output_text": "Write to jo@example.org"}))
    assert "<EMAIL_ADDRESS_" in (await create(connect(proxy))).output_text
    upstream.reply(streamed(events))
    found = str(await create(connect(proxy), stream=True))
    assert "example.org" not in found and found.count("<EMAIL_ADDRESS_") == 2


@ONE_HALF
async def test_what_nobody_allows_is_refused(
    start_proxy: StartProxy, connect: Connect, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy(ask_policy=POLICY, guardrails={"ask_timeout": 0.05})
    upstream.reply(streamed(stream_of("It is ", "Dublin")))
    events = await create(connect(proxy), stream=True)
    assert "nobody allowed it" in events[-1].error.message
    await deleted(upstream)


@ONE_HALF
async def test_unseen_content_can_be_refused(
    start_proxy: StartProxy, connect: Connect, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy(policy=POLICY, guardrails={"unseen_content": "block"})
    upstream.reply(whole(interaction([text_step("ok")])))
    sdk = connect(proxy)
    with pytest.raises(BadRequestError, match="an earlier interaction"):
        await create(sdk, previous_interaction_id="v1_unknown")
    await create(sdk)
    await create(sdk, previous_interaction_id="v1_abc", continuation_token="t")
    assert upstream.calls[-1].json["continuation_token"] == "t"


@ONE_HALF
async def test_keys_are_nowhere(
    start_proxy: StartProxy, connect: Connect, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the client's nor those in its tools: not in traces, logs or errors."""
    proxy = await start_proxy(policy=POLICY)
    upstream.reply(whole(interaction([text_step("It is Dublin")])))
    tools = [{"type": "mcp_server", "name": "m", "url": "https://example.org", "headers": {"authorization": CANARY}}]
    with pytest.raises(APIStatusError) as raised:
        await create(connect(proxy, key=f"{CANARY}2"), tools=tools)
    await deleted(upstream)
    assert CANARY not in f"{raised.value} {caplog.text} {await proxy.trace()!r}"
