"""Traces in a database: written in batches, listed newest first, annotated, exported and, after their time, deleted."""

import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Self

from sqlalchemy import Connection, RowMapping, Select, delete, insert, inspect, select, text, update

from gemini_proxy.traces import jobs
from gemini_proxy.traces.database import Database, connect
from gemini_proxy.traces.errors import AmbiguousTraceId, StoreError
from gemini_proxy.traces.inserts import insert_annotations, insert_rows
from gemini_proxy.traces.jobs import Job
from gemini_proxy.traces.rows import LOG_RULES, TraceRow, annotation_rows, decode, decode_annotation, encode
from gemini_proxy.traces.schema import HEAD, annotations, probe, traces
from gemini_proxy.traces.trace import Annotation, Outcome, Trace, TraceSummary

# Short enough to type, long enough to be unique among millions.
MIN_PREFIX = 6
# A page of an export is held in memory, and a trace may hold megabytes.
EXPORT_PAGE = 50
# Longer than any check; what a killed process had taken is taken up again after it.
JOB_LEASE = 60.0


class TraceStore:
    """The trace database. Every method raises StoreError when the database does not do what it should."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open the database at ``url`` for reading and writing, created or brought to the newest schema as needed."""
        # Alembic is a third of the start-up time of commands that only read.
        from gemini_proxy.traces.migrations.upgrade import upgrade

        database = connect(url)
        try:
            await database.write(upgrade)
        except BaseException:
            await database.close()
            raise
        return cls(database)

    @classmethod
    async def open_read_only(cls, url: str) -> Self:
        """Open an existing database of the present schema, changing nothing; ``annotate`` and the like fail."""
        database = connect(url, read_only=True)
        try:
            await database.read(_require_present_schema)
        except BaseException:
            await database.close()
            raise
        return cls(database)

    async def close(self) -> None:
        """Close all connections; work under way ends first."""
        await self._database.close()

    async def ping(self) -> None:
        """Return when the database has taken a write."""
        now = time.time()
        await self._database.write(lambda connection: _probe(connection, now))

    async def add(self, batch: Sequence[Trace]) -> None:
        """Write traces in one transaction: all or none. Raises RowRejected for one that can never be written."""
        await self.write([encode(trace) for trace in batch])

    async def write(self, rows: Sequence[TraceRow]) -> None:
        """``add`` for traces that are serialised already."""
        if rows:
            await self._database.write(lambda connection: insert_rows(connection, rows))

    async def annotate(self, trace_id: str, added: Sequence[Annotation]) -> None:
        """Add annotations to a trace, named by its whole id. Raises RowRejected when it does not exist."""
        rows = annotation_rows(trace_id, added, time.time())
        await self._database.write(lambda connection: insert_annotations(connection, rows))

    async def recent(
        self, limit: int, *, dataset: str | None = None, outcome: Outcome | None = None, before: int | None = None
    ) -> list[TraceSummary]:
        """The newest traces first, at most ``limit``; ``before`` is the ``seq`` that the previous page ended with."""
        query = _summaries(limit, dataset, outcome, before)
        return await self._database.read(
            lambda connection: [_summary(row) for row in connection.execute(query).mappings()]
        )

    async def get(self, id_or_prefix: str) -> Trace | None:
        """The trace of an id, or of the first six characters or more of one. Raises AmbiguousTraceId."""
        if len(id_or_prefix) < MIN_PREFIX:
            raise ValueError(f"a trace is named by {MIN_PREFIX} characters of its id or more")
        return await self._database.read(lambda connection: _find(connection, id_or_prefix))

    async def export(self, dataset: str | None = None, *, page: int = EXPORT_PAGE) -> AsyncIterator[Trace]:
        """Every trace, of one dataset or of all, oldest first; those written meanwhile included."""
        after = 0
        while True:
            found = await self._database.read(partial(_page, dataset=dataset, after=after, limit=page))
            for _, trace in found:
                yield trace
            if len(found) < page:
                return
            after = found[-1][0]

    async def delete_before(self, created: float, *, step: int = 500) -> int:
        """Delete traces older than a Unix time with all that hangs on them; how many.

        Takes the oldest ``step`` in each transaction, so that writers wait for one step at most.
        """
        total = 0
        while True:
            deleted = await self._database.write(lambda connection: _delete_oldest(connection, created, step))
            total += deleted
            if deleted < step:
                return total

    async def take_jobs(self, limit: int, *, now: float | None = None, lease: float = JOB_LEASE) -> list[Job]:
        """Queued log rules, oldest first, which nobody else is given until ``lease`` seconds have passed."""
        at = time.time() if now is None else now
        return await self._database.write(lambda connection: jobs.take(connection, LOG_RULES, limit, at, lease))

    async def finish_job(self, job: Job, found: Sequence[Annotation]) -> bool:
        """Store what a job found and remove it, in one transaction; False if that had been done already."""
        rows = annotation_rows(job.trace_id, found, time.time())
        return await self._database.write(lambda connection: jobs.finish(connection, job, rows))


