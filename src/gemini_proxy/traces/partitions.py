"""PostgreSQL's partitions of traces, one a day: retention drops a table instead of deleting a million rows.

Each partition has a range of WIDTH numbers: ``traces_5`` and ``search_5`` begin at 5 * WIDTH. At the end of a day the
next partition is created, and the sequence leaps to its first number. So bounds never change, and an insert always
finds a partition, even when the process that creates them is gone.

PostgreSQL would scan a partition for each foreign key that refers to it before it can be dropped. So there are none:
whatever deletes a trace also deletes its annotations, jobs and search entry. An id is unique within its partition; the
trigger ``refuse_repeated_trace`` stops a late statement from inserting a trace into a new partition after its
repetition inserted it into the previous one.

SQLite has no partitions: ``partitions`` returns none there.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Connection, delete, func, select, text

from gemini_proxy.traces.database import Database, bytes_in_use, serialise_writers
from gemini_proxy.traces.schema import annotations, jobs, traces

WIDTH: Final = 1 << 40
"""Numbers in a partition's range: as many as two thousand exchanges a second would use up in fifteen years."""
PARTS: Final = 8
"""A partition takes this part of the size that the database may have, at most; and so much is left of the traces."""
# No statement is expected to come this many traces after its repetition.
_WATCHED: Final = 1 << 20
# The first traces show when a partition was begun: several, since one may have the time of a wrong clock.
_FIRST: Final = 100
# Rows read or deleted in one transaction.
_READ: Final = 100_000
_DELETED: Final = 500
# For more traces than this the planner's estimate is good enough as a count.
_COUNTED: Final = 1_000_000

_TABLES: Final = ("traces", "search")

_FOUND: Final = text(r"""
    SELECT substring(c.relname FROM '\d+$')::bigint, p.relname, i.inhdetachpending, pg_total_relation_size(c.oid)
    FROM pg_class c
    LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    LEFT JOIN pg_class p ON p.oid = i.inhparent
    WHERE c.relkind = 'r' AND c.relname ~ '^(traces|search)_\d+$'
    AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('traces'))
""")


@dataclass(frozen=True, slots=True)
class Partition:
    """A range of traces. ``size`` is what it takes on the disk in bytes, with indexes and search.

    A partition that is not ``whole`` has lost a table: it was about to be dropped.
    """

    number: int
    size: int
    whole: bool

    @property
    def first(self) -> int:
        """Return the smallest number that a trace in it can have."""
        return self.number * WIDTH

    @property
    def end(self) -> int:
        """Return the number after the largest one."""
        return self.first + WIDTH


@dataclass(frozen=True, slots=True)
class Dropped:
    """A partition that was dropped; it had about so many traces."""

    traces: int


def partitions(connection: Connection) -> list[Partition]:
    """Return the partitions, the oldest first."""
    if connection.dialect.name != "postgresql":
        return []
    sizes: dict[int, int] = {}
    attached: dict[int, int] = {}
    for number, parent, pending, size in connection.execute(_FOUND):
        sizes[number] = sizes.get(number, 0) + size
        attached[number] = attached.get(number, 0) + (parent is not None and not pending)
    return [Partition(number, sizes[number], attached[number] == len(_TABLES)) for number in sorted(sizes)]


def estimated_traces(connection: Connection, partition: Partition) -> int:
    """Return how many traces a partition holds; where they are many, by the planner's estimate."""
    name = f"traces_{partition.number}"
    known = connection.execute(text(f"SELECT reltuples FROM pg_class WHERE oid = to_regclass('{name}')")).scalar()
    if known is None:
        return 0
    if known > _COUNTED:
        return int(known)
    return int(connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one())


def most_between(connection: Connection, after: int, to: int) -> int:
    """Return how many traces there are at most after a number, up to another: numbers that were given out."""
    total = 0
    for partition in partitions(connection):
        if partition.end > after and partition.first <= to:
            within = (traces.c.seq >= partition.first, traces.c.seq < partition.end, traces.c.seq <= to)
            last = connection.scalar(select(func.max(traces.c.seq)).where(*within))
            total += max(0, last - max(after, partition.first - 1)) if last is not None else 0
    return total


