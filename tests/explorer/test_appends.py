"""Appended messages: read and merged, without a server."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest
from gemini_proxy.explorer.api.trace_api import merge, with_timestamps
from gemini_proxy.traces.trace import Annotation

CREATED = 1_700_000_000.0
MOMENTS = st.integers(0, 9).map(lambda n: (datetime.fromtimestamp(CREATED, UTC) + timedelta(seconds=n)).isoformat())
MESSAGES = st.lists(st.builds(lambda at: {"timestamp": at}, MOMENTS), max_size=8)


def numbered(messages: list[dict[str, str]], side: str) -> list[dict[str, str]]:
    return [{**message, "name": f"{side}{place}"} for place, message in enumerate(messages)]


@given(before=MESSAGES, added=MESSAGES)
def test_merging_keeps_all_and_each_ones_order(before: list[dict[str, str]], added: list[dict[str, str]]) -> None:
    """Every message once; those that were there, and those that are new, in the order that they had."""
    old, new = numbered(before, "old"), numbered(added, "new")
    together = merge(old, new, CREATED)
    merged = together.messages
    assert [merged[place] for place in together.indexes] == old
    assert [message for message in merged if message["name"].startswith("old")] == old
    assert [message for message in merged if message["name"].startswith("new")] == new
    assert len(merged) == len(old) + len(new)


@given(before=MESSAGES, added=MESSAGES)
def test_what_was_in_order_stays_in_order(before: list[dict[str, str]], added: list[dict[str, str]]) -> None:
    """Two conversations in the order of time give one; at one moment what was there comes first."""
    key = [message["timestamp"] for message in before], [message["timestamp"] for message in added]
    old = numbered([{"timestamp": at} for at in sorted(key[0])], "1")
    new = numbered([{"timestamp": at} for at in sorted(key[1])], "2")
    merged = merge(old, new, CREATED).messages
    assert merged == sorted(merged, key=lambda message: (message["timestamp"], message["name"][0]))


def test_a_message_without_a_readable_time_is_from_the_beginning() -> None:
    """A trace may hold anything: what is there is never a reason to refuse."""
    before: list[dict[str, object]] = [{"n": 1}, {"n": 2, "timestamp": "yesterday"}, {"n": 3, "timestamp": 7}]
    early, late = (datetime.fromtimestamp(CREATED + by, UTC).isoformat() for by in (-1, 1))
    added = [{"n": 0, "timestamp": early}, {"n": 4, "timestamp": late}]
    assert [message["n"] for message in merge(before, added, CREATED).messages] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("address", "moved"),
    [
        ("messages.0.content:1-2", "messages.0.content:1-2"),
        ("messages.1.content:1-2", "messages.2.content:1-2"),
        ("messages.1", "messages.2"),
        ("messages.10.content", "messages.10.content"),
        ("messages.01.content", "messages.2.content"),
        ("messages.1x", "messages.1x"),
        ("elsewhere.1", "elsewhere.1"),
        ("messages." + "1" * 5_000, "messages." + "1" * 5_000),
    ],
)
def test_an_annotation_goes_with_its_message(address: str, moved: str) -> None:
    """A message came before the second of two."""
    times = [datetime.fromtimestamp(CREATED + by, UTC).isoformat() for by in range(3)]
    before, added = [{"timestamp": times[0]}, {"timestamp": times[2]}], [{"timestamp": times[1]}]
    assert merge(before, added, CREATED).moved(Annotation("x", address)) == Annotation("x", moved)


@pytest.mark.parametrize(
    ("given_time", "read"),
    [
        ("2025-01-23T10:30:00+00:00", "2025-01-23T10:30:00+00:00"),
        ("2025-01-23T10:30:00Z", "2025-01-23T10:30:00+00:00"),
        ("2025-01-23T10:30:00", "2025-01-23T10:30:00+00:00"),
        ("2025-01-23T12:30:00.5+02:00", "2025-01-23T10:30:00.500000+00:00"),
        (None, "2023-11-14T22:13:20+00:00"),
    ],
)
def test_times_are_read_as_utc(given_time: str | None, read: str) -> None:
    """In every way that ISO 8601 writes them; a message without one is from now."""
    assert with_timestamps([{"timestamp": given_time}], CREATED) == [{"timestamp": read}]


@given(st.text(max_size=40) | st.integers() | st.lists(st.integers()))
def test_a_time_is_read_or_refused(value: object) -> None:
    """Nothing else can happen, whatever stands there."""
    try:
        [message] = with_timestamps([{"timestamp": value}], CREATED)
    except BadRequest:
        return
    assert datetime.fromisoformat(message["timestamp"]).tzinfo is UTC
