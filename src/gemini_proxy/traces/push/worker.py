"""Send traces to an Explorer: take them from the queue in the database, try until they arrive or are refused."""

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Protocol

from gemini_proxy.traces.clock import Clock, SystemClock
from gemini_proxy.traces.errors import RowRejected, StoreError
from gemini_proxy.traces.push.answers import Answer, Failed, Failure, Rejected
from gemini_proxy.traces.push.queue import LARGE, PushJob, PushQueue

FIRST: Final = 1.0
LONGEST: Final = 300.0
# A service may ask for a longer pause than ours, but not for one so long that it is forgotten.
LONGEST_ASKED: Final = 3600.0


def pause(failures: int, jitter: float, asked: float | None = None) -> float:
    """Return the seconds to wait after this many failures in a row: doubled each time, from 1 to 300.

    ``jitter``, from 0 to 1, subtracts up to half of it, so that processes that failed together do not return together.
    ``asked`` is the pause that the service requests, honored up to an hour.
    """
    grown = min(FIRST * 2.0 ** min(max(failures - 1, 0), 32), LONGEST) * (1 - jitter / 2)
    return max(grown, min(asked or 0.0, LONGEST_ASKED))


class Backoff:
    """The state of a service: whether it responds, and how long to leave it alone.

    While ``probing``, one attempt at a time tests the service. A process also begins this way, so that repeated
    restarts do not flood the service.
    """

    def __init__(self) -> None:
        self.probing = True
        self.failures = 0
        self.round = 0
        self._pause = 0.0

    def failed(self, begun_in: int, jitter: float, asked: float | None = None) -> None:
        """Note that an attempt of round ``begun_in`` failed. Of simultaneous attempts only the first failure counts.

        It uses rounds instead of times, because clocks may be set back.
        """
        if begun_in != self.round:
            return
        self.round += 1
        self.failures += 1
        self.probing = True
        self._pause = pause(self.failures, jitter, asked)

    def succeeded(self) -> None:
        """Note that an attempt had a response: the service works."""
        self.probing = False
        self.failures = 0

    def take_pause(self) -> float:
        """Return the seconds to wait before the next attempt, once."""
        taken, self._pause = self._pause, 0.0
        return taken


logger = logging.getLogger(__name__)

# Attempts under way at once: what a service a hundred milliseconds away needs to take a few hundred traces a second.
LANES: Final = 16
# How long a job belongs to this process alone, in seconds; then other processes take over the jobs of a killed one.
LEASE: Final = 180.0
# The rest of a lease at the beginning of an attempt: longer than any attempt, so that no two run at once.
_ATTEMPT: Final = 90.0
# How often to look without being woken: for jobs that are due again, and for those that other processes queued.
POLL: Final = 5.0
# Between two looks at a due job that another process is just taking.
_SHORTEST: Final = 0.5
# How often to check the queue's length and age.
TRIM: Final = 10.0


class GivenUp(StrEnum):
    """Why a trace will not be delivered; a closed set, for it is a label of a metric."""

    REJECTED = "rejected"
    QUEUE_FULL = "queue_full"
    EXPIRED = "expired"
    DELETED = "deleted"


class Service(Protocol):
    """A receiver of traces."""

    async def send(self, document: bytes) -> Answer:
        """Send the body of one push; within a minute, and without raising."""
        ...


