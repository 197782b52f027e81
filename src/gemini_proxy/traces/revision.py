"""Keep a number that grows with every change of keys, policies and datasets, and cache these until it does.

What is cached is no older than the request for it, or than a second. Questions outlast a database that is away for a
moment, as for a restart: exchanges depend on their answers.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Final, Generic, TypeVar

from sqlalchemy import Connection, func, select, update

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.errors import StoreError, StoreUnavailable
from gemini_proxy.traces.schema import revision

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

CURRENT: Final = "SELECT number FROM revision"
"""As text: every request to a dataset asks for it."""
CHANNEL: Final = "gemini_proxy"
"""The PostgreSQL channel that announces that the number has grown. The same in every version."""
CHANGED: Final = "changed"
HEARD_WITHIN: Final = 1.0
"""Seconds after which a change counts at the latest where changes are listened for: see ``News``."""
PATIENCE: Final = 5.0
"""Seconds that the database may be away before a question to it fails: as long as the recorder waits for it."""
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.5


def current(connection: Connection) -> int:
    """Return the number now."""
    number: int = connection.exec_driver_sql(CURRENT).scalar_one()
    return number


def stamped(load: Callable[[Connection], T]) -> Callable[[Connection], tuple[int, T]]:
    """Return what ``load`` reads, with the revision it belongs to."""
    # The revision first: what changes between the two is read again next time.
    return lambda connection: (current(connection), load(connection))


def advance(connection: Connection) -> None:
    """Say, in the transaction that changes something, that it has changed."""
    connection.execute(update(revision).values(number=revision.c.number + 1))
    if connection.dialect.name == "postgresql":
        notify(connection, CHANGED)


def notify(connection: Connection, said: str) -> None:
    """Tell all who listen to a PostgreSQL database, once the transaction is committed."""
    connection.execute(select(func.pg_notify(CHANNEL, said)))


class News:
    """The changes of the database that a listener has heard of, and the time up to which they are complete."""

    def __init__(self) -> None:
        self.changes = 0
        self._complete_until = float("-inf")

    @property
    def complete(self) -> bool:
        """Return whether every change counts that was committed at least HEARD_WITHIN seconds ago."""
        return time.monotonic() < self._complete_until

    def changed(self) -> None:
        """Note that something has changed, or may have."""
        self.changes += 1

    def heard_by(self, moment: float) -> None:
        """Note that every change committed by a moment of time.monotonic() has been told."""
        self._complete_until = moment + HEARD_WITHIN

    def lost(self) -> None:
        """Note that the listener has stopped."""
        self._complete_until = float("-inf")


class Patience:
    """Ask a database that is away again, until it has been away for so many seconds; from then on nobody waits."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._away_since = math.inf
        self._last_away = -math.inf

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Raise StoreError, and what ``question`` raises."""
        pause = _FIRST_PAUSE
        while True:
            try:
                answer = await question()
            except StoreUnavailable:
                if self._away_for() + pause > self._seconds:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._away_since = math.inf
                return answer

    def _away_for(self) -> float:
        now = time.monotonic()
        # Between two distant questions it may have come back for a while.
        if now - self._last_away > self._seconds:
            self._away_since = now
        self._away_since = min(self._away_since, now)
        self._last_away = now
        return now - self._away_since


class Revisions:
    """Answer whether anything has changed: see ``advance``.

    Each answer comes of a look at the database that began after the question was asked, so that what another process
    had committed by then counts. Questions that come while a look is under way share the next one, and its failure.

    While ``news`` of changes are complete nobody looks unless they tell of one: an answer may then miss what was
    committed in the last HEARD_WITHIN seconds.
    """

    def __init__(self, database: Database, news: News | None = None, patience: float = PATIENCE) -> None:
        """``patience`` is in seconds."""
        self._database = database
        self._news = news or News()
        self._looked_at: int | None = None
        self._looking: asyncio.Event | None = None
        self._seen = 0
        self._failed: StoreError | None = None
        self._begun = 0
        self._done = 0
        self.patience = Patience(patience)

    async def now(self) -> int:
        """Return the revision as it is now. Raises StoreError."""
        if self._looked_at == self._news.changes and self._news.complete:
            return self._seen
        asked = self._begun
        while self._done <= asked:
            if self._looking is None:
                await self._look()
            else:
                await self._looking.wait()
        if self._failed is not None:
            raise StoreError(*self._failed.args)
        return self._seen

    async def _look(self) -> None:
        """Look at the database, and wake all waiting questions at once: in turn, each would cost a turn of the loop."""
        self._looking = over = asyncio.Event()
        self._begun = number = self._begun + 1
        try:
            self._failed = await self._failure()
            self._done = number
        finally:
            self._looking = None
            over.set()

    async def _failure(self) -> StoreError | None:
        try:
            await self.patience.ask(self._glance)
        except StoreError as error:
            return error
        return None

    async def _glance(self) -> None:
        changes = self._news.changes
        self._seen = await self._database.glance(CURRENT)
        self._looked_at = changes


class Snapshots(Generic[K, T]):
    """Cache what ``load`` reads for a key, with its revision; read again once the revision has changed.

    The ``most`` latest ones are kept.
    """

    def __init__(self, revisions: Revisions, load: Callable[[K], Awaitable[tuple[int, T]]], most: int = 1) -> None:
        self._revisions = revisions
        self._load = load
        self._most = most
        self._kept: OrderedDict[K, tuple[int, T]] = OrderedDict()

    async def now(self, key: K) -> T:
        """Return the value as it is now. Raises StoreError, and what ``load`` raises."""
        seen = await self._revisions.now()
        kept = self._kept.get(key)
        if kept is None or kept[0] != seen:
            kept = self._kept[key] = await self._revisions.patience.ask(partial(self._load, key))
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return kept[1]
