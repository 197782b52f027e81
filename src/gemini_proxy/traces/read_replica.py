"""Read from a replica of the trace database, and from the primary while the replica is away."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.errors import StoreError, StoreUnavailable
from gemini_proxy.traces.rows import TraceRow

logger = logging.getLogger(__name__)
T = TypeVar("T")

PAUSE: Final = 10.0
"""Seconds for which a replica that failed is not asked again."""


class ReadReplica:
    """A Database whose ``read`` asks a replica, which may lag; everything else asks the primary.

    ``away`` tells whether the last question to the replica failed, ``fallbacks`` counts the reads that the primary
    answered instead.
    """

    def __init__(
        self, primary: Database, replica: Database, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._primary = primary
        self._replica = replica
        self._monotonic = monotonic
        self._again = float("-inf")
        self.away = False
        self.fallbacks = 0

    @property
    def lost(self) -> int:
        return self._primary.lost

    async def read(self, work: Callable[[Connection], T], *, owner: str | None = None) -> T:
        if self._monotonic() >= self._again:
            try:
                result = await self._replica.read(work, owner=owner)
            except StoreError as error:
                # The other kinds are about the query itself, and the primary would fail in the same way.
                if type(error) not in (StoreError, StoreUnavailable):
                    raise
                self._leave(error)
            else:
                self._return()
                return result
        self.fallbacks += 1
        return await self._primary.read(work, owner=owner)

    async def glance(self, query: str) -> Any:
        return await self._primary.glance(query)

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await self._primary.write(work)

    async def insert(self, rows: Sequence[TraceRow], *, again: bool = False) -> None:
        await self._primary.insert(rows, again=again)

    async def run_alone(self, statement: str) -> None:
        await self._primary.run_alone(statement)

    async def migrate(self, work: Callable[[Connection], T]) -> T:
        return await self._primary.migrate(work)

    async def rehearse(self, work: Callable[[Connection], object]) -> None:
        await self._primary.rehearse(work)

    async def close(self) -> None:
        """Close the replica's connections; the primary is closed by its owner."""
        await self._replica.close()

    def _leave(self, error: StoreError) -> None:
        self._again = self._monotonic() + PAUSE
        if not self.away:
            logger.warning("traces.read_database is unavailable, reading traces.database instead: %s", error)
        self.away = True

    def _return(self) -> None:
        if self.away:
            logger.warning("reading traces.read_database again")
        self.away = False
