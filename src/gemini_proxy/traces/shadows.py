"""Keep policies that run in shadow: beside those that they may replace, to see in which exchanges the two differ."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from gemini_proxy.guardrails.rules import Action, Guardrail, Shadow
from gemini_proxy.traces import revision
from gemini_proxy.traces.audit import UNKNOWN, Change, append
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset, lock
from gemini_proxy.traces.errors import TooMany
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import policies, policy_shadows, shadow_differences

DifferenceKind = Literal["only_old", "only_new", "action", "ranges"]
DIFFERENCE_KINDS: Final[tuple[DifferenceKind, ...]] = get_args(DifferenceKind)

MAX_SHADOWS: Final = 10
"""Shadows of one dataset: each is as much work for an exchange as two of its policies."""
MAX_DIFFERENCES: Final = 1_000
"""Exchanges that are kept of one shadow in which the two found something else, the newest ones."""
_COUNTS: Final = ("compared", "both", "only_old", "only_new", "action_differs", "ranges_differ", "failed", "skipped")
_FOUND: Final = (*_COUNTS, "milliseconds", "slowest", "failure")
_DESCRIBING: Final = ("policy", "name", "content", "action", "share", "started", "by", "since")
"""Columns of a comparison, and those of the shadow itself."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The number of compared exchanges, and in how many of them which of the two fired.

    In ``action_differs`` and ``ranges_differ`` of those in which ``both`` did, they would have done something else, or
    the same in other places. Of ``failed`` exchanges a check gave no verdict, and ``skipped`` ones came too fast.
    ``milliseconds`` is what the shadow's checks took in all, ``slowest`` the longest of them; ``failure`` says why the
    last one that failed did.
    """

    compared: int = 0
    both: int = 0
    only_old: int = 0
    only_new: int = 0
    action_differs: int = 0
    ranges_differ: int = 0
    failed: int = 0
    skipped: int = 0
    milliseconds: float = 0.0
    slowest: float = 0.0
    failure: str = ""

    @property
    def average(self) -> float:
        """Return the milliseconds of one check of the shadow."""
        return self.milliseconds / self.compared if self.compared else 0.0

    def with_more(self, more: "Comparisons") -> "Comparisons":
        """Return the sum of both, of which ``more`` is the newer."""
        counts: dict[str, Any] = {name: getattr(self, name) + getattr(more, name) for name in _COUNTS}
        return Comparisons(
            **counts,
            milliseconds=self.milliseconds + more.milliseconds,
            slowest=max(self.slowest, more.slowest),
            failure=more.failure or self.failure,
        )


@dataclass(frozen=True, slots=True)
class StoredShadow:
    """A policy in shadow, which ``by`` began at a Unix time. ``found`` counts from ``since`` on: until then one of the
    two sides was another."""

    seq: int
    policy: str
    name: str
    content: str
    action: Action
    share: int
    started: float
    by: str
    since: float
    found: Comparisons

    def beside(self, in_force: Guardrail | None) -> Shadow:
        """Return what exchanges are given, with the guardrail that it may replace."""
        return Shadow(self.seq, self.policy, self.name, self.content, self.action, self.share, in_force)


@dataclass(frozen=True, slots=True)
class KeptViolation:
    """A violation as one of the two versions found it."""

    message: str
    action: Action
    ranges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """An exchange in which the policy in force and its shadow differ, at a Unix time. ``seq`` is 0 until it is kept."""

    trace: str
    at: float
    kind: DifferenceKind
    old: tuple[KeptViolation, ...]
    new: tuple[KeptViolation, ...]
    seq: int = 0


@dataclass(frozen=True, slots=True)
class TraceDifference:
    """A difference in one trace, with the shadow that it is of."""

    policy: str
    name: str
    difference: Difference


@dataclass(slots=True)
class Results:
    """The sums of one shadow's comparisons since the last write."""

    found: Comparisons = field(default_factory=Comparisons)
    differences: list[Difference] = field(default_factory=list)


