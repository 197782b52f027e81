"""Run functions as transactions of a database, for writing or for reading. SQLAlchemy's errors end here."""

import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import URL, Connection, Insert, Table, func, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gemini_proxy.traces.errors import RowRejected, StoreError, StoreUnavailable
from gemini_proxy.traces.rows import TraceRow

T = TypeVar("T")

_BYTES_OF_TABLES: Final = """
SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
WHERE relkind = 'r' AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('traces'))
"""

POOLER: Final = "pooler"
"""The option of a PostgreSQL URL that says how a pooler gives connections: by the ``transaction``."""

# Any number, the same in every version and on every machine that shares a database.
WRITERS_LOCK: Final = 0x67_70_01

# Descriptions of failures that an operator can fix, by the beginning of the database's name for them: SQLite's, or
# PostgreSQL's five-character state (appendix A of its manual), whose first two characters name the class.
_WORDS: Final = {
    "SQLITE_BUSY": "the database is locked",
    "SQLITE_LOCKED": "the database is locked",
    "SQLITE_FULL": "the disk or the database is full",
    "SQLITE_READONLY": "the database is read-only",
    "SQLITE_CANTOPEN": "the database file cannot be opened",
    "SQLITE_NOTADB": "the file is not a SQLite database",
    "SQLITE_CORRUPT": "the database file is damaged",
    "SQLITE_IOERR": "reading or writing the database file failed",
    "SQLITE_TOOBIG": "a value is too large for the database",
    "08P01": "a pooler refused or lost the connection; its URL needs ?pooler=transaction",
    "08": "the connection to the database was lost",
    "22": "the database cannot hold a value",
    "25006": "the database is read-only",
    "25P03": "the database aborted a transaction",
    "26": "there is a pooler in front of the database: it needs ?pooler=transaction in the URL",
    "28": "the database does not accept the user or the password",
    "3D": "there is no such database",
    "40": "the database ended this transaction in favor of another one",
    "42P05": "there is a pooler in front of the database: it needs ?pooler=transaction in the URL",
    "42501": "the database user lacks permission for this",
    "53100": "the disk of the database is full",
    "53300": "the database has too many connections",
    "54": "a value is too large for the database",
    "55P03": "the database is locked",
    "57014": "the database took too long",
    "57P": "the database is stopping or starting",
}
# Failures that are not caused by the work itself.
_UNAVAILABLE: Final = (
    *("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_NOTADB"),
    *("SQLITE_CORRUPT", "SQLITE_IOERR", "08", "25006", "25P03", "28", "3D", "40", "53", "55P03", "57"),
)
# A value that the database cannot store, or that violates a constraint.
_REJECTED: Final = ("SQLITE_TOOBIG", "SQLITE_CONSTRAINT", "22", "23", "54")

# SQLite looks at the clock each time it has done so many of its steps: reading a page of an index takes about five.
_STEPS_BETWEEN_LOOKS: Final = 500
# Seconds: less would be over for the statement that ends the limit, too; and how often that is tried.
_LEAST_LIMIT: Final = 0.02
_TRIES_TO_END: Final = 5
# PostgreSQL's state for a statement that was cancelled.
_CANCELLED: Final = "57014"


class Database(Protocol):
    """Run functions of a SQLAlchemy connection. Every failure of the database is a StoreError."""

    @property
    def lost(self) -> int:
        """Return the number of traces lost with a database file that was deleted or replaced."""
        ...

    async def read(self, work: Callable[[Connection], T], *, owner: str | None = None) -> T:
        """Run ``work`` on a connection that other work does not share.

        ``owner`` is the user who asked for it. Reads of one user never take all connections; reads without a user may.
        """
        ...

    async def glance(self, query: str) -> Any:
        """Return the one value that a query gives at once: at the least cost, and ahead of all other reads."""
        ...

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction, committed when this returns."""
        ...

    async def insert(self, rows: Sequence[TraceRow], *, again: bool = False) -> None:
        """Write traces as ``insert_rows`` does, in one transaction, at the least cost."""
        ...

    async def run_alone(self, statement: str) -> None:
        """Run a statement that must not be part of a transaction, and returns nothing."""
        ...

    async def migrate(self, work: Callable[[Connection], T]) -> T:
        """Change the schema as ``write`` does, however long it takes, in one process at a time."""
        ...

    async def rehearse(self, work: Callable[[Connection], object]) -> None:
        """Do what ``migrate`` does, then undo it. If a SQLite file is missing, check only that it could be created."""
        ...

    async def close(self) -> None: ...


class Undone(Exception):
    """End a transaction whose work is not wanted."""


def undoing(work: Callable[[Connection], object]) -> Callable[[Connection], None]:
    """Return ``work``, followed by Undone."""

    def run(connection: Connection) -> None:
        work(connection)
        raise Undone

    return run


def connect(url: str, *, read_only: bool = False) -> Database:
    """Return the database of a configured URL, ``sqlite:///FILE`` or ``postgresql+asyncpg://...``. Raises StoreError.

    Nothing is opened yet; with ``read_only`` a missing SQLite file is an error and is not created.
    """
    parsed = parsed_url(url)
    # Only the one in use is loaded, and both need ``translated`` from here.
    with translated():
        if parsed.get_backend_name() == "sqlite":
            from gemini_proxy.traces.sqlite import sqlite_database

            return sqlite_database(parsed, read_only=read_only)
        if parsed.drivername == "postgresql+asyncpg":
            from gemini_proxy.traces.postgres import PostgresDatabase

            return PostgresDatabase(parsed, read_only=read_only)
        raise StoreError("the database must be sqlite:///FILE or postgresql+asyncpg://USER@HOST/DATABASE")


def is_direct_postgres(url: str) -> bool:
    """Return whether a configured URL leads to PostgreSQL without a pooler in transaction mode."""
    parsed = parsed_url(url)
    return parsed.get_backend_name() == "postgresql" and POOLER not in parsed.query


def shown_url(url: str) -> str:
    """Return a configured URL for messages: without its password, wherever it stands in it."""
    try:
        parsed = parsed_url(url)
    except StoreError:
        return "a URL that cannot be read"
    secret = [key for key in parsed.query if "pass" in key.lower()]
    return parsed.update_query_dict(dict.fromkeys(secret, "***")).render_as_string(hide_password=True)


def parsed_url(url: str) -> URL:
    """Return a configured URL. Raises StoreError, without showing it."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError("the database URL is not one") from None


