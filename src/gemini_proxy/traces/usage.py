"""The figures of datasets over time, as the digest has added them up."""

import asyncio
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from sqlalchemy import ColumnElement, Connection, func, select

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.figures import Bucket, from_json, resampled
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.schema import datasets, usage
from gemini_proxy.traces.tallies import WIDTHS

# Seconds. The steps that figures are shown in: multiples of a width, and of which a clock or a calendar speaks.
STEPS: Final = (300, 900, 1_800, 3_600, 10_800, 21_600, 43_200, 86_400, 7 * 86_400, 28 * 86_400)
# What one question may read, where wider buckets can help it: a user may have hundreds of datasets.
MAX_ROWS: Final = 3_000
MAX_POINTS: Final = 1_000


class Usage:
    """Reads figures; what the digest has not come to yet is missing in them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_dataset(self, dataset: Dataset, since: float, until: float, points: int = 120) -> list[Bucket]:
        """A dataset's figures from ``since`` to ``until`` (Unix seconds) in at most ``points`` buckets of equal width.

        Oldest first, empty ones included. The first one begins at the last multiple of the width, one of STEPS, that is
        not after ``since``: up to a width earlier. Raises StoreError, and ValueError for more than MAX_POINTS points,
        for fewer than two, and for a time that does not fit into them or does not go forward.
        """
        return await self._between(dataset.owner, [datasets.c.seq == dataset.seq], since, until, points)

    async def of_owner(self, owner: str, since: float, until: float, points: int = 120) -> list[Bucket]:
        """The same for all of a user's datasets together."""
        return await self._between(owner, [], since, until, points)

    async def _between(
        self, owner: str, which: Sequence[ColumnElement[bool]], since: float, until: float, points: int
    ) -> list[Bucket]:
        first, last = math.floor(since), math.ceil(until)
        steps = _fitting(first, last, points)

        def work(connection: Connection) -> tuple[int, list[tuple[int, bytes]]]:
            owned = [datasets.c.name.is_not(None), datasets.c.owner == owner, *which]
            count = connection.execute(select(func.count()).select_from(datasets).where(*owned)).scalar_one()
            step = _affordable(steps, count, last - first)
            width = _width(step)
            query = (
                select(usage.c.start, usage.c.figures)
                .join(datasets, datasets.c.seq == usage.c.dataset)
                .where(*owned, usage.c.seconds == width)
                .where(usage.c.start >= first - first % step, usage.c.start < last)
            )
            return step, [(row[0], row[1]) for row in connection.execute(query)]

        step, rows = await self._database.read(work, owner=owner)
        # Thousands of small documents: the loop has other things to do.
        return await asyncio.to_thread(_resampled, rows, first, last, step)


def _resampled(rows: list[tuple[int, bytes]], since: int, until: int, step: int) -> list[Bucket]:
    return resampled((Bucket(start, step, from_json(load(found))) for start, found in rows), since, until, step)


def _fitting(since: int, until: int, points: int) -> tuple[int, ...]:
    """The steps of which ``points`` cover the time, finest first."""
    if not 2 <= points <= MAX_POINTS:
        raise ValueError(f"between 2 and {MAX_POINTS} points")
    fitting = tuple(step for step in STEPS if -(-(until - (since - since % step)) // step) <= points)
    if until <= since or not fitting:
        raise ValueError("the time goes backwards, or is too long for so few points")
    return fitting


def _affordable(steps: tuple[int, ...], count: int, seconds: int) -> int:
    """The finest step that reads few enough rows of ``count`` datasets, or else the one that reads the fewest."""
    for step, wider in pairwise(steps):
        if count * seconds <= MAX_ROWS * _width(step) or _width(step) == _width(wider) == WIDTHS[-1]:
            return step
    return steps[-1]


def _width(step: int) -> int:
    return max(width for width in WIDTHS if step % width == 0)
