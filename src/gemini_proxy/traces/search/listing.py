"""A dataset's traces, newest first, narrowed down by what they are and by what was said in them."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, ScalarSelect, Select, exists, func, literal_column, select, text

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.figures import from_json, total
from gemini_proxy.traces.partitions import WIDTH
from gemini_proxy.traces.queries import read_summaries, summaries
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.schema import annotations, traces, usage
from gemini_proxy.traces.search.index import Matches, matches
from gemini_proxy.traces.search.pace import BUDGET, Pace, place_pace, text_pace
from gemini_proxy.traces.search.query import Facets, Terms, parse
from gemini_proxy.traces.search.time_limit import OutOfTime, limited
from gemini_proxy.traces.trace import Outcome, TraceSummary
from gemini_proxy.traces.usage import WIDTHS

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

# Reading the listing's index takes this much less time for a place than looking at one trace with a rule; and the index
# of what did not complete less again, for it has few places; looking into what was said takes more.
PLACES: Final = 60
NOTABLE_PLACES: Final = 3_000
TEXT_PLACES: Final = 8
# Traces with a rule that are at most looked at one by one, rather than all in which a text is found.
FEW: Final = 1_000

# Of the figures that are never removed. A stretch is up to twice this longer than the time.
_SECONDS: Final = WIDTHS[-1]

Stretch = tuple[int, int]


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
class TracePage:
    """Traces, newest first. ``older`` is the ``before`` of the page after this one, None where there is nothing older.

    A page with ``older`` may hold fewer traces than asked for, even none: a search that finds little gives back what it
    has after a tenth of a second, and goes on from there when asked for the next page.
    """

    traces: Sequence[TraceSummary]
    older: int | None


@dataclass(frozen=True, slots=True)
class Window:
    """Places of a dataset after ``bottom``, up to and with ``top``, as positions and as numbers of traces."""

    bottom: int
    top: int
    after: int
    to: int

    @property
    def places(self) -> int:
        return self.top - self.bottom


Numbers = Select[int]


class Narrowing:
    """Finds the numbers of the traces in a dataset that answer a query."""

    def __init__(self, connection: Connection, dataset: int, asked: TraceQuery, terms: Terms | None) -> None:
        self._connection = connection
        self._dataset = dataset
        self._rule = asked.rule
        self._traits = _traits(asked)
        self._places = PLACES if asked.outcome in (None, Outcome.COMPLETED) else NOTABLE_PLACES
        self._matches = None if terms is None else _matches(connection, dataset, asked, terms)

    @property
    def selective(self) -> bool:
        """Whether there may be places without an answer, which no index of words leaves out."""
        return self._matches is None and (bool(self._traits) or self._rule is not None)

    @property
    def looks_for_text(self) -> bool:
        return self._matches is not None

    def newest(self, window: Window, limit: int, *, carefully: bool = False) -> list[int]:
        """Return the numbers of the newest ``limit`` answers in the window, newest first, by rule, text or place.

        ``carefully`` as for ``Matches.between``.
        """
        return list(self._connection.scalars(self._query(window, carefully).limit(limit)))

    def _query(self, window: Window, carefully: bool) -> Numbers:
        places = window.places
        if self._matches is not None:
            if self._rule is not None and self._has_few(self._rule, window, min(FEW, places // TEXT_PLACES + 1)):
                return self._by_rule(self._rule, window)
            return self._by_text(self._matches, window, carefully)
        if self._rule is not None:
            if not self._traits or self._has_few(self._rule, window, places // self._places + 1):
                return self._by_rule(self._rule, window)
        return self._by_place(window)

    def _by_text(self, found: Matches, window: Window, carefully: bool) -> Numbers:
        traits = [self._is_trace(found.number)] if self._traits else []
        matched = found.between(window.after, window.to, carefully=carefully)
        query = select(found.number).where(matched, *traits, *self._annotated(found.number))
        return query.order_by(found.newest_first(carefully=carefully))

    def _by_place(self, window: Window) -> Numbers:
        query = select(traces.c.seq).where(traces.c.dataset == self._dataset, *self._traits)
        query = query.where(traces.c.position > window.bottom, traces.c.position <= window.top)
        return query.where(*self._annotated(traces.c.seq)).order_by(traces.c.position.desc())

    def _by_rule(self, rule: str, window: Window) -> Numbers:
        number = annotations.c.trace
        query = select(number).distinct().where(annotations.c.dataset == self._dataset, annotations.c.rule == rule)
        query = query.where(*_between(number, window), *([self._is_trace(number)] if self._traits else []))
        if self._matches is not None:
            query = query.where(exists().where(self._matches.number == number, self._matches.holds))
        return query.order_by(number.desc())

    def _is_trace(self, number: ColumnElement[int]) -> ColumnElement[bool]:
        return exists().where(traces.c.seq == number, *self._traits)

    def _annotated(self, number: ColumnElement[int]) -> list[ColumnElement[bool]]:
        if self._rule is None:
            return []
        return [exists().where(annotations.c.trace == number, annotations.c.rule == self._rule)]

    def _has_few(self, rule: str, window: Window, most: int) -> bool:
        """Return whether fewer than ``most`` annotations of the window name a rule."""
        named = select(annotations.c.trace).where(
            annotations.c.dataset == self._dataset,
            annotations.c.rule == rule,
            *_between(annotations.c.trace, window),
        )
        counted = select(func.count()).select_from(named.limit(most).subquery())
        return self._connection.execute(counted).scalar_one() < most


def _traits(asked: TraceQuery) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if asked.outcome is not None:
        found.append(traces.c.outcome == asked.outcome.value)
        if asked.outcome is not Outcome.COMPLETED:
            # NOTABLE, for the index of such traces: with a parameter in its place the database could not tell.
            found.append(traces.c.outcome != literal_column("'completed'"))
    if asked.model is not None:
        found.append(traces.c.model == asked.model)
    if asked.since is not None:
        found.append(traces.c.created >= asked.since)
    if asked.until is not None:
        found.append(traces.c.created < asked.until)
    return found


def _matches(connection: Connection, dataset: int, asked: TraceQuery, terms: Terms) -> Matches:
    outcome = None if asked.outcome is None else asked.outcome.value
    return matches(connection, terms, Facets(dataset, outcome, asked.model))


def _between(number: ColumnElement[Any], window: Window) -> tuple[ColumnElement[bool], ...]:
    return (number > window.after, number <= window.to)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The ids of the traces before and after one in its dataset, None at its ends."""

    older: str | None
    newer: str | None


