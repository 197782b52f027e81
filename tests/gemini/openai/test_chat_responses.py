"""What an OpenAI-shaped response says is the same however it was cut into chunks, and never read in two ways."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.openai.response import ChatReader
from tests.gemini.reading import heard, merge


def merged(frames: Iterable[Mapping[str, Any]]) -> Merger:
    """Read frames to their end."""
    return merge(ChatReader(), frames)


def messages(*frames: Mapping[str, Any]) -> list[Message]:
    """Return what rules see of the frames."""
    return heard(merged(frames))


def chunk(delta: Mapping[str, Any], index: int = 0, **choice: Any) -> dict[str, Any]:
    """Return a chunk of one choice."""
    choices = [{"index": index, "delta": delta, **choice}]
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}


def call(name: str = "f", arguments: str = "{}", **fields: Any) -> dict[str, Any]:
    """Return a tool call, whole unless ``fields`` say otherwise."""
    return {"id": f"id-{name}", "type": "function", "function": {"name": name, "arguments": arguments}, **fields}


NAMES = st.sampled_from(["send", "read", "löschen"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3).map(lambda value: orjson.dumps(value).decode())
CHOICE: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "reasoning_content": st.text(max_size=12),
        "content": st.text(max_size=12),
        "calls": st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3),
    }
)


@st.composite
def streamed(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw a whole response and chunks that say the same, those of calls and choices in any order that keeps each's."""
    whole: list[dict[str, Any]] = []
    queues: list[list[dict[str, Any]]] = []
    for index, choice in enumerate(draw(st.lists(CHOICE, min_size=1, max_size=2))):
        calls = [call(name, text, id=f"{index}-{at}") for at, (name, text) in enumerate(choice["calls"])]
        texts: dict[str, str] = {name: choice[name] for name in ("reasoning_content", "content")}
        whole.append({"index": index, "message": {"role": "assistant", **texts, "tool_calls": calls}})
        queue = [chunk({name: piece}, index) for name, text in texts.items() for piece in draw(pieces(text)) if piece]
        fragments = [
            [
                {
                    "index": at,
                    **(each if not number else {}),
                    "function": {**(name if not number else {}), "arguments": piece},
                }
                for number, piece in enumerate(draw(pieces(each["function"]["arguments"])))
            ]
            for at, each in enumerate(calls)
            for name in [{"name": each["function"]["name"]}]
        ]
        queue += [chunk({"tool_calls": [fragment]}, index) for fragment in draw(interleaved(fragments))]
        queues.append([*queue, chunk({}, index, finish_reason="tool_calls" if calls else "stop")])
        whole[-1]["finish_reason"] = "tool_calls" if calls else "stop"
    body = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": whole}
    return body, draw(interleaved(queues))


def pieces(text: str) -> st.SearchStrategy[list[str]]:
    cuts = st.lists(st.integers(0, len(text)), max_size=3).map(sorted)
    return cuts.map(lambda at: [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])


@st.composite
def interleaved(draw: st.DrawFn, queues: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    left = [list(queue) for queue in queues if queue]
    out = []
    while left:
        queue = left[draw(st.integers(0, len(left) - 1))]
        out.append(queue.pop(0))
        left = [queue for queue in left if queue]
    return out


@settings(max_examples=60)
@given(streamed())
def test_chunks_say_what_the_whole_response_says(drawn: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    whole, chunks = drawn

    def said(found: list[Message]) -> list[str]:
        # Calls of one choice may be whole in another order; everything else keeps its place.
        for message in found:
            if "tool_calls" in message:
                message["tool_calls"] = sorted(message["tool_calls"], key=lambda made: str(made["id"]))
        return [orjson.dumps(message).decode() for message in found]

    assert said(messages(*chunks)) == said(messages(whole))
    assert merged(chunks).finished(len(whole["choices"]))


@settings(max_examples=40)
@given(streamed())
def test_every_chunk_with_a_piece_of_a_call_is_withheld(drawn: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    reader = ChatReader()
    for frame in drawn[1]:
        told = list(reader.read(frame))
        assert reader.carried_call == any(choice["delta"].get("tool_calls") for choice in frame["choices"])
        assert not any("functionCall" in orjson.dumps(payload).decode() for payload in told) or reader.carried_call
    assert not reader.has_open_call


def test_calls_of_gemini_have_no_index() -> None:
    found = messages(
        chunk({"tool_calls": [call("a", '{"x":1}'), call("b", '{"y":2}')]}),
        chunk({"tool_calls": [call("c", '{"z":3}', extra_content={"google": {"thought_signature": "c2ln"}})]}),
        chunk({}, finish_reason="stop"),
    )
    assert [made["function"] for made in found[0]["tool_calls"]] == [
        {"name": "a", "arguments": {"x": 1}},
        {"name": "b", "arguments": {"y": 2}},
        {"name": "c", "arguments": {"z": 3}},
    ]
    assert len(found) == 1


def test_a_call_without_arguments_is_whole_at_the_end() -> None:
    reader = ChatReader()
    list(reader.read(chunk({"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": ""}}]})))
    assert reader.has_open_call
    assert messages(chunk({"tool_calls": [call("f", "")]}))[0]["tool_calls"][0]["function"]["arguments"] == {}


