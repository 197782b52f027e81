"""The one place that starts background tasks, and owns them until they end."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class Tasks:
    """Keeps every task alive, reports what failed, and leaves none behind at shutdown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

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
            # Marks it as seen: the caller may have left before the task failed.
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
