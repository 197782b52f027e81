"""Pages read from a real replica, which lags and goes away."""

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest
from sqlalchemy import Connection, func, select

from gemini_proxy.server.app_keys import STORAGE
from gemini_proxy.traces.database import connect
from gemini_proxy.traces.errors import TooMuchAtOnce
from gemini_proxy.traces.read_replica import PAUSE, ReadReplica
from gemini_proxy.traces.schema import traces
from gemini_proxy.traces.store import TraceStore
from tests.conftest import StartProxy
from tests.support.postgres import PostgresServer, find_programs, running_server
from tests.traces.samples import query, trace

postgres_only = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


@pytest.fixture(scope="module")
def replica_server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    programs = find_programs()
    assert programs is not None
    with running_server(programs, copied_from=postgres_server) as server:
        yield server


@pytest.fixture
async def replica_url(replica_server: PostgresServer, database_url: str) -> str:
    """The test's own database at the replica, which has all of it."""
    await caught_up(database_url, replica_server)
    return replica_server.url(database_url.partition("?")[0].rpartition("/")[2])


async def caught_up(primary: str, replica: PostgresServer) -> None:
    """Return when the replica has what is committed now."""
    [(position,)] = await query(primary, "SELECT pg_current_wal_insert_lsn()::text")
    await until(replica, f"SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '{position}') >= 0")


async def pause(replica: PostgresServer) -> None:
    """Return when the replica takes in nothing more."""
    await replica.execute("SELECT pg_wal_replay_pause()")
    await until(replica, "SELECT pg_get_wal_replay_pause_state() = 'paused'")


async def until(server: PostgresServer, sql: str) -> None:
    async with asyncio.timeout(20):
        # The server waits a little before it looks.
        while await query(server.url("postgres"), f"{sql} FROM pg_sleep(0.02)") != [(True,)]:
            pass


def count(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(traces)) or 0


@postgres_only
async def test_reads_come_from_the_replica_and_from_the_primary_while_it_is_away(
    store: TraceStore,
    database_url: str,
    replica_url: str,
    replica_server: PostgresServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    replica = ReadReplica(store.database, connect(replica_url, read_only=True), monotonic=lambda: now)
    await pause(replica_server)
    await store.add([trace()])
    assert (await replica.read(count), await store.database.read(count)) == (0, 1)
    await replica_server.execute("SELECT pg_wal_replay_resume()")
    await caught_up(database_url, replica_server)
    assert (await replica.read(count), replica.fallbacks, replica.away) == (1, 0, False)

    await asyncio.to_thread(replica_server.stop)
    await store.add([trace()])
    assert [await replica.read(count) for _ in range(3)] == [2, 2, 2]
    assert (replica.fallbacks, replica.away) == (3, True)
    assert [
        message for message in caplog.messages if "traces.read_database is unavailable" in message
    ] == caplog.messages[-1:]

    await asyncio.to_thread(replica_server.start)
    await caught_up(database_url, replica_server)
    assert (await replica.read(count), replica.away) == (2, True)
    now = PAUSE
    assert (await replica.read(count), replica.away, replica.fallbacks) == (2, False, 4)
    await replica.close()


@postgres_only
async def test_what_is_wrong_with_a_question_is_not_asked_of_the_primary(store: TraceStore, replica_url: str) -> None:
    def work(_: Connection) -> None:
        raise TooMuchAtOnce("much")

    replica = ReadReplica(store.database, connect(replica_url, read_only=True))
    with pytest.raises(TooMuchAtOnce):
        await replica.read(work)
    assert (replica.fallbacks, replica.away) == (0, False)
    await replica.close()


@postgres_only
async def test_pages_list_what_the_replica_has_and_the_api_shows_what_was_written(
    start_proxy: StartProxy,
    database_url: str,
    replica_url: str,
    replica_server: PostgresServer,
    client: aiohttp.ClientSession,
) -> None:
    proxy = await start_proxy(traces={"database": database_url, "read_database": replica_url})
    listed = f"{proxy.url}/explorer/datasets/demo"
    await pause(replica_server)
    written = trace(owner="developer")
    await proxy.app[STORAGE].store.add([written])
    async with client.get(f"{proxy.url}/api/v1/trace/{written.id}") as response:
        assert response.status == 200
    async with client.get(listed) as response:
        assert response.status == 200 and written.id not in await response.text()
    await replica_server.execute("SELECT pg_wal_replay_resume()")
    await caught_up(database_url, replica_server)
    async with client.get(listed) as response:
        assert written.id in await response.text()
    async with client.get(f"{listed}?text=secret") as response:
        assert response.status == 200
    async with client.get(f"{proxy.url}/readyz") as response:
        assert (await response.json())["read_database"] == "ok"
    async with client.get(f"{proxy.url}/metrics") as response:
        assert "gemini_proxy_replica_fallbacks_total 0.0" in await response.text()

    await asyncio.to_thread(replica_server.stop)
    try:
        async with client.get(listed) as response:
            assert written.id in await response.text()
        async with client.get(f"{proxy.url}/readyz") as response:
            assert (response.status, (await response.json())["read_database"]) == (200, "away")
        async with client.get(f"{proxy.url}/metrics") as response:
            assert "gemini_proxy_replica_fallbacks_total 0.0" not in await response.text()
    finally:
        await asyncio.to_thread(replica_server.start)
