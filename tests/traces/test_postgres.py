"""What is PostgreSQL's alone: several machines, networks that fail, servers that restart, passwords."""

import asyncio
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from gemini_proxy.traces.database import connect, serialise_writers, shown_url
from gemini_proxy.traces.errors import RowRejected, StoreError
from gemini_proxy.traces.inserts import insert_rows
from gemini_proxy.traces.jobs import take
from gemini_proxy.traces.postgres import PostgresDatabase, TimeLimits
from gemini_proxy.traces.recorder import Recorder
from gemini_proxy.traces.rows import encode
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Annotation
from tests.support.postgres import PostgresServer
from tests.support.relay import Relay
from tests.traces.samples import query, trace

PASSWORD = "canary-4711"
IMPATIENT = TimeLimits(connect=0.3, lock=0.3, transaction=0.3, orphan=0.6)
PATIENCE = 10.0
NAP = text("SELECT pg_sleep(5)")


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """Of the two kinds this one only."""
    return postgres_url


@pytest.fixture
async def machine(database_url: str) -> AsyncIterator[AsyncConnection]:
    """A connection of another machine, in a transaction that ends with the test unless it is committed."""
    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@pytest.fixture
async def guarded(postgres_server: PostgresServer, database_url: str) -> AsyncIterator[str]:
    """The database as a user has it who must give the password."""
    user = f"user_{uuid.uuid4().hex}"
    await postgres_server.execute(f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    yield postgres_server.tcp_url(make_url(database_url).database or "", user, PASSWORD)
    await postgres_server.execute(f"DROP ROLE {user}")


async def someone_waits(url: str) -> None:
    """Return when a transaction of the database waits for another one."""
    async with asyncio.timeout(PATIENCE):
        while await query(url, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
            pass


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("dataset", ["demo", "other", "new"])
async def test_numbers_become_visible_in_their_order(
    store: TraceStore, database_url: str, machine: AsyncConnection, dataset: str
) -> None:
    """Who follows "greater than the last seen" misses nothing: no transaction overtakes another that has numbers.

    Whether they write to one dataset or to two, there already or not.
    """
    await store.add([trace("before"), trace("before", dataset="other")])
    await machine.run_sync(insert_rows, [encode(trace("first"))])
    second = asyncio.create_task(store.add([trace("second", dataset=dataset)]))
    await someone_waits(database_url)
    assert len(await store.recent(5)) == 2
    await machine.commit()
    await second
    assert [t.messages[0]["content"] async for t in store.export()] == ["before", "before", "first", "second"]


async def test_places_have_no_gaps_and_numbers_the_order_of_places_however_many_write(
    store: TraceStore, database_url: str
) -> None:
    """Into one dataset that is there and, in the same batches, into others that are new each time."""
    machines = [store, *[await TraceStore.open(database_url) for _ in range(3)]]
    await store.add([trace()])

    async def write(machine: TraceStore, place: int) -> None:
        for number in range(5):
            new = f"new {place} {number}"
            await machine.add([trace(), trace(dataset=new), trace(), trace(dataset=new)])
            await machine.add([trace(), trace()])

    await asyncio.gather(*(write(machine, place) for place, machine in enumerate(machines)))
    sql = """
        SELECT d.name, d.size, array_agg(t.position ORDER BY t.seq)
        FROM traces t JOIN datasets d ON d.seq = t.dataset GROUP BY d.seq
    """
    found = {name: (size, positions) for name, size, positions in await query(database_url, sql)}
    assert found.pop("demo") == (81, [*range(81)])
    assert list(found.values()) == [(2, [0, 1])] * 20
    for machine in machines[1:]:
        await machine.close()


async def test_a_proxy_that_is_lost_while_it_waits_for_the_others_does_not_hold_them_up(
    store: TraceStore, machine: AsyncConnection, database_url: str, guarded: str
) -> None:
    """What it had sent is written when its turn comes, with all that hangs on it, and nothing waits for its answer."""
    await store.add([trace("first")])
    target = make_url(guarded)
    async with Relay(target.port or 0) as relay:
        lost = PostgresDatabase(target.set(port=relay.port), read_only=False)
        await machine.run_sync(insert_rows, [encode(trace("second"))])
        third = encode(
            trace("third", annotations=[Annotation("a", "messages.0.content")], log_rules=({"id": "1"},), push=True)
        )
        waiting = asyncio.create_task(lost.insert([third]))
        await someone_waits(database_url)
        relay.freeze()
        await machine.commit()
        await store.add([trace("fourth")])
        texts = [t.messages[0]["content"] async for t in store.export()]
        assert texts == ["first", "second", "third", "fourth"]
        written = "SELECT (SELECT count(*) FROM annotations), (SELECT count(*) FROM jobs)"
        assert await query(database_url, written) == [(1, 2)]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await lost.close()


async def test_a_batch_too_large_for_one_statement_is_written(store: TraceStore) -> None:
    await store.add([trace()])
    batch = [trace("x" * 3_000_000) for _ in range(2)]
    await store.add(batch)
    assert [t.position for t in await store.recent(5)] == [2, 1, 0]


async def test_two_machines_take_different_jobs_without_waiting(store: TraceStore, machine: AsyncConnection) -> None:
    await store.add([trace(log_rules=({"id": str(n)},)) for n in range(4)])
    taken = await machine.run_sync(take, 3, 2e9, 60.0)
    rest = await store.take_jobs(3, now=2e9)
    assert [job.rules[0]["id"] for job in (*taken, *rest)] == ["0", "1", "2", "3"]


async def test_many_machines_may_make_the_schema_at_once(postgres_server: PostgresServer) -> None:
    """However many start on an empty database, each finds it ready."""
    name = f"empty_{uuid.uuid4().hex}"
    await postgres_server.execute(f"CREATE DATABASE {name}")
    stores = await asyncio.gather(*(TraceStore.open(postgres_server.url(name)) for _ in range(5)))
    for opened in stores:
        await opened.add([trace()])
    assert len(await stores[0].recent(10)) == 5
    for opened in stores:
        await opened.close()
    await postgres_server.execute(f"DROP DATABASE {name}")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_that_restarts_costs_nothing_but_its_absence(
    store: TraceStore, postgres_server: PostgresServer, mode: str
) -> None:
    """While it is gone there are store errors; the first write and the first read after it are answered."""
    await asyncio.gather(*(store.recent(1) for _ in range(3)))
    await store.add([trace()])
    postgres_server.stop(mode)
    try:
        for attempt in (store.add([trace()]), store.recent(1)):
            with pytest.raises(StoreError):
                await attempt
    finally:
        postgres_server.start()
    await store.add([trace()])
    assert [len(found) for found in await asyncio.gather(*(store.recent(5) for _ in range(3)))] == [2, 2, 2]


async def test_a_server_that_restarted_unnoticed_costs_nothing(
    store: TraceStore, postgres_server: PostgresServer
) -> None:
    await asyncio.gather(*(store.recent(1) for _ in range(3)))
    await store.add([trace()])
    postgres_server.stop()
    postgres_server.start()
    await store.add([trace()])
    assert [len(found) for found in await asyncio.gather(*(store.recent(5) for _ in range(3)))] == [2, 2, 2]


async def test_a_recorder_loses_nothing_to_restarts(store: TraceStore, postgres_server: PostgresServer) -> None:
    recorder = Recorder(store, patience=60.0)
    running = asyncio.create_task(recorder.run())
    restarted = asyncio.Event()

    async def client() -> list[bool]:
        written = [await recorder.commit(trace())]
        while not restarted.is_set():
            written.append(await recorder.commit(trace()))
        return written

    clients = asyncio.gather(*(client() for _ in range(8)))
    for mode in ("fast", "immediate"):
        await asyncio.to_thread(postgres_server.stop, mode)
        await asyncio.to_thread(postgres_server.start)
    restarted.set()
    written = [one for of_client in await clients for one in of_client]
    await recorder.close()
    await running
    assert recorder.dropped == written.count(False) == 0
    assert len({one.id async for one in store.export()}) == len(written)


async def test_a_network_that_falls_silent_is_an_error_within_the_limits(guarded: str) -> None:
    """Whether it is a write, a read or the connection itself that gets no answer."""
    target = make_url(guarded)
    async with Relay(target.port or 0) as relay:
        database = PostgresDatabase(target.set(port=relay.port), read_only=False, limits=IMPATIENT)
        assert await database.write(one) == await database.read(one) == 1
        relay.freeze()
        begun = time.monotonic()
        known = await asyncio.gather(database.write(one), database.read(one), return_exceptions=True)
        new = await asyncio.gather(database.write(one), return_exceptions=True)
        for error in (*known, *new):
            assert isinstance(error, StoreError)
            assert PASSWORD not in shown(error)
        await database.close()
        assert time.monotonic() - begun < PATIENCE


def one(connection: Connection) -> object:
    return connection.execute(text("SELECT 1")).scalar_one()


async def test_a_machine_that_is_lost_while_it_writes_holds_up_the_others_only_for_a_while(
    store: TraceStore, guarded: str
) -> None:
    target = make_url(guarded)
    async with Relay(target.port or 0) as relay:
        lost = PostgresDatabase(target.set(port=relay.port), read_only=False, limits=IMPATIENT)

        def lose_the_network(connection: Connection) -> None:
            serialise_writers(connection)
            relay.freeze()
            one(connection)

        with pytest.raises(StoreError):
            await lost.write(lose_the_network)
        await store.add([trace()])
        await lost.close()


async def test_a_read_changes_nothing_and_sees_one_state(database_url: str, store: TraceStore) -> None:
    database = connect(database_url)

    def level(connection: Connection) -> object:
        return connection.scalar(text("SHOW transaction_isolation"))

    assert await database.read(level) == "repeatable read"
    with pytest.raises(StoreError, match="read-only"):
        await database.read(lambda connection: connection.execute(text("DELETE FROM traces")))
    await database.close()


async def test_values_that_the_database_refuses_are_rejected_rows(store: TraceStore) -> None:
    """Whether the driver refuses them or the server: what is wrong is the row, and it is not shown."""
    for fields in ({"id": PASSWORD * 10}, {"stream": PASSWORD}, {"created": PASSWORD}):
        with pytest.raises(RowRejected) as caught:
            await store.add([trace(**fields)])
        assert PASSWORD not in shown(caught.value)


async def test_a_password_is_asked_for_and_never_shown(guarded: str) -> None:
    await (await TraceStore.open_read_only(guarded)).close()
    wrong = make_url(guarded).set(password=PASSWORD + "x").render_as_string(hide_password=False)
    with pytest.raises(StoreError, match="does not accept the user or the password") as caught:
        await TraceStore.open(wrong)
    assert PASSWORD not in shown(caught.value)


async def test_no_such_database_is_said(postgres_server: PostgresServer) -> None:
    for opening in (TraceStore.open, TraceStore.open_read_only):
        with pytest.raises(StoreError, match="no such database"):
            await opening(postgres_server.url("nowhere"))


async def test_a_database_without_traces_is_not_made_one_to_be_read(postgres_server: PostgresServer) -> None:
    with pytest.raises(StoreError, match="holds no traces"):
        await TraceStore.open_read_only(postgres_server.url("postgres"))


def test_without_its_driver_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(StoreError, match=r"pip install asyncpg"):
        connect("postgresql+asyncpg://user@host/database")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///traces.db", "sqlite:///traces.db"),
        ("postgresql+asyncpg://user:secret@host:5433/db", "postgresql+asyncpg://user:***@host:5433/db"),
        ("postgresql+asyncpg://user@/db?host=/run/pg", "postgresql+asyncpg://user@/db?host=%2Frun%2Fpg"),
        ("postgresql+asyncpg://user@host/db?password=secret", "postgresql+asyncpg://user@host/db?password=%2A%2A%2A"),
        ("postgresql+asyncpg://user:secret@host:port/db", "a URL that cannot be read"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, expected: str) -> None:
    assert shown_url(url) == expected


async def test_a_glance_does_not_wait_for_reads(store: TraceStore, database_url: str) -> None:
    """However many pages are being read, what every exchange looks up is answered."""
    database = connect(database_url)
    slow = [asyncio.create_task(database.read(lambda connection: connection.execute(NAP))) for _ in range(20)]
    begun = time.monotonic()
    assert await database.glance("SELECT 1") == 1
    assert time.monotonic() - begun < 1.0
    assert not any(task.done() for task in slow)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    await database.close()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("sslmode=require", "sslmode; asyncpg calls it ssl"),
        ("pasword=canary-4711", "does not know, pasword"),
        ("server_settings=canary-4711", "does not know, server_settings"),
        ("ssl=canary-4711", "ssl of the database URL must be one of disable, allow"),
    ],
)
def test_options_of_the_url_that_are_not_known_are_named_before_anything_connects(option: str, words: str) -> None:
    """By name and never by value."""
    with pytest.raises(StoreError, match=words) as raised:
        connect(f"postgresql+asyncpg://u:{PASSWORD}@127.0.0.1:1/d?{option}")
    assert PASSWORD not in str(raised.value)


def test_options_that_are_known_are_taken() -> None:
    connect("postgresql+asyncpg://u@/d?host=/run/postgresql&port=5433&ssl=verify-full&prepared_statement_cache_size=0")
