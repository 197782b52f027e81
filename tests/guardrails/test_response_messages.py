"""What rules get to read of a response: its parts, what its fields say, and what the provider ran by itself."""

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message
from gemini_proxy.guardrails.response_messages import CandidateMessages, candidate_messages
from tests.fields.google_lists import response_places
from tests.gemini.reading import read, strings

Json = dict[str, Any]


def answer(**fields: Any) -> Json:
    """A response of one candidate with these fields, which says "hi"."""
    return {"candidates": [{"content": {"parts": [{"text": "hi"}]}, **fields}]}


def of(*events: Json) -> tuple[CandidateMessages, ...]:
    merger = Merger()
    for event in events:
        merger.add(event)
    return candidate_messages(read({"contents": [{"parts": [{"text": "question"}]}]}), merger)


def messages(*events: Json) -> list[Message]:
    return [message for candidate in of(*events) for message in candidate.messages]


def beside(*events: Json) -> dict[str, str]:
    """The texts of fields that end the messages of an answer."""
    return {message["field"]: message["content"] for message in messages(*events) if "field" in message}


def unchecked(*events: Json) -> set[str]:
    return {one.address for candidate in of(*events) for one in candidate.unchecked}


@pytest.mark.parametrize(
    ("event", "field", "text"),
    [
        (answer(finishMessage="why"), "finishMessage", "why"),
        (answer(finish_message="why"), "finishMessage", "why"),
        (answer(citationMetadata={"citations": [{"uri": "u", "title": "t"}]}), "citationMetadata", "u\nt"),
        (answer(citation_metadata={"citation_sources": {"license": "l"}}), "citationMetadata", "l"),
        (
            answer(groundingMetadata={"groundingSupports": [{"segment": {"text": "s", "startIndex": 3}}]}),
            "groundingMetadata.groundingSupports",
            "s",
        ),
        (answer(groundingAttributions=[{"sourceId": "a"}]), "groundingAttributions", "sourceId\na"),
        (answer(newField={"a": ["b", 3]}), "newField", "a\nb\nnewField"),
        ({"candidates": [{"content": {"parts": [], "newField": "c"}}]}, "content", "c\nnewField"),
        ({"promptFeedback": {"blockReason": "SAFETY", "blockReasonMessage": "b"}}, "promptFeedback", "b"),
        ({"modelStatus": {"message": "old", "modelStage": "LEGACY"}}, "modelStatus", "old"),
        ({"error": {"code": 503, "status": "UNAVAILABLE", "message": "down"}}, "error", "down"),
        ({"another": "one"}, "another", "one\nanother"),
        ({"usageMetadata": {"promptTokenCount": "many of them"}}, "usageMetadata", "many of them"),
        (answer(finishReason="because of you"), "finishReason", "because of you"),
    ],
)
def test_fields_are_text_behind_the_turn(event: Json, field: str, text: str) -> None:
    """Each string of a field, a line each, in a message that names the field."""
    last = messages(event)[-1]
    assert last["role"] == "assistant"
    assert (last["field"], set(last["content"].split("\n"))) == (field, set(text.split("\n")))
    assert not unchecked(event)


def test_control_fields_say_nothing() -> None:
    """What Gemini sends with nearly every event adds no message, in either enum encoding."""
    ratings = [{"category": "HARM_CATEGORY_HARASSMENT", "probability": 1, "blocked": False}]
    plain = answer(index=0, finishReason=1, safetyRatings=ratings, tokenCount=3, avgLogprobs=-0.5) | {
        "usageMetadata": {
            "promptTokenCount": 3,
            "newKindOfCount": 7,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 3}],
            "trafficType": "ON_DEMAND",
            "serviceTier": "standard",
        },
        "modelVersion": "gemini-2.5-flash-preview-09-2025",
        "responseId": "iKmPaM2xJo-a1PIPn_TIiQs",
        "createTime": "2026-11-26T16:00:00.123456Z",
        "promptFeedback": {"safetyRatings": ratings},
    }
    assert len(messages(plain)) == 1
    assert not unchecked(plain)


def test_tokens_are_read_as_what_they_make() -> None:
    """The chosen tokens are one text over all events; what else was weighed is another, one line for each rank."""

    def chunk(chosen: list[str], *others: list[str]) -> Json:
        tops = [{"candidates": [{"token": token, "logProbability": -1.5} for token in row]} for row in others]
        named = [{"token": token, "tokenId": 3} for token in chosen]
        return answer(logprobsResult={"chosenCandidates": named, "topCandidates": tops})

    assert beside(chunk(["for", "bid"], ["for", "al"], ["bid", "low"]), chunk(["den", "den"], ["den", "ed"])) == {
        "logprobsResult.chosenCandidates": "forbiddenden",
        "logprobsResult.topCandidates": "forbidden\nallowed",
    }


