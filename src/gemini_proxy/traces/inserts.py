"""The inserts of the hot path: Core statements compiled once, run with ready tuples.

SQLAlchemy's own executemany builds a dict and a tuple for each row again, a third of the cost of a batch. In SQLite the
traces of exchanges go without SQLAlchemy altogether: for one that comes alone it costs as much as the insert.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, Dialect, Insert, bindparam, insert, select

from gemini_proxy.traces.database import serialise_writers
from gemini_proxy.traces.datasets import known_places, places
from gemini_proxy.traces.errors import RowRejected
from gemini_proxy.traces.rows import ANNOTATION_KEYS, JOB_KEYS, TRACE_KEYS, TraceRow
from gemini_proxy.traces.schema import annotations, jobs, traces

# Rows below a trace name it by its id: the batch that holds them does not know its number yet.
_TRACE_SEQ = select(traces.c.seq).where(traces.c.id == bindparam("trace_id")).scalar_subquery()

_MOST_TOGETHER: Final = 128


@dataclass(frozen=True, slots=True)
class _Statements:
    trace: str
    annotation: str
    job: str
    number: str


def insert_rows(connection: Connection, rows: Sequence[TraceRow], *, again: bool = False) -> None:
    """Insert traces with their annotations and jobs, each kind in one statement, into datasets made where missing.

    With ``again`` those that are there are left as they are, with all that hangs on them.
    """
    sql = _statements(connection.dialect)
    serialise_writers(connection)
    if again:
        # An earlier attempt whose end is unknown is over by now: it held the lock of writers.
        rows = _missing(connection, rows)
        if not rows:
            return
    placed = places(connection, _wanted(rows))
    connection.exec_driver_sql(sql.trace, _placed(rows, placed))
    insert_annotations(connection, [annotation for row in rows for annotation in row.annotations])
    queued = [job for row in rows for job in row.jobs]
    if queued:
        connection.exec_driver_sql(sql.job, queued)


def _missing(connection: Connection, rows: Sequence[TraceRow]) -> list[TraceRow]:
    there = set(connection.scalars(select(traces.c.id).where(traces.c.id.in_([row.trace[0] for row in rows]))))
    return [row for row in rows if row.trace[0] not in there]


def insert_directly(connection: sqlite3.Connection, dialect: Dialect, rows: Sequence[TraceRow]) -> bool:
    """``insert_rows`` by the driver alone, in the transaction that the caller has begun.

    False where a dataset is missing: then what was done is to be undone.
    """
    sql = _statements(dialect)
    placed = known_places(connection, dialect, _wanted(rows))
    if placed is None:
        return False
    _insert_together(connection, sql.trace, _placed(rows, placed))
    annotated = [row for row in rows if row.annotations]
    for row in annotated:
        [place] = connection.execute(sql.number, (row.trace[0],)).fetchall()
        connection.executemany(sql.annotation, [place + annotation[1:] for annotation in row.annotations])
    _insert_together(connection, sql.job, [job for row in rows for job in row.jobs])
    return True


def _insert_together(connection: sqlite3.Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows in as few steps as few prepared statements allow: of 1, 2, 4 ... 128 rows.

    In each step the driver lets other threads run, and while the loop is busy it waits a millisecond until it goes on.
    """
    done = 0
    while left := len(rows) - done:
        count = min(1 << left.bit_length() - 1, _MOST_TOGETHER)
        values = [value for row in rows[done : done + count] for value in row]
        connection.execute(_repeated(sql, count), values)
        done += count


@lru_cache(maxsize=32)
def _repeated(sql: str, count: int) -> str:
    """An insert of one row as one of ``count``."""
    head, _, values = sql.partition(" VALUES ")
    return f"{head} VALUES {', '.join([values] * count)}"


def _wanted(rows: Sequence[TraceRow]) -> list[tuple[str, str, float]]:
    return [(row.owner, row.dataset, row.created) for row in rows]


def _placed(rows: Sequence[TraceRow], places: Sequence[tuple[int, int]]) -> list[tuple[Any, ...]]:
    return [(row.trace[0], *place, *row.trace[1:]) for place, row in zip(places, rows, strict=True)]


def insert_annotations(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert annotations of traces that are there. Raises RowRejected where one is not."""
    if not rows:
        return
    sql = _statements(connection.dialect)
    numbers = {
        trace_id: connection.exec_driver_sql(sql.number, (trace_id,)).first() for trace_id in {row[0] for row in rows}
    }
    if None in numbers.values():
        raise RowRejected("an annotation's trace is not there")
    connection.exec_driver_sql(sql.annotation, [(*(numbers[row[0]] or ()), *row[1:]) for row in rows])


@lru_cache(maxsize=4)
def _statements(dialect: Dialect) -> _Statements:
    return _Statements(
        _compile(insert(traces), TRACE_KEYS, dialect),
        _compile(insert(annotations), ("trace", "dataset", *ANNOTATION_KEYS[1:]), dialect),
        _compile(insert(jobs).values(trace=_TRACE_SEQ), JOB_KEYS, dialect),
        str(select(traces.c.seq, traces.c.dataset).where(traces.c.id == bindparam("id")).compile(dialect=dialect)),
    )


def _compile(statement: Insert, keys: tuple[str, ...], dialect: Dialect) -> str:
    columns = [key for key in keys if key != "trace_id"]
    # Inline: one row's insert would return the row's number, which nobody reads.
    compiled = statement.inline().compile(
        dialect=dialect, column_keys=["trace", *columns] if "trace_id" in keys else columns
    )
    if tuple(compiled.positiontup or ()) != keys:
        raise AssertionError(f"the tuples in rows.py are in another order than {compiled.positiontup}")
    return str(compiled)