class Shadows:
    """The shadows of a database. A change holds for the exchanges that begin after it. Every method raises StoreError.

    The caller must check that a text loads before storing it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, dataset: Dataset) -> list[StoredShadow]:
        """Return a dataset's shadows, the oldest first."""
        return await self._database.read(lambda connection: running(connection, dataset.seq))

    async def of_policy(self, dataset: Dataset, policy: str) -> StoredShadow | None:
        """Return the shadow of a policy; None if it has none."""
        return next((shadow for shadow in await self.of(dataset) if shadow.policy == policy), None)

    async def start(
        self,
        dataset: Dataset,
        name: str,
        content: str,
        action: Action,
        share: int,
        *,
        policy: str | None = None,
        by: str = UNKNOWN,
    ) -> StoredShadow | None:
        """Run a text beside a policy, or without ``policy`` as one that would be new, on ``share`` percent.

        It replaces a shadow that the policy has. None if the dataset has no such policy. Raises DatasetGone, and
        TooMany for a shadow beyond MAX_SHADOWS.
        """

        def work(connection: Connection) -> StoredShadow | None:
            lock(connection, dataset)
            # Before the shadow and the audit log, like every change of policies: else two could block each other.
            revision.advance(connection)
            if policy is not None:
                if not _is_there(connection, dataset, policy):
                    return None
                end(connection, dataset, policy, by)
            kept = select(func.count()).where(policy_shadows.c.dataset == dataset.seq)
            if connection.scalars(kept).one() >= MAX_SHADOWS:
                raise TooMany(f"A dataset must not have more than {MAX_SHADOWS} rules in shadow")
            now = time.time()
            started = _insert(
                connection,
                dataset.seq,
                StoredShadow(0, policy or str(uuid.uuid4()), name, content, action, share, now, by, now, Comparisons()),
            )
            append(connection, _change("shadow.started", dataset, by, started, after=_described(started)))
            return started

        return await self._database.write(work)

    async def set_share(self, dataset: Dataset, policy: str, share: int, *, by: str = UNKNOWN) -> StoredShadow | None:
        """Run a shadow on another share of the exchanges; what it is then, None if there is none."""

        def work(connection: Connection) -> StoredShadow | None:
            revision.advance(connection)
            before = _locked(connection, dataset, policy)
            if before is None:
                return None
            connection.execute(update(policy_shadows).where(policy_shadows.c.seq == before.seq).values(share=share))
            shares = {"share": before.share}, {"share": share}
            append(connection, _change("shadow.changed", dataset, by, before, *shares))
            return replace(before, share=share)

        return await self._database.write(work)

    async def end(self, dataset: Dataset, policy: str, *, by: str = UNKNOWN) -> bool:
        """End a shadow; the audit log keeps what it came to. False if there is none."""

        def work(connection: Connection) -> bool:
            lock(connection, dataset)
            revision.advance(connection)
            return end(connection, dataset, policy, by)

        return await self._database.write(work)

    async def differences(
        self, seq: int, limit: int, before: int | None = None, kind: DifferenceKind | None = None
    ) -> list[Difference]:
        """Return exchanges in which a shadow differs, the newest first: those before a number, or of one kind."""
        c = shadow_differences.c
        query = select(shadow_differences).where(c.shadow == seq)
        if kind is not None:
            query = query.where(c.kind == kind)
        if before is not None:
            query = query.where(c.seq < before)
        query = query.order_by(c.seq.desc()).limit(limit)
        return await self._database.read(
            lambda connection: [_difference(row) for row in connection.execute(query).mappings()]
        )

    async def of_trace(self, dataset: Dataset, trace: str) -> list[TraceDifference]:
        """Return how shadows of a dataset differ in one trace."""
        query = (
            select(shadow_differences, policy_shadows.c.policy, policy_shadows.c.name)
            .join(policy_shadows, policy_shadows.c.seq == shadow_differences.c.shadow)
            .where(shadow_differences.c.trace == trace, policy_shadows.c.dataset == dataset.seq)
            .order_by(shadow_differences.c.seq)
        )
        return await self._database.read(
            lambda connection: [
                TraceDifference(row["policy"], row["name"], _difference(row))
                for row in connection.execute(query).mappings()
            ]
        )

    async def add(self, results: Mapping[int, Results]) -> None:
        """Count what comparisons came to, by the number of their shadow, and keep the differences.

        Those of a shadow that has ended, or whose comparison has begun again, are forgotten.
        """

        def work(connection: Connection) -> None:
            # In one order, so that two processes do not wait for each other.
            for seq in sorted(results):
                if _count(connection, seq, results[seq].found):
                    _keep(connection, seq, results[seq].differences)

        await self._database.write(work)


def difference_kind(name: str | None) -> DifferenceKind | None:
    """Return the kind with that name; None if there is none."""
    return next((kind for kind in DIFFERENCE_KINDS if kind == name), None)


def running(connection: Connection, dataset: int) -> list[StoredShadow]:
    """Return the shadows of the dataset with that number, the oldest first."""
    query = select(policy_shadows).where(policy_shadows.c.dataset == dataset).order_by(policy_shadows.c.seq)
    return [_shadow(row) for row in connection.execute(query).mappings()]


def begin_again(connection: Connection, policy: str) -> None:
    """Begin the comparison with a policy that has changed again, in the transaction that changes it."""
    row = connection.execute(select(policy_shadows).where(policy_shadows.c.policy == policy).with_for_update()).first()
    if row is not None:
        connection.execute(delete(policy_shadows).where(policy_shadows.c.seq == row.seq))
        _insert(connection, row.dataset, replace(_shadow(row._mapping), since=time.time(), found=Comparisons()))


