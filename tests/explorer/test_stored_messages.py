"""Of stored messages only what is asked for is decoded, and it is what was stored."""

import gc
import json
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.explorer.pages.conversation import conversation_page
from gemini_proxy.explorer.pages.stored_messages import StoredMessages
from gemini_proxy.traces.annotation_ranges import leaves
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.rows import dump_messages, load

TEXTS = st.text(st.characters(exclude_categories=()), max_size=12) | st.sampled_from(
    ['"', "\\", '\\"', "]}", "{[", "é😀"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)
HARD = [
    "a\\",
    "\\",
    "\\ab",
    '\\"ab\\":',
    'say "this"\n',
    "wörd ",
    "😀",
    "\ud83d",
    "\\u0041",
    "\x00",
    "tab\t",
    "], ",
    "plain words",
]
"""Texts that must not be cut where their pieces would say something else."""


@given(st.lists(JSON, max_size=5))
def test_each_message_is_what_was_stored(messages: list[Any]) -> None:
    document = dump_messages(messages)
    stored = StoredMessages(document)
    assert len(stored) == len(messages)
    assert [stored.read(index).value for index in range(len(stored))] == load(document)
    assert all(stored.read(index).whole for index in range(len(stored)))


@given(st.dictionaries(st.text("ab.", max_size=3), JSON, max_size=4))
def test_a_text_is_found_at_its_address(message: dict[str, Any]) -> None:
    """Whatever the names on the way to it, unless two ways have the same address."""
    document = dump_messages([message])
    found = list(leaves(load(document)[0], "messages.0"))
    addresses = [address for address, _ in found]
    for address, text in found:
        if addresses.count(address) == 1 and "" not in address.split("."):
            assert StoredMessages(document).text_at(address) == text


def test_json_of_any_layout_is_read() -> None:
    """With space between everything, as a hand or another program writes it."""
    messages = [{"a": [1, {"b": " ] "}, []], "c": {}}, "x", 1.5, None]
    stored = StoredMessages(json.dumps(messages, indent=2).encode())
    assert [stored.read(index).value for index in range(len(stored))] == messages
    assert stored.text_at("messages.0.a.1.b") == " ] "


@pytest.mark.parametrize("unit", [*HARD, "".join(HARD)])
def test_a_long_text_is_whole(unit: str) -> None:
    """Decoded in pieces, wherever they end."""
    text = unit * (1_400_000 // len(json.dumps(unit)))
    messages: list[Any] = [{"role": "user", "content": text}, "after"]
    stored = StoredMessages(dump_messages(messages))
    assert stored.read(0).value["content"] == text
    assert stored.read(0).whole and stored.read(1).value == "after"
    assert stored.text_at("messages.0.content") == text


def test_of_a_large_structure_the_beginning_is_decoded() -> None:
    """So much as a page holds; what comes after it is in its place, and every text has its address."""
    rows = [{"id": number, "name": f"row {number}"} for number in range(60_000)]
    stored = StoredMessages(dump_messages([{"role": "tool", "content": {"rows": rows, "end": "x"}}, {"role": "user"}]))
    reading = stored.read(0)
    found = reading.value["content"]["rows"]
    assert not reading.whole and 10_000 < len(found) < 50_000 and found == rows[: len(found)]
    assert stored.read(1).value == {"role": "user"}
    assert stored.text_at("messages.0.content.rows.59999.name") == "row 59999"
    assert stored.text_at("messages.0.content.end") == "x"
    assert stored.text_at("messages.0.content.rows.60000.name") is None


def test_depth_is_bounded() -> None:
    """What lies deeper than anything sensible is left out, and said to be."""
    deep: Any = "x" * 100_000
    for _ in range(300):
        deep = [deep, "y" * 300]
    assert not StoredMessages(dump_messages([{"content": deep}])).read(0).whole


@pytest.mark.parametrize("document", [b"", b"{}", b'"x"', b"[", b'[{"a":', b'["x', b'[{"a": "x]', b'["abc\\'])
def test_what_is_no_list_of_messages_is_said_to_be_none(document: bytes) -> None:
    with pytest.raises(StoreError):
        StoredMessages(document)


def test_escapes_of_one_character_stay_together() -> None:
    """As a program writes them that keeps to ASCII."""
    text = "\U0001f600" * 200_000
    stored = StoredMessages(json.dumps([{"content": text}]).encode())
    assert stored.read(0).value == {"content": text}


@pytest.mark.parametrize("document", [b'[{"a": tru}]', b'["\\q"]', b'["\xff"]'])
def test_what_is_damaged_within_is_said_to_be(document: bytes) -> None:
    with pytest.raises(StoreError):
        StoredMessages(document).read(0)


def test_an_address_far_down_a_list_is_no_work_for_seconds() -> None:
    stored = StoredMessages(dump_messages([{"content": [*range(150_000)]}]))
    assert stored.text_at("messages.0.content.99999") == "99999"
    assert stored.text_at("messages.0.content.140000") is None


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": {"rows": [{"id": 1, "name": "row", "tags": ["a", "b"]}] * 60_000}},
        {"role": "user", "content": [{"type": "text", "text": "x"}] * 100_000},
        {"role": "user", "content": "word " * 3_000_000},
        {"role": "user", "content": "\\ab" * 4_000_000},
        {"role": "user", "content": '\\"ab\\":' * 2_000_000},
    ],
    ids=["rows", "parts", "text", "backslashes", "JSON within JSON"],
)
def test_a_page_of_a_huge_trace_leaves_the_interpreter_to_others(message: dict[str, Any]) -> None:
    """Made in a thread: no step of it, after which others get their turn, takes more than a few milliseconds."""
    document = dump_messages([message])
    # What the machine does meanwhile is in it as well, but not each time.
    assert any(longest_step(document) < 0.02 for _ in range(4))


def longest_step(document: bytes) -> float:
    """Seconds of processor time of the longest one."""
    longest, last = 0.0, 0.0

    def step(frame: object, event: str, arg: object) -> None:
        nonlocal longest, last
        now = time.thread_time()
        longest, last = max(longest, now - last), now

    # What lives in the tests' process is no part of it.
    gc.disable()
    last = time.thread_time()
    sys.setprofile(step)
    try:
        conversation_page(document, ())
    finally:
        sys.setprofile(None)
        gc.enable()
    return longest
