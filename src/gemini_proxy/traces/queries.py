"""What reads traces: the rows of a trace with its dataset's owner and name, and of a listing."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, select

from gemini_proxy.traces.rows import decode, decode_annotation
from gemini_proxy.traces.schema import annotations, datasets, traces
from gemini_proxy.traces.trace import Annotation, Outcome, Trace, TraceSummary

Query = Select[*tuple[Any, ...]]

_FIRST_RULE = (
    select(annotations.c.content)
    .where(annotations.c.trace == traces.c.seq)
    .order_by(annotations.c.seq)
    .limit(1)
    .scalar_subquery()
)
_SUMMARY = ("seq", "position", "id", "created", "model", "outcome", "stream", "duration_ms")


def whole_traces() -> Query:
    """Traces that are not of a deleted dataset, to be narrowed down and given to ``read_traces``."""
    return (
        select(traces, datasets.c.owner, datasets.c.name)
        .join(datasets, datasets.c.seq == traces.c.dataset)
        .where(datasets.c.name.is_not(None))
    )


def summaries() -> Query:
    """The same for ``read_summaries``: no messages, no metadata."""
    return (
        select(
            *(traces.c[key] for key in _SUMMARY),
            datasets.c.owner,
            datasets.c.name.label("dataset"),
            _FIRST_RULE.label("rule"),
        )
        .join(datasets, datasets.c.seq == traces.c.dataset)
        .where(datasets.c.name.is_not(None))
    )


def read_traces(connection: Connection, query: Query) -> list[tuple[int, Trace]]:
    """The traces of a query with their annotations, each with its number."""
    found = connection.execute(query).mappings().all()
    return _with_annotations(connection, found)


def read_summaries(connection: Connection, query: Query) -> list[TraceSummary]:
    """The lines of a listing."""
    return [_summary(row) for row in connection.execute(query).mappings()]


def _summary(row: RowMapping) -> TraceSummary:
    return TraceSummary(**{**row, "outcome": Outcome(row["outcome"]), "dataset": row["dataset"] or None})


def _with_annotations(connection: Connection, found: Sequence[RowMapping]) -> list[tuple[int, Trace]]:
    query = (
        select(annotations).where(annotations.c.trace.in_([row["seq"] for row in found])).order_by(annotations.c.seq)
    )
    by_trace: dict[int, list[Annotation]] = {row["seq"]: [] for row in found}
    for row in connection.execute(query).mappings():
        by_trace[row["trace"]].append(decode_annotation(row))
    return [(row["seq"], decode(row, by_trace[row["seq"]])) for row in found]