class Listing:
    """Reads pages of datasets. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, dataset: Dataset, query: TraceQuery, limit: int, before: int | None = None) -> TracePage:
        """Return the newest ``limit`` traces that answer ``query``, of those whose position is below ``before``.

        ``text`` finds what the indexer has come to, which is not what came a second ago.
        """
        return await self._database.read(
            lambda connection: _page(connection, dataset, query, limit, before), owner=dataset.owner
        )

    async def models(self, dataset: Dataset) -> list[str]:
        """Return the models that the dataset's traces name most, at most MAX_CHOICES, in alphabetical order."""
        found = await self._database.read(lambda connection: _figures(connection, dataset), owner=dataset.owner)
        counts = await asyncio.to_thread(lambda: total(from_json(load(figures)) for figures in found).models)
        named = sorted((name for name in counts if name), key=lambda name: counts[name], reverse=True)
        return sorted(named[:MAX_CHOICES])

    async def rules(self, dataset: Dataset) -> list[str]:
        """Return what ``TraceQuery.rule`` can be to find something, in alphabetical order, at most MAX_CHOICES."""
        values = {"dataset": dataset.seq, "most": MAX_CHOICES}
        return await self._database.read(
            lambda connection: list(connection.scalars(_RULES, values)), owner=dataset.owner
        )

    async def neighbours(self, dataset: Dataset, position: int) -> Neighbours:
        """Return the traces on either side of a position."""
        within = select(traces.c.id).where(traces.c.dataset == dataset.seq).limit(1)
        older = within.where(traces.c.position < position).order_by(traces.c.position.desc())
        newer = within.where(traces.c.position > position).order_by(traces.c.position)
        return await self._database.read(
            lambda connection: Neighbours(connection.scalar(older), connection.scalar(newer)), owner=dataset.owner
        )


def _page(connection: Connection, dataset: Dataset, query: TraceQuery, limit: int, before: int | None) -> TracePage:
    narrowing = Narrowing(connection, dataset.seq, query, parse(query.text or ""))
    pieces = stretches(connection, dataset.seq, query.since, query.until, before)
    ends = time.perf_counter() + BUDGET
    pace = text_pace(ends) if narrowing.looks_for_text else place_pace(ends, narrowing.selective)
    found, older = _search(connection, dataset.seq, narrowing, pieces, limit, pace)
    shown = read_summaries(
        connection, summaries().where(traces.c.seq.in_(found[:limit])).order_by(traces.c.position.desc())
    )
    # Nothing to show of what was found: the dataset is being deleted.
    return TracePage(shown, shown[-1].position if shown and len(found) > limit else older)


def _search(
    connection: Connection, dataset: int, narrowing: Narrowing, pieces: Sequence[Stretch], limit: int, pace: Pace
) -> tuple[list[int], int | None]:
    """Return the newest numbers, at most one more than ``limit``, and where to go on if time was short."""
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
    """Return the part of a window in its newest partition: between two partitions are more blocks than traces."""
    first = window.to // WIDTH * WIDTH
    if window.after >= first - 1 or not first:
        return window
    older = select(traces.c.position).where(traces.c.dataset == dataset, traces.c.seq < first)
    last = connection.scalar(older.order_by(traces.c.position.desc()).limit(1))
    # Where older ones are gone by now, there is no trace between.
    bottom = window.bottom if last is None else max(window.bottom, last)
    return Window(bottom, window.top, first - 1, window.to)


def _number(dataset: int, position: int) -> ScalarSelect[int]:
    """Return the number of the last trace up to a position."""
    newest_first = select(traces.c.seq).where(traces.c.dataset == dataset, traces.c.position <= position)
    return newest_first.order_by(traces.c.position.desc()).limit(1).scalar_subquery()


def _figures(connection: Connection, dataset: Dataset) -> list[bytes]:
    """Return all of a dataset's figures, in the widest buckets."""
    query = select(usage.c.figures).where(usage.c.dataset == dataset.seq, usage.c.seconds == WIDTHS[-1])
    return list(connection.scalars(query))


def stretches(
    connection: Connection, dataset: int, since: float | None, until: float | None, before: int | None
) -> list[Stretch]:
    """Positions that hold every trace of a time, in pieces, newest first: after the first number, up to the second.

    Positions and times do not quite go together: a trace is written when its exchange ends, and dated when it began.
    The figures know both for the traces that the indexer has come to; what is newer is a piece of its own.
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
