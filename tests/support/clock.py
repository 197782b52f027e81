"""A clock that jumps: whoever sleeps is woken at once, and it is later then."""

import asyncio


class JumpingClock:
    """Stands still at ``horizon``: who would sleep beyond it sleeps for ever, and ``reached`` is set.

    It jumps only while ``still`` is set, so that no time passes while something real is under way.
    """

    def __init__(self, now: float) -> None:
        self.now = now
        self.horizon = now
        self.slept: list[float] = []
        self._reached = asyncio.Event()
        self.moved = asyncio.Event()
        self.still = asyncio.Event()
        self.still.set()

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await self.still.wait()
        until = self.now + seconds
        while until > self.horizon:
            self._reached.set()
            self.moved.clear()
            await self.moved.wait()
        self.slept.append(seconds)
        self.now = max(self.now, until)
        await asyncio.sleep(0)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        if not event.is_set():
            await self.sleep(seconds)

    async def advance(self, seconds: float) -> None:
        """Let so much time pass, and return when all that was to happen in it has."""
        self.horizon = self.now + seconds
        self._reached.clear()
        self.moved.set()
        await self._reached.wait()
        self.now = self.horizon

    def skip(self, seconds: float) -> None:
        """Be later at once. Who sleeps is woken when the clock goes on."""
        self.now += seconds
        self.horizon = self.now
