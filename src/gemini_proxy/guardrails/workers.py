"""Run work that would stall the event loop, such as large bodies and long checks, in processes.

Processes start when they are first needed. Each is a pool of its own: in the standard library's pool, all processes end
when one has to. They are forked from a process that has loaded the needed modules (multiprocessing's ``forkserver``),
so that a killed process is replaced in milliseconds.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from typing import Any, Final, ParamSpec, TypeVar

from gemini_proxy.errors import EngineUnavailable, Unavailable
from gemini_proxy.http.fair_lock import FairLock

P = ParamSpec("P")
T = TypeVar("T")

PROCESSES: Final = 2
"""Processes for one kind of work. A user has at most one of them. Each takes about 20 MB that it does not share."""
_NICE: Final = 10
"""Long checks take the processor time that the event loop leaves over."""
_PRELOADED: Final = (
    "gemini_proxy.guardrails.native",
    "gemini_proxy.gemini.request",
    "gemini_proxy.explorer.pages.trial_batch",
    "gemini_proxy.cli",
)
"""Modules that processes begin with, if this one has loaded them: those of their work, and those of the command's
script, which multiprocessing runs in each process."""


class Workers:
    """Run one kind of work in processes. The work takes and returns picklable values and keeps no state.

    Each ``client`` has one process at a time (see FairLock, also for ``allowance``). ``longest`` limits the seconds of
    one call; without it the caller's own limit holds. ``nice`` is the niceness of these processes, by which they give
    way to the event loop.
    """

    def __init__(
        self,
        processes: int = PROCESSES,
        *,
        longest: float | None = None,
        allowance: float | None = None,
        nice: int = _NICE,
    ) -> None:
        self._lock = FairLock(processes, allowance=allowance)
        self._longest = longest
        self._nice = nice
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def run_within(
        self, client: str, seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call ``function`` in a process within ``seconds``, the wait included. Its exceptions reach the caller.

        Raises EngineUnavailable if no process is free for the client in time, if the time runs out, which kills the
        process, and if the process dies. Work that has begun continues, within its time, after its caller has left.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        try:
            async with asyncio.timeout_at(ends):
                give_back = await self._lock.acquire(client)
        except TimeoutError:
            raise EngineUnavailable("No worker process was free for the check in time") from None
        except Unavailable as error:
            raise EngineUnavailable(error.message) from None
        # The server's other tasks may end by themselves at shutdown; this one is not waited for, its process is killed.
        work = loop.create_task(self._work(ends, give_back, partial(function, *args, **kwargs)))
        self._tasks.add(work)
        work.add_done_callback(self._ended)
        return await asyncio.shield(work)

    async def _work(self, ends: float, give_back: Callable[[], None], call: Callable[[], T]) -> T:
        """Run at a place that was acquired, and give it back."""
        process = self._idle.pop() if self._idle else _Process(self._nice)
        self._busy.add(process)
        try:
            return await self._run(process, ends, call)
        finally:
            self._busy.discard(process)
            if not self._closed:
                # The replacement of a killed process starts at once.
                self._idle.append(_Process(self._nice) if process.ended else process)
            give_back()

    async def _run(self, process: "_Process", ends: float, call: Callable[[], T]) -> T:
        """Run the call. Raises what it raises, and EngineUnavailable after killing a process that is of no use."""
        try:
            async with asyncio.timeout_at(ends):
                pool = await process.ready()
        except TimeoutError:
            raise EngineUnavailable("No worker process for the check started in time") from None
        except BrokenExecutor:
            process.end()
            raise EngineUnavailable("No worker process for the check could be started") from None
        if self._longest is not None:
            ends = min(ends, asyncio.get_running_loop().time() + self._longest)
        limit = asyncio.timeout_at(ends)
        try:
            async with limit:
                return await asyncio.wrap_future(pool.submit(call))
        except BrokenExecutor:
            process.end()
            raise EngineUnavailable("A worker process that runs checks died") from None
        except TimeoutError:
            if not limit.expired():
                raise
            process.end()
            raise EngineUnavailable("The check timed out") from None

    def _ended(self, work: "asyncio.Task[Any]") -> None:
        self._tasks.discard(work)
        if not work.cancelled():
            # Retrieve the exception: a caller who has left does not.
            work.exception()

    def close(self) -> None:
        """Kill all processes, whatever they do."""
        self._closed = True
        for process in (*self._idle, *self._busy):
            process.end()
        self._idle.clear()


class _Process:
    """A worker process that does one piece of work at a time. It starts in a thread."""

    def __init__(self, nice: int) -> None:
        self._start = asyncio.get_running_loop().run_in_executor(None, _started, nice)
        self.ended = False

    async def ready(self) -> ProcessPoolExecutor:
        """Wait until the process runs. Raises BrokenExecutor if it cannot be started."""
        return await asyncio.shield(self._start)

    def end(self) -> None:
        """Kill the process, or let it be killed as soon as it has started."""
        self.ended = True
        self._start.add_done_callback(_kill)


def _started(nice: int) -> ProcessPoolExecutor:
    """Start a pool of one process. Raises BrokenExecutor if it cannot be started."""
    try:
        pool = ProcessPoolExecutor(1, _context(), initializer=_prepare, initargs=(nice,))
        pool.submit(_nothing).result()
    except OSError as error:
        raise BrokenExecutor(f"no process could be started: {error}") from error
    return pool


def _kill(start: "asyncio.Future[ProcessPoolExecutor]") -> None:
    if start.cancelled() or start.exception() is not None:
        return
    pool = start.result()
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False)
    for process in processes:
        process.kill()


def _context() -> BaseContext:
    context = get_context("forkserver")
    context.set_forkserver_preload([name for name in _PRELOADED if name in sys.modules])
    return context


def _nothing() -> None:
    """Return as soon as the process runs."""


def _prepare(nice: int) -> None:
    """Prepare a new process: give way to the server's loop, leave Ctrl-C and SIGHUP to the server, and end with it."""
    os.nice(nice)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the server: when it is killed it cannot end its processes, each of which holds its own queue open."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