def _require_present_schema(connection: Connection) -> None:
    if not inspect(connection).has_table("alembic_version"):
        raise StoreError("the database holds no traces: it was not made by gemini-proxy")
    found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    if found != HEAD:
        raise StoreError(
            f"the database has schema {found}, this version reads {HEAD}: start the server once to upgrade"
        )


def _probe(connection: Connection, now: float) -> None:
    if connection.execute(update(probe).where(probe.c.id == 1).values(at=now)).rowcount == 0:
        connection.execute(insert(probe).values(id=1, at=now))


def _summaries(
    limit: int, dataset: str | None, outcome: Outcome | None, before: int | None
) -> Select[*tuple[object, ...]]:
    first_rule = (
        select(annotations.c.content)
        .where(annotations.c.trace == traces.c.seq)
        .order_by(annotations.c.seq)
        .limit(1)
        .scalar_subquery()
    )
    columns = (
        traces.c[key] for key in ("seq", "id", "created", "dataset", "model", "outcome", "stream", "duration_ms")
    )
    query = select(*columns, first_rule.label("rule")).order_by(traces.c.seq.desc()).limit(limit)
    if dataset is not None:
        query = query.where(traces.c.dataset == dataset)
    if outcome is not None:
        query = query.where(traces.c.outcome == outcome.value)
    return query if before is None else query.where(traces.c.seq < before)


def _summary(row: RowMapping) -> TraceSummary:
    return TraceSummary(**{**row, "outcome": Outcome(row["outcome"])})


def _find(connection: Connection, prefix: str) -> Trace | None:
    # "g" follows every hexadecimal digit: a range, which the index serves whatever the database's LIKE does.
    query = select(traces).where(traces.c.id >= prefix, traces.c.id < prefix + "g").limit(2)
    found = connection.execute(query).mappings().all()
    if len(found) > 1:
        raise AmbiguousTraceId(f"several traces begin with {prefix}")
    return _with_annotations(connection, found)[0][1] if found else None


def _page(connection: Connection, dataset: str | None, after: int, limit: int) -> list[tuple[int, Trace]]:
    query = select(traces).where(traces.c.seq > after).order_by(traces.c.seq).limit(limit)
    if dataset is not None:
        query = query.where(traces.c.dataset == dataset)
    return _with_annotations(connection, connection.execute(query).mappings().all())


def _with_annotations(connection: Connection, found: Sequence[RowMapping]) -> list[tuple[int, Trace]]:
    query = (
        select(annotations).where(annotations.c.trace.in_([row["seq"] for row in found])).order_by(annotations.c.seq)
    )
    by_trace: dict[int, list[Annotation]] = {row["seq"]: [] for row in found}
    for row in connection.execute(query).mappings():
        by_trace[row["trace"]].append(decode_annotation(row))
    return [(row["seq"], decode(row, by_trace[row["seq"]])) for row in found]


def _delete_oldest(connection: Connection, created: float, step: int) -> int:
    oldest = connection.execute(select(traces.c.seq, traces.c.created).order_by(traces.c.seq).limit(step))
    expired = [seq for seq, at in oldest if at < created]
    if expired:
        connection.execute(delete(traces).where(traces.c.seq.in_(expired)))
    return len(expired)
