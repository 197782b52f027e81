"""Work queued in the same transaction as its trace, so that neither exists without the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, delete, func, select, update

from gemini_proxy.traces.database import serialise_writers
from gemini_proxy.traces.inserts import insert_annotations
from gemini_proxy.traces.rows import LOG_RULES, PUSH, RULE, load
from gemini_proxy.traces.schema import jobs, traces
from gemini_proxy.traces.usage import add_logged, indexed


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of queued work: rules to run over a trace's messages. ``attempts`` counts this one."""

    seq: int
    trace_id: str
    messages: Sequence[Mapping[str, Any]]
    rules: tuple[Mapping[str, Any], ...]
    attempts: int


@dataclass(frozen=True, slots=True)
class PushJob:
    """A trace to be sent to an Explorer. ``size`` is that of its JSON in bytes, ``leased`` when others may take it."""

    seq: int
    trace_id: str
    size: int
    attempts: int
    leased: float


@dataclass(frozen=True, slots=True)
class Queued:
    """The number of waiting jobs, and since when the oldest waits, in Unix seconds; None if no job waits."""

    waiting: int
    oldest: float | None


def take(connection: Connection, limit: int, now: float, lease: float) -> list[Job]:
    """Take the oldest log rules that are due: count the attempt, and keep them from others for ``lease`` seconds."""
    taken = _claim(connection, LOG_RULES, limit, now, lease)
    query = (
        select(jobs.c.seq, traces.c.id, traces.c.messages, jobs.c.payload, jobs.c.attempts)
        .join(traces, traces.c.seq == jobs.c.trace)
        .where(jobs.c.seq.in_(taken))
        .order_by(jobs.c.seq)
    )
    return [
        Job(seq, trace_id, load(messages), tuple(load(payload)), attempts)
        for seq, trace_id, messages, payload, attempts in (connection.execute(query) if taken else ())
    ]


def finish(connection: Connection, job: Job, rows: Sequence[tuple[Any, ...]]) -> bool:
    """Remove log rules and store their annotations, unless someone else has finished them (then False).

    A push of the same trace has waited for this, and is now due.
    """
    # First, so that everyone locks in one order.
    counted = indexed(connection) if rows else 0
    trace = connection.scalar(delete(jobs).where(jobs.c.seq == job.seq).returning(jobs.c.trace))
    if trace is None:
        return False
    insert_annotations(connection, rows)
    if rows and trace <= counted:
        add_logged(connection, trace, {row[RULE] for row in rows})
    held = (jobs.c.trace == trace, jobs.c.kind == PUSH, jobs.c.attempts == 0)
    connection.execute(update(jobs).where(*held).values(due=jobs.c.created))
    return True


def take_pushes(connection: Connection, limit: int, now: float, lease: float) -> list[PushJob]:
    """Take pushes as ``take`` does, without their traces: each is read when its turn has come."""
    taken = _claim(connection, PUSH, limit, now, lease)
    size = func.length(traces.c.messages) + func.length(traces.c.metadata)
    query = (
        select(jobs.c.seq, traces.c.id, size, jobs.c.attempts, jobs.c.due)
        .join(traces, traces.c.seq == jobs.c.trace)
        .where(jobs.c.seq.in_(taken))
        .order_by(jobs.c.seq)
    )
    return [PushJob(*row) for row in (connection.execute(query) if taken else ())]


def next_due(connection: Connection, kind: str) -> float | None:
    """Return when the next job may be taken, in Unix seconds; None where there is none."""
    due: float | None = connection.scalar(select(func.min(jobs.c.due)).where(jobs.c.kind == kind))
    return due


def postpone(connection: Connection, seq: int, due: float) -> None:
    """Let nobody take a job before ``due``."""
    connection.execute(update(jobs).where(jobs.c.seq == seq).values(due=due))


def remove(connection: Connection, seq: int) -> bool:
    """Remove a job; False where it was removed before."""
    return connection.execute(delete(jobs).where(jobs.c.seq == seq)).rowcount > 0


def queued(connection: Connection, kind: str) -> Queued:
    """Return what waits of one kind, work under way included."""
    waiting = connection.execute(select(func.count()).select_from(jobs).where(jobs.c.kind == kind)).scalar_one()
    return Queued(waiting, connection.scalar(_oldest(kind, 1).with_only_columns(jobs.c.created)) if waiting else None)


def trim(connection: Connection, kind: str, most: int, step: int) -> int:
    """Remove the oldest jobs of which there are more than ``most``, at most ``step`` of them; how many."""
    # Two processes that count at once would remove twice as many.
    serialise_writers(connection)
    excess = queued(connection, kind).waiting - most
    return _remove(connection, list(connection.scalars(_oldest(kind, min(excess, step))))) if excess > 0 else 0


def expire(connection: Connection, kind: str, before: float, step: int) -> int:
    """Remove those of the ``step`` oldest jobs that were queued before a Unix time; how many."""
    oldest = connection.execute(_oldest(kind, step).add_columns(jobs.c.created))
    return _remove(connection, [seq for seq, created in oldest if created < before])


def _claim(connection: Connection, kind: str, limit: int, now: float, lease: float) -> Sequence[int]:
    due = (
        select(jobs.c.seq)
        .where(jobs.c.kind == kind, jobs.c.due <= now)
        # The index's order: with ``seq`` alone, each query would sort the whole queue.
        .order_by(jobs.c.due, jobs.c.seq)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return connection.scalars(
        update(jobs)
        .where(jobs.c.seq.in_(due.scalar_subquery()))
        .values(attempts=jobs.c.attempts + 1, due=now + lease)
        .returning(jobs.c.seq)
    ).all()


def _oldest(kind: str, limit: int) -> Select[tuple[int]]:
    # With the bare column SQLite would look the kind up in its index, and sort the whole queue.
    same_kind = func.coalesce(jobs.c.kind, "") == kind
    return select(jobs.c.seq).where(same_kind).order_by(jobs.c.seq).limit(limit)


def _remove(connection: Connection, numbers: Sequence[int]) -> int:
    return connection.execute(delete(jobs).where(jobs.c.seq.in_(numbers))).rowcount if numbers else 0
