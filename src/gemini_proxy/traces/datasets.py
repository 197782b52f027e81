"""Keep datasets: named sets of one user's traces, with policies of their own."""

import contextlib
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, Dialect, RowMapping, bindparam, delete, func, insert, select, update

from gemini_proxy.policy import LABELS_PARAMETER as LABELS
from gemini_proxy.policy import readable_parameters
from gemini_proxy.traces import revision
from gemini_proxy.traces.audit import UNKNOWN, Change, append
from gemini_proxy.traces.database import Database, serialise_writers
from gemini_proxy.traces.errors import DatasetGone, NameTaken, TooMany
from gemini_proxy.traces.masked_values import forget_values_of
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import datasets, pinned_tools, policies, policy_shadows, policy_versions, traces

UNNAMED = ""
"""The name under which a user's exchanges are kept that named no dataset."""
MAX_DATASETS: Final = 10_000
"""Datasets of one user: where they are listed all of them are read."""
MAX_ALL_METADATA_BYTES: Final = 33_554_432
"""Bytes of metadata of all of a user's datasets together, as JSON: it is read with them."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """``seq`` is its number in the database; ``size`` counts all traces ever added, and is the next one's position.

    ``created`` and ``latest``, the time of its newest trace, are in Unix seconds.
    """

    seq: int
    id: str
    owner: str
    name: str
    metadata: Mapping[str, Any]
    created: float
    latest: float | None
    size: int

    @property
    def described(self) -> str:
        """Return which dataset of its owner it is, in words."""
        return f"dataset {self.name}" if self.name else "exchanges without a dataset"


@dataclass(frozen=True, slots=True)
class Extent:
    """Of a dataset: the traces that are there, its enabled policies by what they do, and the disabled ones."""

    traces: int = 0
    blocking: int = 0
    asking: int = 0
    masking: int = 0
    logging: int = 0
    disabled: int = 0


class Datasets:
    """The datasets of a database; every method raises StoreError when it does not do what it should."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, owner: str, name: str, metadata: Mapping[str, Any] | None = None, *, by: str = UNKNOWN
    ) -> Dataset:
        """Make a dataset. Raises NameTaken, and TooMany for one beyond MAX_DATASETS or MAX_ALL_METADATA_BYTES."""
        now, described = time.time(), dump(metadata or {})

        def work(connection: Connection) -> Dataset:
            serialise_writers(connection)
            if _find(connection, owner, name) is not None:
                raise NameTaken(f"a dataset {name} already exists")
            require_room(connection, owner)
            _require_space(connection, owner, described)
            _insert(connection, owner, name, described, now)
            made = _required(connection, owner, name)
            if labels := labels_of(made.metadata):
                append(connection, Change("labels.changed", made.described, by, owner, None, labels))
            return made

        return await self._database.write(work)

    async def ensure(self, owner: str, name: str) -> None:
        """Make a dataset if it is missing. Raises TooMany."""
        if await self.get(owner, name) is None:
            # Another call may create it meanwhile.
            with contextlib.suppress(NameTaken):
                await self.create(owner, name)

    async def get(self, owner: str, name: str) -> Dataset | None:
        """Return a user's dataset by its name."""
        return await self._database.read(lambda connection: _find(connection, owner, name))

    async def by_id(self, owner: str, dataset_id: str) -> Dataset | None:
        """Return a user's dataset by its id."""
        query = select(datasets).where(
            datasets.c.id == dataset_id, datasets.c.owner == owner, datasets.c.name.is_not(None)
        )
        return await self._database.read(lambda connection: _first(connection.execute(query).mappings().all()))

    async def all(self, owner: str) -> list[Dataset]:
        """Return a user's datasets, those with the newest traces first; the one without a name included."""
        query = select(datasets).where(datasets.c.owner == owner, datasets.c.name.is_not(None))
        found = await self._database.read(
            lambda connection: [_dataset(row) for row in connection.execute(query).mappings()]
        )
        return sorted(found, key=lambda dataset: dataset.latest or dataset.created, reverse=True)

    async def change_metadata(
        self, owner: str, name: str, change: Callable[[Mapping[str, Any]], Mapping[str, Any]], *, by: str = UNKNOWN
    ) -> Dataset | None:
        """Replace a dataset's metadata with ``change(old)``. Return None if the dataset does not exist.

        This is one transaction, so that two changes at once both count. Errors of ``change`` are passed on. Raises
        TooMany for metadata over MAX_ALL_METADATA_BYTES.
        """

        def work(connection: Connection) -> Dataset | None:
            serialise_writers(connection)
            found = _find(connection, owner, name)
            if found is None:
                return None
            metadata = change(found.metadata)
            described = dump(metadata)
            _require_space(connection, owner, described, found)
            connection.execute(update(datasets).where(datasets.c.seq == found.seq).values(metadata=described))
            before, after = labels_of(found.metadata), labels_of(metadata)
            if after != before:
                revision.advance(connection)
                append(connection, Change("labels.changed", found.described, by, owner, before, after))
            return replace(found, metadata=metadata)

        return await self._database.write(work)

    async def delete(self, owner: str, dataset_id: str, *, by: str = UNKNOWN) -> bool:
        """Delete a dataset and everything in it: from now on nobody finds it. Return False if there is none.

        Its traces are removed later, in small steps (``TraceStore.empty_deleted``): there may be a million of them.
        """

        def work(connection: Connection) -> bool:
            wanted = (datasets.c.id == dataset_id, datasets.c.owner == owner, datasets.c.name.is_not(None))
            dataset = _first(connection.execute(select(datasets).where(*wanted)).mappings().all())
            if dataset is None:
                return False
            found = dataset.seq
            rules = connection.scalars(select(policies.c.name).where(policies.c.dataset == found)).all()
            connection.execute(update(datasets).where(datasets.c.seq == found).values(name=None))
            for table in (policies, policy_versions, policy_shadows, pinned_tools):
                connection.execute(delete(table).where(table.c.dataset == found))
            forget_values_of(connection, owner, dataset.name)
            revision.advance(connection)
            append(connection, Change("dataset.deleted", dataset.described, by, owner, {"rules": list(rules)}))
            return True

        return await self._database.write(work)

    async def extents(self, owner: str) -> dict[int, Extent]:
        """Return what each of a user's datasets holds, by its number."""

        def work(connection: Connection) -> dict[int, Extent]:
            counts = _policy_counts(connection, owner)
            return {
                seq: Extent(
                    size - oldest if oldest is not None else 0,
                    counts.get((seq, True, "block"), 0),
                    counts.get((seq, True, "ask"), 0),
                    counts.get((seq, True, "mask"), 0),
                    counts.get((seq, True, "log"), 0),
                    sum(counts.get((seq, False, action), 0) for action in ("block", "ask", "mask", "log")),
                )
                for seq, size, oldest in _sizes(connection, owner)
            }

        return await self._database.read(work, owner=owner)


