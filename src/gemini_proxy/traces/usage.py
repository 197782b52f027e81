"""Read the figures of datasets over time, and add to them what the indexer has counted."""

import asyncio
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from gemini_proxy.traces.database import Database, serialise_writers
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.figures import Bucket, Figures, as_json, from_json, starts, total, with_fewer_names
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import datasets, progress, traces, usage

# Seconds. Each exchange is counted once in each width, so that a month is not read in steps of five minutes.
WIDTHS: Final = (300, 3_600, 21_600)
# How long they are kept: two months of five minutes are as many rows as twelve years of six hours.
_KEPT: Final = {300: 62 * 86_400, 3_600: 400 * 86_400}
INDEXER: Final = "digest"
"""The name that the indexer's progress has in the database."""
AGAIN: Final = "index again"
"""The name of the mark below which traces are still as an older version has indexed them; gone once there are none."""
# Of rules and of models in one row: clients choose them.
MAX_NAMES: Final = 100


@dataclass(frozen=True, slots=True)
class CountedTrace:
    """The figures of one trace, and where they belong."""

    dataset: int
    position: int
    created: float
    figures: Figures


@dataclass(frozen=True, slots=True)
class _Sum:
    first: int
    last: int
    figures: Figures


_Key = tuple[int, int, int]
_Row = tuple[int, bytes, str]


def add_figures(connection: Connection, counted: Sequence[CountedTrace]) -> None:
    """Add traces to the figures of their datasets, in every width."""
    for (dataset, seconds, start), one_sum in _added_up(counted).items():
        place = (usage.c.dataset == dataset, usage.c.seconds == seconds, usage.c.start == start)
        row = connection.execute(select(usage.c.first, usage.c.last, usage.c.figures).where(*place)).first()
        if row is not None:
            one_sum = _sum_of([one_sum, _Sum(row[0], row[1], from_json([load(row[2])]))])
        values = {
            "first": one_sum.first,
            "last": one_sum.last,
            "figures": dump(as_json(with_fewer_names(one_sum.figures, MAX_NAMES))),
        }
        if row is None:
            connection.execute(insert(usage).values(dataset=dataset, seconds=seconds, start=start, **values))
        else:
            connection.execute(update(usage).where(*place).values(**values))


def indexed(connection: Connection) -> int:
    """Return how far the indexer has come, and let no other process take it further until this transaction ends."""
    query = select(progress.c.seq).where(progress.c.name == INDEXER).with_for_update()
    found = connection.execute(query).scalar()
    if found is None:
        serialise_writers(connection)
        found = connection.execute(query).scalar()
    if found is None:
        connection.execute(insert(progress).values(name=INDEXER, seq=0))
        found = 0
    return found


def add_logged(connection: Connection, trace: int, rules: Collection[str]) -> None:
    """Count what logging rules found in a trace that has been counted; ``indexed`` is called before they are stored."""
    columns = (traces.c[key] for key in ("dataset", "position", "created"))
    row = connection.execute(select(*columns).where(traces.c.seq == trace)).one()
    add_figures(connection, [CountedTrace(row[0], row[1], row[2], Figures(logged=dict.fromkeys(rules, 1)))])


def delete_old(connection: Connection, now: float) -> None:
    """Remove the finer figures after their time; the widest stay."""
    for seconds, kept in _KEPT.items():
        connection.execute(delete(usage).where(usage.c.seconds == seconds, usage.c.start < now - kept))


