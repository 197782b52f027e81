"""Traces past their time are deleted, as soon as the clock that says so is to be believed."""

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from gemini_proxy.traces.clock import Agreement, Clock, SystemClock
from gemini_proxy.traces.errors import StoreError

logger = logging.getLogger(__name__)

DAY: Final = 86_400.0
# Seconds between two looks at the clocks.
_LOOK: Final = 60.0
# And between two for traces past their time: their age is counted in days.
_PERIOD: Final = 3_600.0
# Of which so many go by until all traces are looked through, lest old ones stay behind younger ones: a clock that was
# ahead and has been set back since leaves such.
_THOROUGH: Final = 24


class Deletes(Protocol):
    """The part of the store that deletes."""

    async def delete_before(self, created: float, *, thorough: bool) -> int: ...


class Retention:
    """Deletes traces in one task, ``run()``."""

    def __init__(
        self,
        store: Deletes,
        days: Callable[[], int],
        *,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``days`` is asked each time how long traces are kept, 0 for ever; ``monotonic`` is a clock nobody sets."""
        self._store = store
        self._days = days
        self._clock = clock or SystemClock()
        self._monotonic = monotonic

    async def run(self) -> None:
        """Delete what is past its time, until cancelled: first when the clock has been right for an hour."""
        agreement = Agreement()
        looks, due = 0, self._monotonic()
        while True:
            wall, now = self._clock.time(), self._monotonic()
            if agreement.plausible(wall, now) and now >= due:
                await self._delete(wall, thorough=looks % _THOROUGH == 0)
                looks, due = looks + 1, now + _PERIOD
            await self._clock.sleep(_LOOK)

    async def _delete(self, now: float, *, thorough: bool) -> None:
        days = self._days()
        try:
            if days and (deleted := await self._store.delete_before(now - days * DAY, thorough=thorough)):
                logger.info("deleted %d traces older than %d days", deleted, days)
        except StoreError as error:
            logger.warning("old traces were not deleted: %s", error)
