"""A database as two runners: one for transactions that write, one for reads. All of SQLAlchemy's errors end here."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gemini_proxy.traces.errors import RowRejected, StoreError

T = TypeVar("T")

# Longer than any transaction of ours; shorter than what an exchange may be kept waiting for its trace.
BUSY_TIMEOUT_MS: Final = 1_000

_WRITER_PRAGMAS: Final = (
    # Before the first table only. A trace of 2 kB leaves half of a 4 kB page empty: 2.4 kB on disk for it, not 3.9.
    "page_size = 8192",
    "journal_mode = WAL",
    # A commit reaches the operating system, so a killed process loses nothing; only a crash of the machine can take
    # the last commits (never the file's integrity). FULL would cost an fsync for each.
    "synchronous = NORMAL",
    "foreign_keys = ON",
    f"busy_timeout = {BUSY_TIMEOUT_MS}",
)
_READER_PRAGMAS: Final = ("query_only = ON", f"busy_timeout = {BUSY_TIMEOUT_MS}")

# Words for the failures that an operator can do something about.
_SQLITE_WORDS: Final = {
    "SQLITE_BUSY": "the database is locked",
    "SQLITE_LOCKED": "the database is locked",
    "SQLITE_FULL": "the disk or the database is full",
    "SQLITE_READONLY": "the database is read-only",
    "SQLITE_CANTOPEN": "the database file cannot be opened",
    "SQLITE_NOTADB": "the file is not a SQLite database",
    "SQLITE_CORRUPT": "the database file is damaged",
    "SQLITE_IOERR": "reading or writing the database file failed",
    "SQLITE_TOOBIG": "a value is too large for the database",
}


class Database(Protocol):
    """Runs functions of a SQLAlchemy connection. Every failure of the database is a StoreError."""

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on a connection that other work does not share."""
        ...

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction, committed when this returns."""
        ...

    async def close(self) -> None: ...


def connect(url: str, *, read_only: bool = False) -> Database:
    """The database of a configured URL, ``sqlite:///FILE``. Raises StoreError.

    Nothing is opened yet; with ``read_only`` a missing SQLite file is an error and is not created.
    """
    with translated():
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
            raise StoreError("the database must be a file: sqlite:///FILE")
        path = Path(parsed.database or "")
        if read_only and not path.is_file():
            raise StoreError(f"there is no trace database at {path}")
        return SqliteDatabase(path, read_only=read_only)


class SqliteDatabase:
    """A SQLite file with a single writer, a thread with its own connection: our writers never lock each other out.

    A transaction is one hop to that thread. The same statements through aiosqlite are a hop each, cursors and commit
    included: four times the processor time for a batch of one trace. Reads go through aiosqlite, beside the writer.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._readers = _reader_engine(path, read_only=read_only)
        self._engine = None if read_only else _writer_engine(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trace-writer")
        self._connection: Connection | None = None
        self._closed = False

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await _read(self._readers, work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        if self._closed:
            raise StoreError("the database is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with translated():
            await self._readers.dispose()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        if self._engine is None:
            raise StoreError("the database is open for reading only")
        with translated():
            try:
                if self._connection is None:
                    self._connection = self._engine.connect()
                with self._connection.begin():
                    return work(self._connection)
            except BaseException:
                # The next transaction starts from a fresh connection, whatever became of this one.
                self._disconnect()
                raise

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with translated():
                connection.close()


async def _read(engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
    with translated():
        async with engine.connect() as connection:
            return await connection.run_sync(work)


def _writer_engine(path: Path) -> Engine:
    # The pool would only stand between the writer and its one connection.
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        hide_parameters=True,
        poolclass=NullPool,
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_MS / 1000},
    )
    event.listen(engine, "connect", _run_at_connect(_WRITER_PRAGMAS))
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _reader_engine(path: Path, *, read_only: bool) -> AsyncEngine:
    query = {"mode": "ro" if read_only else "rw", "uri": "true"}
    url = URL.create("sqlite+aiosqlite", database=f"file:{quote(str(path))}", query=query)
    engine = create_async_engine(url, hide_parameters=True)
    event.listen(engine.sync_engine, "connect", _run_at_connect(_READER_PRAGMAS))
    return engine


def _run_at_connect(pragmas: tuple[str, ...]) -> Callable[[Any, object], None]:
    def run(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return run


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock first: it makes migrations transactional, and a read before a write cannot be overtaken."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def translated() -> Iterator[None]:
    """Turn what a database raises into StoreError, without its text: drivers quote values in theirs."""
    try:
        yield
    except DBAPIError as error:
        raise _store_error(error) from None
    except ArgumentError:
        raise StoreError("the database URL is not one") from None
    except (ValueError, OverflowError) as error:
        raise RowRejected(f"the database cannot hold a value ({type(error).__name__})") from None
    except (SQLAlchemyError, OSError, ModuleNotFoundError) as error:
        raise StoreError(f"the database cannot be used ({type(error).__name__})") from None


def _store_error(error: DBAPIError) -> StoreError:
    name = _error_name(error.orig)
    rejected = isinstance(error, DataError | IntegrityError) or name == "SQLITE_TOOBIG"
    words = next((words for prefix, words in _SQLITE_WORDS.items() if name.startswith(prefix)), "the database failed")
    return (RowRejected if rejected else StoreError)(f"{words} ({name})")


def _error_name(error: BaseException | None) -> str:
    """SQLite's name for the error, PostgreSQL's five-character state, or the exception's type."""
    if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorname"):
        return error.sqlite_errorname
    return str(getattr(error, "sqlstate", None) or type(error).__name__)
