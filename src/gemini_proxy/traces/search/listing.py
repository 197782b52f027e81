"""A dataset's traces, newest first, narrowed down by what they are and by what was said in them."""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection, ScalarSelect, select, text

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.figures import from_json, total
from gemini_proxy.traces.queries import read_summaries, summaries
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.schema import traces, usage
from gemini_proxy.traces.search.index import Matches
from gemini_proxy.traces.search.narrowing import Narrowing, Window
from gemini_proxy.traces.search.query import parse
from gemini_proxy.traces.search.time_ranges import Stretch, stretches
from gemini_proxy.traces.tallies import WIDTHS
from gemini_proxy.traces.trace import Outcome, TraceSummary

# Seconds after which a search gives back what it has.
BUDGET: Final = 0.07
# Places of a dataset that are looked through first; then as many more as the time allows, judged by those before.
FIRST_WINDOW: Final = 4_096
MAX_GROWTH: Final = 16
# The same of the traces in which a text is found.
FIRST_HITS: Final = 512
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

    async def page(self, dataset: Dataset, query: TraceQuery, limit: int, before: int | None = None) -> Page:
        """The newest ``limit`` traces that answer ``query``, of those whose position is below ``before``.

        ``text`` finds what the digest has come to, which is not what came a second ago.
        """
        return await self._database.read(lambda connection: _page(connection, dataset, query, limit, before))

    async def models(self, dataset: Dataset) -> list[str]:
        """The models that the dataset's traces name, in alphabetical order, at most MAX_CHOICES: the most used ones."""
        found = await self._database.read(lambda connection: _figures(connection, dataset))
        counts = await asyncio.to_thread(lambda: total(from_json(load(figures)) for figures in found).models)
        named = sorted((name for name in counts if name), key=lambda name: counts[name], reverse=True)
        return sorted(named[:MAX_CHOICES])

    async def rules(self, dataset: Dataset) -> list[str]:
        """What ``TraceQuery.rule`` can be to find something, in alphabetical order, at most MAX_CHOICES."""
        values = {"dataset": dataset.seq, "most": MAX_CHOICES}
        return await self._database.read(lambda connection: list(connection.scalars(_RULES, values)))


def _page(connection: Connection, dataset: Dataset, query: TraceQuery, limit: int, before: int | None) -> Page:
    narrowing = Narrowing(connection, dataset.seq, query, parse(query.text or ""))
    pieces = stretches(connection, dataset.seq, query.since, query.until, before)
    found, older = _search(connection, dataset.seq, narrowing, pieces, limit)
    shown = read_summaries(
        connection, summaries().where(traces.c.seq.in_(found[:limit])).order_by(traces.c.position.desc())
    )
    # Nothing to show of what was found: the dataset is being deleted.
    return Page(shown, shown[-1].position if shown and len(found) > limit else older)


def _search(
    connection: Connection, dataset: int, narrowing: Narrowing, pieces: Sequence[Stretch], limit: int
) -> tuple[list[int], int | None]:
    """The newest numbers, one more than ``limit`` where there are as many; and where to go on, if time was short."""
    ends = time.perf_counter() + BUDGET
    found: list[int] = []
    for bottom, top in pieces:
        window = _window(connection, dataset, bottom, top)
        matches = narrowing.by_text(window)
        if matches is not None:
            more, older = _by_text(narrowing, matches, window, limit + 1 - len(found), ends)
        else:
            more, older = _by_windows(connection, dataset, narrowing, window, limit + 1 - len(found), ends)
        found += more
        if older is not None or len(found) > limit:
            return found, older
    return found, None


def _by_windows(
    connection: Connection, dataset: int, narrowing: Narrowing, whole: Window, limit: int, ends: float
) -> tuple[list[int], int | None]:
    """Look through piece after piece of the places."""
    pace = _Pace(FIRST_WINDOW if narrowing.selective else sys.maxsize, ends)
    found: list[int] = []
    top = whole.top
    while top > whole.bottom and len(found) < limit:
        if pace.over:
            return found, top + 1
        window = _window(connection, dataset, max(whole.bottom, top - pace.size), top)
        found += narrowing.newest(window, limit - len(found))
        top = window.bottom
        pace.step()
    return found, None


def _by_text(
    narrowing: Narrowing, matches: Matches, window: Window, limit: int, ends: float
) -> tuple[list[int], int | None]:
    """Look through what the index of words finds, in portions: beginning again is what costs it."""
    pace = _Pace(FIRST_HITS, ends)
    found: list[int] = []
    older: int | None = None
    while len(found) < limit:
        if pace.over:
            return found, older
        size = max(limit, pace.size) if narrowing.selective else limit
        hits = narrowing.hits(matches, window, size)
        found += [hit.number for hit in hits if hit.answers]
        if len(hits) < size:
            break
        older = min((hit.position for hit in hits if hit.position is not None), default=None)
        window = replace(window, to=hits[-1].number - 1)
        pace.step()
    return found[:limit], None


class _Pace:
    """How many places or hits to look through at once, so that the last look ends in time."""

    def __init__(self, size: int, ends: float) -> None:
        self.size = size
        self.over = False
        self._smallest = size // 4
        self._last = time.perf_counter()
        self._ends = ends

    def step(self) -> None:
        """Go by how long the look took that has just ended."""
        now = time.perf_counter()
        growth = 0.8 * (self._ends - now) / max(now - self._last, 1e-6)
        self.size = int(self.size * min(MAX_GROWTH, growth))
        self.over = self.size < self._smallest
        self._last = now


def _window(connection: Connection, dataset: int, bottom: int, top: int) -> Window:
    after, to = connection.execute(select(_number(dataset, bottom), _number(dataset, top))).one()
    return Window(bottom, top, after or 0, to or 0)


def _number(dataset: int, position: int) -> ScalarSelect[int]:
    """That of the last trace up to a position."""
    newest_first = select(traces.c.seq).where(traces.c.dataset == dataset, traces.c.position <= position)
    return newest_first.order_by(traces.c.position.desc()).limit(1).scalar_subquery()


def _figures(connection: Connection, dataset: Dataset) -> list[bytes]:
    """All of a dataset's figures, in the widest buckets."""
    query = select(usage.c.figures).where(usage.c.dataset == dataset.seq, usage.c.seconds == WIDTHS[-1])
    return list(connection.scalars(query))
