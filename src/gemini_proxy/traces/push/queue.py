"""The traces that wait for an Explorer, in the database."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, select

from gemini_proxy.traces import jobs
from gemini_proxy.traces.database import Database, translated
from gemini_proxy.traces.jobs import PushJob, Queued
from gemini_proxy.traces.queries import whole_traces
from gemini_proxy.traces.rows import PUSH, decode, decode_annotation, dump_messages, with_messages
from gemini_proxy.traces.schema import annotations, traces
from gemini_proxy.traces.trace import Trace, annotation_json


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


# Traces larger than this, in bytes of JSON, are read and written in a thread.
LARGE: Final = 256 * 1024
# Jobs removed in one transaction, so that writers wait for one step at most.
_STEP: Final = 500


class PushQueue:
    """Pushes queued by ``encode``. Shared by every process on the database; every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, limit: int, now: float, lease: float) -> list[PushJob]:
        """Take the oldest jobs that are due; nobody else is given them until ``lease`` seconds have passed."""
        return await self._database.write(lambda connection: jobs.take_pushes(connection, limit, now, lease))

    async def next_due(self) -> float | None:
        """Return when the next job may be taken, in Unix seconds; None where there is none."""
        return await self._database.read(lambda connection: jobs.next_due(connection, PUSH))

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
        return await self._database.write(lambda connection: jobs.remove(connection, job.seq))

    async def postpone(self, job: PushJob, due: float) -> None:
        """Let nobody take a job before ``due``, in Unix seconds."""
        await self._database.write(lambda connection: jobs.postpone(connection, job.seq, due))

    async def queued(self) -> Queued:
        """Return how many wait, and since when."""
        return await self._database.read(lambda connection: jobs.queued(connection, PUSH))

    async def trim(self, most: int) -> int:
        """Remove the oldest jobs of which there are more than ``most``, in small steps; how many."""
        total = 0
        while (await self.queued()).waiting > most:
            total += await self._database.write(lambda connection: jobs.trim(connection, PUSH, most, _STEP))
        return total

    async def expire(self, before: float) -> int:
        """Remove the jobs queued before a Unix time, in small steps; how many."""
        total = 0
        while ((await self.queued()).oldest or before) < before:
            total += await self._database.write(lambda connection: jobs.expire(connection, PUSH, before, _STEP))
        return total


def _rows(connection: Connection, trace_id: str) -> tuple[RowMapping, Sequence[RowMapping]] | None:
    row = connection.execute(whole_traces().where(traces.c.id == trace_id)).mappings().first()
    if row is None:
        return None
    query: Any = select(annotations).where(annotations.c.trace == row["seq"]).order_by(annotations.c.seq)
    return row, connection.execute(query).mappings().all()


def _document(row: RowMapping, found: Sequence[RowMapping]) -> bytes:
    with translated():
        return push_document(decode(row, [decode_annotation(one) for one in found]))
