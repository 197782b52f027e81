"""Processes for work that would stall the event loop: large bodies, long checks. Started at first need."""

import asyncio
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final, ParamSpec, TypeVar

from gemini_proxy.errors import EngineUnavailable

P = ParamSpec("P")
T = TypeVar("T")

PROCESSES: Final = 2
"""One can be busy with a long check while the other reads a large body; each takes about 60 MB once started."""


class Workers:
    """A pool of processes. What runs there takes and returns picklable values and keeps no state."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in a process. Its exceptions are the caller's; EngineUnavailable when the process died."""
        pool = self._pool or self._start()
        try:
            return await asyncio.wrap_future(pool.submit(function, *args, **kwargs))
        except BrokenExecutor:
            self.abandon(pool)
            raise EngineUnavailable("A process that does checks died.") from None

    async def run_within(self, seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``run``, but EngineUnavailable after ``seconds``; the processes are then ended, for one is stuck."""
        pool = self._pool or self._start()
        try:
            async with asyncio.timeout(seconds):
                return await self.run(function, *args, **kwargs)
        except TimeoutError:
            self.abandon(pool)
            raise EngineUnavailable("The check took longer than its time.") from None

    def _start(self) -> ProcessPoolExecutor:
        self._pool = ProcessPoolExecutor(self._processes, get_context("spawn"), initializer=_ignore_interrupt)
        return self._pool

    def abandon(self, pool: ProcessPoolExecutor) -> None:
        """End the processes of ``pool``; the next call starts new ones."""
        if pool is self._pool:
            self._pool = None
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()

    def close(self) -> None:
        if self._pool is not None:
            self.abandon(self._pool)


def _ignore_interrupt() -> None:
    """Ctrl-C reaches the whole group; the server ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
