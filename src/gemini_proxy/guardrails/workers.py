"""Processes for work that would stall the event loop: large bodies, long checks. Started at first need."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from typing import Any, Final, ParamSpec, TypeVar

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
        self._free = asyncio.Semaphore(processes)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in a process. Its exceptions are the caller's; EngineUnavailable when the process died."""
        await self._free.acquire()
        return await self._begun(self._pool or self._start(), function, *args, **kwargs)

    async def run_within(self, seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``run``, but EngineUnavailable where no process is free within ``seconds``, or after as many in one.

        In the second case the processes are ended, for one is stuck. In the first they are at work for others.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError:
            raise EngineUnavailable("No process was free for the check within its time.") from None
        pool = self._pool or self._start()
        try:
            async with asyncio.timeout(seconds):
                return await self._begun(pool, function, *args, **kwargs)
        except TimeoutError:
            self.abandon(pool)
            raise EngineUnavailable("The check took longer than its time.") from None

    async def _begun(self, pool: ProcessPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Work in a process that was taken. It is free again when the work has ended, whether or not somebody waits."""
        try:
            work = pool.submit(function, *args, **kwargs)
        except BrokenExecutor:
            self._free.release()
            self.abandon(pool)
            raise EngineUnavailable("A process that does checks died.") from None
        work.add_done_callback(partial(self._ended, asyncio.get_running_loop()))
        try:
            return await asyncio.wrap_future(work)
        except BrokenExecutor:
            self.abandon(pool)
            raise EngineUnavailable("A process that does checks died.") from None

    def _ended(self, loop: asyncio.AbstractEventLoop, work: Future[Any]) -> None:
        # In the pool's own thread, which may outlive the loop.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._free.release)

    def _start(self) -> ProcessPoolExecutor:
        self._pool = ProcessPoolExecutor(self._processes, get_context("spawn"), initializer=_prepare)
        return self._pool

    def abandon(self, pool: ProcessPoolExecutor) -> None:
        """End the processes of ``pool``; the next call starts new ones."""
        if pool is self._pool:
            self._pool = None
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False)
        for process in processes:
            process.kill()

    def close(self) -> None:
        if self._pool is not None:
            self.abandon(self._pool)


def _prepare() -> None:
    """In a new process: let the server's loop go first, leave Ctrl-C and SIGHUP to the server, and leave with it."""
    os.nice(_NICE)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed server cannot end its processes, and they would wait for ever: each holds its own queue open."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
