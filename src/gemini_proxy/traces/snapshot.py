"""What is kept in memory of the database without ever being older than the question it answers."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from sqlalchemy import Connection

from gemini_proxy.traces import revision
from gemini_proxy.traces.database import Database

T = TypeVar("T")


class Revisions:
    """Answers whether anything has changed: see ``revision``.

    Each answer comes of a look at the database that began after the question was asked, so that what another process
    had committed by then counts. Questions that come while a look is under way share the next one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looking: asyncio.Event | None = None
        self._seen = 0
        self._begun = 0
        self._done = 0

    async def now(self) -> int:
        """The revision as it is now. Raises StoreError."""
        asked = self._begun
        while self._done <= asked:
            if self._looking is None:
                await self._look()
            else:
                await self._looking.wait()
        return self._seen

    async def _look(self) -> None:
        """All who wait are woken at once, one after the other would cost each of them a turn of the loop."""
        self._looking = over = asyncio.Event()
        self._begun = number = self._begun + 1
        try:
            self._seen = await self._database.glance(revision.CURRENT)
            self._done = number
        finally:
            self._looking = None
            over.set()


class Snapshot(Generic[T]):
    """What ``load`` reads from the database, read again when the revision has changed."""

    def __init__(self, database: Database, revisions: Revisions, load: Callable[[Connection], T]) -> None:
        self._database = database
        self._revisions = revisions
        self._load = load
        self._kept: tuple[int, T] | None = None

    async def now(self) -> T:
        """The value as it is now. Raises StoreError."""
        seen = await self._revisions.now()
        kept = self._kept
        if kept is None or kept[0] != seen:
            kept = self._kept = await self._database.read(self._read)
        return kept[1]

    def _read(self, connection: Connection) -> tuple[int, T]:
        # The revision first: what changes between the two is read again next time.
        return revision.current(connection), self._load(connection)
