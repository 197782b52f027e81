import asyncio
import time

import pytest
from sqlalchemy import Connection, text

from gemini_proxy.traces.database import OutOfTime, limited
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.store import TraceStore


def _counted(connection: Connection, most: int) -> int:
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :most) SELECT count(*) FROM n"
    return int(connection.execute(text(query), {"most": most}).scalar_one())


async def test_what_takes_too_long_ends_and_its_transaction_goes_on(store: TraceStore) -> None:
    def work(connection: Connection) -> int:
        with pytest.raises(OutOfTime), limited(connection, 0.02):
            _counted(connection, 10**9)
        # Without a limit again.
        return _counted(connection, 200_000)

    started = time.monotonic()
    assert await store.database.read(work) == 200_000
    assert time.monotonic() - started < 10


async def test_what_is_done_in_time_gives_its_result(store: TraceStore) -> None:
    def work(connection: Connection) -> int:
        with limited(connection, 60.0):
            return _counted(connection, 10)

    assert await store.database.read(work) == 10


async def test_other_failures_are_not_taken_for_it(store: TraceStore) -> None:
    def work(connection: Connection) -> None:
        with limited(connection, 0.0):
            connection.execute(text("SELECT no_such_function()"))

    with pytest.raises(StoreError):
        await store.database.read(work)
    assert await store.newest_seq() == 0


async def test_who_leaves_within_a_limit_has_left(postgres_url: str) -> None:
    """A cancellation stays one, and the connection is good for the next."""
    store = await TraceStore.open(postgres_url)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work(connection: Connection) -> None:
        with limited(connection, 60.0):
            loop.call_soon_threadsafe(begun.set)
            connection.execute(text("SELECT pg_sleep(60)"))

    reading = asyncio.create_task(store.database.read(work))
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await store.newest_seq() == 0
    await store.close()
