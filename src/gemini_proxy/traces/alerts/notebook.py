"""Count one process's events for alerts in memory, and write them to the database each second."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from gemini_proxy.traces.alerts.outbox import AlertOutbox
from gemini_proxy.traces.alerts.rules import Kind, Notice
from gemini_proxy.traces.clock import Clock, SystemClock
from gemini_proxy.traces.errors import StoreError

logger = logging.getLogger(__name__)

OTHER: Final = "other"
MAX_NOTED: Final = 200
"""Kinds and keys between two writes; what more there is goes by another key."""
_PERIOD: Final = 1.0

Totals = Callable[[], Mapping[str, int]]
"""Return how often something has happened since the start, by key."""


class Notebook:
    """Count until ``run()`` writes. While the database is unavailable it continues to count: only the times are lost.

    ``wanted()`` returns the kinds that some alert reports now; others are not noted. ``totals`` are counted elsewhere:
    their increase is noted.
    """

    def __init__(
        self,
        outbox: AlertOutbox,
        wanted: Callable[[], frozenset[Kind]],
        totals: Mapping[Kind, Totals] | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._outbox = outbox
        self._wanted = wanted
        self._totals = totals or {}
        self._seen = {kind: Counter(total()) for kind, total in self._totals.items()}
        self._clock = clock or SystemClock()
        self._noted: dict[tuple[Kind, str], Notice] = {}

    def note(self, kind: Kind, key: str, example: Mapping[str, Any], count: int = 1) -> None:
        """Count an event, which ``example`` describes, for the next write."""
        if kind not in self._wanted():
            return
        if (kind, key) not in self._noted and len(self._noted) >= MAX_NOTED:
            key = OTHER
        before = self._noted.get((kind, key))
        self._noted[kind, key] = Notice(kind, key, count + (before.count if before else 0), time.time(), example)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._clock.sleep(_PERIOD)
            await self.flush()

    async def flush(self) -> None:
        """Write what was counted; if the database does not take it, with the next write."""
        self._note_totals()
        if not self._noted:
            return
        noted, self._noted = self._noted, {}
        try:
            await self._outbox.note(list(noted.values()))
        except StoreError as error:
            logger.warning("events of alerts were not written: %s", error)
            for (kind, key), notice in noted.items():
                self.note(kind, key, notice.example, notice.count)

    def _note_totals(self) -> None:
        for kind, total in self._totals.items():
            now = Counter(total())
            for key, count in (now - self._seen[kind]).items():
                self.note(kind, key, {}, count)
            self._seen[kind] = now
