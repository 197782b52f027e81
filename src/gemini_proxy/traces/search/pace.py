"""Decide how much of a dataset a search reads at once, so that its page is ready in a tenth of a second."""

import sys
import time
from typing import Final

# Seconds after which a search gives back what it has; and how much later a look for a text is broken off.
BUDGET: Final = 0.08
GRACE: Final = 0.01
# Seconds for looking up a text in the whole index, which is done in a few milliseconds, but where words are very
# frequent and traces that answer are rare. Then it is looked for carefully, see ``Matches.between``.
HASTE: Final = 0.045
_SHARE: Final = 0.6
_LEAST: Final = 0.004
# Places of a dataset that are looked through first; then as many more as the time allows, judged by those before.
FIRST_WINDOW: Final = 4_096
MAX_GROWTH: Final = 16
# The same for a careful look for a text, which may be said at every place.
FIRST_TEXTS: Final = 1_024


class Pace:
    """The size of the next look, judged by those before.

    ``patience`` is how many seconds it may take, None for as many as it needs: each page must come further. ``rushes``
    says to look at everything at once after the first look, once.
    """

    def __init__(self, ends: float, size: int, smallest: int, *, rushes: bool = False) -> None:
        self.size = size
        self.patience: float | None = None
        self.carefully = rushes
        self.over = False
        self._rushes = rushes
        self._looks = 0
        self._smallest = smallest
        self._ends = ends
        self._last = time.perf_counter()
        self._places_a_second = 0.0

    def step(self, places: int) -> None:
        """Go by how long the look took that has just ended."""
        now = time.perf_counter()
        took = max(now - self._last, 1e-6)
        self._looks += 1
        self._last = now
        if self.carefully:
            self._places_a_second = places / took
        if self._rushes and self._looks == 1:
            self.size, self.carefully = sys.maxsize, False
            # One dataset of several has less time.
            self.patience = min(HASTE, max(_LEAST, _SHARE * (self._ends - now)))
        else:
            self._go_on(min(self.size * MAX_GROWTH, self.size / took * 0.8 * (self._ends - now)))

    def late(self) -> bool:
        """Go by a look that took too long: whether that was all there is time for."""
        self._last = time.perf_counter()
        if self.carefully:
            return True
        self.carefully = True
        self._go_on(min(MAX_GROWTH * FIRST_TEXTS, self._places_a_second * 0.8 * (self._ends - self._last)))
        return self.over

    def _go_on(self, size: float) -> None:
        self.size = int(size)
        self.over = size < self._smallest
        if self.carefully or self._rushes:
            self.patience = self._ends - self._last + GRACE


def place_pace(ends: float, selective: bool) -> Pace:
    """Return the pace of a search without a text; one that is not ``selective`` finds a trace at every place."""
    return Pace(ends, FIRST_WINDOW if selective else sys.maxsize, FIRST_WINDOW // 4)


def text_pace(ends: float) -> Pace:
    """Return the pace of a search for a text.

    It looks through a few places first, where frequent words are found, then through all others at once. If that takes
    too long, it goes on carefully, with as many places at a time as there is time for.
    """
    return Pace(ends, FIRST_TEXTS, FIRST_TEXTS // 4, rushes=True)
