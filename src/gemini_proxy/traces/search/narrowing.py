"""Which traces of a dataset answer a query: between two places of it, by the index that has the fewest to look at."""

from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, literal_column, select

from gemini_proxy.traces.schema import annotations, traces
from gemini_proxy.traces.search.index import Matches, matches
from gemini_proxy.traces.search.query import Facets, Terms
from gemini_proxy.traces.trace import Outcome

# Traces with a rule up to which they are looked at one by one, rather than what else is asked for.
FEW: Final = 1_000
# Reading the listing's index takes this much less time for a place than looking at one trace with a rule; and the index
# of what did not complete less again, for it has few places.
PLACES: Final = 60
NOTABLE_PLACES: Final = 3_000


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


@dataclass(frozen=True, slots=True)
class Hit:
    """A trace in which the text was found; ``position`` is None where it has just been deleted."""

    number: int
    position: int | None
    answers: bool


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
        """Whether there may be places without an answer at all."""
        return bool(self._traits) or self._rule is not None

    def by_text(self, window: Window) -> Matches | None:
        """The matches to go through with ``hits``, where text is asked for and nothing that is rarer for sure."""
        return None if self._has_few(window, FEW) else self._matches

    def hits(self, found: Matches, window: Window, limit: int) -> list[Hit]:
        """The newest ``limit`` traces of the window in which the text is, newest first, each with the answer."""
        number = found.number.label("number")
        newest = select(number).where(found.condition, *_between(found.number, window)).order_by(found.number.desc())
        hits = newest.limit(limit).subquery()
        answer = and_(traces.c.seq.is_not(None), *self._traits, *self._annotated(hits.c.number)).label("answers")
        query = select(hits.c.number, traces.c.position, answer)
        query = query.outerjoin_from(hits, traces, traces.c.seq == hits.c.number).order_by(hits.c.number.desc())
        return [Hit(*row) for row in self._connection.execute(query)]

    def newest(self, window: Window, limit: int) -> list[int]:
        """The numbers of the newest ``limit`` answers in the window, newest first, by rule or place."""
        rule = self._rule
        few = (window.top - window.bottom) // self._places + 1
        by_rule = rule is not None and (self._matches or not self._traits or self._has_few(window, few))
        query = self._by_rule(rule, window) if rule is not None and by_rule else self._by_place(window)
        return list(self._connection.scalars(query.limit(limit)))

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

    def _has_few(self, window: Window, most: int) -> bool:
        """Whether a rule is asked for that fewer than ``most`` annotations of the window name."""
        if self._rule is None:
            return False
        named = select(annotations.c.trace).where(
            annotations.c.dataset == self._dataset,
            annotations.c.rule == self._rule,
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
