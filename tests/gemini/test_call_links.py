"""Which call each output answers, with and without ids."""

from typing import Any

import pytest

from gemini_proxy.gemini.call_links import CallLinks
from gemini_proxy.gemini.messages import MessageList
from tests.gemini.reading import call, output, read


def linked(*parts: dict[str, Any]) -> list[tuple[str, str]]:
    """For each output, its content and the arguments of the call it answers."""
    messages = read({"contents": [{"role": "model", "parts": [part]} for part in parts]}).messages
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
    first = MessageList()
    first.add_content("assistant", [call("f")])
    second, third = first.continued(), first.continued()
    for following in (second, third):
        following.add_content("assistant", [call("f"), output("f"), output("f")])
    assert second.messages == third.messages
    assert second.messages[0]["tool_calls"][0]["id"] == "call_2"
    assert [message["tool_call_id"] for message in second.messages[1:]] == ["call_1", "call_2"]


def test_links_count_on() -> None:
    links = CallLinks()
    assert [links.call("", "f"), links.call("x", "f"), links.call("x", "f"), links.call("", "g")] == [
        "call_1",
        "x",
        "x_2",
        "call_3",
    ]
