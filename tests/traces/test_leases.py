"""Who does the work that is to be done once: one process at a time, and another one soon after it is gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, text

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.leases import Lease, give_back, take
from gemini_proxy.traces.store import TraceStore
from tests.traces.samples import execute, locked

TERM = 0.6


class Work:
    """Goes on until it is cancelled, and says whether it is under way."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


@contextlib.asynccontextmanager
async def working(database: Database, work: Work) -> AsyncIterator[None]:
    """Work while the lease is held, for thirty seconds at most: what is waited for comes soon, or the test fails."""
    lease = Lease(database, "work", term=TERM)
    renewing = asyncio.create_task(lease.run())
    doing = asyncio.create_task(lease.during(work))
    try:
        async with asyncio.timeout(30):
            yield
    finally:
        for task in (doing, renewing):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_one_works_until_it_gives_the_lease_back(store: TraceStore) -> None:
    first, second = Work(), Work()
    async with contextlib.AsyncExitStack() as waiting:
        async with working(store.database, first):
            await first.begun.wait()
            await waiting.enter_async_context(working(store.database, second))
            # Longer than a term, in which the other ones would have taken it.
            for _ in range(5):
                assert not await _take(store.database, "other")
                await asyncio.sleep(TERM / 4)
            assert not first.ended.is_set() and not second.begun.is_set()
        await second.begun.wait()
        assert first.ended.is_set()


async def test_what_a_killed_process_held_is_taken_over_after_its_term(store: TraceStore) -> None:
    assert await _take(store.database, "killed")
    assert not await _take(store.database, "another")
    work = Work()
    async with working(store.database, work):
        await work.begun.wait()
        assert not await _take(store.database, "killed")


async def test_a_holder_that_lost_it_stops(store: TraceStore, database_url: str) -> None:
    work = Work()
    async with working(store.database, work):
        await work.begun.wait()
        await execute(database_url, "UPDATE leases SET holder = 'another'")
        await work.ended.wait()


async def test_a_holder_stops_by_itself_where_it_cannot_renew(store: TraceStore, database_url: str) -> None:
    work = Work()
    async with working(store.database, work):
        await work.begun.wait()
        async with locked(database_url):
            await work.ended.wait()
            # It may begin again before the lock is all gone.
            work.begun.clear()
        await work.begun.wait()


@pytest.mark.parametrize("ahead", [3_456_000.0, -3_456_000.0])
async def test_a_clock_that_was_wrong_keeps_no_lease(store: TraceStore, database_url: str, ahead: float) -> None:
    """Forty days ahead or behind when the lease was given, as before the machine was started anew."""
    assert await _take(store.database, "killed")
    await execute(database_url, f"UPDATE leases SET until = until + {ahead}")
    assert await _take(store.database, "another")


async def test_only_a_holder_gives_a_lease_back(store: TraceStore) -> None:
    assert await _take(store.database, "one")
    await store.database.write(lambda connection: give_back(connection, "work", "another"))
    assert not await _take(store.database, "another")
    await store.database.write(lambda connection: give_back(connection, "work", "one"))
    assert await _take(store.database, "another")


async def test_work_that_ends_or_fails_is_its_callers(store: TraceStore) -> None:
    lease = Lease(store.database, "work", term=TERM)
    renewing = asyncio.create_task(lease.run())
    results: list[str] = []

    async def ends() -> None:
        results.append("ended")

    async def fails() -> None:
        raise TimeoutError("its own")

    await lease.during(ends)
    with pytest.raises(TimeoutError, match="its own"):
        await lease.during(fails)
    assert results == ["ended"]
    renewing.cancel()
    await asyncio.wait([renewing])


async def _take(database: Database, holder: str) -> bool:
    return await database.write(lambda connection: take(connection, "work", holder, TERM))


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_who_waits_for_a_lease_writes_nothing(store: TraceStore) -> None:
    """Each of them asks once a second, and the database would wait for its disk each time."""
    assert await _take(store.database, "first")

    def ask(connection: Connection) -> object:
        assert not take(connection, "work", "second", TERM)
        return connection.scalar(text("SELECT pg_current_xact_id_if_assigned()::text"))

    assert await store.database.write(ask) is None
