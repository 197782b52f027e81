"""Feed watchers with exchanges as they are recorded, in this process or another."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from typing import Final, Protocol

from gemini_proxy.errors import Unavailable
from gemini_proxy.traces.clock import is_set_within
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.feed_events import (
    FeedPage,
    Interest,
    Outbox,
    exchange_event,
    keep_alive,
    missed_event,
    opening,
)
from gemini_proxy.traces.trace import TraceSummary

logger = logging.getLogger(__name__)

MAX_WATCHERS: Final = 100
"""Each is a connection that stays; a proxy that is watched by more people wants a second one."""
MAX_WATCHERS_OF_ONE: Final = 25
"""So that one user's forgotten scripts leave room for others."""
MAX_REPLAYED: Final = 1_000
"""Events that a returning watcher gets; more is a listing's business."""
MAX_LOOKED_THROUGH: Final = 10_000
"""The most traces, of all users, to search for those: some hundred milliseconds of the database."""

# Seconds. Other processes that write to the database cannot wake this one up.
PERIOD: Final = 0.5
# Between two looks: under load several traces gather, which are encoded once and written together for each watcher.
SPACING: Final = 0.2
# Below the 60 s after which nginx and the like give up a silent connection, by far.
KEEP_ALIVE: Final = 15.0
# Traces read at a time: reading them keeps the loop busy for a few milliseconds.
PAGE: Final = 250
# A restart brings every watcher back at once: they must not take all of the database's readers.
_REPLAYS_AT_ONCE: Final = 2


class FeedSource(Protocol):
    """A source of traces."""

    async def since(self, seq: int, limit: int) -> list[TraceSummary]:
        """Return the traces after a number, oldest first; they become visible in that order. Raises StoreError."""
        ...

    async def newest_seq(self) -> int:
        """Return the number of the newest trace. Raises StoreError."""
        ...

    async def has_after(self, seq: int) -> bool:
        """Return whether there are traces after number ``seq``, for less than ``since`` costs. Raises StoreError."""
        ...

    async def seq_before(self, seq: int, count: int) -> int:
        """Return a number after which, up to ``seq``, there are at most ``count`` traces. Raises StoreError."""
        ...

    async def most_between(self, after: int, to: int) -> int:
        """Return how many traces there are at most after a number, up to another. Raises StoreError."""
        ...


class _Watcher:
    def __init__(self, interest: Interest) -> None:
        self.interest = interest
        self.joined: asyncio.Future[Outbox] = asyncio.get_running_loop().create_future()
        self.ready = asyncio.Event()

    def join(self, reached: int) -> bool:
        """Start at number ``reached``; False if the watcher is leaving."""
        if self.joined.done():
            return False
        self.joined.set_result(Outbox(reached))
        return True

    def fail(self, error: Exception) -> None:
        if not self.joined.done():
            self.joined.set_exception(error)

    def put(self, page: FeedPage, reached: int) -> None:
        batch = page.batch(self.interest)
        self.joined.result().put(batch, reached)
        if batch is not None:
            self.ready.set()


