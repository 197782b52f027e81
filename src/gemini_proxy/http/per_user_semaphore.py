"""Shares of what there is little of, such as a database's readers: no user may have all of it at once."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Held:
    free: asyncio.Semaphore
    users: int = 0


class Shares:
    """At most so many at once for each user, others of theirs wait in the order they came. In one event loop."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._held: dict[str, _Held] = {}

    async def take(self, user: str) -> Callable[[], None]:
        """Wait for one of the user's shares; what is returned gives it back, to be called once."""
        held = self._held.setdefault(user, _Held(asyncio.Semaphore(self._each)))
        held.users += 1
        try:
            await held.free.acquire()
        except BaseException:
            self._leave(user, held)
            raise

        def give_back() -> None:
            held.free.release()
            self._leave(user, held)

        return give_back

    def _leave(self, user: str, held: _Held) -> None:
        held.users -= 1
        if not held.users:
            del self._held[user]