TWO_READINGS = {
    "goes on after its end": [call("f", "{}", index=0), {"index": 0, "function": {"arguments": "{}"}}],
    "text behind the object": [call("f", '{"a":1} x')],
    "repeated key": [call("f", '{"a":1,"a":2}')],
    "not an object": [call("f", '"rm"')],
    "two names": [call("f", '{"a"', index=0), {"index": 0, "function": {"name": "g", "arguments": ":1}"}}],
    "another call in the slot": [call("f", '{"a"', index=0), call("g", "{}", index=0)],
    "a name joined to one in its slot": [call("del", "{}", index=0), call("ete", "", index=0)],
    "a name joined without index": [call("del", ""), call("ete", "{}")],
    "no name": [{"index": 0, "function": {"arguments": "{}"}}],
    "a call of no function": [{"type": "custom", "id": "c", "custom": {"name": "rm", "input": "x"}}],
    "an index that is no number": [call("f", "{}", index="0")],
    "arguments that are no text": [{"function": {"name": "f", "arguments": {"a": 1}}}],
    "half a character": [{"function": {"name": "f", "arguments": '{"a":"\ud800"}'}}],
    "a call that breaks off": [call("f", '{"a":')],
}


@pytest.mark.parametrize("calls", TWO_READINGS.values(), ids=TWO_READINGS)
def test_calls_that_can_be_read_in_two_ways_are_not_passed_on(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(DecodeError):
        merged([chunk({"tool_calls": [piece]}) for piece in calls])


@pytest.mark.parametrize(
    "frame",
    [
        {"choices": {}},
        {"choices": [1]},
        {"choices": [{"index": "0"}]},
        {"choices": [{"index": {}}]},
        {"choices": [{"index": -1}]},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {"content": 1}}]},
        {"choices": [{"delta": {"tool_calls": {}}}]},
        {"choices": [{"delta": {"function_call": "f"}}]},
        {"choices": [{"finish_reason": True}]},
        {"choices": [{"logprobs": []}]},
    ],
)
def test_other_shapes_are_not_passed_on(frame: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        merged([frame])


def test_usage_adds_up_to_the_total() -> None:
    def counted(**usage: Any) -> Mapping[str, Any]:
        return merged([{"choices": [], "usage": usage}]).usage or {}

    beside = counted(prompt_tokens=5, completion_tokens=7, total_tokens=20)
    assert (beside["candidatesTokenCount"], beside["thoughtsTokenCount"]) == (7, 8)
    within = counted(
        prompt_tokens=5,
        completion_tokens=7,
        total_tokens=12,
        completion_tokens_details={"reasoning_tokens": 3},
        prompt_tokens_details={"cached_tokens": 2},
    )
    assert (within["candidatesTokenCount"], within["thoughtsTokenCount"]) == (4, 3)
    assert within["cachedContentTokenCount"] == 2


def test_every_finish_reason_ends_the_response() -> None:
    for reason in ("stop", "length", "content_filter", "tool_calls", "function_call", "something new"):
        assert merged([chunk({"content": "x"}, finish_reason=reason)]).finished(1)
    assert not merged([chunk({"content": "x"}, finish_reason=None)]).finished(1)
    assert merged([{"error": {"message": "no"}}]).error == {"message": "no"}