def end(connection: Connection, dataset: Dataset, policy: str, by: str) -> bool:
    """End a policy's shadow in a transaction that holds the dataset. False if there is none."""
    return _remove(connection, dataset, _locked(connection, dataset, policy), "shadow.ended", by) is not None


def promoted(connection: Connection, dataset: Dataset, policy: str, seq: int, by: str) -> StoredShadow | None:
    """End a shadow because its policy becomes the one in force. Return it; None if none has this number any more."""
    shadow = _locked(connection, dataset, policy)
    if shadow is None or shadow.seq != seq:
        return None
    return _remove(connection, dataset, shadow, "shadow.promoted", by)


def forget_differences(connection: Connection, before: float) -> None:
    """Delete the differences from before a Unix time."""
    connection.execute(delete(shadow_differences).where(shadow_differences.c.at < before))


def _is_there(connection: Connection, dataset: Dataset, policy: str) -> bool:
    """Return whether the dataset has a policy, or a shadow of one that would be new."""
    for table, column in ((policies, policies.c.id), (policy_shadows, policy_shadows.c.policy)):
        found = select(column).where(column == policy, table.c.dataset == dataset.seq)
        if connection.execute(found).first() is not None:
            return True
    return False


def _locked(connection: Connection, dataset: Dataset, policy: str) -> StoredShadow | None:
    c = policy_shadows.c
    query = select(policy_shadows).where(c.dataset == dataset.seq, c.policy == policy).with_for_update()
    row = connection.execute(query).mappings().first()
    return None if row is None else _shadow(row)


def _remove(
    connection: Connection, dataset: Dataset, shadow: StoredShadow | None, action: str, by: str
) -> StoredShadow | None:
    """Delete a shadow with its differences; the audit log keeps what it was and what it came to."""
    if shadow is None:
        return None
    connection.execute(delete(policy_shadows).where(policy_shadows.c.seq == shadow.seq))
    found = {name: getattr(shadow.found, name) for name in _COUNTS}
    append(connection, _change(action, dataset, by, shadow, {**_described(shadow), "found": found}))
    return shadow


def _insert(connection: Connection, dataset: int, shadow: StoredShadow) -> StoredShadow:
    values = {name: getattr(shadow, name) for name in _DESCRIBING}
    found = {name: getattr(shadow.found, name) for name in _FOUND}
    made = insert(policy_shadows).values(dataset=dataset, **values, **found).returning(policy_shadows)
    return _shadow(connection.execute(made).mappings().one())


def _count(connection: Connection, seq: int, more: Comparisons) -> bool:
    """Add to the counts of a shadow; False if it is gone."""
    c = policy_shadows.c
    row = connection.execute(select(policy_shadows).where(c.seq == seq).with_for_update()).mappings().first()
    if row is None:
        return False
    found = _shadow(row).found.with_more(more)
    values = {name: getattr(found, name) for name in _FOUND}
    connection.execute(update(policy_shadows).where(c.seq == seq).values(**values))
    return True


def _keep(connection: Connection, seq: int, differences: Sequence[Difference]) -> None:
    if not differences:
        return
    c = shadow_differences.c
    rows = [
        {"shadow": seq, "trace": one.trace, "at": one.at, "kind": one.kind, "verdicts": _verdicts(one)}
        for one in differences[-MAX_DIFFERENCES:]
    ]
    connection.execute(insert(shadow_differences), rows)
    beyond = select(c.seq).where(c.shadow == seq).order_by(c.seq.desc()).offset(MAX_DIFFERENCES).limit(1)
    if (last := connection.scalar(beyond)) is not None:
        connection.execute(delete(shadow_differences).where(c.shadow == seq, c.seq <= last))


def _verdicts(difference: Difference) -> bytes:
    sides = {"old": difference.old, "new": difference.new}
    return dump(
        {
            side: [{"message": one.message, "action": one.action, "ranges": one.ranges} for one in found]
            for side, found in sides.items()
        }
    )


def _difference(row: RowMapping) -> Difference:
    verdicts = load(row["verdicts"])
    old, new = (
        tuple(KeptViolation(one["message"], one["action"], tuple(one["ranges"])) for one in verdicts[side])
        for side in ("old", "new")
    )
    return Difference(row["trace"], row["at"], row["kind"], old, new, row["seq"])


def _shadow(row: RowMapping) -> StoredShadow:
    found = Comparisons(**{name: row[name] for name in _FOUND})
    return StoredShadow(**{name: row[name] for name in ("seq", *_DESCRIBING)}, found=found)


def _described(shadow: StoredShadow) -> dict[str, Any]:
    return {name: getattr(shadow, name) for name in ("name", "content", "action", "share")}


def _change(
    action: str, dataset: Dataset, by: str, shadow: StoredShadow, before: Any = None, after: Any = None
) -> Change:
    subject = f"rule {shadow.policy} of {dataset.described}"
    return Change(action, subject, by, dataset.owner, before, after)
