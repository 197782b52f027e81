"""Use a SQLite file as the trace database: one writer in a thread, readers in others beside it, and a backup."""

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Dialect, Engine, NullPool, create_engine, event, func, select

from gemini_proxy.http.fair_lock import PerUserSemaphore
from gemini_proxy.traces.database import Undone, parsed_url, translated, undoing
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.inserts import insert_directly, insert_rows
from gemini_proxy.traces.rows import TraceRow
from gemini_proxy.traces.schema import revision, traces

logger = logging.getLogger(__name__)
T = TypeVar("T")
C = TypeVar("C")
W = TypeVar("W")

# Longer than any transaction of ours; shorter than what an exchange may be kept waiting for its trace.
BUSY_TIMEOUT_MS: Final = 1_000
# More readers would only take the processor from each other.
READERS: Final = 4
# Of which one user has so many at once: what others ask for does not wait for a single one.
READERS_OF_ONE: Final = 2

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


class SqliteDatabase:
    """A SQLite file with a single writer: our own transactions never lock each other out.

    Whatever is done is one hop to a thread that has a connection of its own. Through aiosqlite each statement is a hop,
    cursor and commit included: four times the processor time; and work whose caller is cancelled outlives the database.

    Each transaction notices a deleted or replaced file. A transaction that wrote into such a file raises StoreError;
    the next one uses the file that is at the path then, or a new one.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._path = path
        self._schema: Callable[[Connection], object] | None = None
        self._file: _Identity = None
        self._left: Left | None = None
        self.lost = 0
        reading = _reader_url(path, read_only=read_only)
        self._writer = None if read_only else _Threads(1, "trace-writer", path, _writer_engine(path), self)
        self._readers = _Threads(READERS, "trace-reader", path, _engine(reading, _READER_PRAGMAS, begin="BEGIN"))
        self._per_user = PerUserSemaphore(READERS_OF_ONE)
        self._glances = _Glances(path)

    async def read(self, work: Callable[[Connection], T], *, owner: str | None = None) -> T:
        return await self._readers.run(work, None if owner is None else await self._per_user.acquire(owner))

    async def glance(self, query: str) -> Any:
        try:
            return self._glances.value(query)
        except sqlite3.Error:
            # Such as a lock that has to be waited for.
            return await self.read(lambda connection: connection.exec_driver_sql(query).scalar_one())

    async def write(self, work: Callable[[Connection], T]) -> T:
        if self._writer is None:
            raise StoreError("the database is open for reading only")
        return await self._writer.run(work)

    async def insert(self, rows: Sequence[TraceRow], *, again: bool = False) -> None:
        # Each dataset is new once.
        if again or not await self._insert_directly(rows):
            await self.write(lambda connection: insert_rows(connection, rows, again=again))

    async def _insert_directly(self, rows: Sequence[TraceRow]) -> bool:
        if self._writer is None:
            raise StoreError("the database is open for reading only")
        dialect = self._writer.dialect
        return await self._writer.run_directly(lambda connection: insert_directly(connection, dialect, rows))

    async def run_alone(self, statement: str) -> None:
        if self._writer is None:
            raise StoreError("the database is open for reading only")
        await self._writer.run_alone(statement)

    async def migrate(self, work: Callable[[Connection], T]) -> T:
        # Transactions have no limit of time here, and only one of them writes.
        done = await self.write(work)
        self._schema = work
        return done

    async def rehearse(self, work: Callable[[Connection], object]) -> None:
        if self._path.exists():
            with contextlib.suppress(Undone):
                await self.migrate(undoing(work))
        elif not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise StoreError("the database file cannot be made in its folder")

    def opened(self, connection: Connection) -> None:
        """Prepare a file that replaces another one, in the writer's thread."""
        file = _identity(self._path)
        if self._schema is not None and (self._left is not None or file != self._file):
            with connection.begin():
                self._schema(connection)
                lost = follow(connection, self._left or Left())
            self.lost += lost
            logger.error("the database file was deleted or replaced: another one is used, without %d traces", lost)
        self._file, self._left = file, None

    def leave(self, connection: Connection, files: "_Files") -> None:
        """Note the contents of a file that is no longer at its path; where only its log is gone, write that back."""
        with contextlib.suppress(StoreError, sqlite3.Error), translated():
            with connection.begin():
                self._left = _left_in(connection)
            # Not in a transaction, which SQLAlchemy would begin.
            driver: Any = connection.connection.driver_connection
            driver.execute("PRAGMA wal_checkpoint(FULL)")
        file, log = _files(self._path)
        if file != files[0] and log == files[1] is not None:
            # It is the old file's: read with another one, it would put its pages in among that one's.
            for name in ("-wal", "-shm"):
                Path(f"{self._path}{name}").unlink(missing_ok=True)

    async def close(self) -> None:
        self._glances.close()
        # The writer last: nobody's reading keeps it from writing the log back into the file.
        for threads in (self._readers, self._writer):
            if threads is not None:
                await threads.close()


