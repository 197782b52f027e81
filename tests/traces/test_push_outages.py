"""What becomes of queued traces while the Explorer, the database or the process fails."""

import asyncio
from dataclasses import replace

from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.push.answers import Failure
from gemini_proxy.traces.push.queue import PushJob, PushQueue
from gemini_proxy.traces.push.service import ExplorerService
from gemini_proxy.traces.push.worker import PushWorker
from gemini_proxy.traces.store import TraceStore
from tests.support.clock import JumpingClock
from tests.support.explorer_service import KEY, Behaviour, ExplorerDouble, Fault, Status
from tests.traces.pushing import NOW, ONE_DATABASE, pushed, waiting, working
from tests.traces.samples import query


async def test_while_the_service_fails_it_is_asked_by_one_attempt_at_a_time_with_growing_pauses(
    store: TraceStore, explorer: ExplorerDouble
) -> None:
    await store.add(pushed(300))
    explorer.behaviour = Status(503)
    async with working(store, explorer.url) as running:
        await running.advance(3600)
        assert (explorer.calls, running.queue.most) == (20, 1)
        explorer.behaviour = None
        await running.advance(301)
    assert set(explorer.received.values()) == {1} and len(explorer.received) == 300
    assert 1 < running.queue.most <= 16


async def test_a_failure_under_load_is_one_failure_however_many_attempts_it_hits(
    store: TraceStore, explorer: ExplorerDouble
) -> None:
    explorer.gate = asyncio.Event()
    await store.add(pushed(1))
    async with working(store, explorer.url) as running:
        explorer.gate.set()
        await running.advance(20)
        explorer.gate.clear()
        await store.add(pushed(40))
        explorer.behaviour = Status(500)
        running.clock.horizon += 16
        running.clock.moved.set()
        while explorer.calls < 17:
            explorer.arrived.clear()
            await explorer.arrived.wait()
        explorer.gate.set()
        await running.advance(0.5)
        assert (explorer.calls, running.worker.failures[Failure.SERVER_ERROR]) == (17, 16)
        explorer.behaviour = None
        await running.advance(30)
    assert len(explorer.received) == 41


async def test_a_service_may_ask_for_patience(store: TraceStore, explorer: ExplorerDouble) -> None:
    await store.add(pushed(1))
    explorer.behaviour = Status(429, {"retry-after": "600"})
    async with working(store, explorer.url) as running:
        await running.advance(599)
        assert explorer.calls == 1
        await running.advance(30)
        assert explorer.calls == 2


async def test_an_hour_of_outage_with_restarts_loses_nothing_and_repeats_only_where_an_answer_was_lost(
    database_url: str, explorer: ExplorerDouble
) -> None:
    """Every way to fail, a new worker on a newly opened database every six minutes, and traces all the while."""
    outage: list[Behaviour] = [Fault.LOST_ANSWER, Status(500), Status(429), Status(401), Fault.GARBAGE]
    outage += [Fault.PAGE, Status(503, {"retry-after": "30"}), Fault.REDIRECT, Status(404), Fault.RESET]
    written: list[str] = []
    clock = JumpingClock(NOW)
    for behaviour in [None, *outage, None]:
        store = await TraceStore.open(database_url)
        explorer.behaviour = behaviour
        async with working(store, explorer.url, clock=clock) as running:
            for _ in range(6):
                batch = pushed(5, created=clock.time())
                await store.add(batch)
                written += [one.id for one in batch]
                await running.advance(60)
        await store.close()
    assert clock.time() - NOW == 12 * 360
    assert set(explorer.received) == set(written)
    assert explorer.received.total() == len(written) + explorer.lost
    assert explorer.lost > 0
    assert await query(database_url, "SELECT count(*) FROM jobs") == [(0,)]


async def test_a_killed_processs_traces_are_sent_when_their_leases_are_over(
    database_url: str, store: TraceStore, explorer: ExplorerDouble
) -> None:
    written = pushed(40)
    await store.add(written)
    explorer.behaviour = Fault.HANG
    clock = JumpingClock(NOW)
    async with working(store, explorer.url, clock=clock) as running:
        await explorer.arrived.wait()
    assert (running.worker.delivered, await waiting(store)) == (0, 40)
    explorer.behaviour = None
    async with working(store, explorer.url, clock=clock) as running:
        await running.advance(60)
        assert len(explorer.received) == 39
        await running.advance(180)
    assert explorer.received == dict.fromkeys([one.id for one in written], 1)


@ONE_DATABASE
async def test_a_job_whose_lease_is_nearly_over_is_left_to_who_takes_it_next(
    store: TraceStore, explorer: ExplorerDouble
) -> None:
    class Slow(PushQueue):
        """Its jobs have lain about for a while when they are given out, but for the last ones."""

        leases = 2

        async def take(self, limit: int, now: float, lease: float) -> list[PushJob]:
            late = lease - 89.0 if self.leases else 0.0
            self.leases -= bool(self.leases)
            return [replace(job, leased=job.leased - late) for job in await super().take(limit, now, lease)]

    await store.add(pushed(1))
    clock = JumpingClock(NOW)
    async with ExplorerService(explorer.url, KEY) as service:
        worker = PushWorker(Slow(store.database), service, asyncio.Event(), max_queue=10, clock=clock)
        clock.still.set()
        task = asyncio.create_task(worker.deliver())
        await clock.advance(170)
        assert explorer.calls == 0
        await clock.advance(400)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert explorer.calls == 1


@ONE_DATABASE
async def test_a_trace_is_tried_again_as_soon_as_its_own_pause_is_over(
    store: TraceStore, explorer: ExplorerDouble
) -> None:
    """The service's pause, which has a jitter of its own, may end before."""
    await store.add(pushed(1))
    explorer.script = [Status(500)]
    jitters = iter([1.0, 0.0])
    async with working(store, explorer.url, jitter=lambda: next(jitters)) as running:
        await running.advance(2)
    assert len(explorer.received) == 1


async def test_two_workers_share_the_queue(database_url: str, store: TraceStore, explorer: ExplorerDouble) -> None:
    written = pushed(200)
    await store.add(written)
    other = await TraceStore.open(database_url)
    async with working(store, explorer.url) as first, working(other, explorer.url) as second:
        await asyncio.gather(first.advance(5), second.advance(5))
    await other.close()
    assert explorer.received == dict.fromkeys([one.id for one in written], 1)
    assert first.worker.delivered + second.worker.delivered == 200
    assert first.worker.delivered > 20 and second.worker.delivered > 20


async def test_a_database_that_fails_between_answer_and_removal_does_not_make_a_second_delivery(
    store: TraceStore, explorer: ExplorerDouble
) -> None:
    class Stubborn(PushQueue):
        refusals = 3

        async def remove(self, job: PushJob) -> bool:
            if self.refusals:
                self.refusals -= 1
                raise StoreError("the database is locked")
            return await super().remove(job)

    await store.add(pushed(1))
    clock = JumpingClock(NOW)
    async with ExplorerService(explorer.url, KEY) as service:
        worker = PushWorker(Stubborn(store.database), service, asyncio.Event(), max_queue=10, clock=clock)
        task = asyncio.create_task(worker.deliver())
        await clock.advance(60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (explorer.calls, worker.delivered, await waiting(store)) == (1, 1, 0)
