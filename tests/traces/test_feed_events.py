"""The feed's events and outboxes, without any I/O."""

from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.traces.feed_events import (
    MAX_TEXT,
    EventBatch,
    FeedPage,
    Interest,
    Outbox,
    exchange_event,
    keep_alive,
    missed_event,
    opening,
)
from gemini_proxy.traces.trace import REFUSED, Outcome
from tests.support.feed import events, summary

TEXTS = st.none() | st.text(max_size=2 * MAX_TEXT)


@given(rule=TEXTS, model=TEXTS, dataset=TEXTS)
def test_no_text_leaves_its_event(rule: str | None, model: str | None, dataset: str | None) -> None:
    """Line breaks and colons of a rule, a model or a dataset are data, and long texts are cut."""
    [event] = events(exchange_event(summary(7, rule=rule, model=model, dataset=dataset)))
    assert (event.id, event.kind, event.data["seq"]) == ("7", "exchange", 7)
    assert event.data["dataset"] == dataset
    for told, text in ((event.data["rule"], rule), (event.data["model"], model)):
        assert told == (text if text is None or len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…")


def test_an_exchange_is_told_with_what_a_line_shows() -> None:
    """All of it, and nothing of the conversation or of whose it is."""
    [event] = events(exchange_event(summary(3, outcome=Outcome.REFUSED_RESPONSE, rule="no secrets", dataset=None)))
    assert event.data == {
        "seq": 3,
        "id": "00000000-0000-4000-8000-000000000003",
        "created": 1_700_000_003.0,
        "dataset": None,
        "model": "gemini-2.5-flash",
        "outcome": "refused_response",
        "rule": "no secrets",
        "duration_ms": 12.5,
        "stream": True,
    }


def test_the_other_events_say_how_far_the_feed_is() -> None:
    """Who comes back with the id of any of them is told what follows it."""
    beginning = events(opening(missed_event(4, 2, exact=False), 9))
    assert [(event.id, event.kind, event.data) for event in beginning] == [
        ("4", "missed", {"count": 2, "exact": False}),
        ("9", "position", {}),
    ]
    assert keep_alive(12).startswith(b": ping\n")
    assert [(event.id, event.kind) for event in events(keep_alive(12))] == [("12", "position")]


def test_a_page_holds_for_each_interest_its_own_exchanges_only() -> None:
    """Another user's are never among them, whatever the dataset is called."""
    owners, datasets, outcomes = ("ann", "bob", ""), ("demo", "other", None), tuple(Outcome)
    combinations = [(o, d, w) for o in owners for d in datasets for w in outcomes]
    made = [summary(n, owner=o, dataset=d, outcome=w) for n, (o, d, w) in enumerate(combinations)]
    page = FeedPage(made)
    for interest in [Interest(o, d, r) for o in owners for d in datasets for r in (False, True)]:
        expected = [
            one.seq
            for one in made
            if one.owner == interest.owner
            and interest.dataset in (None, one.dataset)
            and (one.outcome in REFUSED or not interest.refused)
        ]
        batch = page.batch(interest)
        assert batch is not None
        assert ([event.seq for event in events(batch.data)], batch.count, batch.last) == (
            expected,
            len(expected),
            expected[-1],
        )
    assert page.batch(Interest("nobody")) is None


def test_watchers_with_one_interest_share_one_encoding() -> None:
    """Ten browsers on the same page cost what one does."""
    page = FeedPage([summary(1)])
    assert page.batch(Interest("ann")) is page.batch(Interest("ann"))


@given(st.lists(st.integers(0, 5) | st.none(), max_size=60), st.integers(1, 2_000))
def test_what_a_watcher_is_told_and_what_it_missed_add_up(steps: list[int | None], limit: int) -> None:
    """Whenever it reads: each event is told once and in order, or counted before the first that is; None is a read."""
    outbox, at, put, heard, newest = Outbox(0, limit), 0, 0, b"", b""
    for step in (*steps, None):
        if step is None:
            heard += outbox.take()
            continue
        data = b"".join([exchange_event(summary(at + n)) for n in range(1, step + 1)])
        at, put, newest = at + step, put + step, data or newest
        outbox.put(EventBatch(data, step, at) if data else None, at)
        assert outbox.waiting <= max(limit, len(newest))
    told = events(heard) if heard else []
    exchanges = [event.seq for event in told if event.kind == "exchange"]
    missed = sum(event.data["count"] for event in told if event.kind == "missed")
    assert all(event.data["exact"] for event in told if event.kind == "missed")
    assert len(exchanges) + missed == put
    assert [event.seq for event in told] == sorted({event.seq for event in told})
    assert outbox.reached == at and outbox.take() == b""
    # Without the count the numbers have holes, and nowhere else.
    reached = 0
    for event in told:
        gap = event.seq - reached - (event.kind == "exchange")
        assert gap == (event.data["count"] if event.kind == "missed" else 0)
        reached = event.seq
