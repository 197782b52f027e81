"""Insert traces, and annotations up to their bounds: by Core statements compiled once, run with ready tuples.

SQLAlchemy's own executemany builds a dict and a tuple for each row again, a third of the cost of a batch. In SQLite the
traces of exchanges go without SQLAlchemy altogether: for one that comes alone it costs as much as the insert. In
PostgreSQL they go in one statement: writers wait for one another, and none is to wait for another's next statement.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, Dialect, Insert, Table, bindparam, func, insert, select
from sqlalchemy.types import BigInteger, Boolean, Double, Integer, LargeBinary, String, TypeEngine

from gemini_proxy.traces.database import WRITERS_LOCK, serialise_writers, upsert
from gemini_proxy.traces.datasets import deal, known_places, places, reservations
from gemini_proxy.traces.errors import RowRejected, TooMany
from gemini_proxy.traces.rows import ANNOTATION_KEYS, JOB_KEYS, TRACE_KEYS, TraceRow
from gemini_proxy.traces.schema import annotations, jobs, masked_values, traces
from gemini_proxy.traces.value_keys import SealedValue

MAX_ANNOTATIONS: Final = 100_000
"""Annotations of one trace: what the rules of one exchange may find many times over."""
MAX_ANNOTATED: Final = 104_857_600
"""Characters of them, and bytes of what else is said of them: as much as one push brings."""
_BOUNDED: Final = tuple(annotations.c[name] for name in ("content", "address", "source", "guardrail", "extra"))

# Rows below a trace name it by its id: the batch that holds them does not know its number yet.
_TRACE_SEQ = select(traces.c.seq).where(traces.c.id == bindparam("trace_id")).scalar_subquery()

# The trace cannot be deleted until this transaction ends. SQLite has one writing transaction at a time.
_NUMBER: Final = (
    select(traces.c.seq, traces.c.dataset)
    .where(traces.c.id == bindparam("id"))
    .with_for_update(read=True, key_share=True)
)

_MOST_TOGETHER: Final = 128

# PostgreSQL holds the values of a statement in memory, several times over.
_MOST_BYTES_AT_ONCE: Final = 4_194_304

# By PostgreSQL's names. No text is truncated: one that is too long for its column is an error.
_ARRAYS: Final[tuple[tuple[type[TypeEngine[Any]], str], ...]] = (
    (String, "text"),
    (LargeBinary, "bytea"),
    (Boolean, "boolean"),
    (Double, "double precision"),
    (BigInteger, "bigint"),
    (Integer, "integer"),
)

# Each part reads what the one before returns, so the lock comes first, and numbers are given out while it is held.
# Places are given out only if all datasets exist; otherwise there is nothing to undo.
_AT_ONCE: Final = """
WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock({lock})),
wanted AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::text[], $3::integer[], $4::double precision[])
    WITH ORDINALITY AS w (owner, name, count, latest, number)
),
found AS MATERIALIZED (
    SELECT d.seq, w.count, w.latest, w.number
    FROM locked CROSS JOIN wanted w JOIN datasets d ON d.owner = w.owner AND d.name = w.name
    FOR NO KEY UPDATE OF d
),
placed AS (
    UPDATE datasets d SET size = d.size + f.count, latest = f.latest FROM found f
    WHERE d.seq = f.seq AND (SELECT count(*) FROM found) = (SELECT count(*) FROM wanted)
    RETURNING d.seq AS dataset, d.size - f.count AS first, f.number
),
inserted AS (
    INSERT INTO traces (dataset, position, id, {trace_columns})
    SELECT p.dataset, p.first + r.position, r.id, {trace_values}
    FROM {trace_rows} JOIN placed p ON p.number = r.dataset
    ORDER BY r.number
    RETURNING id, seq, dataset
),
annotated AS (
    INSERT INTO annotations (trace, dataset, {annotation_columns})
    SELECT i.seq, i.dataset, {annotation_values} FROM {annotation_rows} JOIN inserted i ON i.id = r.trace_id
    ORDER BY r.number
),
queued AS (
    INSERT INTO jobs (trace, {job_columns})
    SELECT i.seq, {job_values} FROM {job_rows} JOIN inserted i ON i.id = r.trace_id
    ORDER BY r.number
)
SELECT count(*) FROM inserted
"""


@dataclass(frozen=True, slots=True)
class _Statements:
    trace: str
    annotation: str
    job: str
    masked: str
    number: str


def insert_rows(connection: Connection, rows: Sequence[TraceRow], *, again: bool = False) -> None:
    """Insert traces with their annotations and jobs, each kind in one statement, into datasets made where missing.

    With ``again`` traces that exist already are left as they are, with everything that belongs to them.
    """
    sql = _statements(connection.dialect)
    serialise_writers(connection)
    if again:
        # An earlier attempt with an unknown result is over by now, or still waits for the writers' lock: then it will
        # fail, since its ids are taken.
        rows = _missing(connection, rows)
        if not rows:
            return
    placed = places(connection, _wanted(rows))
    connection.exec_driver_sql(sql.trace, _placed(rows, placed))
    insert_annotations(connection, [annotation for row in rows for annotation in row.annotations])
    queued = [job for row in rows for job in row.jobs]
    if queued:
        connection.exec_driver_sql(sql.job, queued)
    masked = [tuple(value) for row in rows for value in row.masked]
    if masked:
        connection.exec_driver_sql(sql.masked, masked)


def _missing(connection: Connection, rows: Sequence[TraceRow]) -> list[TraceRow]:
    there = set(connection.scalars(select(traces.c.id).where(traces.c.id.in_([row.trace[0] for row in rows]))))
    return [row for row in rows if row.trace[0] not in there]


def insert_directly(connection: sqlite3.Connection, dialect: Dialect, rows: Sequence[TraceRow]) -> bool:
    """Do what ``insert_rows`` does by the driver alone, in the transaction that the caller has begun.

    Return False if a dataset is missing: then the caller must undo the work.
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
    if masked := [value for row in rows for value in row.masked]:
        connection.executemany(sql.masked, masked)
    return True


