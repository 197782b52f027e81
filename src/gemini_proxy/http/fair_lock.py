"""Share scarce places fairly among users, so that nobody takes all of them.

A lock for long work in processes and for compiling long policies, and a semaphore for each user of a database's
readers.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from gemini_proxy.errors import Unavailable

MAX_WAITING: Final = 128
"""Calls of one user that may wait or run at once: each holds its body in memory."""
HALF_LIFE: Final = 60.0
"""Seconds after which half of the time that a user has spent is forgotten."""
_NEGLIGIBLE: Final = 0.01
"""Seconds spent that count as none."""
_REMEMBERED: Final = 1_000
"""Users kept before those who have spent no time lately are dropped."""


@dataclass(slots=True)
class _User:
    """``spent`` is the time in seconds that the user held a place, as of ``at``; ``waiting`` are calls without one."""

    at: float
    spent: float = 0.0
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    def spent_until(self, now: float) -> float:
        """Bring ``spent`` up to date and return it."""
        self.spent *= 0.5 ** ((now - self.at) / HALF_LIFE)
        self.at = now
        return self.spent


class FairLock:
    """Admit ``places`` calls at once, ``per_user`` of them for one user. The user who held it least lately goes first.

    A user's time is the seconds that they hold places, and half of it is forgotten every ``HALF_LIFE`` seconds. A user
    who has spent ``allowance`` seconds is refused until enough is forgotten. Among equals the first call goes first.
    """

    def __init__(
        self,
        places: int = 1,
        *,
        per_user: int = 1,
        allowance: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free = places
        self._per_user = per_user
        self._allowance = allowance
        self._clock = clock
        self._users: dict[str, _User] = {}

    async def acquire(self, user: str) -> Callable[[], None]:
        """Wait for a place. Return what releases it, to be called once.

        Raise Unavailable if too many of the user's calls wait, or if the user's allowance is used up.
        """
        entry = self._entry(user)
        turn = self._enter(entry)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in entry.waiting:
                entry.waiting.remove(turn)
            else:
                # It was granted in the meantime.
                self._leave(entry, self._clock())
            raise
        begun = self._clock()
        return lambda: self._leave(entry, begun)

    @contextlib.asynccontextmanager
    async def hold(self, user: str) -> AsyncIterator[None]:
        """Hold a place. Raise as ``acquire`` does."""
        release = await self.acquire(user)
        try:
            yield
        finally:
            release()

    def _entry(self, user: str) -> _User:
        if user not in self._users:
            if len(self._users) >= _REMEMBERED:
                self._forget_idle()
            self._users[user] = _User(self._clock())
        return self._users[user]

    def _enter(self, entry: _User) -> asyncio.Future[None]:
        if entry.running + len(entry.waiting) >= MAX_WAITING:
            raise Unavailable("Too many of your checks are waiting")
        if self._allowance is not None and entry.spent_until(self._clock()) >= self._allowance:
            raise Unavailable("Your policies have used up their processor time: try again in a minute")
        turn = asyncio.get_running_loop().create_future()
        entry.waiting.append(turn)
        return turn

    def _grant(self) -> None:
        """Give free places to those who wait."""
        now = self._clock()
        while self._free:
            candidates = [entry for entry in self._users.values() if entry.waiting and entry.running < self._per_user]
            if not candidates:
                return
            chosen = min(candidates, key=lambda entry: (entry.running, entry.spent_until(now)))
            turn = chosen.waiting.popleft()
            self._free -= 1
            chosen.running += 1
            if not turn.done():
                turn.set_result(None)

    def _leave(self, entry: _User, begun: float) -> None:
        now = self._clock()
        entry.spent_until(now)
        entry.spent += now - begun
        entry.running -= 1
        self._free += 1
        self._grant()

    def _forget_idle(self) -> None:
        now = self._clock()
        self._users = {
            user: entry
            for user, entry in self._users.items()
            if entry.waiting or entry.running or entry.spent_until(now) >= _NEGLIGIBLE
        }


@dataclass(slots=True)
class _UserSemaphore:
    semaphore: asyncio.Semaphore
    users: int = 0


class PerUserSemaphore:
    """Admit ``limit`` calls of each user at once; more of them wait in the order they came. For one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: dict[str, _UserSemaphore] = {}

    async def acquire(self, user: str) -> Callable[[], None]:
        """Wait until the user may continue. Return what releases the place, to be called once."""
        entry = self._entries.setdefault(user, _UserSemaphore(asyncio.Semaphore(self._limit)))
        entry.users += 1
        try:
            await entry.semaphore.acquire()
        except BaseException:
            self._leave(user, entry)
            raise

        def release() -> None:
            entry.semaphore.release()
            self._leave(user, entry)

        return release

    def _leave(self, user: str, entry: _UserSemaphore) -> None:
        entry.users -= 1
        if not entry.users:
            del self._entries[user]
