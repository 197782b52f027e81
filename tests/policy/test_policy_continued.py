"""Conversations that go on: what was read before is not read again, and no rule can tell."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.gemini.call_links import answered_calls
from gemini_proxy.policy import Conversation, ConversationError, compile_policy
from tests.policy.conversations import Message, assistant, call, output, rule, user

HEAD = "from invariant.detectors import secrets\nfrom invariant import count\n"
POLICIES = [
    compile_policy(rule(*lines, head=HEAD))
    for lines in (
        ("(m: Message)", '"xyzzy" in m.content'),
        ("(m: Message)", 'm.role == "assistant"', 'any(find("x.?y", m.content))'),
        ("(m: Message)", 'not "xy" in m.content'),
        ("(o: ToolOutput)", '"y" in o.content or not "zz" in o.content'),
        ("(c: ToolCall)", "c is tool:run"),
        ("(c: ToolCall) -> (o: ToolOutput)", "c is tool:run"),
        ("(o: ToolOutput) -> (c: ToolCall)", "o is tool:run", "c is tool:send"),
        ("(m: Message) -> (c: ToolCall)", '"x" in m.content'),
        ("(t: TextChunk)", '"zy" in t.text'),
        ("(t: Tool)", '"x" in t.description'),
        ("(i: Input)", "len(i.messages) > 4"),
        ("count(min=2):", "    (m: Message)", '    "y" in m.content'),
    )
]
WORDS = st.sampled_from(["x", "xy", "zzy", "y", "", "xyzzy", " "])


def text_chunk(text: str) -> Message:
    return {"type": "text", "text": text}


def of_model(text: str, *, thought: bool = False, candidate: int | None = None) -> Message:
    message: Message = {"role": "assistant", "content": text}
    if thought:
        message["thought"] = True
    return message if candidate is None else message | {"candidate": candidate}


MESSAGES = st.one_of(
    WORDS.map(user),
    st.lists(WORDS.map(text_chunk), max_size=3).map(user),
    st.builds(of_model, WORDS, thought=st.booleans(), candidate=st.sampled_from([None, None, 0, 1])),
    st.sampled_from([
        assistant("x", call("run", {"a": "zzy"})), assistant("", call("send", call_id="1"), call("run", call_id="2")),
        {"role": "assistant", "tool_calls": [call("run")], "provider": True}, output("xy") | {"provider": True},
        output("zzy"), output("y", "1"), output({"a": ["xy"]}, "2"), {"role": "system", "content": "zzy"},
        {"tools": [{"name": "run", "description": "xy", "inputSchema": {}}]}, user({"a": "x"}), user(None),
        {"role": "assistant", "content": "xy", "field": "finishMessage"},
        {"role": "user", "content": "zzy", "turn": "assistant"}, {"neither": 1}, {"role": 1},
    ]),
)  # fmt: skip


def outcome(conversation: Conversation) -> list[Any]:
    """What a check of every policy finds, and what it is expected to cost."""
    return [
        [(violation.args, violation.kwargs, violation.ranges) for violation in policy.check(conversation, {}, None)]
        for policy in POLICIES
    ] + [conversation.counts, conversation.chars]


def read(messages: Sequence[Message], answered: Mapping[int, tuple[int, int]] | None, *ends: int) -> Any:
    """Read the messages up to each end, one after the other, and check them. None where they cannot be read."""
    try:
        conversation = Conversation.of(messages[: ends[0]], answered)
        for start, end in zip(ends, [*ends[1:], len(messages)], strict=True):
            conversation = conversation.continued(messages[start:end], answered)
    except ConversationError:
        return None
    return outcome(conversation)


@settings(max_examples=100, deadline=None)
@given(st.lists(MESSAGES, max_size=9), st.lists(st.integers(0, 9), min_size=1, max_size=3), st.booleans())
def test_a_conversation_that_goes_on_is_the_whole_one(messages: list[Message], ends: list[int], link: bool) -> None:
    """Wherever it is cut, violations, ranges and costs are those of the conversation that is read at once."""
    answered = answered_calls(messages) if link else None
    assert read(messages, answered, *sorted(min(end, len(messages)) for end in ends)) == read(
        messages, answered, len(messages)
    )


def test_what_it_goes_on_from_stays_as_it_is() -> None:
    """Two candidates go on from one request."""
    request = Conversation.of([user("hi"), assistant("", call("run")), output("x")])
    before = outcome(request)
    for text in ("xyzzy", "no"):
        found = POLICIES[0].check(request.continued([of_model(text)]))
        assert bool(found) is (text == "xyzzy")
        assert outcome(request) == before


def test_only_what_is_new_is_read() -> None:
    """The events of what was read before are the very same."""
    request = Conversation.of([user("hi"), user("there"), assistant("a"), user("b")])
    whole = request.continued([of_model("xyzzy"), of_model("more")])
    assert whole.events("Message")[:4] == request.events("Message")
    assert [event.address for event in whole.events("Message")][4:] == ["messages.4", "messages.5"]


@pytest.mark.parametrize("last", [assistant("say xy"), assistant([text_chunk("xy")])])
def test_a_turn_that_goes_on_is_read_again(last: Message) -> None:
    """A prefilled text is joined to what follows it."""
    (found,) = POLICIES[0].check(Conversation.of([user("hi"), last]).continued([of_model("zzy")]))
    assert {address.partition(":")[0].split(".")[1] for address in found.ranges} == {"1", "2"}


def test_an_empty_message_is_asked_for_its_turn_whatever_other_turns_say() -> None:
    policy = compile_policy(rule("(m: Message)", 'not "xy" in m.content'))
    turn = [user([]), user("xy")]
    for rest in ([], [of_model("xy"), of_model("")]):
        assert not policy.check(Conversation.of([*turn, *rest]))
