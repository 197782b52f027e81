"""The fuzzer finds nothing in a few rounds, and would find what is wrong."""

from bench.fuzz import Fuzz, texts_at
from bench.fuzz_conversations import Writer

from gemini_proxy.policy import Conversation, ConversationError


def test_a_few_rounds_show_no_fault() -> None:
    """Ten minutes do it for real: ``python -m bench.fuzz``."""
    fuzz = Fuzz(stalls=False)
    assert [fault for number in range(12) for fault in fuzz.round(f"test.{number}")] == []
    assert {"quick", "worker", "growth", "normalized", "detector", "session"} <= fuzz.checks.keys()


def test_the_same_seed_writes_the_same_conversation() -> None:
    """And most can be read."""
    read = 0
    for number in range(40):
        messages = Writer(f"test.{number}").conversation(500)
        assert repr(messages) == repr(Writer(f"test.{number}").conversation(500))
        try:
            read += bool(Conversation.of(messages).messages)
        except ConversationError:
            pass
    assert read > 30


def test_an_address_outside_of_its_message_is_nowhere() -> None:
    """One within gives what stands there, whatever dots its keys have."""
    messages = [{"role": "tool", "content": {"a.b": {"": ["xyz"]}}}]
    assert list(texts_at(messages, "messages.0.content.a.b..0:1-3")) == ["yz"]
    for address in (
        "messages.0.content.a.b..0:1-4",
        "messages.0.content.a.c",
        "messages.1.content",
        "messages.0.role:2-2",
    ):
        assert list(texts_at(messages, address)) == []
