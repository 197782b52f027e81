"""A dataset's traces, newest first, narrowed down by what they are and by what was said in them."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, ScalarSelect, select, text

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.figures import from_json, total
from gemini_proxy.traces.partitions import WIDTH
from gemini_proxy.traces.queries import read_summaries, summaries
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.schema import traces, usage
from gemini_proxy.traces.search.narrowing import Narrowing, Window
from gemini_proxy.traces.search.pace import BUDGET, Learnt, Pace, place_pace, text_pace
from gemini_proxy.traces.search.query import parse
from gemini_proxy.traces.search.time_limit import OutOfTime, limited
from gemini_proxy.traces.search.time_ranges import Stretch, stretches
from gemini_proxy.traces.tallies import WIDTHS
from gemini_proxy.traces.trace import Outcome, TraceSummary

# Of a menu: models and rules are named by clients, who may name many.
MAX_CHOICES: Final = 200

# The names of an index's second column, one seek each: the distinct values without reading every row.
_RULES = text(
    "WITH RECURSIVE names (rule) AS ("
    " SELECT min(rule) FROM annotations WHERE dataset = :dataset"
    " UNION ALL SELECT (SELECT min(rule) FROM annotations WHERE dataset = :dataset AND rule > names.rule)"
    " FROM names WHERE names.rule IS NOT NULL"
    ") SELECT rule FROM names WHERE rule IS NOT NULL LIMIT :most"
)


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """What traces must be, all of it; None asks for nothing.

    ``rule`` is the name of a rule that annotated the trace, or, where an annotation names none, its message. ``since``
    and ``until`` are Unix seconds, the second one excluded. ``text`` is what a user types, see ``search.parse``; where
    there is nothing in it to look for, it asks for nothing.
    """

    outcome: Outcome | None = None
    model: str | None = None
    rule: str | None = None
    since: float | None = None
    until: float | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Traces, newest first. ``older`` is the ``before`` of the page after this one, None where there is nothing older.

    A page with ``older`` may hold fewer traces than asked for, even none: a search that finds little gives back what it
    has after a tenth of a second, and goes on from there when asked for the next page.
    """

    traces: Sequence[TraceSummary]
    older: int | None


class Listing:
    """Reads pages of datasets. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._learnt = Learnt()

    async def page(self, dataset: Dataset, query: TraceQuery, limit: int, before: int | None = None) -> Page:
        """The newest ``limit`` traces that answer ``query``, of those whose position is below ``before``.

        ``text`` finds what the digest has come to, which is not what came a second ago.
        """
        return await self._database.read(
            lambda connection: _page(connection, dataset, query, limit, before, self._learnt), owner=dataset.owner
        )

    async def models(self, dataset: Dataset) -> list[str]:
        """The models that the dataset's traces name, in alphabetical order, at most MAX_CHOICES: the most used ones."""
        found = await self._database.read(lambda connection: _figures(connection, dataset), owner=dataset.owner)
        counts = await asyncio.to_thread(lambda: total(from_json(load(figures)) for figures in found).models)
        named = sorted((name for name in counts if name), key=lambda name: counts[name], reverse=True)
        return sorted(named[:MAX_CHOICES])

    async def rules(self, dataset: Dataset) -> list[str]:
        """What ``TraceQuery.rule`` can be to find something, in alphabetical order, at most MAX_CHOICES."""
        values = {"dataset": dataset.seq, "most": MAX_CHOICES}
        return await self._database.read(
            lambda connection: list(connection.scalars(_RULES, values)), owner=dataset.owner
        )


def _page(
    connection: Connection, dataset: Dataset, query: TraceQuery, limit: int, before: int | None, learnt: Learnt
) -> Page:
    narrowing = Narrowing(connection, dataset.seq, query, parse(query.text or ""))
    pieces = stretches(connection, dataset.seq, query.since, query.until, before)
    ends = time.perf_counter() + BUDGET
    # A first page may find what it looks for at once, whatever the machine had to do when it was asked for last.
    known = None if before is None else learnt.get((dataset.seq, query))
    pace = text_pace(ends, known) if narrowing.looks_for_text else place_pace(ends, narrowing.selective)
    found, older = _search(connection, dataset.seq, narrowing, pieces, limit, pace)
    if narrowing.looks_for_text and (places := pace.learnt()) is not None:
        learnt.put((dataset.seq, query), places)
    shown = read_summaries(
        connection, summaries().where(traces.c.seq.in_(found[:limit])).order_by(traces.c.position.desc())
    )
    # Nothing to show of what was found: the dataset is being deleted.
    return Page(shown, shown[-1].position if shown and len(found) > limit else older)


def _search(
    connection: Connection, dataset: int, narrowing: Narrowing, pieces: Sequence[Stretch], limit: int, pace: Pace
) -> tuple[list[int], int | None]:
    """The newest numbers, one more than ``limit`` where there are as many; and where to go on, if time was short."""
    found: list[int] = []
    for bottom, top in pieces:
        while top > bottom:
            if pace.over:
                return found, top + 1
            window = _window(connection, dataset, max(bottom, top - pace.size), top)
            if pace.carefully:
                window = _in_partition(connection, dataset, window)
            try:
                with nullcontext() if pace.patience is None else limited(connection, pace.patience):
                    found += narrowing.newest(window, limit + 1 - len(found), carefully=pace.carefully)
            except OutOfTime:
                if pace.late():
                    return found, top + 1
                continue
            if len(found) > limit:
                return found, None
            top = window.bottom
            pace.step(window.places)
    return found, None


def _window(connection: Connection, dataset: int, bottom: int, top: int) -> Window:
    after, to = connection.execute(select(_number(dataset, bottom), _number(dataset, top))).one()
    return Window(bottom, top, after or 0, to or 0)


def _in_partition(connection: Connection, dataset: int, window: Window) -> Window:
    """The part of a window that is in its newest partition: between two of them there are more blocks than traces."""
    first = window.to // WIDTH * WIDTH
    if window.after >= first - 1 or not first:
        return window
    older = select(traces.c.position).where(traces.c.dataset == dataset, traces.c.seq < first)
    last = connection.scalar(older.order_by(traces.c.position.desc()).limit(1))
    # Where older ones are gone by now, there is no trace between.
    bottom = window.bottom if last is None else max(window.bottom, last)
    return Window(bottom, window.top, first - 1, window.to)


def _number(dataset: int, position: int) -> ScalarSelect[int]:
    """That of the last trace up to a position."""
    newest_first = select(traces.c.seq).where(traces.c.dataset == dataset, traces.c.position <= position)
    return newest_first.order_by(traces.c.position.desc()).limit(1).scalar_subquery()


def _figures(connection: Connection, dataset: Dataset) -> list[bytes]:
    """All of a dataset's figures, in the widest buckets."""
    query = select(usage.c.figures).where(usage.c.dataset == dataset.seq, usage.c.seconds == WIDTHS[-1])
    return list(connection.scalars(query))
