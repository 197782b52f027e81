"""Commit traces in groups: exchanges wait for their traces, and those that wait together are written together."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gemini_proxy.traces.errors import RowRejected, StoreError, StoreUnavailable
from gemini_proxy.traces.rows import TraceRow, encode
from gemini_proxy.traces.trace import Trace

logger = logging.getLogger(__name__)

MAX_BATCH = 256
# The most that may wait in memory for a hanging database: in traces, and in characters of their texts.
MAX_WAITING = 10_000
MAX_WAITING_CHARACTERS = 64 * 1024 * 1024
# Seconds between two attempts while the database accepts nothing: at first, and at most.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.25
# Traces with more text than this are serialized in a thread, a message at a time, so that the loop gets its turn.
LARGE = 256 * 1024
MANY = 1_000
# Stop waiting for further traces after this many turns of the event loop without one, or after these seconds.
QUIET_TURNS = 4
LONGEST_GATHERING = 0.02


class TraceSink(Protocol):
    """The store that the recorder writes to."""

    async def write(self, rows: Sequence[TraceRow], *, again: bool = False) -> None:
        """Commit the rows in one transaction; with ``again`` without those that an earlier attempt has committed.

        Raises StoreUnavailable if a later attempt may succeed, RowRejected if a row is to blame.
        """
        ...


@dataclass(slots=True, eq=False)
class _QueuedTrace:
    trace: Trace
    row: TraceRow | None
    size: int
    written: asyncio.Future[bool]
    ends: float
    given_up: bool = False
    tried: bool = False
    settled: bool = False


class Recorder:
    """Write traces in batches from one task, ``run()``, which the owner starts and ends with ``close()``.

    While the database accepts nothing, a trace is retried for ``patience`` seconds. ``dropped`` counts the traces for
    which ``commit`` returned False, ``late`` those of them that were still written later.
    """

    def __init__(
        self,
        sink: TraceSink,
        *,
        written: Callable[[Sequence[TraceRow]], None] | None = None,
        patience: float = 5.0,
        max_batch: int = MAX_BATCH,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """``written`` is called with the committed traces, to wake their followers; ``patience`` is in seconds."""
        self._sink = sink
        self._written = written
        self._patience = patience
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._queue: deque[_QueuedTrace] = deque()
        # The traces that ``commit`` waits for, the longest wait first, and one timer that ends all waits.
        self._unsettled: deque[_QueuedTrace] = deque()
        self._patience_ends: asyncio.TimerHandle | None = None
        self._writing: list[_QueuedTrace] = []
        self._crowded = False
        self._characters = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._pause = FIRST_PAUSE
        self._failure = ""
        self._lost_in_streak = 0
        self.dropped = 0
        self.late = 0

    @property
    def waiting(self) -> int:
        """Return the number of queued traces, without those being written."""
        return len(self._queue)

    async def commit(self, trace: Trace, size: int | None = None) -> bool:
        """Write a trace durably; return whether it was written, False after ``patience`` seconds at the latest.

        ``size`` is the number of bytes that its messages were read from; if that is not known, their text is measured.
        Cancelling the caller withdraws nothing: the trace is queued before the first await.
        """
        item = self._enqueue(trace, text_length(trace.messages) if size is None else size)
        if item is None:
            return False
        return await item.written

    async def run(self) -> None:
        """Write queued traces until ``close``; if this is cancelled earlier, all waiting callers get False.

        An unexpected error is raised and loses only the trace that caused it: run this again for the others.
        """
        try:
            while True:
                if not self._queue:
                    self._idle.set()
                    if self._closed:
                        return
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                if self._crowded:
                    await self._gather()
                await self._write_next()
        except asyncio.CancelledError:
            self._abandon()
            raise
        except Exception:
            self._put_back()
            raise

    async def _gather(self) -> None:
        """Wait for traces that are about to come: a transaction costs as much as writing several traces.

        Only after a batch of several, so that an exchange that comes alone is not kept waiting.
        """
        loop = asyncio.get_running_loop()
        ends, queued, quiet = loop.time() + LONGEST_GATHERING, 0, 0
        while quiet < QUIET_TURNS and len(self._queue) < self._max_batch and loop.time() < ends:
            quiet = quiet + 1 if len(self._queue) == queued else 0
            queued = len(self._queue)
            await asyncio.sleep(0)

    async def _write_next(self) -> None:
        """Write a batch: the traces that came during the previous write, and in a crowd those just after them."""
        self._writing = self._take_batch()
        self._crowded = len(self._writing) > 1
        try:
            await self._write(self._writing)
        except StoreUnavailable as error:
            self._failure = str(error)
            self._put_back()
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._writing = []

    def _put_back(self) -> None:
        """Queue again, before all others, what was not written and is still waited for."""
        waited_for = [item for item in self._writing if not item.settled and not item.given_up]
        self._writing = []
        self._queue.extendleft(reversed(waited_for))
        self._characters += sum(item.size for item in waited_for)

    async def close(self) -> None:
        """Take no more traces, and wait at most ``patience`` seconds for those queued; the rest are dropped."""
        self._closed = True
        self._wake.set()
        try:
            async with asyncio.timeout(self._patience):
                await self._idle.wait()
        except TimeoutError:
            self._abandon()

    def _enqueue(self, trace: Trace, size: int) -> _QueuedTrace | None:
        if self._closed or self._is_full(size):
            self._count_lost("the recorder is closed" if self._closed else "the queue is full")
            return None
        try:
            row = encode(trace, short=True) if size <= LARGE and len(trace.messages) <= MANY else None
        except RowRejected as error:
            self._count_lost(str(error))
            return None
        loop = asyncio.get_running_loop()
        item = _QueuedTrace(trace, row, size, loop.create_future(), loop.time() + self._patience)
        self._queue.append(item)
        self._unsettled.append(item)
        if self._patience_ends is None:
            self._patience_ends = loop.call_at(item.ends, self._end_waits)
        self._characters += size
        self._idle.clear()
        self._wake.set()
        return item

    def _is_full(self, size: int) -> bool:
        # At least one trace is always taken, however long it is.
        return len(self._queue) >= self._max_waiting or 0 < self._characters > MAX_WAITING_CHARACTERS - size

    def _take_batch(self) -> list[_QueuedTrace]:
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._max_batch))]
        self._characters -= sum(item.size for item in batch)
        return batch

    async def _write(self, batch: list[_QueuedTrace]) -> None:
        """Write the batch at once; if one row is to blame, each by itself, so that its neighbors survive."""
        try:
            rows = await self._commit(batch)
        except StoreUnavailable:
            raise
        except Exception as error:
            if len(batch) > 1:
                for item in batch:
                    await self._write([item])
                return
            self._lose(batch, str(error) if isinstance(error, StoreError) else type(error).__name__)
            if not isinstance(error, StoreError):
                raise
        else:
            self._succeed(batch)
            if self._written is not None:
                self._written(rows)

    async def _commit(self, batch: Sequence[_QueuedTrace]) -> list[TraceRow]:
        rows = [await asyncio.to_thread(encode, item.trace) if item.row is None else item.row for item in batch]
        again = any(item.tried for item in batch)
        for item in batch:
            item.tried = True
        await self._sink.write(rows, again=again)
        return rows

    def _succeed(self, batch: Sequence[_QueuedTrace]) -> None:
        self._pause, self._failure = FIRST_PAUSE, ""
        self._log_recovery()
        for item in batch:
            item.settled = True
            self.late += item.given_up
            _answer(item, True)
        self._drop_settled()

    def _end_waits(self) -> None:
        """Give up traces that have waited too long, and look again when the next one has.

        A trace that is given up stays until its next attempt: late evidence is better than none.
        """
        loop = asyncio.get_running_loop()
        self._patience_ends = None
        self._drop_settled()
        while self._unsettled and self._unsettled[0].ends <= loop.time():
            item = self._unsettled.popleft()
            item.given_up = True
            _answer(item, False)
            self._count_lost(self._failure or f"no response from the database in {self._patience:g} s")
            self._drop_settled()
        if self._unsettled:
            self._patience_ends = loop.call_at(self._unsettled[0].ends, self._end_waits)

    def _drop_settled(self) -> None:
        """Keep nothing of what has been written: only the waits that go on have an end."""
        while self._unsettled and self._unsettled[0].settled:
            self._unsettled.popleft()

    def _lose(self, batch: Sequence[_QueuedTrace], reason: str) -> None:
        for item in batch:
            item.settled = True
            if not item.given_up:
                self._count_lost(reason)
            _answer(item, False)
        self._drop_settled()

    def _abandon(self) -> None:
        self._closed = True
        unwritten = [item for item in (*self._writing, *self._queue) if not item.given_up]
        self._writing = []
        self._queue.clear()
        self._characters = 0
        self._lose(unwritten, "the recorder was stopped")
        self._idle.set()

    def _count_lost(self, reason: str) -> None:
        self.dropped += 1
        self._lost_in_streak += 1
        if self._lost_in_streak == 1:
            logger.error("traces are not being written: %s", reason)

    def _log_recovery(self) -> None:
        if self._lost_in_streak:
            logger.warning("traces are being written again, %d were not", self._lost_in_streak)
            self._lost_in_streak = 0


def _answer(item: _QueuedTrace, written: bool) -> None:
    # It is already done if its caller was cancelled or got a result before.
    if not item.written.done():
        item.written.set_result(written)


def text_length(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return the characters of the text in messages, as a measure of what they cost to keep and to serialize."""
    total = 0
    pending: list[Any] = [*messages]
    # The list grows while it is walked. Nearly everything is plain JSON, which its types tell without a call.
    for item in pending:
        kind = type(item)
        if kind is str:
            total += len(item)
        elif kind is dict:
            pending += item.values()
        elif kind is list:
            pending += item
        elif kind in _NO_TEXT:
            continue
        elif isinstance(item, str):
            total += len(item)
        elif isinstance(item, Mapping):
            pending += item.values()
        elif isinstance(item, Sequence):
            pending += item
    return total


_NO_TEXT: Final = frozenset((int, float, bool, type(None)))
