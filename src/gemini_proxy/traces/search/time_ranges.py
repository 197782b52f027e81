"""Where in a dataset the traces of a time are, so that nothing else is looked through."""

from typing import Final

from sqlalchemy import Connection, Select, func, select

from gemini_proxy.traces.schema import traces, usage
from gemini_proxy.traces.tallies import WIDTHS

# Of the figures that are never removed. A stretch is up to twice this longer than the time.
_SECONDS: Final = WIDTHS[-1]

Stretch = tuple[int, int]


def stretches(
    connection: Connection, dataset: int, since: float | None, until: float | None, before: int | None
) -> list[Stretch]:
    """Positions that hold every trace of a time, in pieces, newest first: after the first number, up to the second.

    Positions and times do not quite go together: a trace is written when its exchange ends, and dated when it began.
    The figures know both for the traces that the digest has come to; what is newer is a piece of its own.
    """
    oldest, newest = connection.scalar(_end(dataset, newest=False)), connection.scalar(_end(dataset, newest=True))
    if oldest is None or newest is None:
        return []
    lowest, highest = oldest - 1, newest if before is None else min(newest, before - 1)
    if since is None and until is None:
        return _clipped([(lowest, highest)], lowest, highest)
    of_dataset = (usage.c.dataset == dataset, usage.c.seconds == _SECONDS)
    known = connection.execute(select(func.max(usage.c.last)).where(*of_dataset)).scalar()
    between = select(func.min(usage.c.first), func.max(usage.c.last)).where(*of_dataset)
    if since is not None:
        between = between.where(usage.c.start > since - _SECONDS)
    if until is not None:
        between = between.where(usage.c.start < until)
    first, last = connection.execute(between).one()
    found = [(lowest if known is None else known, highest)]
    return _clipped(found if first is None else [*found, (first - 1, last)], lowest, highest)


def _clipped(found: list[Stretch], lowest: int, highest: int) -> list[Stretch]:
    clipped = [(max(bottom, lowest), min(top, highest)) for bottom, top in found]
    return [(bottom, top) for bottom, top in clipped if bottom < top]


def _end(dataset: int, *, newest: bool) -> Select[int]:
    order = traces.c.position.desc() if newest else traces.c.position
    return select(traces.c.position).where(traces.c.dataset == dataset).order_by(order).limit(1)
