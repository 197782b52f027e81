"""A worker that pushes what a test has queued, at the speed of the test."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.push.queue import PushJob, PushQueue
from gemini_proxy.traces.push.service import ExplorerService
from gemini_proxy.traces.push.worker import PushWorker
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Trace
from tests.support.clock import JumpingClock
from tests.support.explorer_service import KEY
from tests.traces.samples import trace

ONE_DATABASE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
RULE = {"id": "l1", "name": "logged", "content": "...", "action": "log", "parameters": {}}
NOW = 1_800_000_000.0


class WatchedQueue(PushQueue):
    """Tells when no attempt is under way: from the reading of a trace to what becomes of its job."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.under_way = 0
        self.most = 0
        self.quiet = asyncio.Event()
        self.quiet.set()

    async def document(self, job: PushJob) -> bytes | None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.quiet.clear()
        return await super().document(job)

    async def remove(self, job: PushJob) -> bool:
        removed = await super().remove(job)
        self._ended()
        return removed

    async def postpone(self, job: PushJob, due: float) -> None:
        await super().postpone(job, due)
        self._ended()

    def _ended(self) -> None:
        self.under_way -= 1
        if not self.under_way:
            self.quiet.set()


class Running:
    """A worker that works while its clock is allowed to go on."""

    def __init__(self, worker: PushWorker, clock: JumpingClock, queue: WatchedQueue) -> None:
        self.worker = worker
        self.clock = clock
        self.queue = queue

    async def advance(self, seconds: float) -> None:
        async with asyncio.timeout(20):
            await self.clock.advance(seconds)


@contextlib.asynccontextmanager
async def working(
    store: TraceStore, to: str, *, clock: JumpingClock | None = None, patience: float = 5.0, **options: Any
) -> AsyncIterator[Running]:
    """A worker on a store's queue, as a process has one."""
    async with ExplorerService(to, KEY, timeout=patience) as service:
        queue = WatchedQueue(store.database)
        clock = clock or JumpingClock(NOW)
        clock.still = queue.quiet
        given: dict[str, Any] = {"max_queue": 100_000, "jitter": lambda: 0.0, **options}
        worker = PushWorker(queue, service, asyncio.Event(), clock=clock, **given)
        task = asyncio.create_task(worker.deliver())
        yield Running(worker, clock, queue)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def waiting(store: TraceStore) -> int:
    return (await PushQueue(store.database).queued()).waiting


def pushed(count: int, **fields: Any) -> list[Trace]:
    return [trace(push=True, **fields) for _ in range(count)]