def fits_one_statement(rows: Sequence[TraceRow]) -> bool:
    """Return whether ``insert_at_once`` can write the rows, and is the faster way."""
    return (
        not any(row.masked for row in rows)
        and sum(len(value) for row in rows for value in row.trace[-2:]) <= _MOST_BYTES_AT_ONCE
    )


def insert_at_once(connection: Connection, rows: Sequence[TraceRow]) -> bool:
    """Do what ``insert_rows`` does in one statement of PostgreSQL, which may be a transaction of its own.

    Return False if a dataset is missing: then nothing was done.
    """
    wanted = _wanted(rows)
    reserved = reservations(wanted)
    # The dataset's number is replaced by its index among these, a position by the index of the row.
    counted = deal(wanted, {key: (number, 0) for number, (key, _) in enumerate(reserved, 1)})
    values = (
        *_columns([(*key, *reservation) for key, reservation in reserved], 4),
        *_columns(_placed(rows, counted), len(TRACE_KEYS)),
        *_columns([annotation for row in rows for annotation in row.annotations], len(ANNOTATION_KEYS)),
        *_columns([job for row in rows for job in row.jobs], len(JOB_KEYS)),
    )
    return bool(connection.exec_driver_sql(_at_once(), values).scalar_one())


def _columns(rows: Sequence[tuple[Any, ...]], count: int) -> Sequence[list[Any]]:
    """Return the values of each of ``count`` columns."""
    return [[row[at] for row in rows] for at in range(count)]


@lru_cache(maxsize=1)
def _at_once() -> str:
    parts: dict[str, object] = {"lock": WRITERS_LOCK}
    # After those of the datasets.
    first = 5
    kinds = (
        ("trace", traces, TRACE_KEYS, 3),
        ("annotation", annotations, ANNOTATION_KEYS, 1),
        ("job", jobs, JOB_KEYS, 1),
    )
    for kind, table, keys, known in kinds:
        # Those before are in the statement itself.
        parts[f"{kind}_columns"] = ", ".join(keys[known:])
        parts[f"{kind}_values"] = ", ".join(f"r.{key}" for key in keys[known:])
        arrays = ", ".join(f"${number}::{_array(table, key)}[]" for number, key in enumerate(keys, first))
        parts[f"{kind}_rows"] = f"unnest({arrays}) WITH ORDINALITY AS r ({', '.join(keys)}, number)"
        first += len(keys)
    return _AT_ONCE.format(**parts)


def _array(table: Table, key: str) -> str:
    """Return PostgreSQL's name for the type of a column's values; ``trace_id`` is a trace's id."""
    column = traces.c.id if key == "trace_id" else table.c[key]
    return next(name for kind, name in _ARRAYS if isinstance(column.type, kind))


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
    """Return an insert of one row as one of ``count``."""
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


def require_annotation_room(connection: Connection, trace: int, rows: Sequence[tuple[Any, ...]]) -> None:
    """Raise TooMany if the trace of that number cannot take these further rows of ``annotation_rows``.

    The bounds hold over any number of calls: to view a trace is to read all of its annotations. The trace must be
    locked: otherwise two transactions at once could both see room.
    """
    if not rows:
        return
    size = sum((func.length(column) for column in _BOUNDED), start=0)
    there = select(func.count(), func.coalesce(func.sum(size), 0)).where(annotations.c.trace == trace)
    count, taken = connection.execute(there).one()
    if count + len(rows) > MAX_ANNOTATIONS:
        raise TooMany(f"A trace must not have more than {MAX_ANNOTATIONS} annotations")
    if taken + sum(_annotation_size(row) for row in rows) > MAX_ANNOTATED:
        raise TooMany(f"The annotations of a trace must not be larger than {MAX_ANNOTATED} bytes")


def _annotation_size(row: tuple[Any, ...]) -> int:
    _, content, address, source, _, guardrail, extra, _ = row
    return len(content) + len(address) + len(source) + len(guardrail) + len(extra)


@lru_cache(maxsize=4)
def _statements(dialect: Dialect) -> _Statements:
    return _Statements(
        _compile(insert(traces), TRACE_KEYS, dialect),
        _compile(insert(annotations), ("trace", "dataset", *ANNOTATION_KEYS[1:]), dialect),
        _compile(insert(jobs).values(trace=_TRACE_SEQ), JOB_KEYS, dialect),
        _compile(upsert(masked_values, dialect.name), SealedValue._fields, dialect),
        str(_NUMBER.compile(dialect=dialect)),
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