def open_partition(connection: Connection, number: int) -> None:
    """Make a partition, which no writer uses yet."""
    # Creating it takes locks that would wait for active writers, and delay others behind them.
    serialise_writers(connection)
    first, end = number * WIDTH, (number + 1) * WIDTH
    watched = f"WHEN (NEW.seq < {first + _WATCHED})"
    for statement in (
        # Attached, not created as a partition, which would lock out readers of traces.
        f"CREATE TABLE traces_{number} (LIKE traces INCLUDING DEFAULTS)",
        f"ALTER TABLE traces_{number} ADD CONSTRAINT uq_traces_{number}_id UNIQUE (id)",
        f"CREATE TRIGGER repeated BEFORE INSERT ON traces_{number} FOR EACH ROW {watched}"
        " EXECUTE FUNCTION refuse_repeated_trace()",
        f"ALTER TABLE traces ATTACH PARTITION traces_{number} FOR VALUES FROM ({first}) TO ({end})",
        f"CREATE TABLE search_{number} (LIKE search)",
        f"ALTER TABLE search ATTACH PARTITION search_{number} FOR VALUES FROM ({first}) TO ({end})",
    ):
        connection.execute(text(statement))


def leap(connection: Connection, number: int) -> None:
    """Give out the numbers of a partition, which is there, from now on."""
    serialise_writers(connection)
    first = number * WIDTH
    connection.execute(
        text(f"SELECT setval('traces_seq_seq', {first}, false) FROM traces_seq_seq WHERE last_value < {first}")
    )


class Partitions:
    """The partitions of a database. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def turn(self, before: float | None, most: int | None) -> bool:
        """Begin a new partition if the current one was begun before a Unix time, or has more than ``most`` bytes.

        Return whether it was begun. None disables either condition.
        """
        number = await self._database.read(partial(_due, before=before, most=most))
        if number is None:
            return False
        # In two transactions: a sequence is not rolled back, and must not point to a partition that was.
        await self._database.write(partial(_open_missing, number=number))
        await self._database.write(partial(leap, number=number))
        return True

    async def tidy(self) -> None:
        """Drop the rest of partitions whose dropping was interrupted."""
        for partition in await self._database.read(partitions):
            if not partition.whole:
                await self._drop(partition)

    async def drop_before(self, created: float, *, thorough: bool) -> int:
        """Drop the partitions whose traces all began before a Unix time; return how many traces those were.

        Continue after a younger partition only if ``thorough``. The current partition stays.
        """
        total = 0
        for partition in await self._database.read(closed):
            if (count := await self._all_before(partition, created)) is not None:
                await self._drop(partition)
                total += count
            elif not thorough:
                break
        return total

    async def drop_oldest(self, size: int) -> Dropped | None:
        """Drop the oldest partition if the database has more than ``size`` bytes; return the dropped partition.

        The current partition stays, and the last one before it until the current one has ``size / PARTS`` bytes: a
        database that had no partitions does not lose all of its traces when the first one is closed.
        """
        oldest = await self._database.read(partial(_excessive, size=size))
        if oldest is None:
            return None
        partition, count = oldest
        await self._drop(partition)
        return Dropped(count)

    async def _all_before(self, partition: Partition, created: float) -> int | None:
        """Return how many traces a partition has, None if one of them began at ``created`` or later."""
        if await self._database.read(partial(_newest, partition=partition)) >= created:
            return None
        total, after = 0, -1
        while True:
            latest, last, count = await self._database.read(partial(_look, partition=partition, after=after))
            if count == 0:
                return total
            if latest >= created:
                return None
            total, after = total + count, last

    async def _drop(self, partition: Partition) -> None:
        """Remove a partition without making writers or readers wait. If interrupted, call it again to continue."""
        await self._forget(partition)
        for table in _TABLES:
            name = f"{table}_{partition.number}"
            state = await self._database.read(partial(_state, name=name))
            if state == "attached":
                await self._database.run_alone(f"ALTER TABLE {table} DETACH PARTITION {name} CONCURRENTLY")
            elif state == "pending":
                await self._database.run_alone(f"ALTER TABLE {table} DETACH PARTITION {name} FINALIZE")
        # After the traces are detached: one may have been annotated in the meantime.
        await self._forget(partition)
        names = ", ".join(f"{table}_{partition.number}" for table in _TABLES)
        await self._database.write(lambda connection: _execute(connection, f"DROP TABLE IF EXISTS {names}"))

    async def _forget(self, partition: Partition) -> None:
        """Delete the rows that belong to a partition's traces, in small steps."""
        while await self._database.write(partial(_forget, partition=partition)):
            pass


