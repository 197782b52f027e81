"""Processes for work that would stall the event loop: large bodies, long checks. Started at first need."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Final, ParamSpec, TypeVar

from gemini_proxy.errors import EngineUnavailable

P = ParamSpec("P")
T = TypeVar("T")

PROCESSES: Final = 2
"""One can be busy with a long check while the other reads a large body; each takes about 60 MB once started."""


_NICE: Final = 10
"""Long checks take the processor time that the event loop leaves."""


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
        self._pool = ProcessPoolExecutor(self._processes, get_context("spawn"), initializer=_prepare)
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


def _prepare() -> None:
    """In a new process: let the server's loop go first, leave Ctrl-C to the server, and leave with it."""
    os.nice(_NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed server cannot end its processes, and they would wait for ever: each holds its own queue open."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
