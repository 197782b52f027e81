"""Start all background tasks, own them until they end, and take long work off the event loop."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, ParamSpec, TypeVar

from gemini_proxy.errors import origin_of
from gemini_proxy.traces.clock import Clock, SystemClock

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0
"""Seconds between a failure of a task that must live and its next start; each is twice the one before."""
SETTLED: Final = 60.0
"""Seconds without a failure after which the next one counts as the first: logged, with a short pause."""
_LARGE: Final = 65_536
"""Bytes whose strings take more than the five milliseconds that the loop may lose."""


async def off_loop(size: int, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Return what ``work`` returns on ``size`` bytes: in a thread if it may take long."""
    if size > _LARGE:
        return await asyncio.to_thread(work, *arguments, **options)
    return work(*arguments, **options)


class Tasks:
    """Keep every task alive, report what failed, and leave none behind at shutdown."""

    def __init__(self, clock: Clock | None = None) -> None:
        """``clock`` measures the pauses of tasks that are kept."""
        self._clock = clock or SystemClock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._restarts: dict[str, int] = {}
        self._down: dict[str, None] = {}

    @property
    def restarts(self) -> Mapping[str, int]:
        """Return the number of restarts of each permanent task, by name."""
        return self._restarts

    @property
    def down(self) -> Sequence[str]:
        """Return the names of kept tasks that do not run now because they have failed."""
        return tuple(self._down)

    def keep(
        self, work: Callable[[], Coroutine[Any, Any, None]], name: str, *, longest: float = LONGEST_PAUSE
    ) -> asyncio.Task[None]:
        """Run ``work()`` until it returns or the task is cancelled, and again after a pause whenever it fails.

        ``longest`` bounds the pauses, in seconds.
        """
        self._restarts.setdefault(name, 0)
        return self.spawn(self._live(work, name, longest), name)

    async def _live(self, work: Callable[[], Coroutine[Any, Any, None]], name: str, longest: float) -> None:
        pause = 0.0
        while True:
            started = self._clock.time()
            try:
                await work()
                return
            except (Exception, asyncio.CancelledError) as error:
                # If ``work`` waited for a future that was cancelled, that is a failure like any other.
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                if not pause or self._clock.time() - started > SETTLED:
                    pause = FIRST_PAUSE
                    log.error("%s failed and is started again: %s\n%s", name, type(error).__name__, origin_of(error))
                else:
                    pause = min(2 * pause, longest)
            self._down[name] = None
            try:
                await self._clock.sleep(pause)
            finally:
                del self._down[name]
            self._restarts[name] += 1

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run ``work`` for itself; a failure is logged."""
        task = self.beside(work, name)
        task.add_done_callback(_report)
        return task

    def beside(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run ``work`` beside the caller, who takes its result or its failure."""
        task = asyncio.create_task(work, name=name)  # noqa: TID251
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Retrieve the exception: the caller may have left before the task failed.
            task.exception()

    async def settle(self, name: str, grace: float) -> None:
        """Wait ``grace`` seconds for the tasks of that name to end."""
        named = [task for task in self._tasks if task.get_name() == name]
        if named:
            await asyncio.wait(named, timeout=grace)

    async def close(self, grace: float) -> None:
        """Wait ``grace`` seconds for what is under way, then cancel the rest and wait for it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background task %s failed: %s", task.get_name(), type(error).__name__)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
