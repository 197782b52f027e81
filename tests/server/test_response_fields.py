"""What a response says outside its parts, through the whole proxy: rules read it, and a wrong type is only named."""

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.guardrails.response_messages import candidate_messages
from gemini_proxy.sections import Guardrails
from gemini_proxy.traces.excerpts import excerpts
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.proxy.responses import Payload, answered, exchange_of, frames, pipeline
from tests.support.proxy import prompt
from tests.support.upstream import Hang, ScriptedUpstream, candidate, sse, stream, unary

WORD = "zzforbiddenzz"
RULES = "\n".join(
    f'raise "the word" if:\n    (e: {event})\n    "{WORD}" in e\n' for event in ("Message", "ToolCall", "ToolOutput")
)
NO_SEARCH = 'raise "no searches" if:\n    (c: ToolCall)\n    c is tool:google_search\n'
WINDOW = {"stream_check": "window", "window_overlap": 20}
FILLER = "All quiet here, and nothing to see in this. "


def tokens(*given: str) -> Payload:
    return {"chosenCandidates": [{"token": token, "logProbability": -0.1} for token in given]}


SAYING: list[Payload] = [
    {"finishMessage": WORD},
    {"citationMetadata": {"citationSources": [{"title": WORD}]}},
    {"citationMetadata": {"citations": [{"uri": f"https://{WORD}.example"}]}},
    {"logprobsResult": tokens("zzfor", "bidden", "zz")},
    {"logprobsResult": {"topCandidates": [{"candidates": [{"token": WORD}]}]}},
    {"groundingAttributions": [{"content": {"parts": [{"text": WORD}]}}]},
    {"groundingMetadata": {"searchEntryPoint": {"renderedContent": f"<b>{WORD}</b>"}}},
    {"groundingMetadata": {"groundingChunks": [{"web": {"title": WORD}}]}},
    {"groundingMetadata": {"groundingSupports": [{"segment": {"text": WORD}}]}},
    {"groundingMetadata": {"webSearchQueries": [WORD]}},
    {"groundingMetadata": {"imageSearchQueries": [WORD]}},
    {"groundingMetadata": {"retrievalQueries": [WORD]}},
    {"urlContextMetadata": {"urlMetadata": [{"retrievedUrl": f"https://e.example/?{WORD}"}]}},
    {"someNewField": {"deep": [WORD]}},
    {"content": {"parts": [{"text": "hi"}], "someNewField": WORD}},
]
RESPONSES: list[Payload] = [
    *[candidate("hi", "STOP", **fields) for fields in SAYING],
    candidate("hi", "STOP") | {"modelStatus": {"message": WORD}},
    candidate("hi", "STOP") | {"someNewField": WORD},
    candidate("hi", "STOP") | {"usageMetadata": {"promptTokenCount": 3, "note": WORD}},
    candidate("hi", "STOP") | {"modelVersion": f"a {WORD}"},
    candidate("hi", "STOP") | {"responseId": f"a {WORD}"},
    {"promptFeedback": {"blockReason": "SAFETY", "blockReasonMessage": WORD}},
    {"error": {"code": 500, "message": WORD, "status": "INTERNAL"}},
]