def closed(connection: Connection) -> list[Partition]:
    """Return the partitions that no further trace comes into, the oldest first."""
    return closed_and_current(connection)[0]


def closed_and_current(connection: Connection) -> tuple[list[Partition], Partition | None]:
    """Return the partitions that get no more traces, the oldest first, and the one that gets the next trace.

    There is none in SQLite.
    """
    found = {partition.number: partition for partition in partitions(connection) if partition.whole}
    if not found:
        return [], None
    current = _current(connection)
    return [partition for number, partition in found.items() if number < current], found[current]


def droppable(connection: Connection, size: int) -> list[Partition]:
    """Return the partitions that may be dropped for the database to have ``size`` bytes, the oldest first."""
    older, current = closed_and_current(connection)
    return older if current is None or current.size >= size // PARTS else older[:-1]


def _current(connection: Connection) -> int:
    """Return the number of the partition that the next trace comes into."""
    last: int = connection.execute(text("SELECT last_value FROM traces_seq_seq")).scalar_one()
    return last // WIDTH


def _due(connection: Connection, before: float | None, most: int | None) -> int | None:
    """Return the number of the partition to begin now."""
    _, current = closed_and_current(connection)
    if current is None:
        return None
    in_order = select(traces.c.created).where(traces.c.seq >= current.first).order_by(traces.c.seq).limit(_FIRST)
    begun = connection.scalar(select(func.min(in_order.subquery().c.created)))
    if begun is None:
        return None
    is_due = (before is not None and begun < before) or (most is not None and current.size > most)
    return current.number + 1 if is_due else None


def _open_missing(connection: Connection, number: int) -> None:
    if all(partition.number != number for partition in partitions(connection)):
        open_partition(connection, number)


def _newest(connection: Connection, partition: Partition) -> float:
    """Return when the last trace of a partition began."""
    within = (traces.c.seq >= partition.first, traces.c.seq < partition.end)
    created = connection.scalar(select(traces.c.created).where(*within).order_by(traces.c.seq.desc()).limit(1))
    return float("-inf") if created is None else created


def _look(connection: Connection, partition: Partition, after: int) -> tuple[float, int, int]:
    """Return the latest time, the last number and the count of at most _READ of a partition's traces after a number."""
    within = (traces.c.seq > max(after, partition.first - 1), traces.c.seq < partition.end)
    some = select(traces.c.seq, traces.c.created).where(*within).order_by(traces.c.seq).limit(_READ).subquery()
    row = connection.execute(select(func.max(some.c.created), func.max(some.c.seq), func.count())).one()
    return row[0], row[1], row[2]


def _excessive(connection: Connection, size: int) -> tuple[Partition, int] | None:
    """Return the oldest partition and about how many traces it has, if it has to go for the database to be smaller."""
    oldest = next(iter(droppable(connection, size)), None)
    if oldest is None or bytes_in_use(connection) <= size:
        return None
    return oldest, estimated_traces(connection, oldest)


def _state(connection: Connection, name: str) -> str | None:
    query = text(f"SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass('{name}')")
    pending = connection.execute(query).scalar()
    return None if pending is None else "pending" if pending else "attached"


def _forget(connection: Connection, partition: Partition) -> int:
    total = 0
    for table in (annotations, jobs):
        some = select(table.c.seq).where(table.c.trace >= partition.first, table.c.trace < partition.end)
        numbers = some.order_by(table.c.trace).limit(_DELETED).scalar_subquery()
        total += connection.execute(delete(table).where(table.c.seq.in_(numbers))).rowcount
    return total


def _execute(connection: Connection, statement: str) -> None:
    connection.execute(text(statement))
