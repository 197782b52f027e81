from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.traces.headline import (
    LONGEST,
    MAX_TOOLS,
    Headline,
    conversation_of,
    headline_of,
    question_of,
    tools_called,
)

USER: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "Where  is\nit?"}]}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "here"}
THOUGHT: dict[str, Any] = {"role": "assistant", "content": "hm", "thought": True}
SYSTEM: dict[str, Any] = {"role": "system", "content": "Be kind"}

Message = dict[str, Any]
messages = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "tool"]), st.text()),
    max_size=3,
)


def test_the_last_question_is_cut_to_a_line() -> None:
    assert question_of([USER, ANSWER, {"role": "user", "content": []}]) == "Where is it?"
    assert len(question_of([{"role": "user", "content": "a" * 5_000}])) == LONGEST
    assert question_of([{"role": "user", "content": "a  " * 500}]) == "a " * (LONGEST // 2)
    assert question_of([ANSWER]) == ""


def test_every_later_request_has_the_conversation_of_the_first() -> None:
    """Without thoughts, other candidates and tools, which clients leave out or change; in pieces or as one text."""
    first = conversation_of([{"tools": []}, SYSTEM, USER, THOUGHT, ANSWER, {**ANSWER, "content": "b", "candidate": 1}])
    assert first == conversation_of([SYSTEM, USER, ANSWER, USER]) == conversation_of([SYSTEM, USER, ANSWER])
    pieces = [{**ANSWER, "content": piece} for piece in (ANSWER["content"][:2], "", ANSWER["content"][2:])]
    assert first == conversation_of([SYSTEM, USER, *pieces, USER])
    others: list[list[Message]] = [[USER, ANSWER], [SYSTEM, USER], [SYSTEM, USER, {**ANSWER, "content": "there"}]]
    for other in others:
        assert conversation_of(other) != first


@settings(max_examples=30)
@given(messages, st.text(), messages)
def test_what_follows_the_first_turn_does_not_count(before: list[Message], said: str, after: list[Message]) -> None:
    begun = [*before, {"role": "assistant", "content": said}]
    assert conversation_of(begun) == conversation_of([*begun, *after])


def test_tools_are_named_once() -> None:
    def calls(*names: object) -> Message:
        return {"role": "assistant", "tool_calls": [{"function": {"name": name}} for name in names]}

    assert tools_called([calls("a", "b"), calls("a", None, 3), {"tool_calls": "x"}, {"tool_calls": [1]}]) == ["a", "b"]
    assert len(tools_called([calls(*map(str, range(100)))])) == MAX_TOOLS


def test_a_headline_is_made_of_any_metadata() -> None:
    told = {"upstream_status": 503, "upstream_error": {"message": "overloaded"}, "error": "other"}
    assert headline_of(told, "asked") == Headline("asked", 503, "overloaded")
    assert headline_of({"error": "cut off"}, "") == Headline(failure="cut off")
    strange: list[object] = [None, [], {"upstream_status": "x", "upstream_error": 3}, {"upstream_status": 10**9}]
    for odd in strange:
        assert headline_of(odd, "") == Headline()


def test_a_message_of_very_many_texts_is_looked_at_in_part() -> None:
    """A body of half a megabyte can hold sixty thousand: what stands behind the first few hundred changes nothing."""
    some = [{"type": "text", "text": "x"}] * 256
    first = conversation_of([{"role": "user", "content": some}])
    assert conversation_of([{"role": "user", "content": [*some, {"type": "text", "text": "y"}]}]) == first
    assert question_of([{"role": "user", "content": [{"type": "text", "text": ""}] * 300 + some}]) == ""
