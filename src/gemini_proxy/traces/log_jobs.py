"""Run logging rules after their exchange: take them from the queue in the database, add what they find to the trace."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from gemini_proxy.traces.clock import is_set_within
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.jobs import Job
from gemini_proxy.traces.trace import Annotation

logger = logging.getLogger(__name__)

# A job that ended its worker or its process this often is given up.
MAX_ATTEMPTS: Final = 3
# How many traces are in memory at once. They are checked one after another before their lease is over; otherwise
# another process would check them as well, and a false attempt would be counted.
TAKEN_AT_ONCE: Final = 8
# How often to look without being woken: for jobs whose lease ran out, and for those of other processes that died.
POLL_SECONDS: Final = 15.0

Check = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], Awaitable[Sequence[Annotation]]]


class JobQueue(Protocol):
    """The part of the store that holds the queue."""

    async def take_jobs(self, limit: int) -> list[Job]: ...

    async def finish_job(self, job: Job, found: Sequence[Annotation]) -> bool: ...


class LogRuleWorker:
    """Run queued logging rules in one task, ``run()``.

    Each job's check runs at least once and its annotations are stored exactly once. A check that raises is tried again
    when the job's lease is over; after three attempts the job is removed and logged.
    """

    def __init__(
        self,
        queue: JobQueue,
        check: Check,
        ready: asyncio.Event,
        *,
        done: asyncio.Event | None = None,
        poll: float = POLL_SECONDS,
    ) -> None:
        """``check`` takes messages and rules; ``ready`` says that there may be jobs, ``done`` that some ended."""
        self._queue = queue
        self._check = check
        self._ready = ready
        self._done = done
        self._poll = poll
        self.abandoned = 0

    async def run(self) -> None:
        """Work until cancelled, beginning with what an earlier process left."""
        while True:
            self._ready.clear()
            try:
                await self.drain()
            except StoreError as error:
                logger.warning("logging rules wait: %s", error)
            await is_set_within(self._ready, self._poll)

    async def drain(self) -> None:
        """Run every job that is due now. Raises StoreError."""
        while taken := await self._queue.take_jobs(TAKEN_AT_ONCE):
            for job in taken:
                await self._run(job)
            if self._done is not None:
                self._done.set()

    async def _run(self, job: Job) -> None:
        # Over the limit but not removed: the process died with it each time.
        if job.attempts > MAX_ATTEMPTS:
            await self._abandon(job, "its process ended")
            return
        try:
            found = await self._check(job.messages, job.rules)
        except Exception as error:
            if job.attempts == MAX_ATTEMPTS:
                await self._abandon(job, type(error).__name__)
            else:
                fields = {"trace_id": job.trace_id, "error": type(error).__name__}
                logger.warning("logging rules of a trace failed", extra=fields)
            return
        await self._queue.finish_job(job, found)

    async def _abandon(self, job: Job, reason: str) -> None:
        await self._queue.finish_job(job, ())
        self.abandoned += 1
        fields = {"trace_id": job.trace_id, "attempts": MAX_ATTEMPTS, "reason": reason}
        logger.error("logging rules of a trace were given up", extra=fields)
