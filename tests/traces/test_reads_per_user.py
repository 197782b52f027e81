import asyncio
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, TextClause, text

from gemini_proxy.traces.sqlite import READERS, READERS_OF_ONE
from gemini_proxy.traces.store import TraceStore

LONG = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT count(*) FROM n")


async def test_one_users_long_reads_leave_room_for_anothers(store: TraceStore) -> None:
    async def read(owner: str | None, query: TextClause) -> None:
        await store.database.read(lambda connection: connection.execute(query).scalar_one(), owner=owner)

    heavy = [asyncio.create_task(read("greedy", LONG)) for _ in range(12)]
    await asyncio.sleep(0)
    for owner in ("other", None):
        await read(owner, text("SELECT 1"))
    assert sum(task.done() for task in heavy) <= 4
    await asyncio.gather(*heavy)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_reads_that_nobody_waits_for_count_until_they_end(store: TraceStore) -> None:
    """A user who asks, leaves and asks again gets no more readers that way."""
    begun: list[int] = []
    go_on = threading.Event()
    both = threading.Barrier(READERS_OF_ONE + 1)

    def work(number: int) -> Callable[[Connection], None]:
        def run(_: Connection) -> None:
            begun.append(number)
            if number < READERS_OF_ONE:
                both.wait(10)
            go_on.wait(10)

        return run

    def ask(number: int) -> "asyncio.Task[None]":
        return asyncio.create_task(store.database.read(work(number), owner="greedy"))

    first = [ask(number) for number in range(READERS_OF_ONE)]
    await asyncio.to_thread(both.wait, 10)
    for task in first:
        task.cancel()
    await asyncio.gather(*first, return_exceptions=True)
    again = [ask(number) for number in range(READERS_OF_ONE, READERS + READERS_OF_ONE)]
    assert await store.database.read(lambda _: 1, owner="other") == 1
    assert len(begun) == READERS_OF_ONE
    go_on.set()
    await asyncio.gather(*again)
    assert sorted(begun) == list(range(READERS + READERS_OF_ONE))
