"""Changes of keys and rules that PostgreSQL tells, and what holds while nobody hears it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from sqlalchemy import make_url

from gemini_proxy.traces import revision
from gemini_proxy.traces.database import Database, connect
from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.listener import ChangeListener
from gemini_proxy.traces.postgres import LISTENER
from gemini_proxy.traces.revision import News, Revisions
from gemini_proxy.traces.store import TraceStore
from tests.conftest import StartProxy
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy, prompt
from tests.support.relay import Relay
from tests.support.upstream import ScriptedUpstream, candidate, unary
from tests.traces.samples import execute, query

PATIENCE = 30.0
HEARS = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{LISTENER}' AND datname = current_database()"
KILL = HEARS.replace("count(*)", "pg_terminate_backend(pid)")


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """Of the two kinds this one only."""
    return postgres_url


class Counted:
    """A database that counts the looks at its revision."""

    def __init__(self, database: Database) -> None:
        self.looks = 0
        self._database = database

    async def glance(self, query: str) -> Any:
        self.looks += 1
        return await self._database.glance(query)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


@contextlib.asynccontextmanager
async def listening(database: Database, url: str) -> AsyncIterator[News]:
    news = News()
    task = asyncio.create_task(ChangeListener(database, url, news).run())
    try:
        yield news
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(right: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await right():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def heard(news: News, *, complete: bool = True) -> None:
    async def right() -> bool:
        return news.complete is complete

    await until(right)


async def test_while_changes_are_heard_nobody_looks_and_when_not_everybody_does(
    store: TraceStore, database_url: str
) -> None:
    """Also after the connection was killed, and while it is."""
    counted = Counted(store.database)
    async with listening(store.database, database_url) as news:
        revisions = Revisions(counted, news)
        await heard(news)
        before = await revisions.now()
        counted.looks = 0
        assert {await revisions.now() for _ in range(1000)} == {before}
        assert counted.looks <= 1
        await store.database.write(revision.advance)

        async def changed() -> bool:
            return await revisions.now() == before + 1

        await until(changed)
        await query(database_url, KILL)
        await heard(news, complete=False)
        await store.database.write(revision.advance)
        assert await revisions.now() == before + 2
        await heard(news)
        await store.database.write(revision.advance)
        before += 1
        await until(lambda: _is(revisions, before + 2))


async def _is(revisions: Revisions, number: int) -> bool:
    return await revisions.now() == number


async def test_a_network_that_falls_silent_is_noticed(
    postgres_server: PostgresServer, store: TraceStore, database_url: str
) -> None:
    """No connection is closed, and nothing is heard: within a second every answer comes of a look again."""
    target = make_url(postgres_server.tcp_url(make_url(database_url).database or "", "tests", "x"))
    await postgres_server.execute("ALTER ROLE tests PASSWORD 'x'")
    async with Relay(target.port or 0) as relay:
        through = target.set(port=relay.port).render_as_string(hide_password=False)
        async with listening(store.database, through) as news:
            revisions = Revisions(store.database, news)
            await heard(news)
            before = await revisions.now()
            relay.freeze()
            await store.database.write(revision.advance)
            await heard(news, complete=False)
            assert await revisions.now() == before + 1


async def test_a_change_that_nobody_tells_is_found(store: TraceStore, database_url: str) -> None:
    """Such as by a version before this one, on another machine."""
    async with listening(store.database, database_url) as news:
        revisions = Revisions(store.database, news)
        await heard(news)
        before = await revisions.now()
        await execute(database_url, "UPDATE revision SET number = number + 1")
        await until(lambda: _is(revisions, before + 1))


async def test_another_database_is_not_believed(
    postgres_server: PostgresServer, store: TraceStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It would never tell of a revoked key."""
    caplog.set_level("INFO")
    other = postgres_server.url("template1")
    async with listening(store.database, other) as news:
        async with asyncio.timeout(PATIENCE):
            while "do not arrive: this is another database" not in caplog.text:
                assert not news.complete
                await asyncio.sleep(0)


class Machine:
    """A proxy of two, and a client's key."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    async def status(self, key: str) -> int:
        headers = {"x-goog-api-key": f"K;invariant-auth={key}"}
        async with aiohttp.ClientSession() as session:
            async with session.post(self._proxy.method(), json=prompt("hello"), headers=headers) as response:
                return response.status


async def test_a_revoked_key_is_refused_on_every_machine(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database_url: str
) -> None:
    """While changes are heard, and when the connections on which they are have just been killed."""
    upstream.reply(unary(candidate("hello", "STOP")))
    options = {"access": {"mode": "keys"}, "traces": {"database": database_url}}
    first, second = [await start_proxy(**options) for _ in range(2)]
    machines = (Machine(first), Machine(second))
    database = connect(database_url)
    keys = Keys(database)

    def all_say(status: int, key: str) -> Callable[[], Awaitable[bool]]:
        async def right() -> bool:
            return [await machine.status(key) for machine in machines] == [status, status]

        return right

    async def both_listen() -> bool:
        return await query(database_url, HEARS) == [(2,)]

    for killed in (False, True):
        await until(both_listen)
        record, key = await keys.add("ada")
        await until(all_say(200, key))
        if killed:
            await query(database_url, KILL)
        assert await keys.revoke(record.id)
        await until(all_say(401, key))
    await database.close()
