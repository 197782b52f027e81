"""An end to statements that read for too long, so that what they were for can be done in another way."""

import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

# SQLite looks at the clock each time it has done so many of its steps: reading a page of an index takes about five.
_STEPS: Final = 500
# Seconds: less would be over for the statement that ends the limit, too; and how often that is tried.
_LEAST: Final = 0.02
_TRIES: Final = 5
# PostgreSQL's state for a statement that was cancelled.
_CANCELLED: Final = "57014"


class OutOfTime(Exception):
    """A statement took longer than it was given. The transaction goes on."""


@contextmanager
def limited(connection: Connection, seconds: float) -> Iterator[None]:
    """Read for so long at most, then raise OutOfTime; for PostgreSQL that is the time of each statement.

    Nothing may be written meanwhile: PostgreSQL takes it back.
    """
    begun = time.monotonic()
    within = _sqlite if connection.dialect.name == "sqlite" else _postgresql
    try:
        with within(connection, seconds):
            yield
    except DBAPIError as error:
        # Others cancel statements, too.
        if _was_cancelled(error.orig) and time.monotonic() - begun >= seconds:
            raise OutOfTime from None
        raise


@contextmanager
def _sqlite(connection: Connection, seconds: float) -> Iterator[None]:
    driver: Any = connection.connection.driver_connection
    ends = time.monotonic() + seconds
    driver.set_progress_handler(lambda: time.monotonic() >= ends, _STEPS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)


@contextmanager
def _postgresql(connection: Connection, seconds: float) -> Iterator[None]:
    connection.exec_driver_sql("SAVEPOINT limited")
    try:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {math.ceil(max(_LEAST, seconds) * 1000)}")
        yield
    except DBAPIError:
        _take_back(connection)
        raise
    # Whatever else ends it, a cancellation for one, ends the transaction.
    _take_back(connection)


def _take_back(connection: Connection) -> None:
    """Go back to before the limit, which holds until then: on a busy machine for this very statement, too."""
    for left in reversed(range(_TRIES)):
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