class _Threads:
    """Threads with a connection each, made when first needed, which run one transaction at a time.

    With an ``owner`` they write: it is told of each connection that is made, and that is left for another file's.
    """

    def __init__(self, count: int, name: str, path: Path, engine: Engine, owner: SqliteDatabase | None = None) -> None:
        self._path = path
        self._engine = engine
        self._owner = owner
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._own = threading.local()
        self._connections: set[Connection] = set()
        self._closed = False

    @property
    def dialect(self) -> Dialect:
        return self._engine.dialect

    async def run(self, work: Callable[[Connection], T], ended: Callable[[], None] | None = None) -> T:
        """Run ``work`` in a transaction. It goes on if its caller is cancelled; ``ended`` is called when it is over."""
        try:
            running = self._submit(self._transaction, work)
        except BaseException:
            if ended is not None:
                ended()
            raise
        if ended is not None:
            running.add_done_callback(_in_loop(ended))
        return await asyncio.wrap_future(running)

    async def run_directly(self, work: Callable[[sqlite3.Connection], bool]) -> bool:
        """Run ``work`` in a transaction on the driver's connection, undone where it is False."""
        return await asyncio.wrap_future(self._submit(self._direct_transaction, work))

    async def run_alone(self, statement: str) -> None:
        """Run a statement outside of a transaction."""
        await asyncio.wrap_future(self._submit(self._alone, statement))

    def _submit(self, run: Callable[[W], T], work: W) -> "Future[T]":
        if self._closed:
            raise StoreError("the database is closed")
        return self._executor.submit(run, work)

    async def close(self) -> None:
        """Wait for what is under way, and close the connections."""
        self._closed = True
        await asyncio.to_thread(self._executor.shutdown)
        with translated():
            for connection in self._connections:
                connection.close()
        self._connections.clear()

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        with self._connected() as connection, connection.begin():
            return work(connection)

    def _direct_transaction(self, work: Callable[[sqlite3.Connection], bool]) -> bool:
        with self._connected() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            driver.execute("BEGIN IMMEDIATE")
            done = work(driver)
            driver.execute("COMMIT" if done else "ROLLBACK")
            return done

    def _alone(self, statement: str) -> None:
        with self._connected() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute(statement)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Yield this thread's connection. After a failure it is closed, and the next one is new."""
        with translated():
            try:
                connection = self._connection()
                yield connection
                if self._owner is not None and self._moved():
                    # The write went to a file that nobody will find.
                    self._leave(connection)
                    raise StoreError("the database file was deleted or replaced")
            except BaseException:
                self._disconnect()
                raise

    def _connection(self) -> Connection:
        found: Connection | None = getattr(self._own, "connection", None)
        if found is not None and self._moved():
            self._leave(found)
            self._disconnect()
            found = None
        if found is None:
            found = self._own.connection = self._engine.connect()
            self._connections.add(found)
            if self._owner is not None:
                self._owner.opened(found)
            self._own.files = _files(self._path)
        return found

    def _moved(self) -> bool:
        return bool(self._own.files != _files(self._path))

    def _leave(self, connection: Connection) -> None:
        if self._owner is not None:
            self._owner.leave(connection, self._own.files)

    def _disconnect(self) -> None:
        found: Connection | None = getattr(self._own, "connection", None)
        self._own.connection = None
        if found is not None:
            self._connections.discard(found)
            with translated():
                found.close()


_Identity = tuple[int, int] | None
_Files = tuple[_Identity, _Identity]


def _identity(path: Path | str) -> _Identity:
    """Return which file is there: its device and inode; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _files(path: Path) -> _Files:
    """Return which database file is there, and which write-ahead log: what is written goes to the second one first."""
    return _identity(path), _identity(f"{path}-wal")


def _in_loop(call: Callable[[], None]) -> Callable[[object], None]:
    """Return what a thread calls to have ``call`` made in this event loop, if that is still there."""
    loop = asyncio.get_running_loop()

    def done(_: object) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(call)

    return done


class _Glances:
    """Reads of a few microseconds, on the event loop itself: of pages that are in memory, since every writer uses them.

    A hop to a thread and back costs ten times as much, and each request to a dataset makes one. Nothing is waited for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._files: _Files = (None, None)
        self._closed = False

    def value(self, query: str) -> Any:
        """Raise sqlite3.Error, for a database that is locked as well."""
        if self._closed:
            raise StoreError("the database is closed")
        files = _files(self._path)
        if self._connection is not None and files != self._files:
            self._connection.close()
            self._connection = None
        if self._connection is None:
            self._files = files
            url = f"file:{quote(str(self._path))}?mode=ro"
            self._connection = sqlite3.connect(url, uri=True, timeout=0, isolation_level=None)
        # All of it, for a statement that is not at its end keeps its snapshot.
        [(value,)] = self._connection.execute(query).fetchall()
        return value

    def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            self._connection.close()


