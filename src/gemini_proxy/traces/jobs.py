"""Queue work in the same transaction as its trace, so that neither exists without the other.

Here is how a job is taken, and what becomes of logging rules; ``push.queue`` has the pushes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select, update

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


def take(connection: Connection, limit: int, now: float, lease: float) -> list[Job]:
    """Take the oldest log rules that are due, as ``claim`` does."""
    taken = claim(connection, LOG_RULES, limit, now, lease)
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


def claim(connection: Connection, kind: str, limit: int, now: float, lease: float) -> Sequence[int]:
    """Take the oldest jobs of a kind that are due: count the attempt, and keep them from others for ``lease`` seconds.

    Return their numbers.
    """
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
