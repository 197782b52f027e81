"""Believe the wall clock once it has agreed for a while with a clock that nobody sets, even across restarts.

Everything that deletes by age asks ``BelievedClock.now()``, since a wall clock that jumps ahead would delete history.
How long the two clocks have agreed is kept in the database, so that a server which is restarted every few minutes can
believe its clock too.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, insert, select, update

from gemini_proxy.traces.clock import Clock, SystemClock
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.schema import clock_mark

# How much the wall clock may differ from the monotonic one between two looks: in seconds, and per elapsed second. A
# clock that is corrected gradually gains or loses half a thousandth.
TOLERANCE: Final = 5.0
DRIFT: Final = 0.001
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
        agrees = abs(ahead - passed) <= TOLERANCE + DRIFT * passed
    else:
        passed = 0.0
        agrees = -TOLERANCE <= ahead <= PLAUSIBLE_AFTER
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
        """Go on from the last look of whichever process looked before. Raises StoreError."""
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