@pytest.mark.parametrize(
    ("event", "address"),
    [
        (answer(citationMetadata=[]), "candidates.0.citationMetadata"),
        (answer(finishMessage=3), "candidates.0.finishMessage"),
        (answer(finish_message={"a": 1}), "candidates.0.finishMessage"),
        (answer(citationMetadata={"citations": ["text"]}), "candidates.0.citationMetadata.citations"),
        (answer(groundingMetadata="text"), "candidates.0.groundingMetadata"),
        (answer(groundingMetadata={"webSearchQueries": [{}]}), "candidates.0.groundingMetadata.webSearchQueries"),
        (answer(urlContextMetadata=3), "candidates.0.urlContextMetadata"),
        (answer(logprobsResult=[]), "candidates.0.logprobsResult"),
        (answer(safetyRatings="SAFE"), "candidates.0.safetyRatings"),
        (answer(avgLogprobs=[]), "candidates.0.avgLogprobs"),
        ({"usageMetadata": "x"}, "response.usageMetadata"),
        ({"responseId": []}, "response.responseId"),
        ({"promptFeedback": "x"}, "response.promptFeedback"),
        ({"modelStatus": []}, "response.modelStatus"),
        (answer(continuationToken="aGk="), "candidates.0.continuationToken"),
        ({"continuation_token": "aGk="}, "response.continuationToken"),
    ],
)
def test_what_cannot_be_checked_is_named(event: Json, address: str) -> None:
    """A value of another type than its field's is not refused for that, nor a token that stands for text elsewhere."""
    assert unchecked(event) == {address}


def _deep(levels: int) -> Any:
    return orjson.loads("[" * levels + '"text"' + "]" * levels)


def test_what_is_nested_too_deeply() -> None:
    """A field is named as not checked, as often as it comes; a part cannot be read."""
    assert unchecked({"new": _deep(1000)}, {"new": _deep(1000)}) == {"response.new"}
    with pytest.raises(DecodeError):
        of({"candidates": [{"content": {"parts": [{"new": _deep(1000)}]}}]})


GROUNDED = {
    "webSearchQueries": ["who asked"],
    "searchEntryPoint": {"renderedContent": "<b>who</b>", "sdkBlob": "W1sid2hvIiwidXJsIl1d"},
    "groundingChunks": [{"web": {"title": "T", "uri": "https://w.example"}}],
    "groundingSupports": [{"segment": {"text": "hi", "endIndex": 2}, "groundingChunkIndices": [0]}],
}


def test_a_search_is_a_call_before_the_text() -> None:
    """What went out is a call of the provider's, what came back its output; both stand before what the model says."""
    call, output, said, *fields = messages(answer(groundingMetadata=GROUNDED))
    function = {"name": "google_search", "arguments": {"queries": ["who asked"]}}
    assert call == {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": function}],
        "provider": True,
    }
    assert (output["role"], output["tool_name"], output["provider"]) == ("tool", "google_search", True)
    assert output["content"].split("\n") == ["<b>who</b>", '[["who","url"]]', "T", "https://w.example"]
    assert said == {"role": "assistant", "content": "hi"}
    assert [field["field"] for field in fields] == ["groundingMetadata.groundingSupports"]
    assert [candidate.turn for candidate in of(answer(groundingMetadata=GROUNDED))] == [3]


@pytest.mark.parametrize(
    ("fields", "name", "arguments"),
    [
        ({"groundingMetadata": {"imageSearchQueries": ["q"]}}, "google_search", {"queries": ["q"]}),
        ({"groundingMetadata": {"retrievalQueries": ["q"]}}, "retrieval", {"queries": ["q"]}),
        ({"grounding_metadata": {"web_search_queries": "q"}}, "google_search", {"queries": ["q"]}),
        (
            {"urlContextMetadata": {"urlMetadata": [{"retrievedUrl": "https://u.example", "urlRetrievalStatus": 1}]}},
            "url_context",
            {"urls": ["https://u.example"]},
        ),
    ],
)
def test_what_the_provider_ran(fields: Json, name: str, arguments: Json) -> None:
    call, output, said = messages(answer(**fields))
    assert call["tool_calls"][0]["function"] == {"name": name, "arguments": arguments}
    assert output["tool_name"] == name
    assert said["content"] == "hi"


def ran(tool_type: Any, **args: Any) -> Json:
    """A part that tells of a call of the provider's."""
    return {"toolCall": {"toolType": tool_type, "args": args}}


@pytest.mark.parametrize(
    ("parts", "searches"),
    [
        ([ran("GOOGLE_SEARCH_WEB", queries=["a", "b"])], [{"queries": ["a", "b"]}]),
        ([ran("GOOGLE_SEARCH_WEB", queries=["a"])], [{"queries": ["b"]}, {"queries": ["a"]}]),
        ([ran("GOOGLE_SEARCH_IMAGE", q="b"), ran("GOOGLE_SEARCH_WEB", q="a")], [{"q": "b"}, {"q": "a"}]),
        ([ran("URL_CONTEXT", urls=["a", "b"])], [{"queries": ["a", "b"]}]),
        (
            [ran("URL_CONTEXT", urls=["a"]), ran("GOOGLE_SEARCH_WEB", q="b")],
            [{"queries": ["a"]}, {"q": "b"}],
        ),
        ([{"executableCode": {"code": "a"}}], [{"queries": ["a", "b"]}]),
        ([{"functionCall": {"name": "google_search", "args": {"q": "a"}}}], [{"queries": ["a", "b"]}]),
    ],
)
def test_a_search_is_one_event(parts: list[Json], searches: list[Json]) -> None:
    """A query that a part tells of is not told again by the metadata; calls of other tools, or of the client's, tell of
    no search."""
    event = answer(content={"parts": parts}, groundingMetadata={"webSearchQueries": ["a", "b"]})
    provided = [message for message in messages(event) if message.get("provider")]
    functions = [call["function"] for message in provided for call in message.get("tool_calls", ())]
    assert [one["arguments"] for one in functions if one["name"] == "google_search"] == searches


