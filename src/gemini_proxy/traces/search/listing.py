"""List a dataset's traces, newest first, filtered by properties and texts, each with a line of what it is about."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    TextClause,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    select,
    text,
)

from gemini_proxy.traces.database import Database, OutOfTime, limited
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.figures import from_json
from gemini_proxy.traces.headline import Headline, HitExcerpt, headline_of, question_of
from gemini_proxy.traces.partitions import WIDTH
from gemini_proxy.traces.queries import read_summaries, summaries
from gemini_proxy.traces.rows import MAX_RULE, load
from gemini_proxy.traces.schema import MESSAGE, annotations, progress, traces, usage
from gemini_proxy.traces.search.index import Matches, matches
from gemini_proxy.traces.search.query import Facets, Term, Terms, parse
from gemini_proxy.traces.search.searchable_text import text_of
from gemini_proxy.traces.trace import Outcome, TraceSummary
from gemini_proxy.traces.usage import AGAIN, WIDTHS

# The most entries of a menu: clients name models and rules, and may name many.
MAX_CHOICES: Final = 200
# What is more is "1,000+".
MAX_COUNTED: Final = 1_000
# Seconds after which a search gives back what it has; and how much later a look is broken off.
BUDGET: Final = 0.08
GRACE: Final = 0.01
# Seconds for one dataset of many, or for one count.
_LEAST_SHARE: Final = 0.004
# Seconds for looking up a text in the whole index, which is done in a few milliseconds, but where words are very
# frequent and traces that answer are rare; and the share of a search's time that this takes at most.
HASTE: Final = 0.045
_SHARE: Final = 0.6
# Places of a dataset that are looked at first; and in how many times as many the next look goes on. A text may be said
# at every place.
FIRST_WINDOW: Final = 4_096
FIRST_TEXTS: Final = 1_024
GROWTH: Final = 4
# Buckets of six hours, the newest: some months of one dataset.
_MOST_FIGURES: Final = 500

_MAX_METADATA: Final = 65_536
"""Bytes of metadata that are read for a line: a client says how much a trace has."""
_MAX_BEGINNING: Final = 262_144
"""Bytes of messages in which a hit is looked for."""
_READING: Final = 0.03
"""Seconds for reading messages, for all lines of a page together."""
_AROUND: Final = 60
_HIT: Final = 80
"""Characters shown beside a hit, and of it."""


# The names of an index's second column, one seek each: the distinct values without reading every row.
def _distinct(name: str) -> TextClause:
    return text(
        "WITH RECURSIVE names (name) AS ("
        f" SELECT min({name}) FROM annotations WHERE dataset = :dataset"
        f" UNION ALL SELECT (SELECT min({name}) FROM annotations WHERE dataset = :dataset AND {name} > names.name)"
        " FROM names WHERE names.name IS NOT NULL"
        ") SELECT name FROM names WHERE name IS NOT NULL LIMIT :most"
    )


_RULES: Final = _distinct("rule")
_MESSAGES: Final = _distinct(MESSAGE)

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
    """The conditions that traces must meet, all of them; None means no condition.

    ``outcome`` may be several, of which a trace has one. ``rule`` is the name of a guardrail that annotated the trace,
    or the message of one of its rules. ``since`` and ``until`` are Unix seconds, the second one excluded. ``text`` is
    what a user types, see ``search.parse``; where there is nothing in it to look for, it asks for nothing.

    ``status`` is that of the upstream's response, ``tool`` the name of one that the trace calls, ``key`` the beginning
    of the keyed hash of the key that it came with.
    """

    outcome: Outcome | frozenset[Outcome] | None = None
    model: str | None = None
    rule: str | None = None
    since: float | None = None
    until: float | None = None
    text: str | None = None
    status: int | None = None
    tool: str | None = None
    key: str | None = None
    conversation: str | None = None

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Return the outcomes of which a trace must have one; none if any will do."""
        if self.outcome is None:
            return ()
        wanted = {self.outcome} if isinstance(self.outcome, Outcome) else self.outcome
        return tuple(sorted(outcome.value for outcome in wanted))

    def facets(self, dataset: int) -> Facets:
        """Return what the index of words knows of the traces in a dataset that answer."""
        tools = (self.tool,) if self.tool else ()
        return Facets(dataset, self.outcomes or None, self.model, self.status, tools, self.key, self.conversation)


