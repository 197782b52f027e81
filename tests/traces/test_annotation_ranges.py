"""Where annotations stand in messages."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.traces.annotation_ranges import AnnotationRanges, leaves, segments
from gemini_proxy.traces.trace import Annotation

TEXT = st.text(max_size=60)
RANGES = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=12)


def marks(*addresses: str) -> AnnotationRanges:
    return AnnotationRanges([Annotation("said", address) for address in addresses])


@given(TEXT, RANGES)
def test_segments_are_the_text_and_each_range_is_marked_exactly(text: str, ranges: list[tuple[int, int]]) -> None:
    """Overlapping, nested, empty, turned round and out of bounds alike; offsets are code points."""
    found = marks(*(f"messages.0.content:{start}-{end}" for start, end in ranges)).on("messages.0.content")
    cut = segments(text, found)
    assert "".join(segment.text for segment in cut) == text
    for mark, (start, end) in zip(found, ranges, strict=True):
        covered = {
            segment.start + offset for segment in cut if mark in segment.marks for offset in range(len(segment.text))
        }
        assert covered == set(range(start, min(end, len(text))))


@given(TEXT, RANGES)
def test_segments_are_as_long_as_they_can_be(text: str, ranges: list[tuple[int, int]]) -> None:
    """None is empty, and between two there is a mark that begins or ends."""
    found = marks(*(f"messages.0.content:{start}-{end}" for start, end in ranges)).on("messages.0.content")
    borders = {place for mark in found if (span := mark.span(text)) for place in span} | {0, len(text)}
    assert {segment.start for segment in segments(text, found)} <= borders
    assert all(segment.text for segment in segments(text, found))


@pytest.mark.parametrize(
    ("address", "leaf", "marked"),
    [
        ("messages.1.content", "messages.1.content", True),
        ("messages.1.content:0-4", "messages.1.content", True),
        ("messages.1", "messages.1.content", True),
        ("messages", "messages.1.content", True),
        ("messages.1", "messages.10.content", False),
        ("messages.1.content:0-4", "messages.1.content.0.text", False),
        ("messages.1.content", "messages.1.content_type", False),
        ("messages[1].content:L0", "messages.1.content", True),
        ("messages.1.tool_calls.0.function.arguments.a.b", "messages.1.tool_calls.0.function.arguments.a.b", True),
        ("messages.0.args.x:y:0-4", "messages.0.args.x:y", True),
        ("messages.0.args.x:y", "messages.0.args.x:y", True),
        ("", "messages.0.content", False),
        (":0-4", "messages.0.content", False),
        ("messages.0.content:" + "9" * 5000 + "-1", "messages.0.content", False),
    ],
)
def test_an_address_covers_its_leaf_and_what_is_below(address: str, leaf: str, marked: bool) -> None:
    """By whole segments, keys with dots and colons included; a range belongs to its own text only."""
    assert bool(marks(address).on(leaf)) is marked


@pytest.mark.parametrize(
    ("address", "text", "found"),
    [
        ("m:L0", "one\ntwo\nthree", "one"),
        ("m:L1", "one\ntwo\nthree", "two"),
        ("m:L2", "one\ntwo\nthree", "three"),
        ("m:L3", "one\ntwo\nthree", None),
        ("m:L1", "one\n\nthree", None),
        ("m:L999999999999", "one", None),
        ("m:1-2", "a😀b", "😀"),
        ("m:2-99", "abc", "c"),
        ("m:3-9", "abc", None),
        ("m:2-1", "abc", None),
        ("m", "abc", "abc"),
        ("m", "", ""),
    ],
)
def test_what_an_address_points_at(address: str, text: str, found: str | None) -> None:
    """Lines, characters and the whole; None outside of the text."""
    (mark,) = marks(address).all
    span = mark.span(text)
    assert (None if span is None else text[slice(*span)]) == found


def test_leaves_are_every_value_in_order_without_the_role() -> None:
    """However deep, and numbers as JSON."""
    message: dict[str, Any] = {"role": "user", "content": [{"text": "a", "n": 1.5}], "x": {"role": "b"}, "none": None}
    assert list(leaves(message, "messages.0")) == [
        ("messages.0.content.0.text", "a"),
        ("messages.0.content.0.n", "1.5"),
        ("messages.0.x.role", "b"),
    ]
    deep: Any = "end"
    for _ in range(5000):
        deep = [deep]
    ((address, text),) = leaves(deep, "messages")
    assert (address.count("."), text) == (5000, "end")


def test_marks_of_one_place_are_in_their_order() -> None:
    """As the annotations were made, whether they mark the text or what is around it."""
    found = marks("messages.0", "messages.0.content:0-1", "messages.0.content", "messages.0.content:2-3")
    assert [mark.number for mark in found.on("messages.0.content")] == [1, 2, 3, 4]
