"""Lease work in the database, so that of all processes that share it only one does it."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

from sqlalchemy import ColumnElement, Connection, Double, cast, delete, exists, extract, func, literal, or_, select

from gemini_proxy.traces.database import Database, insert_into
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.schema import leases

logger = logging.getLogger(__name__)

# The life of a lease without renewal, in seconds: for this long nobody works after a holder was killed.
TERM: Final = 8.0
# Renewals in a term; equally often a process looks whether the lease is free and the database still available.
RENEWALS: Final = 8


class Lease:
    """A lease by its name. ``run()`` takes and renews it; ``during(work)`` works while it is held.

    The holder stops when its own clock says that the lease has expired, whatever the result of a renewal: so it stops
    before anyone else gets the lease. Work is done in transactions, so one that began in time and ends late does no
    harm.
    """

    def __init__(self, database: Database, name: str, *, term: float = TERM) -> None:
        self._database = database
        self._name = name
        self._term = term
        self._holder = str(uuid.uuid4())
        self._until = 0.0
        self._taken = asyncio.Event()
        self._works: set[asyncio.Timeout] = set()

    @property
    def held(self) -> bool:
        """Return whether this process may work now."""
        return asyncio.get_running_loop().time() < self._until

    async def run(self) -> None:
        """Take the lease when it is free and renew it, until cancelled; then give it back."""
        try:
            while True:
                await self._renew()
                await asyncio.sleep(self._term / RENEWALS)
        finally:
            if self.held:
                self._hold_until(0.0)
                await self._give_back()

    async def during(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work()`` whenever the lease is held, until it returns; it is cancelled when the lease is lost."""
        while True:
            while not self.held:
                self._taken.clear()
                await self._taken.wait()
            try:
                async with asyncio.timeout_at(self._until) as scope:
                    self._works.add(scope)
                    await work()
                    return
            except TimeoutError:
                if not scope.expired():
                    raise
            finally:
                self._works.discard(scope)

    async def _renew(self) -> None:
        # The time of the request counts: the answer may come late.
        until = asyncio.get_running_loop().time() + self._term
        try:
            taken = await self._database.write(self._take)
        except StoreError as error:
            logger.warning("the lease of %s was not renewed: %s", self._name, error)
            return
        self._hold_until(until if taken else 0.0)

    def _take(self, connection: Connection) -> bool:
        return take(connection, self._name, self._holder, self._term)

    def _hold_until(self, until: float) -> None:
        self._until = until
        if self.held:
            self._taken.set()
        for scope in self._works:
            if not scope.expired():
                scope.reschedule(until)

    async def _give_back(self) -> None:
        with contextlib.suppress(StoreError):
            await self._database.write(lambda connection: give_back(connection, self._name, self._holder))


def take(connection: Connection, name: str, holder: str, term: float) -> bool:
    """Take a lease for ``term`` seconds, or renew one's own. Return False while another process holds it.

    A lease that would run for longer than a term was given before the clock was set back or the machine restarted: it
    counts as expired.
    """
    now = _now(connection)
    others = (leases.c.name == name, leases.c.holder != holder, leases.c.until > now, leases.c.until <= now + term)
    # Waiting processes write nothing: each of them asks once a second, and a write has to reach the disk.
    if connection.scalar(select(literal(1)).where(exists().where(*others))) is not None:
        return False
    new = insert_into(leases, connection.dialect.name).values(name=name, holder=holder, until=now + term)
    free = or_(leases.c.holder == holder, leases.c.until <= now, leases.c.until > now + term)
    taken = new.on_conflict_do_update(
        index_elements=[leases.c.name],
        set_={"holder": new.excluded.holder, "until": new.excluded.until},
        where=free,
    ).returning(leases.c.holder)
    return connection.execute(taken).first() is not None


def give_back(connection: Connection, name: str, holder: str) -> None:
    """Let others have a lease at once, if it is one's own."""
    connection.execute(delete(leases).where(leases.c.name == name, leases.c.holder == holder))


def _now(connection: Connection) -> ColumnElement[float]:
    """Return the time in seconds on a clock that all processes on the database share.

    This is PostgreSQL's own clock; for SQLite, whose processes are on one machine, the machine's uptime: nobody sets
    it.
    """
    if connection.dialect.name == "postgresql":
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return literal(time.monotonic(), Double)
