"""A semaphore for each user: nobody takes all of a scarce resource, such as a database's readers."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


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