@dataclass(frozen=True, slots=True)
class TracePage:
    """Traces, newest first. ``older`` is the ``before`` of the page after this one, None where there is nothing older.

    ``headlines`` are those of the traces, by their numbers.

    A page with ``older`` may hold fewer traces than asked for, even none: a search that finds little gives back what it
    has after a tenth of a second, and goes on from there when asked for the next page.
    """

    traces: Sequence[TraceSummary]
    older: int | None
    headlines: Mapping[int, Headline] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TraceCount:
    """The number of traces: exact, or a lower bound."""

    number: int
    exact: bool


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


@dataclass(frozen=True, slots=True)
class Choices:
    """Values to filter traces of some datasets by. ``rules`` are names of guardrails and messages of rules."""

    models: Sequence[str]
    rules: Sequence[str]
    statuses: Sequence[str]
    tools: Sequence[str]


Numbers = Select[int]


class Narrowing:
    """Find the numbers of the traces in a dataset that answer a query."""

    def __init__(self, connection: Connection, dataset: int, asked: TraceQuery, terms: Terms | None) -> None:
        self._connection = connection
        self._dataset = dataset
        self._rule = asked.rule
        self._names_rule = _names_rule(connection, dataset, asked.rule)
        self._traits = _traits(asked)
        self._places = PLACES if _is_common(asked.outcomes) else NOTABLE_PLACES
        facets = asked.facets(dataset)
        if terms is None and facets.selective:
            terms = Terms(())
        self._matches = None if terms is None else matches(connection, terms, facets)

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
        query = select(number).distinct().where(annotations.c.dataset == self._dataset, self._says(rule))
        query = query.where(*_between(number, window), *([self._is_trace(number)] if self._traits else []))
        if self._matches is not None:
            query = query.where(exists().where(self._matches.number == number, self._matches.holds))
        return query.order_by(number.desc())

    def _is_trace(self, number: ColumnElement[int]) -> ColumnElement[bool]:
        return exists().where(traces.c.seq == number, *self._traits)

    def _annotated(self, number: ColumnElement[int]) -> list[ColumnElement[bool]]:
        if self._rule is None:
            return []
        return [exists().where(annotations.c.trace == number, self._says(self._rule))]

    def _says(self, rule: str) -> ColumnElement[bool]:
        """Return whether an annotation is of the guardrail of that name; if there is none, whether that is its message.

        Both are cut as they are in their indexes.
        """
        named: ColumnElement[Any] = annotations.c.rule if self._names_rule else literal_column(MESSAGE)
        return named == rule[:MAX_RULE]

    def _has_few(self, rule: str, window: Window, most: int) -> bool:
        """Return whether fewer than ``most`` annotations of the window name a rule."""
        named = select(annotations.c.trace).where(
            annotations.c.dataset == self._dataset,
            self._says(rule),
            *_between(annotations.c.trace, window),
        )
        counted = select(func.count()).select_from(named.limit(most).subquery())
        return self._connection.execute(counted).scalar_one() < most


def _traits(asked: TraceQuery) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if outcomes := asked.outcomes:
        found.append(traces.c.outcome == outcomes[0] if len(outcomes) == 1 else traces.c.outcome.in_(outcomes))
        if not _is_common(outcomes):
            # NOTABLE, for the index of such traces: with a parameter in its place the database could not tell.
            found.append(traces.c.outcome != literal_column("'completed'"))
    if asked.model is not None:
        found.append(traces.c.model == asked.model)
    if asked.since is not None:
        found.append(traces.c.created >= asked.since)
    if asked.until is not None:
        found.append(traces.c.created < asked.until)
    return found


def _is_common(outcomes: Sequence[str]) -> bool:
    return not outcomes or Outcome.COMPLETED.value in outcomes


def _names_rule(connection: Connection, dataset: int, rule: str | None) -> bool:
    """Return whether some annotation in the dataset is of a guardrail of that name."""
    if rule is None:
        return False
    named = select(annotations.c.trace).where(annotations.c.dataset == dataset, annotations.c.rule == rule[:MAX_RULE])
    return connection.execute(named.limit(1)).first() is not None


