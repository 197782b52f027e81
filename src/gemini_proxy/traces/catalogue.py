"""Serve the API's requests on traces: listings without messages, and single annotations."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, delete, func, select

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.errors import TooMuchAtOnce
from gemini_proxy.traces.inserts import insert_annotations, require_annotation_room
from gemini_proxy.traces.queries import whole_traces
from gemini_proxy.traces.rows import annotation_rows, decode_annotation, decode_apart, load
from gemini_proxy.traces.schema import annotations, datasets, traces
from gemini_proxy.traces.trace import Annotation, Trace

MAX_OUTLINED: Final = 33_554_432
"""Bytes of metadata in one listing: a client says how much each trace has."""
_AT_ONCE: Final = 500
"""Ids in one question: below the number of parameters that every SQLite takes."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A trace in the listing of a dataset. ``annotations`` counts them by their source."""

    id: str
    position: int
    metadata: Mapping[str, Any]
    annotations: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StoredAnnotation:
    """An annotation with the id that clients know it by; ``created`` in Unix seconds."""

    id: str
    created: float
    annotation: Annotation


@dataclass(frozen=True, slots=True)
class StoredTrace:
    """A trace that has no messages, these as the JSON that is stored, and its annotations with their ids."""

    trace: Trace
    messages: bytes
    annotations: tuple[StoredAnnotation, ...]


class Catalogue:
    """The traces of a database as the API shows them; every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def outlines(
        self, dataset: Dataset, limit: int, offset: int = 0, positions: Sequence[int] | None = None
    ) -> list[Outline]:
        """Return a dataset's traces, oldest first: all, or those at ``positions``; at most ``limit`` after ``offset``.

        Raises TooMuchAtOnce where their metadata is over MAX_OUTLINED bytes.
        """
        query = (
            select(traces.c.seq, traces.c.id, traces.c.position, traces.c.metadata)
            .where(traces.c.dataset == dataset.seq)
            .order_by(traces.c.position)
            .limit(limit)
            .offset(offset)
        )
        if positions is not None:
            query = query.where(traces.c.position.in_(positions))

        def work(connection: Connection) -> list[Outline]:
            sizes = query.with_only_columns(func.length(traces.c.metadata).label("size")).subquery()
            if (connection.scalar(select(func.sum(sizes.c.size))) or 0) > MAX_OUTLINED:
                raise TooMuchAtOnce(f"the metadata of the traces is over {MAX_OUTLINED} bytes")
            found = connection.execute(query).all()
            counts = _counts(connection, [row.seq for row in found])
            return [Outline(row.id, row.position, load(row.metadata), counts[row.seq]) for row in found]

        return await self._database.read(work, owner=dataset.owner)

    async def stored(self, owner: str, trace_id: str) -> StoredTrace | None:
        """Return a user's trace, its messages not decoded; None where the user has no such trace."""
        query = whole_traces().where(traces.c.id == trace_id, datasets.c.owner == owner)

        def work(connection: Connection) -> StoredTrace | None:
            row = connection.execute(query).mappings().one_or_none()
            if row is None:
                return None
            found = tuple(_stored(connection, row["seq"], trace_id))
            return StoredTrace(decode_apart(row, [one.annotation for one in found]), row["messages"], found)

        return await self._database.read(work, owner=owner)

    async def existing(self, owner: str, trace_ids: Collection[str]) -> set[str]:
        """Return those of some ids that are of traces of a user."""
        query = (
            select(traces.c.id)
            .join(datasets, datasets.c.seq == traces.c.dataset)
            .where(traces.c.id.in_(trace_ids), datasets.c.owner == owner, datasets.c.name.is_not(None))
        )
        return await self._database.read(lambda connection: set(connection.scalars(query)), owner=owner)

    async def messages(self, owner: str, trace_id: str) -> bytes | None:
        """Return the messages of a user's trace as the JSON that is stored; None where the user has no such trace."""

        def work(connection: Connection) -> bytes | None:
            seq = _owned(connection, owner, trace_id)
            return None if seq is None else connection.scalar(select(traces.c.messages).where(traces.c.seq == seq))

        return await self._database.read(work, owner=owner)

    async def annotations(self, owner: str, trace_id: str) -> list[StoredAnnotation] | None:
        """Return the annotations of a user's trace, the oldest first; None where the user has no such trace."""

        def work(connection: Connection) -> list[StoredAnnotation] | None:
            seq = _owned(connection, owner, trace_id)
            return None if seq is None else _stored(connection, seq, trace_id)

        return await self._database.read(work, owner=owner)

    async def annotate(self, owner: str, trace_id: str, added: Annotation) -> StoredAnnotation | None:
        """Add an annotation to a user's trace; None where the user has no such trace. Raises TooMany."""
        rows = annotation_rows(trace_id, [added], time.time())

        def work(connection: Connection) -> StoredAnnotation | None:
            seq = _locked(connection, owner, trace_id)
            if seq is None:
                return None
            require_annotation_room(connection, seq, rows)
            insert_annotations(connection, rows)
            return _newest(connection, seq, trace_id)

        return await self._database.write(work)

    async def remove_annotation(self, owner: str, trace_id: str, annotation_id: str, source: str) -> bool:
        """Remove an annotation of a user's trace whose source begins so; False if there is none."""

        def work(connection: Connection) -> bool:
            seq = _locked(connection, owner, trace_id)
            if seq is None or annotation_id != _annotation_id(trace_id, int(annotation_id[24:], 16)):
                return False
            removed = connection.execute(
                delete(annotations).where(
                    annotations.c.trace == seq,
                    annotations.c.seq == int(annotation_id[24:], 16),
                    func.substr(annotations.c.source, 1, len(source)) == source,
                )
            )
            return removed.rowcount > 0

        return await self._database.write(work)

    async def replace_annotations(
        self, owner: str, trace_id: str, source: str, added: Iterable[Annotation]
    ) -> int | None:
        """Replace all annotations from ``source`` by ``added``. Return their old number, None if there is no trace.

        Raises TooMany.
        """
        rows = annotation_rows(trace_id, added, time.time())

        def work(connection: Connection) -> int | None:
            seq = _locked(connection, owner, trace_id)
            if seq is None:
                return None
            removed = connection.execute(
                delete(annotations).where(annotations.c.trace == seq, annotations.c.source == source)
            )
            require_annotation_room(connection, seq, rows)
            insert_annotations(connection, rows)
            return removed.rowcount

        return await self._database.write(work)

    async def present(self, ids: Iterable[str]) -> set[str]:
        """Return the ids that belong to a trace, including traces of a deleted dataset."""
        wanted = sorted(set(ids))

        def work(connection: Connection) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(wanted), _AT_ONCE):
                query = select(traces.c.id).where(traces.c.id.in_(wanted[start : start + _AT_ONCE]))
                found.update(connection.scalars(query))
            return found

        return await self._database.read(work)


