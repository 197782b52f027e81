"""PostgreSQL as the trace database, shared by any number of proxies."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, NullPool, event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gemini_proxy.http.fair_lock import PerUserSemaphore
from gemini_proxy.traces.database import POOLER, Undone, translated, undoing
from gemini_proxy.traces.errors import StoreError, StoreUnavailable
from gemini_proxy.traces.inserts import fits_one_statement, insert_at_once, insert_rows
from gemini_proxy.traces.rows import TraceRow

T = TypeVar("T")

# Idle connections are replaced, because a firewall in between may have dropped them.
_RECYCLE_SECONDS: Final = 300

# Connections for reading, and how many one user may have at once, so that one user cannot make all others wait.
_READERS: Final = 5
_READERS_OF_ONE: Final = 2

_MIGRATION_LOCK: Final = 0x67_70_00

# asyncpg's own name for libpq's sslmode, and its values.
_SSL: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# SQLAlchemy takes these for itself.
_OF_THE_DIALECT: Final = frozenset({"prepared_statement_cache_size"})
# Settings without effect in a transaction that has begun, or on statements that are not kept.
_OF_A_SESSION: Final = frozenset({"default_transaction_read_only", "plan_cache_mode"})
LISTENER: Final = "gemini-proxy listener"
"""By what name the database knows the connection of a ``Listener``."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds of waiting before a StoreError: to connect, for a lock, for a transaction to end.

    A recorder reports after 5 that a trace was not written; its transaction may continue, for late evidence is better
    than none. ``orphan`` is the server's patience with a transaction whose proxy has fallen silent: without it, a
    machine that lost its network would block the writers of all others.
    """

    connect: float = 3.0
    lock: float = 2.0
    transaction: float = 10.0
    orphan: float = 12.0


class PostgresDatabase:
    """A PostgreSQL database through asyncpg, on twelve connections at most.

    A read sees one state of the database, however many statements it makes, and cannot change it.

    With ``pooler=transaction`` in its URL nothing outlives a transaction on a connection: neither a setting nor a
    prepared statement.
    """

    lost: Final = 0
    """No file of the server's is in anybody's way."""

    def __init__(self, url: URL, *, read_only: bool, limits: TimeLimits | None = None) -> None:
        """Raise StoreError where asyncpg is not installed, or does not know an option of the URL."""
        self._limits = limits or TimeLimits()
        # Separate connections, so that no slow page delays an exchange.
        readers, glances = (_engine(url, self._limits, count, "on") for count in (_READERS, 2))
        self._readers = readers.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # A transaction of its own if a pooler could give its second round trip to another connection.
        alone: dict[str, Any] = {} if _is_pooled(url) else {"isolation_level": "AUTOCOMMIT"}
        self._glances = glances.execution_options(**(alone or {"postgresql_readonly": True}))
        self._writers = None if read_only else _engine(url, self._limits, 5, "off")
        self._inserts = self._writers and self._writers.execution_options(**alone)
        self._per_user = PerUserSemaphore(_READERS_OF_ONE)
        self._closed = False

    async def read(self, work: Callable[[Connection], T], *, owner: str | None = None) -> T:
        if owner is None:
            return await self._run(self._readers, work)
        # Before the time limit for the answer begins.
        give_back = await self._per_user.acquire(owner)
        try:
            return await self._run(self._readers, work)
        finally:
            give_back()

    async def glance(self, query: str) -> Any:
        # Without BEGIN and COMMIT it is one round trip, not three.
        return await self._run(self._glances, lambda connection: connection.exec_driver_sql(query).scalar_one())

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await self._run(self._writers, work)

    async def insert(self, rows: Sequence[TraceRow], *, again: bool = False) -> None:
        await self._in_time(_insert(self._open(self._inserts), self._open(self._writers), rows, again=again))

    async def run_alone(self, statement: str) -> None:
        await self._in_time(_run_alone(self._open(self._writers), statement))

    async def migrate(self, work: Callable[[Connection], T]) -> T:
        with translated():
            async with self._open(self._writers).begin() as connection:
                for setting in ("lock_timeout", "statement_timeout"):
                    await connection.execute(text(f"SET LOCAL {setting} = 0"))
                await connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                return await connection.run_sync(work)

    async def rehearse(self, work: Callable[[Connection], object]) -> None:
        with contextlib.suppress(Undone):
            await self.migrate(undoing(work))

    async def close(self) -> None:
        self._closed = True
        with translated():
            for engine in (self._readers, self._glances, self._writers):
                if engine is not None:
                    await engine.dispose()

    def _open(self, engine: AsyncEngine | None) -> AsyncEngine:
        if engine is None:
            raise StoreError("the database is open for reading only")
        if self._closed:
            raise StoreError("the database is closed")
        return engine

    async def _run(self, engine: AsyncEngine | None, work: Callable[[Connection], T]) -> T:
        return await self._in_time(_transaction(self._open(engine), work))

    async def _in_time(self, transaction: Awaitable[T]) -> T:
        """Await a transaction for its time, the wait for a connection included, also where the server says nothing."""
        with translated():
            try:
                async with asyncio.timeout(self._limits.transaction):
                    return await transaction
            except TimeoutError:
                raise StoreUnavailable("no response from the database in time") from None


async def _transaction(engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
    """Run and commit ``work``; once more on a new connection where the server had closed this one, as in a restart.

    Testing first would cost every transaction a round trip. Only a commit is not repeated: it may have succeeded.
    """
    async with engine.connect() as connection:
        try:
            result = await connection.run_sync(work)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        else:
            await connection.commit()
            return result
    async with engine.begin() as connection:
        return await connection.run_sync(work)


async def _insert(alone: AsyncEngine, together: AsyncEngine, rows: Sequence[TraceRow], *, again: bool) -> None:
    """Insert rows at once over ``alone``, where a statement may be a transaction; otherwise by ``insert_rows``.

    If the server closed the connection, it is unknown whether the rows were written.
    """
    if not again and fits_one_statement(rows):
        async with alone.connect() as connection:
            try:
                inserted = await connection.run_sync(insert_at_once, rows)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                again = True
            else:
                await connection.commit()
                if inserted:
                    return
    await _transaction(together, lambda connection: insert_rows(connection, rows, again=again))


async def _run_alone(engine: AsyncEngine, statement: str) -> None:
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        asyncpg = import_module("asyncpg")
        try:
            # In one message: with a separate preparation, a pooler could use another connection.
            await raw.execute(statement)
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DBAPIError(statement, None, error) from error


def _check_options(url: URL) -> None:
    known = {*inspect.signature(import_module("asyncpg").connect).parameters, *_OF_THE_DIALECT, POOLER} - {
        "dsn",
        "server_settings",
    }
    if url.query.get(POOLER, "transaction") != "transaction":
        raise StoreError("the option pooler of the database URL must be transaction")
    for name in url.query:
        if name not in known:
            instead = "; asyncpg calls it ssl" if name == "sslmode" else ""
            raise StoreError(f"the database URL has an option that asyncpg does not know, {name[:50]}{instead}")
    if url.query.get("ssl", "require") not in _SSL:
        raise StoreError(f"the option ssl of the database URL must be one of {', '.join(_SSL)}")


def _engine(url: URL, limits: TimeLimits, connections: int, read_only: str) -> AsyncEngine:
    settings = _settings(limits, read_only)
    pool = {"pool_size": connections, "max_overflow": 0, "pool_recycle": _RECYCLE_SECONDS}
    if not _is_pooled(url):
        return _create(url, limits, settings, **pool)
    engine = _create(url, limits, {}, **pool)
    local = {name: value for name, value in settings.items() if name not in _OF_A_SESSION}
    chosen = select(*(func.set_config(name, value, True) for name, value in local.items()))
    event.listen(engine.sync_engine, "begin", lambda connection: connection.execute(chosen))
    return engine


def _create(url: URL, limits: TimeLimits, settings: dict[str, str], **pool: Any) -> AsyncEngine:
    """Return an engine whose connections have ``settings``; of those of ``pool`` see create_engine."""
    unprepared = {"statement_cache_size": 0, "prepared_statement_cache_size": 0} if _is_pooled(url) else {}
    named = {"application_name": "gemini-proxy", **settings}
    try:
        _check_options(url)
        return create_async_engine(
            url.difference_update_query([POOLER]),
            hide_parameters=True,
            connect_args={"timeout": limits.connect, "server_settings": named, **unprepared},
            **pool,
        )
    except ModuleNotFoundError:
        raise StoreError("the driver of PostgreSQL is not installed: pip install asyncpg") from None


def _is_pooled(url: URL) -> bool:
    """Return whether a pooler stands before the database that gives connections by the transaction."""
    return POOLER in url.query


@contextlib.asynccontextmanager
async def direct_connection(url: str) -> AsyncIterator[Any]:
    """Open asyncpg's own connection, for what SQLAlchemy cannot express. Raises StoreError, also for its errors."""
    engine = _create(make_url(url), TimeLimits(), {"application_name": LISTENER}, poolclass=NullPool)
    asyncpg = import_module("asyncpg")
    with translated():
        try:
            async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                raw: Any = (await connection.get_raw_connection()).driver_connection
                try:
                    yield raw
                finally:
                    # A goodbye would wait for a network that has fallen silent.
                    raw.terminate()
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreError(f"the connection to the database failed ({type(error).__name__})") from None


def _settings(limits: TimeLimits, read_only: str) -> dict[str, str]:
    return {
        "default_transaction_read_only": read_only,
        "lock_timeout": _milliseconds(limits.lock),
        "statement_timeout": _milliseconds(limits.transaction),
        "idle_in_transaction_session_timeout": _milliseconds(limits.orphan),
        # For reading, a generic plan for any words and any place in a dataset is wrong for most queries.
        "plan_cache_mode": "force_custom_plan" if read_only == "on" else "auto",
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