def snake_case(value: Any) -> Any:
    """The same JSON with all names in snake_case."""
    if isinstance(value, dict):
        return {
            "".join(f"_{char.lower()}" if char.isupper() else char for char in name): snake_case(inner)
            for name, inner in value.items()
        }
    return [snake_case(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("response", RESPONSES, ids=lambda response: orjson.dumps(response).decode()[-60:])
async def test_rules_read_what_fields_say(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, response: Payload
) -> None:
    """The word is found in unary responses and in every way to check a stream, in either spelling of the names."""
    for check in ("final", "window", "hold"):
        proxy = await start_proxy(policy=RULES, guardrails={"stream_check": check})
        for payload in (response, snake_case(response)):
            upstream.reply(unary(payload))
            async with client.post(proxy.method(), json=prompt("hi")) as answer:
                assert answer.status == 400
                assert WORD not in await answer.text()
        upstream.reply(stream(*sse(response)))
        async with client.post(proxy.stream, json=prompt("hi")) as answer:
            body = await answer.text()
        assert "the word" in body and WORD not in body
    assert (await proxy.trace()).annotations[0].address.startswith("messages.")


@pytest.mark.parametrize(
    "fields",
    [
        {"citationMetadata": []},
        {"finishMessage": 3},
        {"groundingMetadata": "x"},
        {"logprobsResult": [1]},
        {"continuationToken": "aGk="},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_wrong_types_beside_parts_pass_and_are_named(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, fields: Payload
) -> None:
    """They are no reason to refuse; the trace names them, and ``unseen_content = "block"`` stops them."""
    reply = unary(candidate("hi", "STOP", **fields) | {"usageMetadata": "x"})
    upstream.reply(reply)
    proxy = await start_proxy(policy=RULES)
    async with client.post(proxy.method(), json=prompt("hi")) as answer:
        assert (answer.status, await answer.read()) == (200, reply.steps[0])
    named = (await proxy.trace()).metadata["coverage"]["not_checked"]
    assert {one["address"] for one in named} == {f"candidates.0.{next(iter(fields))}", "response.usageMetadata"}
    proxy = await start_proxy(policy=RULES, guardrails={"unseen_content": "block"})
    async with client.post(proxy.method(), json=prompt("hi")) as answer:
        assert (answer.status, "cannot be checked" in await answer.text()) == (400, True)


@pytest.mark.parametrize(
    "response",
    [
        {"candidates": "x"},
        {"candidates": [{"index": "x"}]},
        candidate("hi") | {"candidates": [{"content": []}]},
        {"candidates": [{"content": {"parts": [{"functionCall": {"name": 3}}]}}]},
    ],
)
async def test_wrong_types_in_parts_and_framing_are_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, response: Payload
) -> None:
    proxy = await start_proxy()
    upstream.reply(unary(response))
    async with client.post(proxy.method(), json=prompt("hi")) as answer:
        assert (answer.status, "ANSWER_UNREADABLE" in await answer.text()) == (400, True)


async def test_text_that_left_is_not_forgotten(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Later metadata takes the place of earlier metadata; the word in the earlier one is found all the same."""
    early: Payload = {"groundingMetadata": {"groundingChunks": [{"web": {"title": WORD}}]}}
    late: Payload = {"groundingMetadata": {"groundingChunks": [{"web": {"title": "fine"}}]}}
    for check in ("final", "window", "hold"):
        proxy = await start_proxy(policy=RULES, guardrails={"stream_check": check})
        upstream.reply(stream(*sse(candidate("a", **early), candidate("b", "STOP", **late))))
        async with client.post(proxy.stream, json=prompt("hi")) as answer:
            body = await answer.text()
        assert "the word" in body
        assert (WORD in body) == (check == "final")


async def test_a_field_waits_for_its_verdict_in_window(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """What came before leaves, and so does an event with a field whose text has passed; the one with the word never
    does, though the upstream goes on."""
    proxy = await start_proxy(policy=RULES, guardrails=WINDOW)
    cited: Payload = {"citationMetadata": {"citations": [{"title": "a title"}]}}
    worded: Payload = {"citationMetadata": {"citations": [{"title": WORD}]}}
    events = sse(candidate(FILLER), candidate(FILLER, **cited), candidate(FILLER), candidate(FILLER, **worded))
    seen = asyncio.Event()
    upstream.reply(stream(*events[:3], seen, events[3], Hang()))
    async with client.post(proxy.stream, json=prompt("hi")) as answer:
        assert await answer.content.readexactly(len(events[0] + events[1])) == events[0] + events[1]
        seen.set()
        body = await answer.read()
    assert b"the word" in body and WORD.encode() not in body
    assert (await proxy.trace()).outcome is Outcome.REFUSED_RESPONSE


async def test_ranges_are_right_where_metadata_comes_late(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A search puts messages before the text that has come already; what is found later counts them."""
    proxy = await start_proxy(policy=RULES, guardrails=WINDOW)
    search: Payload = {"groundingMetadata": {"webSearchQueries": ["q"]}}
    upstream.reply(stream(*sse(candidate(FILLER), candidate("x", **search), candidate(f"y {WORD}")), Hang()))
    async with client.post(proxy.stream, json=prompt("hi")) as answer:
        assert "the word" in await answer.text()
    trace = await proxy.trace()
    start = len(FILLER) + len("xy ")
    assert [one.address for one in trace.annotations] == [f"messages.3.content:{start}-{start + len(WORD)}"]
    assert trace.messages[3]["content"][start:] == WORD


FIELDS = st.sampled_from(["finishMessage", "webSearchQueries", "title", "token"])
WORDS = st.sampled_from(["foo", "bar", "foobar", "x" * 30])


@settings(max_examples=100)
@given(st.lists(st.tuples(WORDS, st.one_of(st.none(), FIELDS), WORDS), max_size=8))
def test_window_says_what_the_whole_does(pieces: list[tuple[str, str | None, str]]) -> None:
    """Wherever fields stand between texts: an answer is refused where a check of all of it finds something, ranges
    point at what was found, and no event leaves of which a field says it."""
    exchange = exchange_of(
        'raise "found" if:\n    (m: Message)\n    m.role == "assistant"\n    any(find("foobar", m.content))\n',
        'raise "found" if:\n    (c: ToolCall)\n    any(find("foobar", c))\n',
    )
    events = frames([candidate(text, **_field(name, said)) for text, name, said in pieces])
    result = answered(pipeline(Guardrails.model_validate(WINDOW)), exchange, events)
    assert exchange.request is not None
    messages = [m for c in candidate_messages(exchange.request, exchange.merger) for m in c.messages]
    assert result.refused == any("foobar" in str(message) for message in messages if message["role"] == "assistant")
    for violation in exchange.violations:
        for excerpt in excerpts(exchange.messages, violation.ranges):
            assert excerpt.found == "foobar"
    for event, (_, name, said) in zip(events, pieces, strict=True):
        assert not (name and said == "foobar" and event in result.body)
    assert result.refused or result.body == b"".join(events)


def _field(name: str | None, said: str) -> Payload:
    fields: dict[str | None, Payload] = {
        None: {},
        "finishMessage": {"finishMessage": said},
        "webSearchQueries": {"groundingMetadata": {"webSearchQueries": [said]}},
        "title": {"citationMetadata": {"citations": [{"title": said}]}},
        "token": {"logprobsResult": tokens(said)},
    }
    return fields[name]


async def test_usual_fields_wait_for_nothing_in_window(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Counts, versions, ids, times and ratings say nothing: events with them leave as text does."""
    proxy = await start_proxy(policy=RULES, guardrails=WINDOW)
    ratings = [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "LOW"}]

    def event(count: int) -> Payload:
        usage = {"promptTokenCount": 3, "totalTokenCount": count, "trafficType": "ON_DEMAND"}
        named = {"modelVersion": "gemini-2.5-flash", "responseId": "a-b_c", "createTime": "2026-11-26T16:00:00Z"}
        return candidate(FILLER, safetyRatings=ratings) | {"usageMetadata": usage} | named

    events = sse(event(1), event(2), event(3))
    upstream.reply(stream(*events, Hang()))
    async with client.post(proxy.stream, json=prompt("hi")) as answer:
        assert await answer.content.readexactly(len(events[0] + events[1])) == events[0] + events[1]
    assert [message.get("field") for message in (await proxy.eventually(lambda trace: True)).messages] == [None, None]


async def test_a_search_of_the_provider_is_a_call(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Rules over calls see it, whether metadata or a part tells of it."""
    proxy = await start_proxy(policy=NO_SEARCH)
    part = {"toolCall": {"toolType": "GOOGLE_SEARCH_WEB", "args": {"queries": ["who"]}}}
    for response in (
        candidate("hi", "STOP", groundingMetadata={"webSearchQueries": ["who"]}),
        {"candidates": [{"content": {"parts": [part, {"text": "hi"}]}, "finishReason": "STOP"}]},
    ):
        upstream.reply(unary(response))
        async with client.post(proxy.method(), json=prompt("hi")) as answer:
            assert (answer.status, "no searches" in await answer.text()) == (400, True)


async def test_what_the_provider_ran_is_not_held_back(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """It ran already: its events leave as text does, not as those of a function call, and are checked in the end."""
    proxy = await start_proxy(policy=RULES)
    part = {"toolCall": {"toolType": "GOOGLE_SEARCH_WEB", "id": "1", "args": {"queries": [WORD]}}}
    events = sse({"candidates": [{"content": {"parts": [part]}}]}, candidate("hi", "STOP"))
    seen = asyncio.Event()
    upstream.reply(stream(events[0], seen, events[1]))
    async with client.post(proxy.stream, json=prompt("hi")) as answer:
        assert await answer.content.readexactly(len(events[0])) == events[0]
        seen.set()
        assert b"the word" in await answer.read()