def _between(number: ColumnElement[Any], window: Window) -> tuple[ColumnElement[bool], ...]:
    return (number > window.after, number <= window.to)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The ids of the traces before and after one in its dataset, None at its ends."""

    older: str | None
    newer: str | None


class Listing:
    """Read pages of datasets. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, dataset: Dataset, query: TraceQuery, limit: int, before: int | None = None) -> TracePage:
        """Return the newest ``limit`` traces that answer ``query``, of those whose position is below ``before``.

        ``text`` finds what the indexer has come to, which is not what came a second ago.
        """
        return await self._database.read(
            lambda connection: _page(connection, dataset, query, limit, before), owner=dataset.owner
        )

    async def over(
        self, datasets: Sequence[Dataset], query: TraceQuery, limit: int, before: int | None = None
    ) -> TracePage:
        """Return the newest ``limit`` traces of a user's datasets that answer, of those below the number ``before``.

        ``older`` is a number as well. As ``page`` in all else.
        """
        if not datasets:
            return TracePage([], None)
        return await self._database.read(
            lambda connection: _page_over(connection, datasets, query, limit, before), owner=datasets[0].owner
        )

    async def each(
        self, datasets: Sequence[Dataset], query: TraceQuery, most: int, *, at_once: int = 200
    ) -> AsyncIterator[TraceSummary]:
        """Yield the newest traces that answer, at most ``most``, however long it takes to find them."""
        before: int | None = None
        while most > 0:
            page = await self.over(datasets, query, min(most, at_once), before)
            for summary in page.traces:
                yield summary
            most -= len(page.traces)
            if page.older is None:
                return
            before = page.older

    async def counts(
        self, datasets: Sequence[Dataset], queries: Sequence[TraceQuery], most: int = MAX_COUNTED
    ) -> list[TraceCount]:
        """Count what answers each query, up to ``most`` and for as long as a page may take."""
        if not datasets:
            return [TraceCount(0, exact=True) for _ in queries]
        return await self._database.read(
            lambda connection: _counts(connection, datasets, queries, most), owner=datasets[0].owner
        )

    async def choices(self, datasets: Sequence[Dataset]) -> Choices:
        """Return what filters can be to find something, each at most MAX_CHOICES, in alphabetical order."""
        if not datasets:
            return Choices((), (), (), ())

        def work(connection: Connection) -> tuple[list[bytes], set[str]]:
            figures: list[bytes] = []
            rules: set[str] = set()
            ends = time.perf_counter() + BUDGET
            for dataset in datasets:
                if time.perf_counter() > ends:
                    break
                figures += _figures(connection, dataset)
                values = {"dataset": dataset.seq, "most": MAX_CHOICES}
                rules.update(connection.scalars(_RULES, values), connection.scalars(_MESSAGES, values))
            return figures, rules

        found, rules = await self._database.read(work, owner=datasets[0].owner)
        figures = await asyncio.to_thread(lambda: from_json(load(one) for one in found[-_MOST_FIGURES:]))
        return Choices(
            _most_named(figures.models),
            tuple(sorted(rules)[:MAX_CHOICES]),
            _most_named(figures.statuses),
            _most_named(figures.tools),
        )

    async def filled_since(self, owner: str) -> float | None:
        """Return when the oldest trace began that filters find by all it has; None where they find every one.

        Older ones are still as an older version has indexed them: filters by status, tool, key and conversation pass
        them over.
        """
        mark = select(progress.c.seq).where(progress.c.name == AGAIN).scalar_subquery()
        oldest = select(traces.c.created).where(traces.c.seq >= mark).order_by(traces.c.seq).limit(1)

        def work(connection: Connection) -> float | None:
            if connection.scalar(select(mark)) is None:
                return None
            return connection.scalar(oldest) or time.time()

        return await self._database.read(work, owner=owner)

    async def neighbours(self, dataset: Dataset, position: int) -> Neighbours:
        """Return the traces on either side of a position."""
        within = select(traces.c.id).where(traces.c.dataset == dataset.seq).limit(1)
        older = within.where(traces.c.position < position).order_by(traces.c.position.desc())
        newer = within.where(traces.c.position > position).order_by(traces.c.position)
        return await self._database.read(
            lambda connection: Neighbours(connection.scalar(older), connection.scalar(newer)), owner=dataset.owner
        )


def _page(connection: Connection, dataset: Dataset, query: TraceQuery, limit: int, before: int | None) -> TracePage:
    found, older = _find(connection, dataset, query, limit, before, time.perf_counter() + BUDGET)
    shown = _shown(connection, found[:limit])
    # Nothing to show of what was found: the dataset is being deleted.
    older = shown[-1].position if shown and len(found) > limit else older
    return TracePage(shown, older, _read_headlines(connection, shown, query.text))


