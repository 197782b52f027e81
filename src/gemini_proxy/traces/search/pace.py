"""How much of a dataset a search looks through at once, so that its page is there in a tenth of a second."""

import sys
import threading
import time
from collections.abc import Hashable
from typing import Final

# Seconds after which a search gives back what it has; and how much later a look for a text is broken off.
BUDGET: Final = 0.08
GRACE: Final = 0.01
# Seconds for looking up a text in the whole index, which is done in a few milliseconds, but where words are very
# frequent and traces that answer are rare. Then it is looked for carefully, see ``Matches.between``.
HASTE: Final = 0.045
# Places of a dataset that are looked through first; then as many more as the time allows, judged by those before.
FIRST_WINDOW: Final = 4_096
MAX_GROWTH: Final = 16
# The same for a careful look for a text, which may be said at every place.
FIRST_TEXTS: Final = 1_024
# Searches whose pace is remembered for their next page.
_MOST_LEARNT: Final = 256


class Pace:
    """The size of the next look, judged by those before.

    ``patience`` is how many seconds it may take, None for as many as it needs: each page must come further. ``rushes``
    says to look at everything at once after the first look, once.
    """

    def __init__(self, ends: float, size: int, smallest: int, *, carefully: bool = False, rushes: bool = False) -> None:
        self.size = size
        self.patience: float | None = BUDGET if carefully and not rushes else None
        self.carefully = carefully
        self.over = False
        self._rushes = rushes
        self._has_rushed = False
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
            self.size, self.carefully, self.patience = sys.maxsize, False, HASTE
        else:
            self._go_on(min(self.size * MAX_GROWTH, self.size / took * 0.8 * (self._ends - now)))

    def late(self) -> bool:
        """Go by a look that took too long: whether that was all there is time for."""
        self._last = time.perf_counter()
        if not self._looks:
            self.size, self.patience = FIRST_TEXTS, None
            return False
        if self.carefully:
            return True
        self.carefully = self._has_rushed = True
        self._go_on(min(MAX_GROWTH * FIRST_TEXTS, self._places_a_second * 0.8 * (self._ends - self._last)))
        return self.over

    def learnt(self) -> int | None:
        """Places for which a careful look has the time, to begin the next page with; None where there was no need."""
        if self._rushes and not self._has_rushed:
            return None
        return max(FIRST_TEXTS, int(self._places_a_second * BUDGET / 3))

    def _go_on(self, size: float) -> None:
        self.size = int(size)
        self.over = size < self._smallest
        if self.carefully or self._rushes:
            self.patience = self._ends - self._last + GRACE


def place_pace(ends: float, selective: bool) -> Pace:
    """For a search without a text; one that is not ``selective`` finds an answer at every place."""
    return Pace(ends, FIRST_WINDOW if selective else sys.maxsize, FIRST_WINDOW // 4)


def text_pace(ends: float, known: int | None) -> Pace:
    """For a search for a text: a few places, for what is said often, then all the others at once.

    It goes on carefully where that takes too long, or is ``known`` to, with the places that there is the time for.
    """
    if known is None:
        return Pace(ends, FIRST_TEXTS, FIRST_TEXTS // 4, carefully=True, rushes=True)
    return Pace(ends, known, FIRST_TEXTS // 4, carefully=True)


class Learnt:
    """The searches that have to be careful, and their pace: those that came last, whichever thread they ran in."""

    def __init__(self) -> None:
        self._places: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def get(self, search: Hashable) -> int | None:
        return self._places.get(search)

    def put(self, search: Hashable, places: int) -> None:
        with self._lock:
            self._places.pop(search, None)
            self._places[search] = places
            while len(self._places) > _MOST_LEARNT:
                del self._places[next(iter(self._places))]
