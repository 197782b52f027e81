"""Delete traces past their age, by a clock that is to be believed, and the oldest of a database that is too large."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from gemini_proxy.traces.believed_clock import BelievedClock
from gemini_proxy.traces.clock import Clock, SystemClock
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.partitions import PARTS

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
        believed: BelievedClock,
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