def sqlite_database(url: URL, *, read_only: bool) -> SqliteDatabase:
    """Return the database of ``sqlite:///FILE``. Raises StoreError; with ``read_only`` a missing file is an error."""
    if url.database in (None, "", ":memory:"):
        raise StoreError("the database must be a file: sqlite:///FILE")
    path = Path(url.database or "")
    if read_only:
        _require_file(path)
    return SqliteDatabase(path, read_only=read_only)


def _require_file(path: Path) -> None:
    """Raise StoreError unless there is a database file."""
    if not path.is_file():
        raise StoreError(f"there is no trace database at {path}")


def _writer_engine(path: Path) -> Engine:
    # Taking the write lock first makes migrations transactional, and a read before a write cannot be overtaken.
    return _engine(URL.create("sqlite", database=str(path)), _WRITER_PRAGMAS, begin="BEGIN IMMEDIATE")


def _reader_url(path: Path, *, read_only: bool) -> URL:
    query = {"mode": "ro" if read_only else "rw", "uri": "true"}
    return URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)


def _engine(url: URL, pragmas: tuple[str, ...], *, begin: str) -> Engine:
    """Create an engine without a pool, which would only stand between a thread and its one connection."""
    options = {"isolation_level": None, "timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
    engine = create_engine(url, hide_parameters=True, poolclass=NullPool, connect_args=options)
    event.listen(engine, "connect", _run_at_connect(pragmas))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _run_at_connect(pragmas: tuple[str, ...]) -> Callable[[Any, object], None]:
    def run(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        # So that the files are open from now on, the log included.
        cursor.execute("SELECT count(*) FROM sqlite_master").fetchall()
        cursor.close()

    return run


@dataclass(frozen=True, slots=True)
class Left:
    """The state that a database file no longer at its path leaves to its replacement.

    ``traces``: how many there are in the file; ``last`` number that one was given, and the ``revision``."""

    traces: int = 0
    last: int = 0
    revision: int = 0


def _left_in(connection: Connection) -> Left:
    """Return what a database holds, as a connection to it still sees it."""
    count = connection.scalar(select(func.count()).select_from(traces)) or 0
    last = connection.exec_driver_sql("SELECT max(seq) FROM sqlite_sequence WHERE name = 'traces'").scalar()
    return Left(count, last or 0, connection.scalar(select(revision.c.number)) or 0)


def follow(connection: Connection, left: Left) -> int:
    """Let a SQLite database continue where another one was. Return how many traces of that one are not here.

    Its numbers are not given out again, and caches of keys and rules are read again.
    """
    here = _left_in(connection)
    last = max(here.last, left.last)
    connection.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = 'traces'")
    connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES ('traces', ?)", (last,))
    connection.execute(revision.update().values(number=max(here.revision, left.revision) + 1))
    return max(0, left.traces - here.traces)


def back_up(url: str, target: Path) -> None:
    """Copy the database of ``url`` into the new file ``target``, by SQLite's own online backup.

    Writers continue meanwhile: the copy reads one state of the write-ahead log. Raises StoreError, also if the file
    already exists.
    """
    source = _file_of(parsed_url(url))
    try:
        # Private, like the database; and if two processes create it at once, one is refused.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise StoreError(f"{target} already exists; a backup does not overwrite files") from None
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror}") from None
    try:
        _copy(source, target)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"the backup failed ({error.sqlite_errorname})") from None
        raise


def _copy(source: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as running,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        running.backup(copy)
        # A single file, without a log beside it, until a server opens it.
        copy.execute("PRAGMA journal_mode = DELETE")


def _file_of(url: URL) -> Path:
    """Return the file of a SQLite database that exists. Raises StoreError."""
    if url.get_backend_name() != "sqlite":
        raise StoreError("this command backs up SQLite databases only; for PostgreSQL use pg_dump")
    path = Path(url.database or "")
    _require_file(path)
    return path
