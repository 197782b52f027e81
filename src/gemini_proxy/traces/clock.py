"""Pass time in as a value, so that in a test hours pass at once."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time as it passes, in seconds."""

    def time(self) -> float:
        """Return the Unix time."""
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
    """Wait at most ``seconds`` for an event, without a limit if None. Return whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