class PushWorker:
    """Send queued traces from ``run()``; any number of processes may share the queue.

    A trace leaves the queue when the service has confirmed it, or rejected it for good. Every other attempt is repeated
    after a pause, however long that takes: nothing about a job is only in memory. A trace is sent twice if the answer
    to the first attempt was lost, or if this process ended between the answer and the removal of the job. A failing
    service gets one attempt at a time, after growing pauses.

    The counters and ``last_error`` are this process's.
    """

    def __init__(
        self,
        queue: PushQueue,
        service: Service,
        ready: asyncio.Event,
        *,
        max_queue: int,
        max_age: Callable[[], float | None] = lambda: None,
        believed: Callable[[], float | None] | None = None,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """``ready`` is set when there may be jobs.

        Jobs beyond ``max_queue``, or older than ``max_age()`` seconds, are given up. Their age is that at
        ``believed()``, a Unix time; if it is None, no job is given up by age. Without ``believed``, the age goes by
        ``clock``.
        """
        self._queue = queue
        self._service = service
        self._ready = ready
        self._max_queue = max_queue
        self._max_age = max_age
        self._clock = clock or SystemClock()
        self._believed = believed or self._clock.time
        self._jitter = jitter
        self._patience = Backoff()
        self._taken: deque[PushJob] = deque()
        self._turn = asyncio.Lock()
        self._large = asyncio.Lock()
        self.delivered = 0
        self.failures = dict.fromkeys(Failure, 0)
        self.given_up = dict.fromkeys(GivenUp, 0)
        self.last_error: Failure | None = None

    @property
    def queue(self) -> PushQueue:
        """Return the traces that wait, of all processes."""
        return self._queue

    async def run(self) -> None:
        """Work until cancelled. What is under way then is tried again when its lease is over."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_bounded())
            group.create_task(self.deliver())

    async def deliver(self) -> None:
        """Send until cancelled, without bounding the queue."""
        async with asyncio.TaskGroup() as group:
            for _ in range(LANES):
                group.create_task(self._lane())

    async def bound(self) -> None:
        """Give up what is too old and, where too many wait, the oldest. Raises StoreError."""
        max_age, now = self._max_age(), self._believed()
        if max_age is not None and now is not None:
            expired = await self._queue.expire(now - max_age)
            self._give_up(expired, GivenUp.EXPIRED)
        self._give_up(await self._queue.trim(self._max_queue), GivenUp.QUEUE_FULL)

    async def _keep_bounded(self) -> None:
        while True:
            try:
                await self.bound()
            except StoreError as error:
                logger.warning("the push queue could not be read: %s", error)
            await self._clock.sleep(TRIM)

    async def _lane(self) -> None:
        while True:
            async with self._turn:
                job = await self._next()
                if self._patience.probing:
                    # The others wait for its result.
                    await self._attempt(job)
                    continue
            await self._attempt(job)

    async def _next(self) -> PushJob:
        """Return the next job that may be tried, when it may be."""
        while True:
            if rest := self._patience.take_pause():
                await self._clock.sleep(rest)
            if self._taken:
                return self._taken.popleft()
            await self._take()

    async def _take(self) -> None:
        self._ready.clear()
        wanted = 1 if self._patience.probing else LANES
        try:
            self._taken.extend(await self._queue.take(wanted, self._clock.time(), LEASE))
            due = None if self._taken else await self._queue.next_due()
        except StoreError as error:
            logger.warning("pushed traces wait: %s", error)
            await self._clock.sleep(POLL)
            return
        if not self._taken:
            rest = POLL if due is None else due - self._clock.time()
            await self._clock.wait(self._ready, min(max(rest, _SHORTEST), POLL))

    async def _attempt(self, job: PushJob) -> None:
        # Only one large trace at a time is in memory.
        async with self._large if job.size > LARGE else contextlib.nullcontext():
            begun_in = self._patience.round
            if self._clock.time() >= job.leased - _ATTEMPT:
                # It waited here during a pause, and may belong to another process by now.
                return
            try:
                document = await self._queue.document(job)
            except RowRejected:
                await self._reject(job, "it cannot be written as JSON")
                return
            except StoreError as error:
                logger.warning("a trace waits to be pushed: %s", error, extra={"trace_id": job.trace_id})
                await self._clock.sleep(1.0)
                return
            if document is None:
                self._give_up(await self._remove(job), GivenUp.DELETED)
                return
            answer = await self._service.send(document)
        await self._answered(job, answer, begun_in)

    async def _answered(self, job: PushJob, answer: Answer, begun_in: int) -> None:
        if isinstance(answer, Failed):
            await self._failed(job, answer, begun_in)
            return
        if self._patience.failures:
            logger.warning("traces are pushed again")
        self._patience.succeeded()
        self.last_error = None
        if isinstance(answer, Rejected):
            await self._reject(job, f"HTTP {answer.status}")
        else:
            removed = await self._remove(job)
            self.delivered += removed

    async def _failed(self, job: PushJob, answer: Failed, begun_in: int) -> None:
        if not self._patience.failures:
            logger.warning("traces are not pushed: %s", answer.reason)
        self.failures[answer.reason] += 1
        self.last_error = answer.reason
        self._patience.failed(begun_in, self._jitter(), answer.retry_after)
        due = self._clock.time() + pause(job.attempts, self._jitter(), answer.retry_after)
        try:
            await self._queue.postpone(job, due)
        except StoreError as error:
            fields = {"trace_id": job.trace_id}
            logger.warning("a trace will be pushed again when its lease ends: %s", error, extra=fields)

    async def _reject(self, job: PushJob, reason: str) -> None:
        fields = {"trace_id": job.trace_id, "reason": reason}
        logger.error("the Explorer rejected a trace", extra=fields)
        removed = await self._remove(job)
        self.given_up[GivenUp.REJECTED] += removed

    async def _remove(self, job: PushJob) -> int:
        """Remove the job, however long the database refuses: a delivered trace must not be sent again.

        Return the number of removed jobs: none if another process had the same answer first.
        """
        while True:
            try:
                return int(await self._queue.remove(job))
            except StoreError as error:
                fields = {"trace_id": job.trace_id}
                logger.warning("the push of a trace cannot be marked as done: %s", error, extra=fields)
                await self._clock.sleep(1.0)

    def _give_up(self, count: int, why: GivenUp) -> None:
        if count:
            self.given_up[why] += count
            logger.error("%d traces will not be pushed: %s", count, why)
