"""Store traces: write them in batches, list the newest first, annotate, export and, after their time, delete them."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from sqlalchemy import Connection, delete, func, insert, inspect, select, text, update

from gemini_proxy.traces import jobs
from gemini_proxy.traces.database import Database, bytes_in_use, connect
from gemini_proxy.traces.datasets import Dataset, all_datasets, find_datasets
from gemini_proxy.traces.errors import AmbiguousDataset, AmbiguousTraceId, RowRejected, StoreError
from gemini_proxy.traces.inserts import insert_annotations, require_annotation_room
from gemini_proxy.traces.jobs import Job
from gemini_proxy.traces.partitions import (
    WIDTH,
    Partitions,
    closed,
    closed_and_current,
    droppable,
    estimated_traces,
    most_between,
    partitions,
)
from gemini_proxy.traces.queries import Query, read_summaries, read_traces, summaries, whole_traces
from gemini_proxy.traces.rows import TraceRow, annotation_rows, decode_apart, dump_messages, encode
from gemini_proxy.traces.schema import HEAD, annotations, datasets, probe, traces
from gemini_proxy.traces.schema import jobs as jobs_table
from gemini_proxy.traces.search.index import forget
from gemini_proxy.traces.search.indexer import reindex
from gemini_proxy.traces.shadows import forget_differences
from gemini_proxy.traces.trace import Annotation, Outcome, Trace, TraceSummary

# Short enough to type, long enough to be unique among millions.
MIN_PREFIX = 6
# A page of an export is held in memory, and a trace may hold megabytes.
EXPORT_PAGE = 50
# Traces whose age is looked at in one read.
LOOK = 5_000
# Bytes of messages that a trace may grow to: each change reads and writes all of them, and other writers wait.
MAX_GROWN = 104_857_600
# Longer than any check; what a killed process had taken is taken up again after it.
JOB_LEASE = 60.0


@dataclass(frozen=True, slots=True)
class Excess:
    """The bytes that the database uses, and about how many traces must be deleted to reach a given size."""

    size: int
    traces: int


@dataclass(frozen=True, slots=True)
class Due:
    """The number of traces past a time, and when the oldest began, in Unix seconds; None if there are none."""

    count: int
    oldest: float | None


class TraceStore:
    """The trace database. Every method raises StoreError when the database does not do what it should."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._partitions = Partitions(database)
        # How large the database was when rows of the current partition were last deleted because of its size.
        self._size_of_rest = 0

    @property
    def database(self) -> Database:
        """Return the database of the traces, for other stores in it."""
        return self._database

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open the database at ``url`` for reading and writing, created or brought to the newest schema as needed."""
        database = connect(url)
        try:
            while await database.migrate(_upgrade):
                pass
        except BaseException:
            await database.close()
            raise
        return cls(database)

    @classmethod
    async def try_open(cls, url: str) -> None:
        """Raise StoreError where ``open`` would, and change nothing: what it creates in the database is undone."""
        from gemini_proxy.traces.migrations.upgrade import try_upgrade

        database = connect(url)
        try:
            await database.rehearse(try_upgrade)
        finally:
            await database.close()

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

    async def write(self, rows: Sequence[TraceRow], *, again: bool = False) -> None:
        """Write serialized traces as ``add`` does; with ``again``, leave out those that are there.

        A failed attempt may still have written: its commit may have succeeded without the confirmation.
        """
        if rows:
            await self._database.insert(rows, again=again)

    async def annotate(self, trace_id: str, added: Sequence[Annotation]) -> None:
        """Add annotations to a trace, named by its whole id. Raises RowRejected when it does not exist."""
        rows = annotation_rows(trace_id, added, time.time())
        await self._database.write(lambda connection: insert_annotations(connection, rows))

    async def recent(
        self, limit: int, *, dataset: str | None = None, outcome: Outcome | None = None, before: int | None = None
    ) -> list[TraceSummary]:
        """Return the newest traces of all users, newest first, at most ``limit``.

        ``dataset`` is a name, or OWNER/NAME; ``before`` is the ``seq`` that the previous page ended with. Raises
        AmbiguousDataset.
        """

        def work(connection: Connection) -> list[TraceSummary]:
            wanted = None if dataset is None else _named(connection, dataset)
            if dataset is not None and wanted is None:
                return []
            return read_summaries(connection, _narrowed(summaries(), wanted, outcome, before, limit))

        return await self._database.read(work)

    async def since(self, seq: int, limit: int) -> list[TraceSummary]:
        """Return the traces after number ``seq``, oldest first. Numbers become visible in their order."""
        query = summaries().where(traces.c.seq > seq).order_by(traces.c.seq).limit(limit)
        return await self._database.read(lambda connection: read_summaries(connection, query))

    async def newest_seq(self) -> int:
        """Return the number of the newest trace, 0 where there is none."""
        query = select(func.coalesce(func.max(traces.c.seq), 0))
        return await self._database.read(lambda connection: connection.execute(query).scalar_one())

    async def has_after(self, seq: int) -> bool:
        """Return whether there are traces after number ``seq``."""
        return bool(await self._database.glance(f"SELECT EXISTS (SELECT 1 FROM traces WHERE seq > {int(seq)})"))

    async def seq_before(self, seq: int, count: int) -> int:
        """Return a number after which, up to ``seq``, there are at most ``count`` traces."""
        if seq % WIDTH >= count or seq < WIDTH:
            return max(0, seq - count)
        # Before the first number of a partition there is a gap.
        newest_first = select(traces.c.seq).where(traces.c.seq <= seq).order_by(traces.c.seq.desc())
        query = newest_first.offset(count).limit(1)
        return await self._database.read(lambda connection: connection.scalar(query) or 0)

    async def most_between(self, after: int, to: int) -> int:
        """Return how many traces there are at most after a number, up to another."""
        if after // WIDTH == to // WIDTH:
            return to - after
        return await self._database.read(partial(most_between, after=after, to=to))

    async def get(self, id_or_prefix: str) -> Trace | None:
        """Return the trace of an id, or of the first six characters or more of one. Raises AmbiguousTraceId."""
        if len(id_or_prefix) < MIN_PREFIX:
            raise ValueError(f"give at least {MIN_PREFIX} characters of a trace's id")
        return await self._database.read(lambda connection: _find(connection, id_or_prefix))

    async def at(self, dataset: Dataset, positions: Sequence[int]) -> list[Trace]:
        """Return the traces at those places of a dataset, in their order there; places without one are left out."""
        placed = whole_traces().where(traces.c.dataset == dataset.seq, traces.c.position.in_(positions))
        query = placed.order_by(traces.c.position)
        found = await self._database.read(lambda connection: read_traces(connection, query), owner=dataset.owner)
        return [trace for _, trace in found]

    async def numbered(self, numbers: Sequence[int]) -> list[Trace]:
        """Return the traces with those numbers, the newest first; those that are gone by now are left out."""
        query = whole_traces().where(traces.c.seq.in_(numbers)).order_by(traces.c.seq.desc())
        found = await self._database.read(lambda connection: read_traces(connection, query))
        return [trace for _, trace in found]

    async def outlined(self, numbers: Sequence[int]) -> list[Trace]:
        """Return the traces with those numbers, the newest first, without messages and annotations."""
        columns = [column for column in traces.c if column.name != "messages"]
        query = whole_traces().with_only_columns(*columns, datasets.c.owner, datasets.c.name)
        query = query.where(traces.c.seq.in_(numbers)).order_by(traces.c.seq.desc())
        return await self._database.read(
            lambda connection: [decode_apart(row, ()) for row in connection.execute(query).mappings()]
        )

    async def datasets(self, name: str | None = None) -> list[Dataset]:
        """Return all users' datasets, or the one called NAME or OWNER/NAME. Raises AmbiguousDataset."""

        def work(connection: Connection) -> list[Dataset]:
            if name is None:
                return all_datasets(connection)
            found = _named(connection, name)
            return [] if found is None else [found]

        return await self._database.read(work)

    async def change(self, owner: str, trace_id: str, change: Callable[[Trace], Trace]) -> bool:
        """Replace a user's trace's messages by those of ``change(trace)``, and add the annotations it added at the end;
        of those that were there the addresses are replaced.

        One transaction, so that two changes at once both count. False where the user has no such trace; what ``change``
        raises is raised. Raises RowRejected for a trace that would be over MAX_GROWN, TooMany for one that would have
        more annotations than it may.
        """
        now = time.time()
        return await self._database.write(lambda connection: _change(connection, owner, trace_id, change, now))

    async def export(self, dataset: str | None = None, *, page: int = EXPORT_PAGE) -> AsyncIterator[Trace]:
        """Yield every trace of one dataset or of all, oldest first, including those written meanwhile."""
        wanted = None
        if dataset is not None:
            wanted = await self._database.read(lambda connection: _named(connection, dataset))
            if wanted is None:
                return
        after = -1
        while True:
            found = await self._database.read(partial(_export_page, dataset=wanted, after=after, limit=page))
            for _, trace in found:
                yield trace
            if len(found) < page:
                return
            after = found[-1][0]

    async def due_before(self, created: float) -> Due:
        """Return how many traces are older than a Unix time."""
        query = select(func.count(), func.min(traces.c.created)).where(traces.c.created < created)
        return await self._database.read(lambda connection: Due(*connection.execute(query).one()))

    async def turn_partition(self, before: float | None, most: int | None) -> bool:
        """Begin a new partition of a PostgreSQL database; return whether it was begun.

        It is if the current one was begun before a Unix time, or has more than ``most`` bytes; None asks for nothing.
        """
        return await self._partitions.turn(before, most)

    async def delete_before(
        self, created: float, *, step: int = 500, thorough: bool = True, together: float = 0.0
    ) -> int:
        """Delete traces older than a Unix time with everything that belongs to them; return how many traces that was.

        A partition of which all traces are older is dropped. Other traces are deleted by ``step`` in each transaction,
        so that writers wait for one step at most: in PostgreSQL only those that are older by ``together`` seconds more,
        since the others will go with their partition. Traces come in the order of their time, unless the clock was set
        back: only a ``thorough`` look goes on behind younger ones.
        """
        await self._database.write(partial(forget_differences, before=created))
        await self._partitions.tidy()
        total = await self._partitions.drop_before(created, thorough=thorough)
        alone = created - together if await self._database.read(partitions) else created
        after, ended = 0, False
        while not ended:
            found = await self._database.read(partial(_ages, after=after, limit=LOOK))
            due = [seq for seq, at in found if at < alone]
            for start in range(0, len(due), step):
                total += await self._database.write(partial(_delete, numbers=due[start : start + step]))
            ended = len(found) < LOOK or not (due or thorough)
            after = found[-1][0] if found else after
        return total

    async def excess(self, size: int) -> Excess:
        """Return how much the database is over ``size`` bytes in use."""
        return await self._database.read(partial(_excess, size=size))

    async def shrink(self, size: int, *, step: int = 500) -> int:
        """Delete the oldest traces until at most ``size`` bytes of the database are in use; return how many.

        In SQLite this goes in steps as ``delete_before``. Pages of deleted traces are used again, the file does not
        become shorter. The search index gives its pages back later, so more traces go than ``excess`` says.

        In PostgreSQL this drops the oldest partitions, see ``Partitions.drop_oldest``. If there is but one, its oldest
        traces are deleted in steps, once for each time that the database has grown: its files do not become smaller.
        """
        if await self._database.read(partitions):
            return await self._shrink_partitions(size, step)
        return await self._delete_excess(size, step)

    async def _shrink_partitions(self, size: int, step: int) -> int:
        await self._partitions.tidy()
        total = 0
        while dropped := await self._partitions.drop_oldest(size):
            total += dropped.traces
        rest = await self._database.read(bytes_in_use)
        if size < rest > self._size_of_rest and not await self._database.read(closed):
            wanted = (await self.excess(max(size, self._size_of_rest))).traces
            self._size_of_rest = rest
            for start in range(0, wanted, step):
                count = min(step, wanted - start)
                total += await self._database.write(partial(_delete_oldest, count=count, size=size))
        return total

    async def _delete_excess(self, size: int, step: int) -> int:
        total = 0
        # Counting all traces takes longer than deleting a few.
        while wanted := (await self.excess(size)).traces:
            while wanted and (
                deleted := await self._database.write(partial(_delete_oldest, count=min(wanted, step), size=size))
            ):
                total += deleted
                wanted -= deleted
        return total

    async def empty_deleted(self, *, step: int = 500) -> int:
        """Remove the rest of deleted datasets, in steps as ``delete_before``; how many traces that was."""
        total = 0
        while (
            deleted := await self._database.write(lambda connection: _delete_of_deleted(connection, step))
        ) is not None:
            total += deleted
        return total

    async def take_jobs(self, limit: int, *, now: float | None = None, lease: float = JOB_LEASE) -> list[Job]:
        """Take queued log rules, oldest first; nobody else is given them until ``lease`` seconds have passed."""
        at = time.time() if now is None else now
        return await self._database.write(lambda connection: jobs.take(connection, limit, at, lease))

    async def finish_job(self, job: Job, found: Sequence[Annotation]) -> bool:
        """Store what a job found and remove it, in one transaction; False if that had been done already."""
        rows = annotation_rows(job.trace_id, found, time.time())
        return await self._database.write(lambda connection: jobs.finish(connection, job, rows))