def test_results_follow_their_call() -> None:
    """What metadata tells of a search that a part made stands behind the part, so that it is that call's output."""
    parts = [{"text": "first"}, ran("GOOGLE_SEARCH_WEB", q="who asked"), {"text": "then"}]
    found = messages(answer(content={"parts": parts}, groundingMetadata=GROUNDED))
    assert [one.get("tool_name") or one.get("content") or "call" for one in found[:4]] == [
        *("first", "call", "google_search", "then"),
    ]


def test_addresses_count_what_stands_before() -> None:
    """An image behind a search is named where it stands in the end."""
    image = {"inlineData": {"mimeType": "image/png", "data": "AA=="}}
    search = ran("GOOGLE_SEARCH_WEB", q="who asked")
    for parts in ([{"text": "hi"}, image], [{"text": "hi"}, search, image], [image, search]):
        event = answer(groundingMetadata=GROUNDED, content={"parts": parts})
        (address,) = unchecked(event)
        index = int(address.split(".")[1])
        assert "image_url" in str(messages(event)[index - 1]["content"])


def test_results_are_those_of_their_tool() -> None:
    """Places are of Google Maps, documents of retrieval."""
    chunks = [{"maps": {"title": "Café"}}, {"retrievedContext": {"text": "doc", "ragChunk": {"text": "piece"}}}]
    outputs = messages(answer(groundingMetadata={"groundingChunks": chunks}))[:-1]
    assert [(output["tool_name"], output["content"]) for output in outputs] == [
        ("google_maps", "Café"),
        ("retrieval", "doc\npiece"),
    ]


def test_no_text_of_an_earlier_event_is_forgotten() -> None:
    """Later metadata replaces earlier metadata for clients; who read the earlier event has seen its text."""
    first = answer(groundingMetadata={"webSearchQueries": ["one"], "searchEntryPoint": {"renderedContent": "A"}})
    second = answer(groundingMetadata={"webSearchQueries": ["two"], "searchEntryPoint": {"renderedContent": "B"}})
    call, output, _ = messages(first, second, first, answer(groundingMetadata={}))
    assert call["tool_calls"][0]["function"]["arguments"] == {"queries": ["one", "two"]}
    assert output["content"] == "A\nB"


def test_the_response_itself_is_read_once() -> None:
    """With several candidates, what the response says stands at the end, and is of no candidate."""
    event = {
        "candidates": [{"index": n, "content": {"parts": [{"text": "hi"}]}, "finishMessage": "f"} for n in (0, 1)],
        "modelStatus": {"message": "old"},
    }
    assert [(one.get("field"), one.get("candidate")) for one in messages(event)] == [
        *((None, 0), ("finishMessage", 0), (None, 1), ("finishMessage", 1)),
        ("modelStatus", None),
    ]


PLACES = response_places()
NAMES = sorted({step.name for place in PLACES for step in place.steps} | {"new", "new_one"})
CONTAINERS = ("parts", "content", "candidates")
values = st.recursive(
    st.one_of(st.sampled_from(["text!", "more text!", "A TEXT"]), st.integers(), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([name for name in NAMES if name not in CONTAINERS]), inner, max_size=4),
    ),
    max_leaves=8,
)


@st.composite
def responses(draw: st.DrawFn) -> Json:
    """A response whose fields hold anything, some of it where Google has it."""
    fields = st.dictionaries(
        st.sampled_from([name for name in NAMES if name not in (*CONTAINERS, "index", "finishReason", "role")]), values
    )
    found: Json = draw(fields)
    for place in draw(st.lists(st.sampled_from(PLACES), max_size=3)):
        names = [step.name for step in place.steps]
        if names[0] == "candidates" and names[1] not in ("content", "finishReason", "index"):
            candidate = found.setdefault("candidates", [{}])[0]
            candidate[names[1]] = _nested(names[2:], draw(values))
    return found


def _nested(names: list[str], value: Any) -> Any:
    for name in reversed(names):
        value = {name: value}
    return value


@settings(max_examples=60)
@given(st.lists(responses(), max_size=3))
def test_every_string_is_read(events: list[Json]) -> None:
    """Whatever the shape and the types of fields beside the parts: a string that is no control value is in a message,
    whichever event it came in, and nothing is refused."""
    before = copy.deepcopy(events)
    readable = "\n".join(strings(messages(*events)))
    assert events == before
    given = {text for event in events for text in _values(event)}
    assert not [text for text in given if text not in readable]


def _values(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _values(one)]