def _added_up(counted: Iterable[CountedTrace]) -> dict[_Key, _Sum]:
    """Return the sums in every width. Each width is a multiple of the one before it, whose sums it adds up."""
    sums: dict[_Key, _Sum] = {}
    parts = [(one.dataset, one.created, _Sum(one.position, one.position, one.figures)) for one in counted]
    for seconds in WIDTHS:
        together: dict[_Key, list[_Sum]] = {}
        for dataset, created, part in parts:
            together.setdefault((dataset, seconds, int(created // seconds) * seconds), []).append(part)
        wider = {key: _sum_of(some) for key, some in together.items()}
        parts = [(dataset, start, one_sum) for (dataset, _, start), one_sum in wider.items()]
        sums |= wider
    return sums


def _sum_of(parts: Sequence[_Sum]) -> _Sum:
    firsts, lasts = [part.first for part in parts], [part.last for part in parts]
    return _Sum(min(firsts), max(lasts), total(part.figures for part in parts))


# Seconds. The steps that figures are shown in: multiples of a width, and of which a clock or a calendar speaks.
STEPS: Final = (300, 900, 1_800, 3_600, 10_800, 21_600, 43_200, 86_400, 7 * 86_400, 28 * 86_400)
# The most rows that one question may read if wider buckets can reduce them: a user may have hundreds of datasets.
MAX_ROWS: Final = 3_000
MAX_POINTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class OwnerUsage:
    """The figures of a user's datasets: over time, and by their names over all of the time, of which only outcomes."""

    buckets: list[Bucket]
    datasets: Mapping[str, Figures]


class DatasetUsage:
    """Read figures; what the indexer has not come to yet is missing in them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_dataset(self, dataset: Dataset, since: float, until: float, points: int = 120) -> list[Bucket]:
        """Return a dataset's figures from ``since`` to ``until`` (Unix seconds) in at most ``points`` equal buckets.

        Oldest first, empty ones included. The first one begins at the last multiple of the width, one of STEPS, that is
        not after ``since``: up to a width earlier. Raises StoreError, and ValueError for more than MAX_POINTS points,
        for fewer than two, and for a time that does not fit into them or does not go forward.
        """
        found = await self._between(dataset.owner, [datasets.c.seq == dataset.seq], since, until, points)
        return found.buckets

    async def by_dataset(self, owner: str, since: float, until: float, points: int = 120) -> OwnerUsage:
        """Return the same for all of a user's datasets, together and apart."""
        return await self._between(owner, [], since, until, points)

    async def _between(
        self, owner: str, which: Sequence[ColumnElement[bool]], since: float, until: float, points: int
    ) -> OwnerUsage:
        first, last = math.floor(since), math.ceil(until)
        steps = _fitting(first, last, points)

        def work(connection: Connection) -> tuple[int, list[_Row]]:
            owned = [datasets.c.name.is_not(None), datasets.c.owner == owner, *which]
            count = connection.execute(select(func.count()).select_from(datasets).where(*owned)).scalar_one()
            step = _affordable(steps, count, last - first)
            width = _width(step)
            query = (
                select(usage.c.start, usage.c.figures, datasets.c.name)
                .join(datasets, datasets.c.seq == usage.c.dataset)
                .where(*owned, usage.c.seconds == width)
                .where(usage.c.start >= first - first % step, usage.c.start < last)
            )
            return step, [(row[0], row[1], row[2]) for row in connection.execute(query)]

        step, rows = await self._database.read(work, owner=owner)
        # Thousands of small documents: the loop has other things to do.
        return await asyncio.to_thread(_resampled, rows, first, last, step)


def _resampled(rows: Sequence[_Row], since: int, until: int, step: int) -> OwnerUsage:
    buckets: dict[int, list[Mapping[str, Any]]] = {start: [] for start in starts(since, until, step)}
    apart: dict[str, Counter[str]] = {}
    for start, kept, name in rows:
        document = load(kept)
        buckets[start - start % step].append(document)
        apart.setdefault(name, Counter()).update(document["outcomes"])
    return OwnerUsage(
        [Bucket(start, step, from_json(documents)) for start, documents in buckets.items()],
        {name: Figures(outcomes) for name, outcomes in apart.items()},
    )


def _fitting(since: int, until: int, points: int) -> tuple[int, ...]:
    """Return the steps of which ``points`` cover the time, finest first."""
    if not 2 <= points <= MAX_POINTS:
        raise ValueError(f"between 2 and {MAX_POINTS} points")
    fitting = tuple(step for step in STEPS if -(-(until - (since - since % step)) // step) <= points)
    if until <= since or not fitting:
        raise ValueError("the time range is reversed, or too long for so few points")
    return fitting


def _affordable(steps: tuple[int, ...], count: int, seconds: int) -> int:
    """Return the finest step that reads few enough rows of ``count`` datasets, else the one that reads fewest."""
    for step, wider in pairwise(steps):
        if count * seconds <= MAX_ROWS * _width(step) or _width(step) == _width(wider) == WIDTHS[-1]:
            return step
    return steps[-1]


def _width(step: int) -> int:
    return max(width for width in WIDTHS if step % width == 0)
