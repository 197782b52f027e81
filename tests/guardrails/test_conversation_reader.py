"""Checks of one exchange: what the first of them has read is not read again, and no verdict changes for it."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.guardrails.engine import Check, ConversationReader
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.rules import guardrail
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.guardrails.workers import Workers

Message = dict[str, Any]

RULES = """
raise "word" if:
    (m: Message)
    "xyzzy" in m.content
raise "call" if:
    (c: ToolCall)
    c is tool:send
raise "flow" if:
    (o: ToolOutput) -> (c: ToolCall)
    o is tool:run
    c is tool:send
raise "missing" if:
    (m: Message)
    m.role == "assistant"
    not "y" in m.content
raise "output" if:
    (o: ToolOutput)
    "zz" in o.content
"""
GUARDRAILS = tuple(guardrail(name, RULES + f"# {name}\n", "block") for name in ("one", "two"))


def says(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def calls(name: str, text: str) -> Message:
    function = {"name": name, "arguments": {"a": text}}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


def returns(name: str, text: str) -> Message:
    return {"role": "tool", "tool_name": name, "content": text}


WORDS = st.sampled_from(["x", "xy", "zzy", "xyzzy", "zz", "", "no"])
NAMES = st.sampled_from(["run", "send"])
REQUESTS = st.lists(
    st.one_of(
        st.builds(says, st.sampled_from(["user", "user", "system", "assistant"]), WORDS),
        st.builds(calls, NAMES, WORDS),
        st.builds(returns, NAMES, WORDS),
    ),
    max_size=6,
)
RESPONSES = st.lists(
    st.one_of(
        st.builds(says, st.just("assistant"), WORDS),
        st.builds(calls, NAMES, WORDS),
        st.builds(returns, NAMES, WORDS).map(lambda message: message | {"provider": True}),
    ),
    max_size=4,
)


def found(messages: Sequence[Message], reader: ConversationReader) -> list[Any]:
    verdict = NativeEngine(Workers(1), 5.0).check(Check(GUARDRAILS, messages, reader=reader))
    assert isinstance(verdict, Verdict)
    return [(violation.message, violation.guardrail.name, violation.ranges) for violation in verdict.violations]


@settings(max_examples=75, deadline=None)
@given(REQUESTS, st.lists(RESPONSES, min_size=1, max_size=3))
def test_checks_find_the_same_however_much_was_read_before(
    request_messages: list[Message], responses: list[list[Message]]
) -> None:
    """Request, response so far, response to its end, and another candidate's."""
    begun, reader = tuple(request_messages), ConversationReader()
    assert found(begun, reader) == found(begun, ConversationReader())
    for response in responses:
        for end in range(len(response) + 1):
            messages = (*begun, *response[:end])
            assert found(messages, reader) == found(messages, ConversationReader())


def test_other_messages_are_read_from_their_beginning() -> None:
    """Such as those of a request that was masked: what was read of the one before counts for nothing."""
    reader = ConversationReader()
    first = (says("user", "xyzzy"),)
    assert found(first, reader) == found(first, ConversationReader())
    masked = (says("user", "x"),)
    assert found(masked, reader) == []
    whole = (*masked, says("assistant", "xyzzy"))
    assert found(whole, reader) == found(whole, ConversationReader())
    assert len(found((*first, says("assistant", "y")), reader)) == 2


def test_the_request_is_read_once() -> None:
    """The events of its messages are the very same in the response's check."""
    reader, begun = ConversationReader(), (calls("run", "x"), says("user", "xyzzy"))
    (event,) = reader.conversation(begun).events("ToolCall")
    for text in ("a", "b"):
        whole = reader.conversation((*begun, calls("send", text)))
        assert whole.events("ToolCall")[0] is event and len(whole.events("ToolCall")) == 2
