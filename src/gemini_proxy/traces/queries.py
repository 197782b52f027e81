"""Build the queries that read traces: a trace with its dataset's owner and name, and a listing."""

from typing import Any

from sqlalchemy import Connection, Select, select

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


def whole_traces() -> Query:
    """Return the query for ``read_traces``: all traces but those of deleted datasets, for the caller to narrow."""
    return (
        select(traces, datasets.c.owner, datasets.c.name)
        .join(datasets, datasets.c.seq == traces.c.dataset)
        .where(datasets.c.name.is_not(None))
    )


def summaries() -> Query:
    """Return the query for ``read_summaries``: no messages, no metadata; what ``TraceSummary`` has, in its order."""
    return (
        select(
            *(traces.c[key] for key in ("seq", "position", "id", "created")),
            datasets.c.owner,
            datasets.c.name,
            *(traces.c[key] for key in ("model", "outcome", "stream", "duration_ms")),
            _FIRST_RULE,
        )
        .join(datasets, datasets.c.seq == traces.c.dataset)
        .where(datasets.c.name.is_not(None))
    )


def read_traces(connection: Connection, query: Query) -> list[tuple[int, Trace]]:
    """Read the traces of a query with their annotations, each with its number."""
    found = connection.execute(query).mappings().all()
    numbers = [row["seq"] for row in found]
    of_them = select(annotations).where(annotations.c.trace.in_(numbers)).order_by(annotations.c.seq)
    by_trace: dict[int, list[Annotation]] = {number: [] for number in numbers}
    for row in connection.execute(of_them).mappings():
        by_trace[row["trace"]].append(decode_annotation(row))
    return [(row["seq"], decode(row, by_trace[row["seq"]])) for row in found]


def read_summaries(connection: Connection, query: Query) -> list[TraceSummary]:
    """Read the lines of a listing."""
    # By place, not by name: the feed reads every exchange.
    return [
        TraceSummary(seq, position, trace_id, created, owner, dataset or None, model, Outcome(outcome), *rest)
        for seq, position, trace_id, created, owner, dataset, model, outcome, *rest in connection.execute(query)
    ]
