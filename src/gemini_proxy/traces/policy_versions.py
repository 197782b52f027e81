"""Keep the history of policies: a version for each time that one was saved, switched or removed."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, delete, func, insert, select

from gemini_proxy.guardrails.rules import Action
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import policies, policy_versions

MAX_VERSIONS: Final = 100
"""Versions that are kept of one policy, the newest ones."""
MAX_REMOVED: Final = 100
"""Removed policies of one dataset whose versions are kept, those that were removed last."""


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A policy as ``by`` left it at a Unix time; with ``removed``, as it was when they removed it."""

    policy: str
    number: int
    at: float
    by: str
    removed: bool
    name: str
    content: str
    enabled: bool
    action: Action
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RemovedPolicy:
    """A policy that ``by`` removed at a Unix time, with the name that it had."""

    policy: str
    name: str
    at: float
    by: str


class PolicyVersions:
    """The versions of a database. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, dataset: Dataset, policy: str, limit: int, before: int | None = None) -> list[PolicyVersion]:
        """Return versions of a policy, removed or not, the newest first; those before a number, if one is given."""
        c = policy_versions.c
        query = select(policy_versions).where(c.dataset == dataset.seq, c.policy == policy)
        if before is not None:
            query = query.where(c.number < before)
        query = query.order_by(c.number.desc()).limit(limit)
        return await self._database.read(lambda connection: list(map(_version, connection.execute(query).mappings())))

    async def last_by(self, datasets: Collection[int]) -> dict[str, str]:
        """Return who changed each policy of the datasets with these numbers last, by the policy's id."""
        c = policy_versions.c
        last = select(func.max(c.number)).where(c.policy == policies.c.id).correlate(policies).scalar_subquery()
        query = (
            select(c.policy, c.by)
            .join(policies, (c.policy == policies.c.id) & (c.number == last))
            .where(policies.c.dataset.in_(datasets))
        )
        return await self._database.read(lambda connection: {row.policy: row.by for row in connection.execute(query)})

    async def removed(self, dataset: Dataset) -> list[RemovedPolicy]:
        """Return the policies that were removed and whose versions are kept, the last one first."""
        c = policy_versions.c
        last = select(func.max(c.seq)).where(c.dataset == dataset.seq, _is_gone(dataset.seq)).group_by(c.policy)
        query = select(c.policy, c.name, c.at, c.by).where(c.seq.in_(last)).order_by(c.seq.desc()).limit(MAX_REMOVED)
        return await self._database.read(lambda connection: [RemovedPolicy(*row) for row in connection.execute(query)])


def keep(
    connection: Connection, dataset: int, policy: str, described: Mapping[str, Any], by: str, *, removed: bool = False
) -> None:
    """Keep what a policy is, in the transaction that makes it so or removes it. Forget what is beyond the limits."""
    c = policy_versions.c
    number = (connection.scalar(select(func.max(c.number)).where(c.policy == policy)) or 0) + 1
    values = {**described, "metadata": dump(described["metadata"])}
    place = {"dataset": dataset, "policy": policy, "number": number}
    connection.execute(insert(policy_versions).values(**place, at=time.time(), by=by, removed=removed, **values))
    connection.execute(delete(policy_versions).where(c.policy == policy, c.number <= number - MAX_VERSIONS))
    if removed:
        gone = select(c.policy).where(c.dataset == dataset, _is_gone(dataset)).group_by(c.policy)
        beyond = connection.scalars(gone.order_by(func.max(c.seq).desc()).offset(MAX_REMOVED)).all()
        if beyond:
            connection.execute(delete(policy_versions).where(c.dataset == dataset, c.policy.in_(beyond)))


def _is_gone(dataset: int) -> Any:
    return policy_versions.c.policy.not_in(select(policies.c.id).where(policies.c.dataset == dataset))


def _version(row: RowMapping) -> PolicyVersion:
    names = ("policy", "number", "at", "by", "removed", "name", "content", "enabled", "action")
    return PolicyVersion(**{name: row[name] for name in names}, metadata=load(row["metadata"]))
