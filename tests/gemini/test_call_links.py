"""Which call each output answers, with and without ids."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.gemini.call_links import CallLinks, answered_calls, with_ids
from tests.gemini.reading import call, messages_of, output, read


def linked(*parts: dict[str, Any]) -> list[tuple[str, str]]:
    """For each output, its content and the arguments of the call it answers."""
    stored = read({"contents": [{"role": "model", "parts": [part]} for part in parts]}).messages
    messages = with_ids(stored)
    answered = answered_calls(stored)
    for index, (message, number) in answered.items():
        assert messages[index]["tool_call_id"] == messages[message]["tool_calls"][number]["id"], "both agree"
    calls = {one["id"]: one for message in messages for one in message.get("tool_calls", ())}
    assert len(calls) == sum("functionCall" in part for part in parts), "every call has an id of its own"
    outputs = [message for message in messages if message["role"] == "tool"]
    return [
        (found["content"], calls[found["tool_call_id"]]["function"]["arguments"]["n"])
        if found["tool_call_id"] in calls
        else (found["content"], "none")
        for found in outputs
    ]


def out(name: str, text: str, call_id: str | None = None) -> dict[str, Any]:
    return output(name, {"result": text}, call_id)


LINKS = [
    ("one", [call("f", n="1"), out("f", "a")], [("a", "1")]),
    ("parallel", [call("f", n="1"), call("g", n="2"), out("g", "b"), out("f", "a")], [("b", "2"), ("a", "1")]),
    ("same name", [call("f", n="1"), call("f", n="2"), out("f", "a"), out("f", "b")], [("a", "1"), ("b", "2")]),
    ("in turns", [call("f", n="1"), out("f", "a"), call("f", n="2"), out("f", "b")], [("a", "1"), ("b", "2")]),
    (
        "by id",
        [call("f", "x", n="1"), call("f", "y", n="2"), out("f", "b", "y"), out("f", "a", "x")],
        [("b", "2"), ("a", "1")],
    ),
    ("by id alone", [call("f", "x", n="1"), out("other", "a", "x")], [("a", "1")]),
    ("id only in the call", [call("f", "x", n="1"), out("f", "a")], [("a", "1")]),
    ("id only in the output", [call("f", n="1"), out("f", "a", "x")], [("a", "1")]),
    ("wrong id", [call("f", "x", n="1"), out("f", "a", "zzz")], [("a", "1")]),
    (
        "duplicate ids",
        [call("f", "x", n="1"), call("f", "x", n="2"), out("f", "a", "x"), out("f", "b", "x")],
        [("a", "1"), ("b", "2")],
    ),
    (
        "duplicate ids, two names",
        [call("f", "x", n="1"), call("g", "x", n="2"), out("g", "b", "x"), out("f", "a", "x")],
        [("b", "2"), ("a", "1")],
    ),
    (
        "id like ours",
        [call("f", n="1"), call("g", "call_1", n="2"), out("g", "b", "call_1"), out("f", "a")],
        [("b", "2"), ("a", "1")],
    ),
    ("answered twice", [call("f", n="1"), out("f", "a"), out("f", "again")], [("a", "1"), ("again", "1")]),
    (
        "answered twice by id",
        [call("f", "x", n="1"), call("f", "y", n="2"), out("f", "a", "x"), out("f", "again", "x"), out("f", "b", "y")],
        [("a", "1"), ("again", "1"), ("b", "2")],
    ),
    ("before its call", [out("f", "a"), call("f", n="1")], [("a", "none")]),
    ("before its call by id", [out("f", "a", "x"), call("f", "x", n="1")], [("a", "none")]),
    ("no call", [out("f", "a"), out("f", "b", "x")], [("a", "none"), ("b", "none")]),
    ("no name", [call("", n="1"), out("", "a")], [("a", "1")]),
]


@pytest.mark.parametrize(("parts", "expected"), [case[1:] for case in LINKS], ids=[case[0] for case in LINKS])
def test_outputs_find_their_calls(parts: list[dict[str, Any]], expected: list[tuple[str, str]]) -> None:
    """By id, else by name, in the order of the calls: rules follow a flow from a tool's output to what called it."""
    assert linked(*parts) == expected


def test_candidates_go_on_from_the_request_apart_from_each_other() -> None:
    """Each candidate's calls get fresh ids and see the request's; one candidate does not see another's."""
    asked = list(messages_of(call("f"), role="model"))
    answer = messages_of(call("f"), output("f"), output("f"), role="model")
    messages = asked + [{**message, "candidate": index} for index in (0, 1) for message in answer]
    linked_messages = with_ids(messages)
    for first in (1, 4):
        assert linked_messages[first]["tool_calls"][0]["id"] == "call_2"
        assert [message["tool_call_id"] for message in linked_messages[first + 1 : first + 3]] == ["call_1", "call_2"]
    assert answered_calls(messages) == {2: (0, 0), 3: (1, 0), 5: (0, 0), 6: (4, 0)}


def test_linking_leaves_the_messages_alone() -> None:
    """What is made up is in the copy only, and what traces keep gives the same links again."""
    messages = messages_of(call("f"), output("f", {"result": "a"}), {"text": "b"})
    kept = orjson.dumps(messages)
    made = with_ids(messages)
    assert orjson.dumps(messages) == kept
    assert made[2] is messages[2]
    assert with_ids(orjson.loads(kept)) == made
    assert with_ids(messages[2:]) is not None and with_ids(messages[2:])[0] is messages[2]


def test_outputs_without_name_and_id_answer_in_turn() -> None:
    """Messages of other origin: the earliest call that waits."""
    calls = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in ("f", "g")]
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "a"},
        {"role": "tool", "content": "b"},
    ]
    assert answered_calls(messages) == {1: (0, 0), 2: (0, 1)}


def test_links_count_on() -> None:
    links = CallLinks()
    assert [links.call("", "f"), links.call("x", "f"), links.call("x", "f"), links.call("", "g")] == [
        "call_1",
        "x",
        "x_2",
        "call_3",
    ]


NAMES, IDS = st.sampled_from(["f", "g"]), st.sampled_from([None, "x", "y", "call_1"])
PARTS = st.lists(st.builds(call, NAMES, IDS) | st.builds(out, NAMES, st.just("a"), IDS), max_size=8)


@given(PARTS, st.lists(PARTS, max_size=3))
def test_what_traces_keep_is_linked_as_it_was(asked: list[dict[str, Any]], answers: list[list[dict[str, Any]]]) -> None:
    """Whatever ids and names: each call has an id of its own, and the JSON of a trace gives the same links again."""
    candidates = [(number, messages_of(*parts, role="model")) for number, parts in enumerate(answers)]
    messages = list(messages_of(*asked, role="model"))
    messages += [{**message, "candidate": number} for number, said in candidates for message in said]
    again = orjson.loads(orjson.dumps(messages))
    made = with_ids(messages)
    assert (answered_calls(again), with_ids(again)) == (answered_calls(messages), made)
    for number in range(max(1, len(answers))):
        seen = [message for message in made if message.get("candidate", number) == number]
        ids = [one["id"] for message in seen for one in message.get("tool_calls", ())]
        assert len(ids) == len(set(ids))
        assert all(message["tool_call_id"] for message in seen if message["role"] == "tool")
