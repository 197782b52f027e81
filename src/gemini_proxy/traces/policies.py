"""Keep the policies of datasets, and their history: a version for each time that one was saved, switched or removed."""

import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from gemini_proxy.guardrails.rules import Action
from gemini_proxy.traces import revision
from gemini_proxy.traces.audit import UNKNOWN, Change, append
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset, lock
from gemini_proxy.traces.errors import TooMany
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import datasets, policies, policy_versions
from gemini_proxy.traces.shadows import begin_again, end, promoted

MAX_POLICIES: Final = 100
"""Policies of one dataset: every exchange is checked against all of them."""
MAX_VERSIONS: Final = 100
"""Versions that are kept of one policy, the newest ones."""
MAX_REMOVED: Final = 100
"""Removed policies of one dataset whose versions are kept, those that were removed last."""


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
    """Every change applies to later requests, in every process on the database.

    The caller must check that a text loads before storing it. Every method raises StoreError.
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
        by: str = UNKNOWN,
    ) -> StoredPolicy:
        """Keep a new policy, which ``by`` has added. Raises DatasetGone, and TooMany for one beyond MAX_POLICIES."""
        made = StoredPolicy(str(uuid.uuid4()), name, content, enabled, action, metadata or {}, time.time())

        def work(connection: Connection) -> StoredPolicy:
            _require_room(connection, dataset)
            _insert(connection, dataset, made, by)
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
        by: str = UNKNOWN,
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
            before = _of(connection, dataset, policy_id)
            return None if before is None else _change_to(connection, dataset, before, values, by)

        return await self._database.write(work)

    async def restore(self, dataset: Dataset, version: "PolicyVersion", *, by: str = UNKNOWN) -> StoredPolicy:
        """Restore a version of a policy, even if the policy was removed since. Return the restored policy.

        Raises DatasetGone, and TooMany if there is no room left to restore a removed one.
        """
        values = {name: getattr(version, name) for name in ("name", "content", "enabled", "action")}

        def work(connection: Connection) -> StoredPolicy:
            # Before the policy, so that two restorations of a removed policy happen in turn.
            lock(connection, dataset)
            before = _of(connection, dataset, version.policy)
            if before is not None:
                return _change_to(connection, dataset, before, {**values, "metadata": dump(version.metadata)}, by)
            _require_room(connection, dataset)
            made = StoredPolicy(version.policy, **values, metadata=version.metadata, updated=time.time())
            _insert(connection, dataset, made, by)
            return made

        return await self._database.write(work)

    async def promote(self, dataset: Dataset, policy_id: str, seq: int, *, by: str = UNKNOWN) -> StoredPolicy | None:
        """Replace a policy by its shadow, enabled, and end the shadow. Return the new policy.

        Return None if no shadow of it has the number ``seq`` any more. Raises DatasetGone, and TooMany for a new policy
        without room.
        """

        def work(connection: Connection) -> StoredPolicy | None:
            # All transactions lock in this order: dataset, policy, revision, shadow, and the audit log last.
            lock(connection, dataset)
            before = _of(connection, dataset, policy_id)
            revision.advance(connection)
            shadow = promoted(connection, dataset, policy_id, seq, by)
            if shadow is None:
                return None
            values: dict[str, Any] = {name: getattr(shadow, name) for name in ("name", "content", "action")}
            if before is not None:
                return _change_to(connection, dataset, before, {**values, "enabled": True}, by)
            _require_room(connection, dataset)
            made = StoredPolicy(policy_id, **values, enabled=True, metadata={}, updated=time.time())
            _insert(connection, dataset, made, by)
            return made

        return await self._database.write(work)

    async def remove(self, dataset: Dataset, policy_id: str, *, by: str = UNKNOWN) -> bool:
        """Remove a policy; False if the dataset has no such one."""

        def work(connection: Connection) -> bool:
            before = _of(connection, dataset, policy_id)
            removed = connection.execute(
                delete(policies).where(policies.c.dataset == dataset.seq, policies.c.id == policy_id)
            )
            if removed.rowcount and before is not None:
                revision.advance(connection)
                end(connection, dataset, policy_id, by)
                _keep_version(connection, dataset.seq, policy_id, _described(before), by, removed=True)
                append(connection, _change("rule.removed", dataset, by, before, None))
            return removed.rowcount > 0

        return await self._database.write(work)


def _require_room(connection: Connection, dataset: Dataset) -> None:
    """Raise DatasetGone and TooMany."""
    lock(connection, dataset)
    kept = select(func.count()).where(policies.c.dataset == dataset.seq)
    if connection.scalars(kept).one() >= MAX_POLICIES:
        raise TooMany(f"A dataset must not have more than {MAX_POLICIES} policies")


def _insert(connection: Connection, dataset: Dataset, made: StoredPolicy, by: str) -> None:
    described = _described(made)
    values = {**described, "metadata": dump(made.metadata)}
    connection.execute(insert(policies).values(id=made.id, dataset=dataset.seq, updated=made.updated, **values))
    revision.advance(connection)
    _keep_version(connection, dataset.seq, made.id, described, by)
    append(connection, _change("rule.added", dataset, by, None, made))


def _change_to(
    connection: Connection, dataset: Dataset, before: StoredPolicy, values: Mapping[str, Any], by: str
) -> StoredPolicy:
    """Change a policy that nobody else changes meanwhile. A change without effect makes no version."""
    connection.execute(update(policies).where(policies.c.id == before.id).values(**values, updated=time.time()))
    revision.advance(connection)
    after = _of(connection, dataset, before.id)
    assert after is not None
    if _described(after) != _described(before):
        _keep_version(connection, dataset.seq, after.id, _described(after), by)
    if (after.content, after.action, after.enabled) != (before.content, before.action, before.enabled):
        begin_again(connection, after.id)
    append(connection, _change("rule.changed", dataset, by, before, after))
    return after


def _of(connection: Connection, dataset: Dataset, policy_id: str) -> StoredPolicy | None:
    """Return a policy that nobody else changes until the transaction ends."""
    # A version refers to the dataset. Lock its row first, as the deletion of a dataset with its policies does.
    there = select(datasets.c.seq).where(datasets.c.seq == dataset.seq)
    connection.execute(there.with_for_update(read=True, key_share=True))
    query = select(policies).where(policies.c.dataset == dataset.seq, policies.c.id == policy_id).with_for_update()
    row = connection.execute(query).mappings().first()
    return None if row is None else _policy(row)


def _change(action: str, dataset: Dataset, by: str, before: StoredPolicy | None, after: StoredPolicy | None) -> Change:
    """Return what the audit log keeps: of a change, what has changed."""
    old, new = (None if policy is None else _described(policy) for policy in (before, after))
    if old is not None and new is not None:
        changed = {name for name in new if old[name] != new[name]}
        old, new = ({name: side[name] for name in side if name in changed or name == "name"} for side in (old, new))
    policy = before or after
    assert policy is not None
    subject = f"rule {policy.id} of {dataset.described}"
    return Change(action, subject, by, dataset.owner, old, new)


def _described(policy: StoredPolicy) -> dict[str, Any]:
    return {name: getattr(policy, name) for name in ("name", "content", "enabled", "action", "metadata")}


def stored(connection: Connection, dataset: int) -> list[StoredPolicy]:
    """Return the policies of the dataset with that number, the oldest first."""
    query = select(policies).where(policies.c.dataset == dataset).order_by(policies.c.seq)
    return [_policy(row) for row in connection.execute(query).mappings()]


def _policy(row: RowMapping) -> StoredPolicy:
    keys = ("id", "name", "content", "enabled", "action", "updated")
    return StoredPolicy(**{key: row[key] for key in keys}, metadata=load(row["metadata"]))


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


def _keep_version(
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
