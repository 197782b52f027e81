"""Work queued in the same transaction as its trace, so that neither is ever there without the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select, update

from gemini_proxy.traces.inserts import insert_annotations
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.schema import jobs, traces


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of queued work: rules to run over a trace's messages. ``attempts`` counts this one."""

    seq: int
    trace_id: str
    messages: Sequence[Mapping[str, Any]]
    rules: tuple[Mapping[str, Any], ...]
    attempts: int


def take(connection: Connection, kind: str, limit: int, now: float, lease: float) -> list[Job]:
    """The oldest jobs that are due, counted as attempted and kept from other takers for ``lease`` seconds."""
    due = (
        select(jobs.c.seq)
        .where(jobs.c.kind == kind, jobs.c.due <= now)
        .order_by(jobs.c.seq)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = connection.scalars(
        update(jobs)
        .where(jobs.c.seq.in_(due.scalar_subquery()))
        .values(attempts=jobs.c.attempts + 1, due=now + lease)
        .returning(jobs.c.seq)
    ).all()
    return _load(connection, taken) if taken else []


def finish(connection: Connection, job: Job, rows: Sequence[tuple[Any, ...]]) -> bool:
    """Remove the job and store its annotations, unless someone else has finished it (then False)."""
    if connection.execute(delete(jobs).where(jobs.c.seq == job.seq)).rowcount == 0:
        return False
    insert_annotations(connection, rows)
    return True


def _load(connection: Connection, numbers: Sequence[int]) -> list[Job]:
    query = (
        select(jobs.c.seq, traces.c.id, traces.c.messages, jobs.c.payload, jobs.c.attempts)
        .join(traces, traces.c.seq == jobs.c.trace)
        .where(jobs.c.seq.in_(numbers))
        .order_by(jobs.c.seq)
    )
    return [
        Job(seq, trace_id, load(messages), tuple(load(payload)), attempts)
        for seq, trace_id, messages, payload, attempts in connection.execute(query)
    ]
