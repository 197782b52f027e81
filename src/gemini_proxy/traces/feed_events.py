"""Write the feed's events as bytes, and queue them for one watcher. No I/O.

The form is that of Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html): ``exchange``
for a trace, ``missed`` for events that were left out, ``position`` for the place of the feed. The id of each is the
number of the newest trace that it and the earlier events cover: a watcher that returns with it gets the events after
it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gemini_proxy.traces.rows import dump
from gemini_proxy.traces.trace import REFUSED, TraceSummary

RETRY_MS: Final = 1000
"""A browser's wait before it reconnects: about as long as a restart takes."""
MAX_TEXT: Final = 300
"""A line's worth. Rules of a request's header and pushed annotations are anybody's text, of any length. Characters."""
MAX_QUEUED: Final = 262_144
"""Bytes that the server holds for a watcher that does not read: about a thousand events."""


@dataclass(frozen=True, slots=True)
class Interest:
    """The exchanges of one user, or of one dataset of theirs; with ``refused`` only those that were refused."""

    owner: str
    dataset: str | None = None
    refused: bool = False

    def includes(self, summary: TraceSummary) -> bool:
        return (
            summary.owner == self.owner
            and (self.dataset is None or summary.dataset == self.dataset)
            and (not self.refused or summary.outcome in REFUSED)
        )


def exchange_event(summary: TraceSummary) -> bytes:
    """Return the event of one exchange. Its data is a JSON object; ``created`` is in Unix seconds."""
    data = dump(
        {
            "seq": summary.seq,
            "id": summary.id,
            "created": summary.created,
            "dataset": summary.dataset,
            "model": _short(summary.model),
            "outcome": summary.outcome.value,
            "rule": _short(summary.rule),
            "duration_ms": summary.duration_ms,
            "stream": summary.stream,
        }
    )
    return b"id: %d\nevent: exchange\ndata: %b\n\n" % (summary.seq, data)


def missed_event(reached: int, count: int, *, exact: bool) -> bytes:
    """Return an event saying that ``count`` exchanges up to ``reached`` are left out, at most if not ``exact``."""
    return b"id: %d\nevent: missed\ndata: %b\n\n" % (reached, dump({"count": count, "exact": exact}))


def _position_event(reached: int) -> bytes:
    """Return an event saying that there is nothing else up to number ``reached``."""
    return b"id: %d\nevent: position\ndata: {}\n\n" % reached


def opening(events: bytes, reached: int) -> bytes:
    """Return the beginning of a feed: how soon to come back, what was found, and how far that goes."""
    return b"retry: %d\n\n%b%b" % (RETRY_MS, events, _position_event(reached))


def keep_alive(reached: int) -> bytes:
    """Return what is said when nothing happens."""
    return b": ping\n" + _position_event(reached)


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events to be written together: how many, and the number of the last one."""

    data: bytes
    count: int
    last: int


class FeedPage:
    """Traces that became visible together, encoded once for all who watch, whatever each of them watches."""

    def __init__(self, summaries: Sequence[TraceSummary]) -> None:
        self._summaries = summaries
        self._events: dict[int, bytes] = {}
        self._batches: dict[Interest, EventBatch | None] = {}

    def batch(self, interest: Interest) -> EventBatch | None:
        """Return the events for that interest; None where there are none."""
        if interest not in self._batches:
            self._batches[interest] = self._assemble(interest)
        return self._batches[interest]

    def _assemble(self, interest: Interest) -> EventBatch | None:
        wanted = [summary for summary in self._summaries if interest.includes(summary)]
        if not wanted:
            return None
        return EventBatch(b"".join([self._event(summary) for summary in wanted]), len(wanted), wanted[-1].seq)

    def _event(self, summary: TraceSummary) -> bytes:
        event = self._events.get(summary.seq)
        if event is None:
            event = self._events[summary.seq] = exchange_event(summary)
        return event


class Outbox:
    """The events that wait for one watcher. Events that do not fit are dropped, the oldest first, and counted exactly.

    The newest batch is always kept: all watchers share its bytes.
    """

    def __init__(self, reached: int, limit: int = MAX_QUEUED) -> None:
        """``reached`` is the number of the newest trace that the watcher need not be told of."""
        self._limit = limit
        self._batches: deque[EventBatch] = deque()
        self._size = 0
        self._missed = 0
        self._missed_last = reached
        self.reached = reached

    @property
    def waiting(self) -> int:
        """Return the size of the waiting events, in bytes."""
        return self._size

    def put(self, batch: EventBatch | None, reached: int) -> None:
        """Add what was found up to the trace of number ``reached``."""
        self.reached = reached
        if batch is None:
            return
        self._batches.append(batch)
        self._size += len(batch.data)
        while self._size > self._limit and len(self._batches) > 1:
            dropped = self._batches.popleft()
            self._size -= len(dropped.data)
            self._missed += dropped.count
            self._missed_last = dropped.last

    def take(self) -> bytes:
        """Take everything that waits, after a word on what was dropped before it; empty if nothing does."""
        told = [missed_event(self._missed_last, self._missed, exact=True)] if self._missed else []
        data = b"".join([*told, *(batch.data for batch in self._batches)])
        self._batches.clear()
        self._size = self._missed = 0
        return data