def _page_over(
    connection: Connection, datasets: Sequence[Dataset], query: TraceQuery, limit: int, before: int | None
) -> TracePage:
    """Merge the newest of each dataset; where time was short in one of them, only what is newer than that is shown."""
    ends = time.perf_counter() + BUDGET
    found: list[int] = []
    floor = 0
    for index, dataset in enumerate(datasets):
        now = time.perf_counter()
        position = None if before is None else position_of(connection, dataset.seq, before)
        share = now + max(_LEAST_SHARE, (ends - now) / (len(datasets) - index))
        numbers, older = _find(connection, dataset, query, limit, position, share)
        found += numbers
        if older is not None:
            floor = max(floor, _number(connection, dataset.seq, older - 1))
    complete = sorted((number for number in found if number > floor), reverse=True)
    shown = _shown(connection, complete[:limit])
    headlines = _read_headlines(connection, shown, query.text)
    if len(complete) > limit:
        return TracePage(shown, complete[limit - 1], headlines)
    return TracePage(shown, floor + 1 if floor else None, headlines)


def _shown(connection: Connection, numbers: Sequence[int]) -> list[TraceSummary]:
    return read_summaries(connection, summaries().where(traces.c.seq.in_(numbers)).order_by(traces.c.seq.desc()))


def _find(
    connection: Connection, dataset: Dataset, query: TraceQuery, limit: int, before: int | None, ends: float
) -> tuple[list[int], int | None]:
    """Return the newest numbers below position ``before``, at most one more than ``limit``, and where to go on if the
    time until ``ends`` was short."""
    narrowing = Narrowing(connection, dataset.seq, query, parse(query.text or ""))
    pieces = stretches(connection, dataset.seq, query.since, query.until, before)
    return _search(connection, dataset.seq, narrowing, pieces, limit, ends)


def _counts(
    connection: Connection, datasets: Sequence[Dataset], queries: Sequence[TraceQuery], most: int
) -> list[TraceCount]:
    ends = time.perf_counter() + BUDGET
    counts: list[TraceCount] = []
    for index, query in enumerate(queries):
        number, exact = 0, True
        share = (ends - time.perf_counter()) / (len(queries) - index)
        until = time.perf_counter() + max(_LEAST_SHARE, share)
        for dataset in datasets:
            if number > most:
                break
            if time.perf_counter() > until:
                exact = False
                break
            found, older = _find(connection, dataset, query, most - number, None, until)
            number, exact = number + len(found), exact and older is None
        counts.append(TraceCount(min(number, most), exact and number <= most))
    return counts


def position_of(connection: Connection, dataset: int, number: int) -> int:
    """Return the first position of a dataset whose trace has at least that number, or the one after its last."""
    oldest, newest = _ends(connection, dataset)
    if oldest is None or newest is None:
        return 0
    low, high = oldest, newest + 1
    while low < high:
        middle = (low + high) // 2
        if _number(connection, dataset, middle) < number:
            low = middle + 1
        else:
            high = middle
    return low


def _most_named(counts: Mapping[str, int]) -> tuple[str, ...]:
    named = sorted((name for name in counts if name), key=lambda name: counts[name], reverse=True)
    return tuple(sorted(named[:MAX_CHOICES]))


def _search(
    connection: Connection, dataset: int, narrowing: Narrowing, pieces: Sequence[Stretch], limit: int, ends: float
) -> tuple[list[int], int | None]:
    """Return the newest numbers, at most one more than ``limit``, and where to go on if time was short.

    The first look takes as long as it needs, so that each page comes further, and every later one what time is left.
    After the first, a text is looked for in all the rest at once; if that takes too long, carefully in larger and
    larger windows (see ``Matches.between``).
    """
    found: list[int] = []
    for_text = narrowing.looks_for_text
    size, first, at_once = FIRST_TEXTS if for_text else FIRST_WINDOW, True, False
    for bottom, top in pieces:
        while top > bottom:
            left = ends - time.perf_counter()
            if left <= 0 and not (first or at_once):
                return found, top + 1
            window = _window(connection, dataset, bottom if at_once else max(bottom, top - size), top)
            carefully = for_text and not at_once
            if carefully:
                window = _in_partition(connection, dataset, window)
            patience = min(HASTE, max(_LEAST_SHARE, _SHARE * left)) if at_once else left + GRACE
            try:
                with nullcontext() if first else limited(connection, patience):
                    found += narrowing.newest(window, limit + 1 - len(found), carefully=carefully)
            except OutOfTime:
                if not at_once:
                    return found, top + 1
                at_once = False
                continue
            if len(found) > limit:
                return found, None
            top = window.bottom
            first, at_once, size = False, at_once or (first and for_text), size * GROWTH
    return found, None


