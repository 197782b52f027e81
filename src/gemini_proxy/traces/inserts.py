"""The inserts of the hot path: Core statements compiled once, run with ready tuples.

SQLAlchemy's own executemany builds a dict and a tuple for each row again, a third of the cost of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, Insert, bindparam, insert, select

from gemini_proxy.traces.database import serialise_writers
from gemini_proxy.traces.datasets import places
from gemini_proxy.traces.errors import RowRejected
from gemini_proxy.traces.rows import ANNOTATION_KEYS, JOB_KEYS, TRACE_KEYS, TraceRow
from gemini_proxy.traces.schema import annotations, jobs, traces

# Rows below a trace name it by its id: the batch that holds them does not know its number yet.
_TRACE_SEQ = select(traces.c.seq).where(traces.c.id == bindparam("trace_id")).scalar_subquery()


@dataclass(frozen=True, slots=True)
class _Statements:
    trace: str
    annotation: str
    job: str


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
    placed = places(connection, [(row.owner, row.dataset, row.created) for row in rows])
    connection.exec_driver_sql(
        sql.trace, [(row.trace[0], *place, *row.trace[1:]) for place, row in zip(placed, rows, strict=True)]
    )
    insert_annotations(connection, [annotation for row in rows for annotation in row.annotations])
    queued = [job for row in rows for job in row.jobs]
    if queued:
        connection.exec_driver_sql(sql.job, queued)


def _missing(connection: Connection, rows: Sequence[TraceRow]) -> list[TraceRow]:
    there = set(connection.scalars(select(traces.c.id).where(traces.c.id.in_([row.trace[0] for row in rows]))))
    return [row for row in rows if row.trace[0] not in there]


def insert_annotations(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert annotations of traces that are there. Raises RowRejected where one is not."""
    if not rows:
        return
    found = connection.execute(
        select(traces.c.id, traces.c.seq, traces.c.dataset).where(traces.c.id.in_({row[0] for row in rows}))
    )
    numbers = {trace_id: (seq, dataset) for trace_id, seq, dataset in found}
    try:
        placed = [numbers[row[0]] + row[1:] for row in rows]
    except KeyError:
        raise RowRejected("an annotation's trace is not there") from None
    connection.exec_driver_sql(_statements(connection.dialect).annotation, placed)


@lru_cache(maxsize=4)
def _statements(dialect: Dialect) -> _Statements:
    return _Statements(
        _compile(insert(traces), TRACE_KEYS, dialect),
        _compile(insert(annotations), ("trace", "dataset", *ANNOTATION_KEYS[1:]), dialect),
        _compile(insert(jobs).values(trace=_TRACE_SEQ), JOB_KEYS, dialect),
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
