"""What pages say of datasets and of a trace's neighbours, without reading the traces."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.schema import datasets, policies, traces


@dataclass(frozen=True, slots=True)
class Extent:
    """Of a dataset: the traces that are there, its enabled policies by what they do, and the disabled ones."""

    traces: int = 0
    blocking: int = 0
    asking: int = 0
    masking: int = 0
    logging: int = 0
    disabled: int = 0


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The ids of the traces before and after one in its dataset, None at its ends."""

    older: str | None
    newer: str | None


class Overview:
    """Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def extents(self, owner: str) -> dict[int, Extent]:
        """What each of a user's datasets holds, by its number."""

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

    async def neighbours(self, dataset: Dataset, position: int) -> Neighbours:
        """The traces on either side of a position."""
        within = select(traces.c.id).where(traces.c.dataset == dataset.seq).limit(1)
        older = within.where(traces.c.position < position).order_by(traces.c.position.desc())
        newer = within.where(traces.c.position > position).order_by(traces.c.position)
        return await self._database.read(
            lambda connection: Neighbours(connection.scalar(older), connection.scalar(newer)), owner=dataset.owner
        )


def _sizes(connection: Connection, owner: str) -> list[tuple[int, int, int | None]]:
    """Number, size and the oldest position of each dataset: traces leave a dataset at its old end only."""
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
