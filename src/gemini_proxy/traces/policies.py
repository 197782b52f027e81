"""The policies of datasets, as their owners keep them."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from gemini_proxy.guardrails.rules import Action
from gemini_proxy.traces import revision
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.errors import DatasetGone, TooMany
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import datasets, policies

MAX_POLICIES: Final = 100
"""Policies of one dataset: every exchange is checked against all of them."""


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """``content`` is the policy's text; ``updated`` in Unix seconds."""

    id: str
    name: str
    content: str
    enabled: bool
    action: Action
    metadata: Mapping[str, Any]
    updated: float


class Policies:
    """Every change holds for the requests that come after it, in every process on the database.

    Whether a text loads is the caller's to check before it is kept. Every method raises StoreError.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, dataset: Dataset) -> list[StoredPolicy]:
        """Return a dataset's policies, the oldest first."""
        return await self._database.read(lambda connection: stored(connection, dataset.seq))

    async def add(
        self,
        dataset: Dataset,
        name: str,
        content: str,
        *,
        enabled: bool = True,
        action: Action = "log",
        metadata: Mapping[str, Any] | None = None,
    ) -> StoredPolicy:
        """Keep a new policy. Raises DatasetGone, and TooMany for one beyond MAX_POLICIES."""
        made = StoredPolicy(str(uuid.uuid4()), name, content, enabled, action, metadata or {}, time.time())

        def work(connection: Connection) -> StoredPolicy:
            there = select(datasets.c.seq).where(datasets.c.seq == dataset.seq, datasets.c.name.is_not(None))
            # Locked, so that nobody deletes the dataset beside this, or adds to it.
            if connection.execute(there.with_for_update()).first() is None:
                raise DatasetGone("the dataset was deleted")
            kept = select(func.count()).where(policies.c.dataset == dataset.seq)
            if connection.scalars(kept).one() >= MAX_POLICIES:
                raise TooMany(f"A dataset must not have more than {MAX_POLICIES} policies")
            connection.execute(
                insert(policies).values(
                    id=made.id,
                    dataset=dataset.seq,
                    name=name,
                    content=content,
                    enabled=enabled,
                    action=action,
                    metadata=dump(made.metadata),
                    updated=made.updated,
                )
            )
            revision.advance(connection)
            return made

        return await self._database.write(work)

    async def change(
        self,
        dataset: Dataset,
        policy_id: str,
        *,
        name: str | None = None,
        content: str | None = None,
        enabled: bool | None = None,
        action: Action | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> StoredPolicy | None:
        """Change what is not None; the policy as it is then, None if the dataset has no such policy."""
        given = {
            "name": name,
            "content": content,
            "enabled": enabled,
            "action": action,
            "metadata": None if metadata is None else dump(metadata),
        }
        values = {key: value for key, value in given.items() if value is not None}

        def work(connection: Connection) -> StoredPolicy | None:
            changed = connection.execute(
                update(policies)
                .where(policies.c.dataset == dataset.seq, policies.c.id == policy_id)
                .values(**values, updated=time.time())
            )
            if not changed.rowcount:
                return None
            revision.advance(connection)
            return next((policy for policy in stored(connection, dataset.seq) if policy.id == policy_id), None)

        return await self._database.write(work)

    async def remove(self, dataset: Dataset, policy_id: str) -> bool:
        """Remove a policy; False if the dataset has no such one."""

        def work(connection: Connection) -> bool:
            removed = connection.execute(
                delete(policies).where(policies.c.dataset == dataset.seq, policies.c.id == policy_id)
            )
            if removed.rowcount:
                revision.advance(connection)
            return removed.rowcount > 0

        return await self._database.write(work)


def stored(connection: Connection, dataset: int) -> list[StoredPolicy]:
    """Return the policies of the dataset with that number, the oldest first."""
    query = select(policies).where(policies.c.dataset == dataset).order_by(policies.c.seq)
    return [_policy(row) for row in connection.execute(query).mappings()]


def _policy(row: RowMapping) -> StoredPolicy:
    keys = ("id", "name", "content", "enabled", "action", "updated")
    return StoredPolicy(**{key: row[key] for key in keys}, metadata=load(row["metadata"]))
