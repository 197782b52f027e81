"""What an interaction says is the same whole or in events, and never read in two ways."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.interactions.request import read_request
from gemini_proxy.gemini.interactions.response import InteractionReader
from gemini_proxy.gemini.refusal import Refusal, StreamState
from tests.gemini.interactions.streams import (
    call_step,
    completed,
    created,
    delta,
    event,
    interaction,
    merged,
    said,
    sse,
    start,
    stop,
    text_step,
)

TEXT = st.text(max_size=10)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


def pieces(text: str) -> st.SearchStrategy[list[str]]:
    cuts = st.lists(st.integers(0, len(text)), max_size=3).map(sorted)
    return cuts.map(lambda at: [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])


@st.composite
def steps_and_events(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw steps, and the events that a stream of them may be."""
    steps: list[dict[str, Any]] = []
    events = [created()]
    for index in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["text", "thought", "call", "search", "found"]))
        if kind == "text":
            text = draw(TEXT)
            steps.append(text_step(text))
            first, *rest = draw(pieces(text))
            content = [{"type": "text", "text": first}]
            events += [start(index, {"type": "model_output", "content": content})] + [
                delta(index, type="text", text=piece) for piece in rest
            ]
        elif kind == "thought":
            text = draw(TEXT)
            steps.append({"type": "thought", "summary": [{"type": "text", "text": text}], "signature": "c2ln"})
            events += [start(index, {"type": "thought"})] + [
                delta(index, type="thought_summary", content={"type": "text", "text": piece})
                for piece in draw(pieces(text))
            ]
            events.append(delta(index, type="thought_signature", signature="c2ln"))
        elif kind == "call":
            step = call_step("send", draw(ARGUMENTS), f"c{index}")
            steps.append(step)
            events += [start(index, {**step, "arguments": {}})] + [
                delta(index, type="arguments_delta", arguments=piece)
                for piece in draw(pieces(orjson.dumps(step["arguments"]).decode()))
            ]
        elif kind == "search":
            queries = {"queries": [draw(TEXT)]}
            steps.append({"type": "google_search_call", "id": f"c{index}", "arguments": queries})
            events.append(start(index, {"type": "google_search_call", "id": f"c{index}", "arguments": {}}))
            events.append(delta(index, type="google_search_call", arguments=queries))
        else:
            found = [{"url": draw(TEXT), "status": "success"}]
            steps.append({"type": "url_context_result", "call_id": f"c{index}", "result": found})
            events.append(start(index, {"type": "url_context_result", "call_id": f"c{index}", "result": found}))
        events.append(stop(index))
    return steps, events


@settings(max_examples=60)
@given(steps_and_events(), st.booleans(), st.data())
def test_events_say_what_the_interaction_says(
    drawn: tuple[list[dict[str, Any]], list[dict[str, Any]]], repeats: bool, data: st.DataObject
) -> None:
    """However the stream is cut into bytes and its texts into events, and whether its end repeats the steps or not."""
    steps, events = drawn
    body = sse([*events, completed(steps=steps if repeats else None)])
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=4).map(sorted))
    framing = SseFraming()
    chunks = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    frames = [frame for chunk in chunks for frame in framing.feed(chunk)] + framing.end()
    assert b"".join(frame.raw for frame in frames) == body
    streamed = said(*(frame.payload for frame in frames if frame.payload is not None))
    assert streamed == said(interaction(steps))


def test_every_step_is_an_event_of_rules() -> None:
    """Calls of the client and of the provider, their results, text, thoughts and media, in their order."""
    found = said(
        interaction(
            [
                {"type": "thought", "summary": [{"type": "text", "text": "hm"}]},
                {"type": "google_search_call", "id": "s", "arguments": {"queries": ["q"]}},
                {"type": "google_search_result", "call_id": "s", "result": [{"search_suggestions": "<b>r</b>"}]},
                {"type": "code_execution_call", "id": "x", "arguments": {"code": "1+1", "language": "python"}},
                {"type": "code_execution_result", "call_id": "x", "result": "2"},
                {
                    "type": "mcp_server_tool_call",
                    "id": "m",
                    "server_name": "files",
                    "name": "readFile",
                    "arguments": {"path": "a"},
                },
                {
                    "type": "mcp_server_tool_result",
                    "call_id": "m",
                    "name": "readFile",
                    "result": [{"type": "text", "text": "content"}],
                },
                text_step("done"),
                call_step("send", {"to": "a@b.c"}),
            ]
        )
    )
    assert found == [
        {"role": "assistant", "content": "hm", "thought": True},
        {"role": "assistant", "provider": True, "tool_calls": [_call("google_search", {"queries": ["q"]}, "s")]},
        {
            "role": "tool",
            "tool_name": "google_search",
            "content": [{"search_suggestions": "<b>r</b>"}],
            "tool_call_id": "s",
            "provider": True,
        },
        {
            "role": "assistant",
            "provider": True,
            "tool_calls": [_call("code_execution", {"code": "1+1", "language": "python"}, "x")],
        },
        {"role": "tool", "tool_name": "code_execution", "content": "2", "tool_call_id": "x", "provider": True},
        {"role": "assistant", "provider": True, "tool_calls": [_call("readFile", {"path": "a"}, "m")]},
        {
            "role": "assistant",
            "content": "mcpServerToolCall.serverName\nfiles",
            "field": "mcpServerToolCall.serverName",
        },
        {"role": "tool", "tool_name": "readFile", "content": "content", "tool_call_id": "m", "provider": True},
        {"role": "assistant", "content": "done"},
        {"role": "assistant", "tool_calls": [_call("send", {"to": "a@b.c"}, "c1")]},
    ]