class Feed:
    """Look at the database once for all watchers of this process, and never without watchers.

    The owner runs ``run()`` and, before the server waits for its connections to end, calls ``close()``.
    """

    def __init__(
        self, source: FeedSource, *, period: float = PERIOD, spacing: float = SPACING, keep_alive: float = KEEP_ALIVE
    ) -> None:
        """``period`` is how long what another process wrote stays unseen, all three are seconds."""
        self._source = source
        self._period = period
        self._spacing = spacing
        self._keep_alive = keep_alive
        self._joining: list[_Watcher] = []
        self._watchers: list[_Watcher] = []
        self._wake = asyncio.Event()
        self._replays = asyncio.Semaphore(_REPLAYS_AT_ONCE)
        self._seq = 0
        self._closed = False
        self._failing = False

    @property
    def watchers(self) -> int:
        """Return the current number of watchers."""
        return len(self._joining) + len(self._watchers)

    def committed(self) -> None:
        """Say that traces were written, so that watchers get them at once."""
        if self._watchers:
            self._wake.set()

    def close(self) -> None:
        """End every watch after its waiting events, and accept no more."""
        self._closed = True
        self._wake.set()
        for watcher in self._joining:
            watcher.fail(_stopping())
        for watcher in self._watchers:
            watcher.ready.set()

    async def run(self) -> None:
        """Follow the traces until ``close``, or cancelled, which closes it. After a failure it may be run again."""
        try:
            while not self._closed:
                woken = await self._wait()
                self._wake.clear()
                await self._look(woken)
                await self._rest()
        except asyncio.CancelledError:
            self.close()
            raise

    async def watch(
        self, interest: Interest, *, after: int | None = None, last: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """Yield chunks of Server-Sent Events for as long as the caller reads them; the caller must close the iterator.

        The first chunk comes at once and means that no later exchange will be left out. It holds the events after the
        id ``after``, at most ``MAX_REPLAYED`` and a note on the others, or else the ``last`` exchanges. A slow reader
        misses events and is told how many. Raises Unavailable if there are too many watchers or the feed is closed, and
        StoreError if the database does not answer.
        """
        self._refuse(interest)
        watcher = _Watcher(interest)
        self._joining.append(watcher)
        self._wake.set()
        try:
            outbox = await watcher.joined
            yield await self._first(interest, outbox.reached, after, last)
            while True:
                waiting = outbox.take()
                if waiting:
                    yield waiting
                elif self._closed:
                    return
                elif not await self._is_ready(watcher):
                    yield keep_alive(outbox.reached)
        finally:
            self._leave(watcher)

    def _refuse(self, interest: Interest) -> None:
        if self._closed:
            raise _stopping()
        everybody = [*self._joining, *self._watchers]
        own = sum(watcher.interest.owner == interest.owner for watcher in everybody)
        if len(everybody) >= MAX_WATCHERS or own >= MAX_WATCHERS_OF_ONE:
            raise Unavailable("Too many clients follow the feed; try again later")

    def _leave(self, watcher: _Watcher) -> None:
        for group in (self._joining, self._watchers):
            if watcher in group:
                group.remove(watcher)

    async def _is_ready(self, watcher: _Watcher) -> bool:
        watcher.ready.clear()
        return await is_set_within(watcher.ready, self._keep_alive)

    async def _wait(self) -> bool:
        """Return True once this process wrote traces or a watcher joins, and False when it is time to look.

        Without watchers it never is.
        """
        return await is_set_within(self._wake, self._period if self._watchers else None)

    async def _rest(self) -> None:
        if not self._closed:
            await asyncio.sleep(self._spacing)

    async def _look(self, woken: bool) -> None:
        """Tell what is new to those who watch, and let in those who came before this began: they miss nothing after."""
        joining = tuple(self._joining)
        try:
            if self._watchers:
                if woken or await self._source.has_after(self._seq):
                    await self._tell()
            elif joining:
                self._seq = await self._source.newest_seq()
        except StoreError as error:
            self._report(error)
            for watcher in joining:
                watcher.fail(error)
            return
        self._failing = False
        for watcher in joining:
            if watcher in self._joining:
                self._joining.remove(watcher)
                if watcher.join(self._seq):
                    self._watchers.append(watcher)

    async def _tell(self) -> None:
        while True:
            found = await self._source.since(self._seq, PAGE)
            if found:
                self._seq = found[-1].seq
                page = FeedPage(found)
                for watcher in self._watchers:
                    watcher.put(page, self._seq)
            if len(found) < PAGE:
                return

    def _report(self, error: StoreError) -> None:
        if not self._failing:
            logger.warning("the feed has stopped: %s", error)
        self._failing = True

    async def _first(self, interest: Interest, reached: int, after: int | None, last: int) -> bytes:
        """Return the events that a watcher gets first."""
        if after is not None and after < reached:
            async with self._replays:
                oldest = await self._source.seq_before(reached, MAX_LOOKED_THROUGH)
                unseen = await self._source.most_between(after, oldest) if after < oldest else 0
                events = await self._replay(interest, max(after, oldest), reached, unseen)
        elif after is None and last:
            async with self._replays:
                oldest = await self._source.seq_before(reached, MAX_LOOKED_THROUGH)
                found = await self._find(interest, oldest, reached, min(last, MAX_REPLAYED))
            events = b"".join(found.events())
        else:
            events = b""
        return opening(events, reached)

    async def _replay(self, interest: Interest, start: int, reached: int, unseen: int) -> bytes:
        found = await self._find(interest, start, reached, MAX_REPLAYED)
        missed = found.missed + unseen
        told = [missed_event(found.missed_last, missed, exact=not unseen)] if missed else []
        return b"".join([*told, *found.events()])

    async def _find(self, interest: Interest, start: int, reached: int, limit: int) -> "_Stretch":
        """Return the newest ``limit`` events between two numbers."""
        result = _Stretch(start)
        at = start
        while at < reached:
            found = await self._source.since(at, PAGE)
            for summary in found:
                if summary.seq <= reached and interest.includes(summary):
                    result.add(summary, limit)
            at = found[-1].seq if len(found) == PAGE else reached
        return result


class _Stretch:
    """The newest events of a stretch; how many were before them, and the number of the last of those."""

    def __init__(self, start: int) -> None:
        self._kept: deque[tuple[int, bytes]] = deque()
        self.missed = 0
        self.missed_last = start

    def add(self, summary: TraceSummary, limit: int) -> None:
        self._kept.append((summary.seq, exchange_event(summary)))
        if len(self._kept) > limit:
            self.missed_last, _ = self._kept.popleft()
            self.missed += 1

    def events(self) -> Iterator[bytes]:
        return (event for _, event in self._kept)


def _stopping() -> Unavailable:
    return Unavailable("The server is stopping")
