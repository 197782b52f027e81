"""Fair turns at what there is little of: processes for long work, the compiling of long policies."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from gemini_proxy.errors import Unavailable

MAX_WAITING: Final = 128
"""Calls of one user that wait for their turn, those whose turn it is included: each holds its body in memory."""
HALF_LIFE: Final = 60.0
"""Seconds after which half of the time that a user had is forgotten."""
_FORGOTTEN: Final = 0.01
"""Seconds of time had that are as good as none."""
_REMEMBERED: Final = 1_000
"""Users that are kept before those who had no time of late are dropped."""


@dataclass(slots=True)
class _User:
    """``spent`` seconds at a place, as of the moment ``at``; ``waiting`` are those calls that have no place yet."""

    at: float
    spent: float = 0.0
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    def spent_until(self, now: float) -> float:
        """Bring ``spent`` up to date."""
        self.spent *= 0.5 ** ((now - self.at) / HALF_LIFE)
        self.at = now
        return self.spent


class Turns:
    """``places`` at once, ``each`` of them for one user. The user who had least time of late goes first.

    Time is counted in seconds at a place, and half of it is forgotten every ``HALF_LIFE`` seconds. A user who had
    ``allowance`` seconds is refused until enough is forgotten. Among equals it is first come, first served.
    """

    def __init__(
        self,
        places: int = 1,
        *,
        each: int = 1,
        allowance: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free = places
        self._each = each
        self._allowance = allowance
        self._clock = clock
        self._users: dict[str, _User] = {}

    async def take(self, user: str) -> Callable[[], None]:
        """Wait for a place; what is returned gives it back, to be called once.

        Raises Unavailable where too much of the user's waits, or their allowance is used up.
        """
        who = self._known(user)
        turn = self._enter(who)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in who.waiting:
                who.waiting.remove(turn)
            else:
                # It was granted meanwhile.
                self._leave(who, self._clock())
            raise
        begun = self._clock()
        return lambda: self._leave(who, begun)

    @contextlib.asynccontextmanager
    async def of(self, user: str) -> AsyncIterator[None]:
        """Hold a place. Raises as ``take`` does."""
        give_back = await self.take(user)
        try:
            yield
        finally:
            give_back()

    def _known(self, user: str) -> _User:
        if user not in self._users:
            if len(self._users) >= _REMEMBERED:
                self._forget_idle()
            self._users[user] = _User(self._clock())
        return self._users[user]

    def _enter(self, who: _User) -> asyncio.Future[None]:
        if who.running + len(who.waiting) >= MAX_WAITING:
            raise Unavailable("Too many of your checks are waiting.")
        if self._allowance is not None and who.spent_until(self._clock()) >= self._allowance:
            raise Unavailable("Your policies have used up their processor time; there is more in a minute.")
        turn = asyncio.get_running_loop().create_future()
        who.waiting.append(turn)
        return turn

    def _grant(self) -> None:
        """Give what is free to those who wait."""
        now = self._clock()
        while self._free:
            wanting = [who for who in self._users.values() if who.waiting and who.running < self._each]
            if not wanting:
                return
            who = min(wanting, key=lambda one: (one.running, one.spent_until(now)))
            turn = who.waiting.popleft()
            self._free -= 1
            who.running += 1
            if not turn.done():
                turn.set_result(None)

    def _leave(self, who: _User, begun: float) -> None:
        now = self._clock()
        who.spent_until(now)
        who.spent += now - begun
        who.running -= 1
        self._free += 1
        self._grant()

    def _forget_idle(self) -> None:
        now = self._clock()
        self._users = {
            user: who
            for user, who in self._users.items()
            if who.waiting or who.running or who.spent_until(now) >= _FORGOTTEN
        }
