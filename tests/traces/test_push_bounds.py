"""What limits the push queue."""

import asyncio

import pytest

from gemini_proxy.traces.push.queue import PushQueue
from gemini_proxy.traces.push.service import ExplorerService
from gemini_proxy.traces.push.worker import GivenUp, PushWorker
from gemini_proxy.traces.store import TraceStore
from tests.support.clock import JumpingClock
from tests.support.explorer_service import KEY, ExplorerDouble
from tests.traces.pushing import NOW, pushed, waiting, working


async def test_a_full_queue_gives_up_its_oldest_and_counts_them(
    store: TraceStore, explorer: ExplorerDouble, caplog: pytest.LogCaptureFixture
) -> None:
    written = pushed(1_100)
    await store.add(written)
    worker = PushWorker(PushQueue(store.database), ExplorerService("http://x", KEY), asyncio.Event(), max_queue=100)
    await worker.bound()
    assert (worker.given_up[GivenUp.QUEUE_FULL], await waiting(store)) == (1_000, 100)
    assert caplog.messages == ["1000 traces will not be pushed: queue_full"]
    async with working(store, explorer.url) as running:
        await running.advance(5)
    assert set(explorer.received) == {one.id for one in written[1_000:]}


async def test_two_processes_that_trim_at_once_do_not_trim_twice(database_url: str, store: TraceStore) -> None:
    await store.add(pushed(900))
    other = await TraceStore.open(database_url)
    removed = await asyncio.gather(PushQueue(store.database).trim(200), PushQueue(other.database).trim(200))
    await other.close()
    assert (sum(removed), await waiting(store)) == (700, 200)


async def test_pushes_of_traces_past_their_time_are_given_up_before_retention_takes_them(store: TraceStore) -> None:
    await store.add([*pushed(3, created=NOW - 101), *pushed(2, created=NOW - 99)])
    worker = PushWorker(
        PushQueue(store.database),
        ExplorerService("http://x", KEY),
        asyncio.Event(),
        max_queue=100,
        max_age=lambda: 100.0,
        clock=JumpingClock(NOW),
    )
    await worker.bound()
    assert (worker.given_up[GivenUp.EXPIRED], await waiting(store)) == (3, 2)


async def test_no_push_is_given_up_by_a_clock_that_is_not_believed(store: TraceStore) -> None:
    await store.add(pushed(3, created=NOW - 101))
    worker = PushWorker(
        PushQueue(store.database),
        ExplorerService("http://x", KEY),
        asyncio.Event(),
        max_queue=100,
        max_age=lambda: 100.0,
        believed=lambda: None,
        clock=JumpingClock(NOW),
    )
    await worker.bound()
    assert (worker.given_up[GivenUp.EXPIRED], await waiting(store)) == (0, 3)


async def test_a_trace_deleted_while_it_waits_is_not_sent(store: TraceStore, explorer: ExplorerDouble) -> None:
    await store.add(pushed(1))
    await store.delete_before(NOW)
    async with working(store, explorer.url) as running:
        await running.advance(60)
    assert (explorer.calls, await waiting(store)) == (0, 0)
