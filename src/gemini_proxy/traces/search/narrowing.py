"""Which traces of a dataset answer a query: between two places of it, by the index that has the fewest to look at."""

from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import ColumnElement, Connection, Select, exists, func, literal_column, select

from gemini_proxy.traces.schema import annotations, traces
from gemini_proxy.traces.search.index import Matches, matches
from gemini_proxy.traces.search.query import Facets, Terms
from gemini_proxy.traces.trace import Outcome

# Reading the listing's index takes this much less time for a place than looking at one trace with a rule; and the index
# of what did not complete less again, for it has few places; looking into what was said takes more.
PLACES: Final = 60
NOTABLE_PLACES: Final = 3_000
TEXT_PLACES: Final = 8
# Traces with a rule that are at most looked at one by one, rather than all in which a text is found.
FEW: Final = 1_000


class Asked(Protocol):
    """A TraceQuery."""

    @property
    def outcome(self) -> Outcome | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def rule(self) -> str | None: ...
    @property
    def since(self) -> float | None: ...
    @property
    def until(self) -> float | None: ...


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

    def __init__(self, connection: Connection, dataset: int, asked: Asked, terms: Terms | None) -> None:
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
        """The numbers of the newest ``limit`` answers in the window, newest first, by rule, text or place.

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
        """Whether fewer than ``most`` annotations of the window name a rule."""
        named = select(annotations.c.trace).where(
            annotations.c.dataset == self._dataset,
            annotations.c.rule == rule,
            *_between(annotations.c.trace, window),
        )
        counted = select(func.count()).select_from(named.limit(most).subquery())
        return self._connection.execute(counted).scalar_one() < most


def _traits(asked: Asked) -> list[ColumnElement[bool]]:
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


def _matches(connection: Connection, dataset: int, asked: Asked, terms: Terms) -> Matches:
    outcome = None if asked.outcome is None else asked.outcome.value
    return matches(connection, terms, Facets(dataset, outcome, asked.model))


def _between(number: ColumnElement[Any], window: Window) -> tuple[ColumnElement[bool], ...]:
    return (number > window.after, number <= window.to)
