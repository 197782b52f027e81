"""Turns at what there is one of: a process for long checks, the compiling of long policies."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from gemini_proxy.errors import Unavailable

MAX_WAITING: Final = 128
"""Calls of one user that wait for their turn, the one whose turn it is included: each holds its body in memory."""


class Turns:
    """One at a time, and users by turns: who asks for much waits for what they asked for themselves."""

    def __init__(self) -> None:
        self._everybody = asyncio.Lock()
        self._own: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def of(self, user: str) -> AsyncIterator[None]:
        """Hold the user's turn. Raises Unavailable where too much of theirs waits."""
        if self._waiting[user] >= MAX_WAITING:
            raise Unavailable("Too many of your checks are waiting.")
        self._waiting[user] += 1
        try:
            # A lock is first come, first served: a user has one call at most in the queue of everybody.
            async with self._own.setdefault(user, asyncio.Lock()), self._everybody:
                yield
        finally:
            self._waiting[user] -= 1
            if not self._waiting[user]:
                del self._waiting[user], self._own[user]


COMPILING = web.AppKey("COMPILING", Turns)
CHECKING = web.AppKey("CHECKING", Turns)