def _call(name: str, arguments: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_response_in_full() -> None:
    """The id, the model, the counts and the end are where those of every response are."""
    merger = merged([created(), start(0, {"type": "model_output"}), stop(0), completed("requires_action")])
    assert (merger.response_id, merger.model_version) == ("v1_abc", "gemini-3-flash")
    assert merger.usage == {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}
    assert merger.finished() and merger.candidates[0].finish_reason == "STOP"
    assert merged([interaction(status="in_progress")]).candidates[0].finish_reason == "IN_PROGRESS"


@pytest.mark.parametrize(
    "frames",
    [
        [{**interaction([]), "errors": [{"code": "x", "message": "SECRET"}]}],
        [{**interaction([]), "output_text": "SECRET"}],
        [{**interaction([text_step("a")]), "output_text": "SECRET"}],
        [{**interaction([]), "labels": {"SECRET": "x"}}],
        [{**interaction([]), "status": "SECRET !"}],
        [interaction([{"type": "user_input", "content": "SECRET"}])],
        [interaction([{"type": "new_step", "words": ["SECRET"]}])],
        [interaction([{"SECRET word": 1}])],
        [event("something.new", words="SECRET")],
        [event("SECRET !")],
        [delta(0, type="something_new", words="SECRET")],
        [{**delta(0, type="text", text=""), "note": "SECRET"}],
        [{**delta(0, type="text", text=""), "event_id": "SECRET !"}],
        [{**stop(0), "step": {"text": "SECRET"}}],
        [delta(0, type="text_annotation_delta", annotations=[{"type": "url_citation", "title": "SECRET"}])],
        [event("error", error={"code": "x y", "message": "SECRET"})],
    ],
)
def test_text_beside_the_steps(frames: Sequence[Mapping[str, Any]]) -> None:
    assert any("SECRET" in str(message["content"]) for message in said(*frames))


def test_output_text_that_repeats_a_step_is_said_once() -> None:
    assert said({**interaction([text_step("Hello you")]), "output_text": "Hello you"}) == [
        {"role": "assistant", "content": "Hello you"}
    ]


def test_output_text_that_joins_steps_is_said_as_well() -> None:
    """Its readers see one text where the steps have two."""
    steps = [text_step("Dub"), {"type": "thought", "summary": "so"}, text_step("lin")]
    assert "Dublin" in said({**interaction(steps), "output_text": "Dublin"})[-1]["content"]


def test_what_was_asked_is_not_the_models_text() -> None:
    """A response may repeat the request: its words keep their roles."""
    echoed = {**interaction([{"type": "user_input", "content": "a"}, text_step("b")]), "system_instruction": "c"}
    assert [(message["role"], message["content"]) for message in said({**echoed, "input": "d"})] == [
        ("assistant", "b"),
        ("system", "c\ninteraction.systemInstruction"),
        ("user", [{"type": "text", "text": "d\na\ninteraction.userInput"}]),
    ]


def test_a_call_of_the_provider_is_told_once() -> None:
    """Whether its arguments come where it begins, later, or in both places."""
    step = {"type": "google_search_call", "id": "s", "arguments": {"queries": ["q"]}}
    bare = {"type": "google_search_call", "id": "s"}
    later = delta(0, type="google_search_call", arguments={"queries": ["q"]})
    whole = said(interaction([step]))
    assert len(whole) == 1
    for frames in ([start(0, step)], [start(0, bare), later], [start(0, step), later]):
        assert said(*frames, stop(0), completed(steps=[step])) == whole
    [found] = said(start(0, bare), stop(0))
    assert found["tool_calls"][0]["function"] == {"name": "google_search", "arguments": {}}


def test_a_call_waits_for_its_arguments() -> None:
    """Every frame of it is withheld, and it is told when it is whole; what follows text is not."""
    reader = InteractionReader()
    carried = []
    open_calls = []
    for frame in (
        created(),
        start(0, {"type": "model_output"}),
        delta(0, type="text", text="I send it"),
        start(1, call_step("send", {})),
        delta(1, type="arguments_delta", arguments='{"to":'),
        delta(0, type="text", text=" now"),
        delta(1, type="arguments_delta", arguments='"a"}'),
        stop(1),
        stop(0),
    ):
        list(reader.read(frame))
        carried.append(reader.carried_call)
        open_calls.append(reader.has_open_call)
    assert carried == [False, False, False, True, True, False, True, True, False]
    assert open_calls == [False, False, False, True, True, True, True, False, False]


@pytest.mark.parametrize("kind", ["function_call", "tool_search_call", "new_kind_of_call"])
def test_what_may_be_a_call_for_the_client_is_withheld(kind: str) -> None:
    reader = InteractionReader()
    told = list(reader.read(start(0, {"type": kind, "id": "c", "name": "f"})))
    assert (reader.carried_call, reader.has_open_call, told) == (True, True, [])
    [payload] = reader.read(stop(0))
    assert (reader.carried_call, reader.has_open_call) == (True, False)
    assert payload["candidates"][0]["content"]["parts"][0]["functionCall"]["name"] == "f"


@pytest.mark.parametrize(
    "frames",
    [
        [start(0, call_step("f", {})), delta(0, type="arguments_delta", arguments='{"a":'), stop(0)],
        [start(0, call_step("f", {})), delta(0, type="arguments_delta", arguments="[1]"), stop(0)],
        [start(0, call_step("f", {})), delta(0, type="arguments_delta", arguments='{"a":1,"a":2}'), stop(0)],
        [
            start(0, call_step("f", {})),
            delta(0, type="arguments_delta", arguments='{"a":' * 65 + "1" + "}" * 65),
            stop(0),
        ],
        [start(0, call_step("f", {"a": 1})), delta(0, type="arguments_delta", arguments='{"a":2}'), stop(0)],
        [start(0, call_step("f", {})), delta(0, type="arguments_delta", arguments=7)],
        [start(0, call_step("f", {}))],
        [event("step.start", index=0)],
        [{"index": 0, "step": call_step("f", {})}],
        [event("step.start", index="0", step={})],
        [event("step.delta", index=-1, delta={})],
        [event("step.delta", index=0, delta="text")],
        [delta(0, type="text", text=["a"])],
        [event("interaction.completed")],
        [event("interaction.completed", interaction=[])],
        [{**interaction(), "steps": {}}],
        [{**interaction(), "steps": ["text"]}],
        [interaction([{"type": ["model_output"]}])],
        [interaction([call_step("f", [])])],  # type: ignore[arg-type]
        [
            interaction(
                [{"type": "model_output", "content": [{"type": "document", "mime_type": "text/csv", "data": "?"}]}]
            )
        ],
    ],
)
def test_what_cannot_be_read_is_refused(frames: Sequence[Mapping[str, Any]]) -> None:
    with pytest.raises(DecodeError):
        said(*frames)


LEFT = [
    created(),
    start(0, {"type": "model_output"}),
    delta(0, type="text", text="a"),
    stop(0),
    start(1, {"type": "model_output"}),
    delta(1, type="text", text="b"),
]


@pytest.mark.parametrize("left", range(len(LEFT) + 1))
@pytest.mark.parametrize("feedback", ["compat", "none"])
def test_a_refusal_ends_the_stream_that_the_client_has_seen(left: int, feedback: Any) -> None:
    """Every step is stopped, the reason is in a step of its own, and what was withheld has left no mark."""
    reader = InteractionReader()
    for frame in LEFT:
        list(reader.read(frame))
    refusal = Refusal("response", ("no\u2028way",), errors=({"args": []},), trace_id="t")
    body = reader.refusal_events(refusal, StreamState(), feedback, "text/event-stream", left)
    assert body.isascii()
    framing = SseFraming()
    events = [*LEFT[:left], *(frame.payload for frame in framing.feed(body) if frame.payload)]
    began = [each["index"] for each in events if each["event_type"] == "step.start"]
    assert sorted(each["index"] for each in events if each["event_type"] == "step.stop") == began
    assert began == list(range(len(began)))
    assert events[-3]["delta"] == {"type": "text", "text": refusal.text}
    last = events[-1]
    if feedback == "none":
        assert last["interaction"]["status"] == "incomplete"
    else:
        assert last["error"] == {"code": "content_blocked", "message": refusal.text}


WORDS = st.sampled_from(
    "event_type step.start step.delta step.stop interaction.completed interaction.created error index step delta type "
    "text model_output thought function_call google_search_call google_search_result code_execution_result "
    "arguments arguments_delta thought_summary content summary result name id steps status interaction output_text "
    "data mime_type image document usage metadata total_usage annotations error signature user_input call_id".split()
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
ODD_FRAME = st.dictionaries(WORDS, ODD, max_size=5) | st.builds(
    lambda kind, fields: {**fields, "event_type": kind, "index": 0},
    st.sampled_from(["step.start", "step.delta", "step.stop", "interaction.completed", "error"]),
    st.dictionaries(WORDS, ODD, max_size=4),
)


@settings(max_examples=80)
@given(st.lists(ODD_FRAME, max_size=4))
def test_odd_frames_are_read_or_refused(frames: list[dict[str, Any]]) -> None:
    with contextlib.suppress(DecodeError):
        said(*frames)


@settings(max_examples=60)
@given(st.dictionaries(WORDS | st.sampled_from(["input", "tools", "system_instruction"]), ODD, max_size=5))
def test_odd_requests_are_read_or_refused(body: dict[str, Any]) -> None:
    with contextlib.suppress(BadRequest):
        read_request(orjson.dumps(body))