def _upgrade(connection: Connection) -> bool:
    """Run the migrations that are missing, as ``upgrade`` does."""
    if _schema_of(connection) == HEAD:
        return False
    # Importing Alembic is a tenth of a server's start; only a database of an older schema needs it.
    from gemini_proxy.traces.migrations.upgrade import upgrade

    return upgrade(connection)


def _schema_of(connection: Connection) -> str | None:
    """Return the revision of the database's schema; None if it has none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _require_present_schema(connection: Connection) -> None:
    found = _schema_of(connection)
    if found is None:
        raise StoreError("the database holds no traces: it was not made by gemini-proxy")
    if found != HEAD:
        advice = "a newer version upgraded it: use that version" if found > HEAD else "start the server once to upgrade"
        raise StoreError(f"the database has schema {found}, this version reads {HEAD}: {advice}")


def _probe(connection: Connection, now: float) -> None:
    if connection.execute(update(probe).where(probe.c.id == 1).values(at=now)).rowcount == 0:
        connection.execute(insert(probe).values(id=1, at=now))


def _change(connection: Connection, owner: str, trace_id: str, change: Callable[[Trace], Trace], now: float) -> bool:
    query = whole_traces().where(traces.c.id == trace_id, datasets.c.owner == owner)
    query = query.with_for_update(of=traces, key_share=True)
    found = read_traces(connection, query)
    if not found:
        return False
    [(seq, before)] = found
    after = change(before)
    messages = dump_messages(after.messages)
    if len(messages) > MAX_GROWN:
        raise RowRejected(f"a trace must not grow beyond {MAX_GROWN} bytes")
    connection.execute(update(traces).where(traces.c.seq == seq).values(messages=messages, updated=now))
    reindex(connection, seq, messages)
    _move(connection, seq, before.annotations, after.annotations)
    added = annotation_rows(trace_id, after.annotations[len(before.annotations) :], now)
    require_annotation_room(connection, seq, added)
    insert_annotations(connection, added)
    return True


def _move(connection: Connection, trace: int, before: Sequence[Annotation], after: Sequence[Annotation]) -> None:
    """Give the annotations that were there their new addresses; ``after`` has them first, in their order."""
    if all(old.address == new.address for old, new in zip(before, after, strict=False)):
        return
    numbers = connection.scalars(
        select(annotations.c.seq).where(annotations.c.trace == trace).order_by(annotations.c.seq)
    ).all()
    for number, old, new in zip(numbers, before, after, strict=False):
        if old.address != new.address:
            connection.execute(update(annotations).where(annotations.c.seq == number).values(address=new.address))


def _narrowed(query: Query, dataset: Dataset | None, outcome: Outcome | None, before: int | None, limit: int) -> Query:
    """Narrow a query to the newest traces, newest first, by the index of the dataset or of all."""
    place = traces.c.seq if dataset is None else traces.c.position
    if dataset is not None:
        query = query.where(traces.c.dataset == dataset.seq)
    if outcome is not None:
        query = query.where(traces.c.outcome == outcome.value)
    if before is not None:
        query = query.where(traces.c.seq < before)
    return query.order_by(place.desc()).limit(limit)


def _named(connection: Connection, name: str) -> Dataset | None:
    """Find the dataset that an operator names: OWNER/NAME, or NAME if one user has it. Raises AmbiguousDataset."""
    owner, slash, own_name = name.rpartition("/")
    found = find_datasets(connection, own_name, owner if slash else None)
    if len(found) > 1:
        raise AmbiguousDataset(f"several users have a dataset {name}: write {found[0].owner}/{name}")
    return found[0] if found else None


def _find(connection: Connection, prefix: str) -> Trace | None:
    # "g" follows every hexadecimal digit: a range, which the index serves whatever the database's LIKE does.
    query = whole_traces().where(traces.c.id >= prefix, traces.c.id < prefix + "g").limit(2)
    found = read_traces(connection, query)
    if len(found) > 1:
        raise AmbiguousTraceId(f"several traces begin with {prefix}")
    return found[0][1] if found else None


def _export_page(connection: Connection, dataset: Dataset | None, after: int, limit: int) -> list[tuple[int, Trace]]:
    """Return the next traces, oldest first, each with the cursor that continues after it."""
    if dataset is None:
        return read_traces(connection, whole_traces().where(traces.c.seq > after).order_by(traces.c.seq).limit(limit))
    query = whole_traces().where(traces.c.dataset == dataset.seq, traces.c.position > after)
    found = read_traces(connection, query.order_by(traces.c.position).limit(limit))
    return [(trace.position, trace) for _, trace in found]


def _ages(connection: Connection, after: int, limit: int) -> list[tuple[int, float]]:
    """Return the numbers of traces and when they began, from a number on."""
    query = select(traces.c.seq, traces.c.created).where(traces.c.seq > after).order_by(traces.c.seq).limit(limit)
    return [(seq, created) for seq, created in connection.execute(query)]


def _delete_of_deleted(connection: Connection, step: int) -> int | None:
    """Remove some traces of a deleted dataset, or the dataset itself when it has none left; None if there is none."""
    emptied = connection.scalar(select(datasets.c.seq).where(datasets.c.name.is_(None)).limit(1))
    if emptied is None:
        return None
    found = connection.scalars(select(traces.c.seq).where(traces.c.dataset == emptied).limit(step)).all()
    if not found:
        connection.execute(delete(datasets).where(datasets.c.seq == emptied))
    return _delete(connection, found)


def _excess(connection: Connection, size: int) -> Excess:
    used = bytes_in_use(connection)
    if used <= size:
        return Excess(used, 0)
    if partitions(connection):
        return Excess(used, _excess_of_partitions(connection, size, used - size))
    count = connection.scalar(select(func.count()).select_from(traces)) or 0
    return Excess(used, min(count, -(-count * (used - size) // used)))


def _excess_of_partitions(connection: Connection, size: int, excess: int) -> int:
    """Return about how many traces go with so many bytes: those of whole partitions, else some of the only one."""
    total = 0
    for partition in droppable(connection, size):
        if excess > 0:
            total += estimated_traces(connection, partition)
            excess -= partition.size
    older, current = closed_and_current(connection)
    if older or current is None:
        return total
    count = estimated_traces(connection, current)
    return min(count, -(-count * excess // max(1, current.size)))


def _delete_oldest(connection: Connection, count: int, size: int) -> int:
    """Delete some traces if more than ``size`` bytes are in use; how many."""
    if bytes_in_use(connection) <= size:
        return 0
    return _delete(connection, connection.scalars(select(traces.c.seq).order_by(traces.c.seq).limit(count)).all())


def _delete(connection: Connection, numbers: Sequence[int]) -> int:
    if numbers:
        # The traces first: this waits for annotations under way, and later ones find no trace.
        connection.execute(delete(traces).where(traces.c.seq.in_(numbers)))
        for table in (annotations, jobs_table):
            connection.execute(delete(table).where(table.c.trace.in_(numbers)))
        forget(connection, numbers)
    return len(numbers)