def _owned(connection: Connection, owner: str, trace_id: str) -> int | None:
    """Return the number of a user's trace."""
    return connection.scalar(_number(owner, trace_id))


def _locked(connection: Connection, owner: str, trace_id: str) -> int | None:
    """Keep others from annotating a user's trace until this transaction ends; return its number."""
    # Rows elsewhere may still refer to it, such as the indexer's. Otherwise both could wait for each other.
    return connection.scalar(_number(owner, trace_id).with_for_update(of=traces, key_share=True))


def _number(owner: str, trace_id: str) -> Select[int]:
    return (
        select(traces.c.seq)
        .join(datasets, datasets.c.seq == traces.c.dataset)
        .where(traces.c.id == trace_id, datasets.c.owner == owner, datasets.c.name.is_not(None))
    )


def _stored(connection: Connection, trace: int, trace_id: str) -> list[StoredAnnotation]:
    query = select(annotations).where(annotations.c.trace == trace).order_by(annotations.c.seq)
    return [_annotation(row, trace_id) for row in connection.execute(query).mappings()]


def _newest(connection: Connection, trace: int, trace_id: str) -> StoredAnnotation:
    query = select(annotations).where(annotations.c.trace == trace).order_by(annotations.c.seq.desc()).limit(1)
    return _annotation(connection.execute(query).mappings().one(), trace_id)


def _annotation(row: RowMapping, trace_id: str) -> StoredAnnotation:
    return StoredAnnotation(_annotation_id(trace_id, row["seq"]), row["created"], decode_annotation(row))


def _annotation_id(trace_id: str, seq: int) -> str:
    """Return the UUID that clients expect: the trace's, with the annotation's number in place of its last group."""
    return f"{trace_id[:24]}{seq:012x}"


def _counts(connection: Connection, numbers: Sequence[int]) -> dict[int, dict[str, int]]:
    counts: dict[int, dict[str, int]] = {number: {} for number in numbers}
    query = (
        select(annotations.c.trace, annotations.c.source, func.count())
        .where(annotations.c.trace.in_(numbers))
        .group_by(annotations.c.trace, annotations.c.source)
    )
    for trace, source, count in connection.execute(query):
        counts[trace][source] = count
    return counts
