"""Time as something that can be handed over, so that hours pass in a test at once."""

import asyncio
import time
from typing import Final, Protocol

# How much the wall clock may differ from the monotonic one between two looks: seconds, and for each second that passed.
# A clock that is set right gradually gains or loses half a thousandth.
TOLERANCE: Final = 5.0
DRIFT: Final = 0.001
# For so many seconds the two must have agreed before history is deleted by the wall clock.
PLAUSIBLE_AFTER: Final = 3_600.0


class Clock(Protocol):
    """Time as it passes, in seconds."""

    def time(self) -> float:
        """The Unix time."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Return when the event is set, after ``seconds`` at the latest."""
        ...


class SystemClock:
    """The machine's."""

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        await is_set_within(event, seconds)


async def is_set_within(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event: whether it was set in so many seconds. None waits for ever."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


class Agreement:
    """Whether the wall clock is to be believed: it has gone as the monotonic one for an hour. No I/O, no clock."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._wall = 0.0
        self._monotonic = 0.0

    def plausible(self, wall: float, monotonic: float) -> bool:
        """Take note of what both clocks say now, in seconds: whether ``wall`` is to be believed."""
        passed = monotonic - self._monotonic
        agrees = abs(wall - self._wall - passed) <= TOLERANCE + DRIFT * passed
        if self._since is None or not agrees:
            self._since = monotonic
        self._wall, self._monotonic = wall, monotonic
        return monotonic - self._since >= PLAUSIBLE_AFTER
