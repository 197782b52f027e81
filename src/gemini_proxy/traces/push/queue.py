"""Keep the traces that wait for an Explorer in the database, and write the body that pushes one."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, delete, func, select, update

from gemini_proxy.traces.database import Database, serialise_writers, translated
from gemini_proxy.traces.jobs import claim
from gemini_proxy.traces.queries import whole_traces
from gemini_proxy.traces.rows import PUSH, decode, decode_annotation, dump_messages, with_messages
from gemini_proxy.traces.schema import annotations, jobs, traces
from gemini_proxy.traces.trace import Trace, annotation_json

# Traces larger than this, in bytes of JSON, are read and written in a thread.
LARGE: Final = 256 * 1024
# Jobs removed in one transaction, so that writers wait for one step at most.
_STEP: Final = 500


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


class PushQueue:
    """Pushes queued by ``encode``. Shared by every process on the database; every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, limit: int, now: float, lease: float) -> list[PushJob]:
        """Take the oldest jobs that are due; nobody else is given them until ``lease`` seconds have passed."""
        return await self._database.write(lambda connection: _take(connection, limit, now, lease))

    async def next_due(self) -> float | None:
        """Return when the next job may be taken, in Unix seconds; None where there is none."""
        query = select(func.min(jobs.c.due)).where(jobs.c.kind == PUSH)
        return await self._database.read(lambda connection: connection.scalar(query))

    async def document(self, job: PushJob) -> bytes | None:
        """Return the body that sends a job's trace as it is now; None where the trace, or its dataset, was deleted.

        Raises RowRejected for a trace that cannot be read or written as JSON.
        """
        found = await self._database.read(partial(_rows, trace_id=job.trace_id))
        if found is None:
            return None
        return await asyncio.to_thread(_document, *found) if job.size > LARGE else _document(*found)

    async def remove(self, job: PushJob) -> bool:
        """Remove a job; False where it was removed before."""
        removed = delete(jobs).where(jobs.c.seq == job.seq)
        return await self._database.write(lambda connection: connection.execute(removed).rowcount > 0)

    async def postpone(self, job: PushJob, due: float) -> None:
        """Let nobody take a job before ``due``, in Unix seconds."""
        postponed = update(jobs).where(jobs.c.seq == job.seq).values(due=due)
        await self._database.write(lambda connection: connection.execute(postponed))

    async def queued(self) -> Queued:
        """Return what waits, work under way included."""
        return await self._database.read(_queued)

    async def trim(self, most: int) -> int:
        """Remove the oldest jobs of which there are more than ``most``, in small steps; how many."""
        total = 0
        while (await self.queued()).waiting > most:
            total += await self._database.write(partial(_trim, most=most))
        return total

    async def expire(self, before: float) -> int:
        """Remove the jobs queued before a Unix time, in small steps; how many."""
        total = 0
        while ((await self.queued()).oldest or before) < before:
            total += await self._database.write(partial(_expire, before=before))
        return total


def push_body(trace: Trace) -> dict[str, Any]:
    """Return the body of ``POST /api/v1/push/trace`` for one trace.

    It has the form that Invariant's Gateway sends: null members of a message are left out, ``via_gateway`` is true. By
    ``metadata.gemini_proxy`` a receiving gemini-proxy recognizes a trace that it already has, and shows its outcome.
    """
    return {
        "messages": [
            [{name: value for name, value in message.items() if value is not None} for message in trace.messages]
        ],
        "annotations": [[annotation_json(annotation) for annotation in trace.annotations]],
        "dataset": trace.dataset,
        "metadata": [
            {
                **trace.metadata,
                "via_gateway": True,
                "usage": trace.metadata.get("usage"),
                "gemini_proxy": {
                    "id": trace.id,
                    "outcome": trace.outcome.value,
                    "model": trace.model,
                    "stream": trace.stream,
                    "duration_ms": trace.duration_ms,
                    "created": trace.created,
                },
            }
        ],
    }


def push_document(trace: Trace) -> bytes:
    """Serialize the body, a message at a time, as ``dump_messages`` does. Raise RowRejected if JSON cannot hold it."""
    body = push_body(trace)
    [messages] = body.pop("messages")
    return with_messages(body, b"[%b]" % dump_messages(messages))


def _rows(connection: Connection, trace_id: str) -> tuple[RowMapping, Sequence[RowMapping]] | None:
    row = connection.execute(whole_traces().where(traces.c.id == trace_id)).mappings().first()
    if row is None:
        return None
    query: Any = select(annotations).where(annotations.c.trace == row["seq"]).order_by(annotations.c.seq)
    return row, connection.execute(query).mappings().all()


def _document(row: RowMapping, found: Sequence[RowMapping]) -> bytes:
    with translated():
        return push_document(decode(row, [decode_annotation(one) for one in found]))


def _take(connection: Connection, limit: int, now: float, lease: float) -> list[PushJob]:
    """Take jobs without their traces: each is read when its turn has come."""
    taken = claim(connection, PUSH, limit, now, lease)
    size = func.length(traces.c.messages) + func.length(traces.c.metadata)
    query = (
        select(jobs.c.seq, traces.c.id, size, jobs.c.attempts, jobs.c.due)
        .join(traces, traces.c.seq == jobs.c.trace)
        .where(jobs.c.seq.in_(taken))
        .order_by(jobs.c.seq)
    )
    return [PushJob(*row) for row in (connection.execute(query) if taken else ())]


def _queued(connection: Connection) -> Queued:
    waiting = connection.execute(select(func.count()).select_from(jobs).where(jobs.c.kind == PUSH)).scalar_one()
    return Queued(waiting, connection.scalar(_oldest(1).with_only_columns(jobs.c.created)) if waiting else None)


def _trim(connection: Connection, most: int) -> int:
    """Remove the oldest jobs of which there are more than ``most``, at most one step of them; how many."""
    # Two processes that count at once would remove twice as many.
    serialise_writers(connection)
    excess = _queued(connection).waiting - most
    return _remove(connection, list(connection.scalars(_oldest(min(excess, _STEP))))) if excess > 0 else 0


def _expire(connection: Connection, before: float) -> int:
    """Remove those of one step of the oldest jobs that were queued before a Unix time; how many."""
    oldest = connection.execute(_oldest(_STEP).add_columns(jobs.c.created))
    return _remove(connection, [seq for seq, created in oldest if created < before])


def _oldest(limit: int) -> Select[tuple[int]]:
    # With the bare column SQLite would look the kind up in its index, and sort the whole queue.
    pushes = func.coalesce(jobs.c.kind, "") == PUSH
    return select(jobs.c.seq).where(pushes).order_by(jobs.c.seq).limit(limit)


def _remove(connection: Connection, numbers: Sequence[int]) -> int:
    return connection.execute(delete(jobs).where(jobs.c.seq.in_(numbers))).rowcount if numbers else 0
