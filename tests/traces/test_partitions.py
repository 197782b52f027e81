"""PostgreSQL's partitions of traces: begun, dropped while others read and write, and made of tables without any."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from alembic import command
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from gemini_proxy.traces.database import connect, serialise_writers
from gemini_proxy.traces.errors import RowRejected, StoreError
from gemini_proxy.traces.inserts import insert_annotations
from gemini_proxy.traces.migrations.upgrade import scripts, upgrade
from gemini_proxy.traces.partitions import WIDTH, Partitions, leap, open_partition, partitions
from gemini_proxy.traces.postgres import PostgresDatabase, TimeLimits
from gemini_proxy.traces.retention import DAY, Kept
from gemini_proxy.traces.rows import annotation_rows, encode
from gemini_proxy.traces.search.indexer import Indexer
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Trace
from tests.support.pooler import POOLER, running_pooler
from tests.support.postgres import PostgresServer
from tests.traces.samples import ANNOTATION, query, trace
from tests.traces.test_retention import NOW, aged, retain, right

EVER = float("inf")
PATIENCE = 20.0
TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^(traces|search)_' ORDER BY relname"
HANGING = "SELECT (SELECT count(*) FROM search), (SELECT count(*) FROM annotations), (SELECT count(*) FROM jobs)"


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """Of the two kinds this one only."""
    return postgres_url


@pytest.fixture
async def unpartitioned(postgres_server: PostgresServer, database_url: str) -> str:
    """A database as the version before left it, with an old trace and a young one."""
    await _empty(database_url)
    database = connect(database_url)
    await database.migrate(_upgrade_to_version_before)
    store = TraceStore(database)
    await store.add([_old(), trace("young")])
    await Indexer(database, asyncio.Event()).catch_up()
    await store.close()
    return database_url


async def _empty(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        await connection.exec_driver_sql("CREATE SCHEMA public")
    await engine.dispose()


def _upgrade_to_version_before(connection: Connection) -> None:
    config = scripts()
    config.attributes["connection"] = connection
    command.upgrade(config, "0006")


def _old() -> Trace:
    return trace("old", created=1.0, annotations=(ANNOTATION,), log_rules=({"id": "r"},), push=True)


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[None]:
    """Read all traces in a transaction that does not end, as a backup does."""
    engine = create_async_engine(url, isolation_level="REPEATABLE READ")
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SELECT count(*) FROM traces")
        yield
    await engine.dispose()


async def _index(store: TraceStore) -> None:
    await Indexer(store.database, asyncio.Event()).catch_up()


async def _three_days(store: TraceStore) -> list[Trace]:
    """Two old traces in a partition each, and one in the current partition."""
    written = [_old(), _old(), trace("young")]
    for place, one in enumerate(written):
        if place:
            assert await store.turn_partition(EVER, None)
        await store.add([one])
    await _index(store)
    return written


async def test_numbers_go_on_in_the_next_partition(store: TraceStore) -> None:
    written = await _three_days(store)
    numbers = [found.seq for found in await store.since(0, 10)]
    assert numbers == [1, WIDTH, 2 * WIDTH] and await store.newest_seq() == 2 * WIDTH
    assert [found.position for found in await store.since(0, 10)] == [0, 1, 2]
    assert [one.id async for one in store.export()] == [one.id for one in written]
    for one in written:
        assert await store.get(one.id[:8]) == await store.get(one.id) is not None


async def test_a_partition_is_begun_when_the_current_one_is_of_a_day_or_large(store: TraceStore) -> None:
    assert not await store.turn_partition(EVER, 0), "it is empty"
    await store.add([trace(created=NOW)])
    assert not await store.turn_partition(NOW, 10**9)
    assert not await store.turn_partition(None, None)
    assert await store.turn_partition(NOW + 1, None)
    await store.add([trace(created=NOW)])
    assert await store.turn_partition(None, 10_000)
    assert [one.number for one in await store.database.read(partitions)] == [0, 1, 2]


async def test_a_wrong_clock_of_the_first_trace_does_not_keep_a_partition_for_ever(store: TraceStore) -> None:
    await store.add([trace(created=NOW + 40 * DAY), trace(created=NOW)])
    assert await store.turn_partition(NOW + 1, None)


async def test_a_partition_that_was_made_and_not_begun_is_begun(store: TraceStore, database_url: str) -> None:
    """The process that made it ended in between."""
    await _three_days(store)
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(text(f"SELECT setval('traces_seq_seq', {WIDTH})"))
        await connection.execute(text("DELETE FROM traces WHERE seq >= :first"), {"first": 2 * WIDTH})
    await engine.dispose()
    assert await store.turn_partition(EVER, None)
    await store.add([trace("young")])
    assert await store.newest_seq() == 2 * WIDTH


async def test_old_partitions_are_dropped_with_all_that_hangs_on_their_traces(
    store: TraceStore, database_url: str
) -> None:
    *_, young = await _three_days(store)
    assert await query(database_url, HANGING) == [(3, 2, 4)]
    assert await store.delete_before(2.0) == 2
    assert [one.id async for one in store.export()] == [young.id]
    assert await query(database_url, HANGING) == [(1, 0, 0)]
    assert await query(database_url, TABLES) == [("search_2",), ("traces_2",)]
    await store.add([trace("after")])
    assert await store.newest_seq() == 2 * WIDTH + 1


async def test_a_partition_with_a_young_trace_stays(store: TraceStore, database_url: str) -> None:
    """Its old ones are deleted alone, or wait for their partition where that is soon enough."""
    await store.add([trace(created=1.0), trace(created=5.0), trace(created=1.0)])
    await store.turn_partition(EVER, None)
    await store.add([trace(created=9.0)])
    assert await store.delete_before(2.0, together=3.0) == 0
    assert await store.delete_before(2.0) == 2
    assert await query(database_url, "SELECT created FROM traces ORDER BY seq") == [(5.0,), (9.0,)]


async def test_younger_partitions_hide_old_ones_from_a_look_that_is_not_thorough(store: TraceStore) -> None:
    for created in (9.0, 1.0, 9.0):
        await store.add([trace(created=created)])
        await store.turn_partition(EVER, None)
    dropping = Partitions(store.database).drop_before
    assert await dropping(2.0, thorough=False) == 0
    assert await dropping(2.0, thorough=True) == 1


async def test_nobody_waits_for_a_partition_that_is_dropped(store: TraceStore, database_url: str) -> None:
    """It waits itself for those who read already, such as a backup."""
    *_, young = await _three_days(store)
    async with reading(database_url):
        dropping = asyncio.create_task(store.delete_before(2.0))
        async with asyncio.timeout(PATIENCE):
            while await query(database_url, f"SELECT count(*) FROM ({TABLES}) t, pg_locks WHERE NOT granted") == [(0,)]:
                pass
        for _ in range(20):
            await store.add([trace("meanwhile")])
            assert await store.get(young.id) is not None
        assert not dropping.done()
    async with asyncio.timeout(PATIENCE):
        assert await dropping == 2
    assert len([one async for one in store.export()]) == 21


async def test_a_drop_that_was_broken_off_goes_on_later(store: TraceStore, database_url: str) -> None:
    *_, young = await _three_days(store)
    impatient = TraceStore(
        PostgresDatabase(make_url(database_url), read_only=False, limits=TimeLimits(transaction=0.5))
    )
    async with reading(database_url):
        with pytest.raises(StoreError):
            await impatient.delete_before(2.0)
        assert [one.id async for one in store.export()][-1] == young.id
        assert (await store.excess(1)).traces == 1
    assert await impatient.delete_before(2.0) == 1, "what was left of the first one is dropped uncounted"
    assert await query(database_url, TABLES) == [("search_2",), ("traces_2",)]
    assert await query(database_url, HANGING) == [(1, 0, 0)]
    await impatient.close()


async def test_a_late_insert_after_its_repetition_makes_no_second_row_in_the_next_partition(
    store: TraceStore, database_url: str
) -> None:
    await store.add([trace()])
    row = encode(trace("repeated"))
    await store.write([row], again=True)
    await store.turn_partition(EVER, None)
    with pytest.raises(RowRejected):
        await store.write([row])
    await store.write([row], again=True)
    assert await query(database_url, "SELECT count(*) FROM traces") == [(2,)]
    assert await query(database_url, "SELECT size FROM datasets") == [(2,)]


async def test_an_insert_that_waits_while_its_repetition_is_written_makes_no_second_row(
    store: TraceStore, database_url: str
) -> None:
    """Its snapshot is of the time before the repetition."""
    await store.add([trace()])
    row = encode(trace("repeated"))
    engine = create_async_engine(database_url)
    async with engine.connect() as first:
        await first.run_sync(serialise_writers)
        late = asyncio.create_task(store.write([row]))
        async with asyncio.timeout(PATIENCE):
            while await query(database_url, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
                pass
        await first.exec_driver_sql(
            "INSERT INTO traces (id, dataset, position, created, outcome, stream, duration_ms, metadata, messages)"
            f" VALUES ('{row.trace[0]}', 1, 1, 1, 'completed', false, 1, '', '')"
        )
        await first.run_sync(_begin_partition)
        await first.commit()
    await engine.dispose()
    with pytest.raises(RowRejected):
        await late
    assert await query(database_url, "SELECT count(*) FROM traces") == [(2,)]


def _begin_partition(connection: Connection) -> None:
    open_partition(connection, 1)
    leap(connection, 1)


async def test_an_annotation_that_is_being_written_goes_with_its_trace(store: TraceStore, database_url: str) -> None:
    written = _old()
    await store.add([written, trace("young")])
    engine = create_async_engine(database_url)
    async with engine.connect() as machine:
        await machine.run_sync(insert_annotations, annotation_rows(written.id, [ANNOTATION], 1.0))
        deleting = asyncio.create_task(store.delete_before(2.0))
        async with asyncio.timeout(PATIENCE):
            while await query(database_url, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
                pass
        await machine.commit()
    await engine.dispose()
    assert await deleting == 1
    assert await query(database_url, HANGING) == [(0, 0, 0)]
    with pytest.raises(RowRejected):
        await store.annotate(written.id, [ANNOTATION])


async def test_the_size_is_kept_by_dropping_the_oldest_partitions(store: TraceStore, database_url: str) -> None:
    for number in range(4):
        await store.add([trace(_incompressible(number * 10 + n)) for n in range(10)])
        await store.turn_partition(EVER, None)
    *_, young = [one.id async for one in store.export()]
    full = (await store.excess(0)).size
    assert (await store.excess(full)).traces == await store.shrink(full) == 0
    over = await store.excess(full - 1)
    assert over.traces == await store.shrink(full - 1) == 10
    assert (await store.excess(0)).size < full - 1_000_000
    assert await store.shrink(1) == 30, "all but the current one, which is empty"
    assert await store.get(young) is None
    assert await query(database_url, TABLES) == [("search_4",), ("traces_4",)]


async def test_a_database_without_partitions_does_not_lose_all_of_its_traces_to_its_size(
    store: TraceStore, database_url: str
) -> None:
    """They are one partition, which stays until there is something else to keep."""
    await store.add([trace(_incompressible(n)) for n in range(40)])
    await store.turn_partition(EVER, None)
    await store.add([trace("young")])
    size = (await store.excess(0)).size - 1_000_000
    assert (await store.excess(size)).traces == await store.shrink(size) == 0
    await store.add([trace(_incompressible(n)) for n in range(10)])
    assert (await store.excess(size)).traces == await store.shrink(size) == 40
    assert len([one async for one in store.export()]) == 11


async def test_the_current_partition_loses_its_oldest_traces_once(store: TraceStore, database_url: str) -> None:
    """Its file does not become smaller, so that cannot say when it is enough."""
    await store.add([trace(_incompressible(n)) for n in range(40)])
    ids = [one.id async for one in store.export()]
    used = (await store.excess(0)).size
    deleted = await store.shrink(used - 1_000_000)
    assert 5 <= deleted <= 12
    assert [one.id async for one in store.export()] == ids[deleted:]
    assert await store.shrink(used - 1_000_000) == 0
    await store.add([trace(_incompressible(n)) for n in range(20)])
    assert 0 < await store.shrink(used - 1_000_000) < 40
    assert await query(database_url, TABLES) == [("search_0",), ("traces_0",)]


def _incompressible(seed: int) -> str:
    return random.Random(seed).randbytes(60_000).hex()


async def test_retention_begins_a_partition_a_day_and_drops_what_is_past(store: TraceStore, database_url: str) -> None:
    _, young = await aged(store, 40, 0.5)
    await retain(store, right, hours=1.5, kept=Kept(1))
    assert len(await store.database.read(partitions)) == 2
    assert [one.id async for one in store.export()] == [young]
    await aged(store, 0)
    await retain(store, right, hours=61.0, begins=60.0, kept=Kept(1))
    assert await query(database_url, TABLES) == [("search_2",), ("traces_2",)]
    assert await query(database_url, "SELECT count(*) FROM traces") == [(0,)]


@pytest.mark.parametrize(("days", "seconds"), [(30, DAY), (1, DAY), (360, 12 * DAY), (0, 30 * DAY)])
def test_there_are_about_thirty_partitions_at_most(days: int, seconds: float) -> None:
    assert Kept(days).partition_seconds == seconds


async def test_a_database_without_partitions_is_upgraded_with_what_is_in_it(unpartitioned: str) -> None:
    await TraceStore.try_open(unpartitioned)
    assert await query(unpartitioned, TABLES) == []
    store = await TraceStore.open(unpartitioned)
    assert await query(unpartitioned, TABLES) == [("search_0",), ("traces_0",)]
    old, young = [one async for one in store.export()]
    assert (old.position, young.position) == (0, 1) and old.annotations == (ANNOTATION,)
    await store.add([trace("after")])
    assert await store.newest_seq() == 3
    assert await store.turn_partition(EVER, None)
    await store.add([trace("next")])
    assert await store.delete_before(2.0) == 1
    assert await query(unpartitioned, HANGING) == [(1, 0, 0)]
    with pytest.raises(RowRejected):
        await store.add([young])
    assert await store.delete_before(EVER) == 3
    assert await query(unpartitioned, TABLES) == [("search_1",), ("traces_1",)]
    await store.close()


async def test_traces_are_written_while_a_database_is_prepared_for_partitions(unpartitioned: str) -> None:
    """By the version before, until the moment when the tables are exchanged, and after it."""
    before = TraceStore(connect(unpartitioned))
    database = connect(unpartitioned)
    assert await database.migrate(upgrade)
    await before.add([trace("between")])
    engine = create_async_engine(unpartitioned)
    async with engine.connect() as machine:
        for table in ("traces", "search"):
            await machine.exec_driver_sql(f"ALTER TABLE {table} VALIDATE CONSTRAINT ck_{table}_0")
        await before.add([trace("during")])
    await engine.dispose()
    assert not await database.migrate(upgrade)
    await before.add([trace("after")])
    texts = [one.messages[0]["content"] async for one in before.export()]
    assert texts == ["old", "young", "between", "during", "after"]
    await before.close()
    await database.close()


async def test_all_of_it_goes_through_a_pooler(postgres_server: PostgresServer, unpartitioned: str) -> None:
    if POOLER is None:
        pytest.skip("pgbouncer is not installed")
    with running_pooler(POOLER, postgres_server, connections=3) as pooler:
        url = pooler.url(unpartitioned)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    store = await TraceStore.open(url)
                except StoreError:
                    # It has not begun to listen.
                    continue
                break
        assert await store.turn_partition(EVER, None)
        await store.add([trace("next")])
        assert await store.delete_before(EVER) == 3
        assert await query(unpartitioned, TABLES) == [("search_1",), ("traces_1",)]
        await store.close()