def insert_into(table: Table, dialect: str) -> "postgresql.Insert | sqlite.Insert":
    """Return an insert of the dialect, which may say what to do where a row has the key already."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


@cache
def upsert(table: Table, dialect: str) -> Insert:
    """Return an insert that replaces the row with the same primary key.

    Make it once: each new statement leaves cycles of objects to the garbage collector.
    """
    insert, key = insert_into(table, dialect), list(table.primary_key.columns)
    changed = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
    return insert.on_conflict_do_update(index_elements=key, set_=changed)


def serialise_writers(connection: Connection) -> None:
    """Block all other transactions that call this, on any machine, until this one ends.

    Readers follow the traces by "a larger number than the last one seen". So a number must not become visible after a
    larger one, and PostgreSQL gives numbers out before it commits. SQLite has one writer at a time as it is.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(WRITERS_LOCK)))


def bytes_in_use(connection: Connection) -> int:
    """Return how many bytes of the database hold something.

    In a SQLite file, pages of what was deleted do not count: they are used again. In PostgreSQL all files of our tables
    count, which do not become smaller when rows are deleted.
    """
    if connection.dialect.name == "postgresql":
        return int(connection.exec_driver_sql(_BYTES_OF_TABLES).scalar_one())
    pages, free, page_size = (
        connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * page_size)


class OutOfTime(Exception):
    """A statement took longer than it was given. The transaction goes on."""


@contextmanager
def limited(connection: Connection, seconds: float) -> Iterator[None]:
    """Read for so long at most, then raise OutOfTime; for PostgreSQL that is the time of each statement.

    Nothing may be written meanwhile: PostgreSQL takes it back.
    """
    begun = time.monotonic()
    within = _limited_sqlite if connection.dialect.name == "sqlite" else _limited_postgresql
    try:
        with within(connection, seconds):
            yield
    except DBAPIError as error:
        # Others cancel statements, too.
        if _was_cancelled(error.orig) and time.monotonic() - begun >= seconds:
            raise OutOfTime from None
        raise


@contextmanager
def _limited_sqlite(connection: Connection, seconds: float) -> Iterator[None]:
    driver: Any = connection.connection.driver_connection
    ends = time.monotonic() + seconds
    driver.set_progress_handler(lambda: time.monotonic() >= ends, _STEPS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)


@contextmanager
def _limited_postgresql(connection: Connection, seconds: float) -> Iterator[None]:
    connection.exec_driver_sql("SAVEPOINT limited")
    try:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {math.ceil(max(_LEAST_LIMIT, seconds) * 1000)}")
        yield
    except DBAPIError:
        _take_back(connection)
        raise
    # Whatever else ends it, a cancellation for one, ends the transaction.
    _take_back(connection)


def _take_back(connection: Connection) -> None:
    """Go back to before the limit, which holds until then: on a busy machine for this very statement, too."""
    for left in reversed(range(_TRIES_TO_END)):
        try:
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT limited")
        except DBAPIError as error:
            if not (left and _was_cancelled(error.orig)):
                raise
        else:
            return


def _was_cancelled(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        return error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT
    return getattr(error, "sqlstate", None) == _CANCELLED


@contextmanager
def translated() -> Iterator[None]:
    """Turn what a database raises into StoreError, without its text: drivers quote values in theirs."""
    try:
        yield
    except DBAPIError as error:
        raise _store_error(error.orig, lost=error.connection_invalidated) from None
    except sqlite3.Error as error:
        raise _store_error(error) from None
    except (ValueError, OverflowError) as error:
        raise RowRejected(f"the database cannot hold a value ({type(error).__name__})") from None
    except (PoolTimeout, OSError) as error:
        raise StoreUnavailable(f"the database cannot be used ({type(error).__name__})") from None
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        raise StoreError(f"the database cannot be used ({type(error).__name__})") from None


def _store_error(error: BaseException | None, *, lost: bool = False) -> StoreError:
    """Return the StoreError for a driver's error; ``lost`` says that the connection was lost."""
    name = _error_name(error)
    words = next((words for prefix, words in _WORDS.items() if name.startswith(prefix)), "the database failed")
    if name.startswith(_REJECTED) or _is_value_error(error):
        return RowRejected(f"{words} ({name})")
    return (StoreUnavailable if lost or name.startswith(_UNAVAILABLE) else StoreError)(f"{words} ({name})")


def _error_name(error: BaseException | None) -> str:
    """Return SQLite's name for the error, PostgreSQL's five-character state, or the exception's type."""
    if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorname"):
        return error.sqlite_errorname
    return str(getattr(error, "sqlstate", None) or type(error).__name__)


def _is_value_error(error: BaseException | None) -> bool:
    """Return whether the driver refused a value: sqlite3 by a DataError, asyncpg by one beneath SQLAlchemy's."""
    return isinstance(error, sqlite3.DataError) or isinstance(error and error.__cause__, ValueError)