def _window(connection: Connection, dataset: int, bottom: int, top: int) -> Window:
    after, to = connection.execute(_WINDOW, {"dataset": dataset, "bottom": bottom, "top": top}).one()
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


# Statements are made once: a list of many datasets needs each of them for every one.
def _up_to(position: str) -> ScalarSelect[int]:
    last = select(traces.c.seq).where(traces.c.dataset == bindparam("dataset"))
    last = last.where(traces.c.position <= bindparam(position)).order_by(traces.c.position.desc())
    return last.limit(1).scalar_subquery()


_NUMBER: Final = select(_up_to("position"))
_WINDOW: Final = select(_up_to("bottom"), _up_to("top"))


def _number(connection: Connection, dataset: int, position: int) -> int:
    """Return the number of the last trace up to a position, 0 if there is none."""
    return connection.scalar(_NUMBER, {"dataset": dataset, "position": position}) or 0


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
    oldest, newest = _ends(connection, dataset)
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


_OLDEST, _NEWEST = (
    select(traces.c.position).where(traces.c.dataset == bindparam("dataset")).order_by(order).limit(1)
    for order in (traces.c.position, traces.c.position.desc())
)


def _ends(connection: Connection, dataset: int) -> tuple[int | None, int | None]:
    """Return the positions of a dataset's oldest and newest trace."""
    place = {"dataset": dataset}
    return connection.scalar(_OLDEST, place), connection.scalar(_NEWEST, place)


def _read_headlines(
    connection: Connection, found: Sequence[TraceSummary], text: str | None = None
) -> dict[int, Headline]:
    """Read the headlines of traces in a listing; for a search each with the first hit of ``text``."""
    if not found:
        return {}
    metadata = case((func.length(traces.c.metadata) <= _MAX_METADATA, traces.c.metadata))
    query = select(traces.c.seq, traces.c.updated, metadata).where(traces.c.seq.in_([one.seq for one in found]))
    told = {
        seq: (updated, {} if document is None else load(document))
        for seq, updated, document in connection.execute(query)
    }
    hit = _first_hit(text or "")
    lines: dict[int, Headline] = {}
    ends = time.perf_counter() + _READING
    for one in found:
        updated, metadata_of = told.get(one.seq, (None, {}))
        asked = metadata_of.get("asked") if isinstance(metadata_of, Mapping) and updated is None else None
        line = headline_of(metadata_of, asked if isinstance(asked, str) else "")
        known = isinstance(asked, str)
        # Further details for pages are read only while there is time.
        if (hit is not None or not known) and time.perf_counter() < ends:
            messages = _beginning(connection, one.seq)
            if not known:
                line = replace(line, asked=_question_in(messages))
            if hit is not None:
                line = replace(line, excerpt=_excerpt_of(text_of(messages), hit))
        lines[one.seq] = line
    return lines


def _beginning(connection: Connection, seq: int) -> bytes:
    """Return the first messages of a trace, cut off where they are long."""
    query = select(func.substr(traces.c.messages, 1, _MAX_BEGINNING)).where(traces.c.seq == seq)
    return connection.scalar(query) or b""


def _question_in(messages: bytes) -> str:
    """Return the first words of the last user message, "" where the JSON is cut off."""
    try:
        found = load(messages)
    except (ValueError, RecursionError):
        return ""
    return (
        question_of([message for message in found if isinstance(message, Mapping)]) if isinstance(found, list) else ""
    )


def _first_hit(typed: str) -> re.Pattern[str] | None:
    """Return what finds one of the terms that a user typed; None where none of them must occur."""
    terms = parse(typed)
    if terms is None or not terms.wanted:
        return None
    return re.compile("|".join(_pattern(term) for term in terms.wanted), re.IGNORECASE)


def _pattern(term: Term) -> str:
    # A word's boundary, with the underscore taken for none: the index reads it as a space.
    words = r"[\W_]{1,20}".join(re.escape(word) for word in term.words)
    return rf"(?<![^\W_]){words}" + (r"[^\W_]{0,40}" if term.prefix else r"(?![^\W_])")


def _excerpt_of(text: str, hit: re.Pattern[str]) -> HitExcerpt | None:
    """Return the first hit in a text, with the text around it on one line."""
    found = hit.search(text)
    if found is None:
        return None
    start, end = found.span()
    before = text[max(0, start - _AROUND) : start]
    after = text[end : end + _AROUND]
    return HitExcerpt(
        f"…{before}" if start > _AROUND else before,
        found[0][:_HIT],
        f"{after}…" if len(text) > end + _AROUND else after,
    )
