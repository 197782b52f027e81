"""Bound the annotations of one trace, over any number of calls: to view the trace is to read them all."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, func, select

from gemini_proxy.traces.errors import TooMany
from gemini_proxy.traces.schema import annotations

MAX_ANNOTATIONS: Final = 100_000
"""Annotations of one trace: what the rules of one exchange may find many times over."""
MAX_ANNOTATED: Final = 104_857_600
"""Characters of them, and bytes of what else is said of them: as much as one push brings."""
_COUNTED: Final = tuple(annotations.c[name] for name in ("content", "address", "source", "guardrail", "extra"))


def require_room(connection: Connection, trace: int, rows: Sequence[tuple[Any, ...]]) -> None:
    """Raise TooMany if the trace of that number cannot take these further rows of ``annotation_rows``.

    The trace must be locked: otherwise two transactions at once could both see room.
    """
    if not rows:
        return
    size = sum((func.length(column) for column in _COUNTED), start=0)
    there = select(func.count(), func.coalesce(func.sum(size), 0)).where(annotations.c.trace == trace)
    count, taken = connection.execute(there).one()
    if count + len(rows) > MAX_ANNOTATIONS:
        raise TooMany(f"A trace must not have more than {MAX_ANNOTATIONS} annotations")
    if taken + sum(_size(row) for row in rows) > MAX_ANNOTATED:
        raise TooMany(f"The annotations of a trace must not be larger than {MAX_ANNOTATED} bytes")


def _size(row: tuple[Any, ...]) -> int:
    _, content, address, source, _, guardrail, extra, _ = row
    return len(content) + len(address) + len(source) + len(guardrail) + len(extra)
