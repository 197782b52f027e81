"""Delete traces past their age, by a clock that is to be believed, and the oldest of a database that is too large.

The wall clock is believed once it has agreed for a while with a clock that nobody sets, even across restarts.
Everything that deletes by age asks ``BelievedClock.now()``, since a wall clock that jumps ahead would delete history.
How long the two clocks have agreed is kept in the database, so that a server which is restarted every few minutes can
believe its clock too.
"""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

from sqlalchemy import Connection, insert, select, update

from gemini_proxy.traces.clock import Clock, SystemClock
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.partitions import PARTS
from gemini_proxy.traces.schema import clock_mark

logger = logging.getLogger(__name__)

DAY: Final = 86_400.0
# Seconds between two looks at the clocks and at the database's size.
_LOOK: Final = 60.0
# Between two looks for expired traces, whose age is counted in days.
_PERIOD: Final = 3_600.0
# Periods between two full searches, because old traces can stay behind younger ones: a clock that was
# ahead and has been set back since leaves such.
_THOROUGH: Final = 24
# A partition is of a day, or of more if traces are kept for so long that there would be more partitions than this: each
# query that does not name a trace's number asks all of them.
_PARTITIONS: Final = 30


@dataclass(frozen=True, slots=True)
class Kept:
    """The traces to keep: at most ``days`` old, in at most ``size`` bytes; 0 is no limit."""

    days: int
    size: int = 0

    @property
    def partition_seconds(self) -> float:
        """Return the seconds for which a partition grows. Its traces go together, and outlive their time by this."""
        return DAY * max(1.0, (self.days or _PARTITIONS**2) / _PARTITIONS)


class Deletes(Protocol):
    """The part of the store that deletes, and begins partitions so that there is something to drop."""

    async def delete_before(self, created: float, *, thorough: bool, together: float) -> int: ...

    async def turn_partition(self, before: float | None, most: int | None) -> bool: ...

    async def shrink(self, size: int) -> int: ...


class Retention:
    """Delete traces in one task, ``run()``."""

    def __init__(
        self,
        store: Deletes,
        kept: Callable[[], Kept],
        believed: "BelievedClock",
        *,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``kept`` is asked each time; ``monotonic`` is a clock nobody sets."""
        self._store = store
        self._kept = kept
        self._believed = believed
        self._clock = clock or SystemClock()
        self._monotonic = monotonic
        self._loaded = False

    async def run(self) -> None:
        """Delete what is over a limit, until cancelled: by age only while the clock is believed."""
        looks, due = 0, self._monotonic()
        while True:
            kept = self._kept()
            try:
                if not self._loaded:
                    await self._believed.load()
                    self._loaded = True
                await self._believed.look()
                await self._turn_partition(kept)
                await self._shrink(kept.size)
            except StoreError as error:
                logger.warning("retention waits: %s", error)
            now = self._believed.now()
            if self._loaded and now is not None and self._monotonic() >= due:
                await self._delete(now, kept, thorough=looks % _THOROUGH == 0)
                looks, due = looks + 1, self._monotonic() + _PERIOD
            await self._clock.sleep(_LOOK)

    async def _shrink(self, size: int) -> None:
        if size and (deleted := await self._store.shrink(size)):
            logger.warning("deleted the %d oldest traces: the database was larger than traces.max_size", deleted)

    async def _turn_partition(self, kept: Kept) -> None:
        now = self._believed.now() if self._loaded else None
        before = None if now is None else now - kept.partition_seconds
        if await self._store.turn_partition(before, kept.size // PARTS or None):
            logger.info("began a new partition of traces")

    async def _delete(self, now: float, kept: Kept, *, thorough: bool) -> None:
        before, together = now - kept.days * DAY, kept.partition_seconds
        try:
            if kept.days and (deleted := await self._store.delete_before(before, thorough=thorough, together=together)):
                logger.info("deleted %d traces older than %d days", deleted, kept.days)
        except StoreError as error:
            logger.warning("old traces were not deleted: %s", error)


# How much the wall clock may differ from the monotonic one between two looks: in seconds, and per elapsed second. A
# clock that is corrected gradually gains or loses half a thousandth.
_TOLERANCE: Final = 5.0
_DRIFT: Final = 0.001
PLAUSIBLE_AFTER: Final = 3_600.0
"""Seconds for which the two clocks must have agreed before anything is deleted by the wall clock."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_ROW: Final = 1


@dataclass(frozen=True, slots=True)
class ClockMark:
    """The readings of both clocks at the last look, in seconds, and how many seconds they had agreed for.

    ``boot`` names the run of the machine that ``monotonic`` counts from.
    """

    boot: str
    wall: float
    monotonic: float
    agreed: float

    @property
    def believed(self) -> bool:
        return self.agreed >= PLAUSIBLE_AFTER


def next_mark(last: ClockMark | None, boot: str, wall: float, monotonic: float) -> ClockMark:
    """Return the mark for a look at both clocks. No I/O.

    After a restart of the machine, or on another machine, the time that has passed is unknown. The agreement is then
    kept, and does not grow, if the wall clock is at most PLAUSIBLE_AFTER seconds ahead: the largest error possible.
    """
    if last is None:
        return ClockMark(boot, wall, monotonic, 0.0)
    ahead = wall - last.wall
    if last.boot == boot and monotonic >= last.monotonic:
        passed = monotonic - last.monotonic
        agrees = abs(ahead - passed) <= _TOLERANCE + _DRIFT * passed
    else:
        passed = 0.0
        agrees = -_TOLERANCE <= ahead <= PLAUSIBLE_AFTER
    return ClockMark(boot, wall, monotonic, last.agreed + passed if agrees else 0.0)


class BelievedClock:
    """The Unix time, as far as it can be believed. One process at a time looks at the clocks for all."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        boot: str | None = None,
    ) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._monotonic = monotonic
        self._boot = boot or _boot_id()
        self._mark: ClockMark | None = None

    def now(self) -> float | None:
        """Return the Unix time; None while it is not to be believed."""
        mark = self._next()
        return mark.wall if mark.believed else None

    async def load(self) -> None:
        """Continue from the last look of whichever process looked before. Raises StoreError."""
        self._mark = await self._database.read(_read)

    async def look(self) -> None:
        """Read both clocks and store their times. Raises StoreError, when only this process knows of the look."""
        self._mark = mark = self._next()
        await self._database.write(lambda connection: _write(connection, mark))

    def _next(self) -> ClockMark:
        return next_mark(self._mark, self._boot, self._clock.time(), self._monotonic())


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        # If the system does not tell, each process counts as on a machine of its own.
        return str(uuid.uuid4())


def _read(connection: Connection) -> ClockMark | None:
    columns = (clock_mark.c[key] for key in ("boot", "wall", "monotonic", "agreed"))
    row = connection.execute(select(*columns).where(clock_mark.c.id == _ROW)).mappings().first()
    return None if row is None else ClockMark(**row)


def _write(connection: Connection, mark: ClockMark) -> None:
    values = asdict(mark)
    if connection.execute(update(clock_mark).where(clock_mark.c.id == _ROW).values(**values)).rowcount == 0:
        connection.execute(insert(clock_mark).values(id=_ROW, **values))