def labels_of(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the labels of tools in a dataset's metadata; none where what stands there are no labels."""
    try:
        readable_parameters(metadata)
    except ValueError:
        return {}
    return metadata.get(LABELS) or {}


def lock(connection: Connection, dataset: Dataset) -> None:
    """Let nobody delete the dataset beside this, or add to it. Raises DatasetGone."""
    there = select(datasets.c.seq).where(datasets.c.seq == dataset.seq, datasets.c.name.is_not(None))
    if connection.execute(there.with_for_update(key_share=True)).first() is None:
        raise DatasetGone("the dataset was deleted")


def require_room(connection: Connection, owner: str) -> None:
    """Raise TooMany where the user may have no further dataset."""
    named = select(func.count()).where(datasets.c.owner == owner, datasets.c.name != UNNAMED)
    if connection.scalars(named).one() >= MAX_DATASETS:
        raise TooMany(f"A user must not have more than {MAX_DATASETS} datasets")


def _require_space(connection: Connection, owner: str, described: bytes, of: Dataset | None = None) -> None:
    """Raise TooMany where that cannot be said of a new dataset, or of ``of``, beside what is said of the others."""
    others = select(func.coalesce(func.sum(func.length(datasets.c.metadata)), 0)).where(
        datasets.c.owner == owner, datasets.c.name.is_not(None), datasets.c.seq != (of.seq if of else 0)
    )
    if connection.scalars(others).one() + len(described) > MAX_ALL_METADATA_BYTES:
        raise TooMany(f"The metadata of a user's datasets must not be larger than {MAX_ALL_METADATA_BYTES} bytes")


def places(connection: Connection, wanted: Sequence[tuple[str, str, float]]) -> list[tuple[int, int]]:
    """Reserve a dataset's number and next position for each (owner, name, time). Create missing datasets.

    Finished exchanges are never lost to a limit: an owner over MAX_DATASETS is refused earlier.
    """
    return deal(wanted, {key: _reserve(connection, *key, *reserved) for key, reserved in reservations(wanted)})


def known_places(
    connection: sqlite3.Connection, dialect: Dialect, wanted: Sequence[tuple[str, str, float]]
) -> list[tuple[int, int]] | None:
    """Do what ``places`` does without SQLAlchemy; return None where a dataset is missing."""
    sql = _reservation(dialect)
    firsts: dict[tuple[str, str], tuple[int, int]] = {}
    for key, (count, latest) in reservations(wanted):
        rows = connection.execute(sql, (latest, count, *key)).fetchall()
        if not rows:
            return None
        firsts[key] = (rows[0][0], rows[0][1] - count)
    return deal(wanted, firsts)


def reservations(wanted: Sequence[tuple[str, str, float]]) -> list[tuple[tuple[str, str], tuple[int, float]]]:
    """Return datasets by owner and name, each with the number of places to reserve and the newest of their times.

    Always in the same order, so that two transactions cannot wait for each other.
    """
    times: dict[tuple[str, str], list[float]] = {}
    for owner, name, at in wanted:
        times.setdefault((owner, name), []).append(at)
    return [(key, (len(ats), max(ats))) for key, ats in sorted(times.items())]


def deal(
    wanted: Sequence[tuple[str, str, float]], firsts: dict[tuple[str, str], tuple[int, int]]
) -> list[tuple[int, int]]:
    """Deal out places in the order of ``wanted``; ``firsts`` has each dataset's number and first free position."""
    found: list[tuple[int, int]] = []
    for owner, name, _ in wanted:
        seq, position = firsts[owner, name]
        found.append((seq, position))
        firsts[owner, name] = (seq, position + 1)
    return found


def _reserve(connection: Connection, owner: str, name: str, count: int, latest: float) -> tuple[int, int]:
    sql, parameters = _reservation(connection.dialect), (latest, count, owner, name)
    row = connection.exec_driver_sql(sql, parameters).first()
    if row is None:
        _insert(connection, owner, name, dump({}), latest)
        row = connection.exec_driver_sql(sql, parameters).one()
    return row[0], row[1] - count


@lru_cache(maxsize=4)
def _reservation(dialect: Dialect) -> str:
    """Return the statement as text: with SQLAlchemy's own execution it would cost a trace as much as its insert."""
    statement = (
        update(datasets)
        .where(datasets.c.owner == bindparam("of"), datasets.c.name == bindparam("named"))
        .values(size=datasets.c.size + bindparam("count"), latest=bindparam("at"))
        .returning(datasets.c.seq, datasets.c.size)
    )
    compiled = statement.compile(dialect=dialect)
    if compiled.positiontup != ["at", "count", "of", "named"]:
        raise AssertionError(f"the reservation's parameters are in another order: {compiled.positiontup}")
    return str(compiled)


def _insert(connection: Connection, owner: str, name: str, metadata: bytes, created: float) -> None:
    connection.execute(
        insert(datasets).values(
            id=str(uuid.uuid4()), owner=owner, name=name, metadata=metadata, created=created, latest=None, size=0
        )
    )


def find_datasets(connection: Connection, name: str, owner: str | None) -> list[Dataset]:
    """Return the datasets of that name, of one user or of all."""
    query = select(datasets).where(datasets.c.name == name)
    if owner is not None:
        query = query.where(datasets.c.owner == owner)
    return [_dataset(row) for row in connection.execute(query.order_by(datasets.c.owner)).mappings()]


def all_datasets(connection: Connection) -> list[Dataset]:
    """Return the datasets of all users, those with the newest traces first."""
    query = select(datasets).where(datasets.c.name.is_not(None))
    found = [_dataset(row) for row in connection.execute(query).mappings()]
    return sorted(found, key=lambda dataset: dataset.latest or dataset.created, reverse=True)


def _find(connection: Connection, owner: str, name: str) -> Dataset | None:
    query = select(datasets).where(datasets.c.owner == owner, datasets.c.name == name)
    return _first(connection.execute(query).mappings().all())


def _required(connection: Connection, owner: str, name: str) -> Dataset:
    found = _find(connection, owner, name)
    assert found is not None
    return found


def _first(rows: Sequence[RowMapping]) -> Dataset | None:
    return _dataset(rows[0]) if rows else None


def _dataset(row: RowMapping) -> Dataset:
    return Dataset(**{**row, "metadata": load(row["metadata"])})


def _sizes(connection: Connection, owner: str) -> list[tuple[int, int, int | None]]:
    """Return number, size and oldest position of each dataset: traces leave a dataset at its old end only."""
    oldest = (
        select(func.min(traces.c.position))
        .where(traces.c.dataset == datasets.c.seq)
        .correlate(datasets)
        .scalar_subquery()
    )
    query = select(datasets.c.seq, datasets.c.size, oldest).where(
        datasets.c.owner == owner, datasets.c.name.is_not(None)
    )
    return [(row[0], row[1], row[2]) for row in connection.execute(query)]


def _policy_counts(connection: Connection, owner: str) -> dict[tuple[int, bool, str], int]:
    query = (
        select(policies.c.dataset, policies.c.enabled, policies.c.action, func.count())
        .join(datasets, datasets.c.seq == policies.c.dataset)
        .where(datasets.c.owner == owner)
        .group_by(policies.c.dataset, policies.c.enabled, policies.c.action)
    )
    return {(row[0], bool(row[1]), row[2]): row[3] for row in connection.execute(query)}
