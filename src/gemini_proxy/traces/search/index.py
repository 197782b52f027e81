"""Keep the full-text index in the database, a row for each trace: FTS5 in SQLite, a ``tsvector`` in PostgreSQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Text,
    UnaryExpression,
    and_,
    cast,
    column,
    delete,
    false,
    func,
    literal,
    or_,
    table,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import TSQUERY, TSVECTOR

from gemini_proxy.traces.search.query import MIN_PREFIX, Facets, Term, Terms, fts5_query, loosened, tsquery, tsvector

# Numbers in a block, as powers of two, smallest first. A trace is in one of each.
SIZES: Final = (12, 16, 20)
# Blocks that one search asks for, rather than for larger ones.
MOST: Final = 32


def blocks_of(number: int) -> tuple[str, ...]:
    """Return the words for the blocks that a number is in."""
    return tuple(_word(size, number >> size) for size in SIZES)


def covering(after: int, to: int) -> tuple[str, ...]:
    """Return the words for the smallest blocks, MOST at most, that hold all numbers after one up to another.

    Only of the largest there may be more.
    """
    size = next((size for size in SIZES if (to >> size) - ((after + 1) >> size) < MOST), SIZES[-1])
    return tuple(_word(size, block) for block in range((after + 1) >> size, (to >> size) + 1))


def _word(size: int, block: int) -> str:
    return f"b{size}n{block}"


# FTS5 asks the whole table whether it matches, by a hidden column of the table's name.
_FTS5: Final = table("search", column("rowid", Integer), column("body", Text), column("facets", Text), column("search"))
_VECTORS: Final = table("search", column("trace", BigInteger), column("body", TSVECTOR))

_INSERT_FTS5: Final = "INSERT INTO search (rowid, body, facets) VALUES (?, ?, ?)"
_INSERT_VECTOR: Final = text("INSERT INTO search (trace, body) VALUES (:trace, CAST(CAST(:body AS text) AS tsvector))")


@dataclass(frozen=True, slots=True)
class Entry:
    """A trace, by its number, and what it is found by."""

    trace: int
    words: Sequence[str]
    facets: Facets

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the terms that the trace is found by beside its text."""
        return (*self.facets.tokens, *blocks_of(self.trace))


class Matches(Protocol):
    """The rows of the index that answer a search."""

    @property
    def number(self) -> ColumnElement[int]:
        """Return the column with the trace's number."""
        ...

    @property
    def holds(self) -> ColumnElement[bool]:
        """Return the condition for a row that is found by its number."""
        ...

    def between(self, after: int, to: int, *, carefully: bool) -> ColumnElement[bool]:
        """Return the condition for rows between two numbers.

        An index scans all its entries for a word before it reports that nothing is found. ``carefully`` limits the cost
        to the traces between the numbers: the index is asked for blocks of them, and beginnings of words, whose entries
        it would have to merge first, are looked for in each row that matches the rest.
        """
        ...

    def newest_first(self, *, carefully: bool) -> UnaryExpression[int]:
        """Return the order of such rows."""
        ...


def matches(connection: Connection, terms: Terms, facets: Facets) -> Matches:
    """Return the rows that match in the database of ``connection``."""
    return (_Fts5Matches if connection.dialect.name == "sqlite" else _VectorMatches)(terms, facets)


class _Fts5Matches:
    number: ColumnElement[int] = _FTS5.c.rowid

    def __init__(self, terms: Terms, facets: Facets) -> None:
        self._terms = terms
        self._facets = facets

    @property
    def holds(self) -> ColumnElement[bool]:
        return and_(_says(self._terms), *(_has_one(clause) for clause in self._facets.clauses))

    def between(self, after: int, to: int, *, carefully: bool) -> ColumnElement[bool]:
        within = (_FTS5.c.rowid > after, _FTS5.c.rowid <= to)
        if not carefully:
            return and_(_is_matched(fts5_query(self._terms, self._facets)), *within)
        terms, left = loosened(self._terms, MIN_PREFIX)
        return and_(_is_matched(fts5_query(terms, self._facets, covering(after, to))), *within, _says(left))

    def newest_first(self, *, carefully: bool) -> UnaryExpression[int]:
        return self.number.desc()


class _VectorMatches:
    number: ColumnElement[int] = _VECTORS.c.trace

    def __init__(self, terms: Terms, facets: Facets) -> None:
        self._terms = terms
        self._facets = facets

    @property
    def holds(self) -> ColumnElement[bool]:
        return _is_found(tsquery(self._terms, self._facets))

    def between(self, after: int, to: int, *, carefully: bool) -> ColumnElement[bool]:
        within = (_VECTORS.c.trace > after, _VECTORS.c.trace <= to)
        if not carefully:
            return and_(self.holds, *within)
        terms, _ = loosened(self._terms, 0)
        # What is inside a function is not looked for in the index.
        left = func.coalesce(self.holds, false())
        return and_(_is_found(tsquery(terms, self._facets, covering(after, to))), *within, left)

    def newest_first(self, *, carefully: bool) -> UnaryExpression[int]:
        # PostgreSQL believes that a row is found soon, and walks through all of them in this order rather than use the
        # index of words. It can not where the order is one of no index.
        return (self.number if carefully else self.number + 0).desc()


def _is_matched(query: str) -> ColumnElement[bool]:
    return _FTS5.c.search.bool_op("MATCH")(query)


def _is_found(query: str) -> ColumnElement[bool]:
    return _VECTORS.c.body.bool_op("@@")(cast(cast(literal(query), Text), TSQUERY))


def _says(terms: Terms) -> ColumnElement[bool]:
    """Return whether a body has the terms, which are its words with a space between them."""
    body = literal(" ") + _FTS5.c.body + literal(" ")

    def found(term: Term) -> ColumnElement[int]:
        return func.instr(body, " " + " ".join(term.words) + ("" if term.prefix else " "))

    return and_(true(), *(found(term) > 0 for term in terms.wanted), *(found(term) == 0 for term in terms.unwanted))


def _has_one(tokens: Sequence[str]) -> ColumnElement[bool]:
    """Return whether a trace is found by one of these labels."""
    labels = literal(" ") + _FTS5.c.facets + literal(" ")
    return or_(*(func.instr(labels, f" {token} ") > 0 for token in tokens))


def add_entries(connection: Connection, entries: Sequence[Entry]) -> None:
    """Add traces that the index does not have."""
    if not entries:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_INSERT_FTS5, [_fts5_row(entry) for entry in entries])
    else:
        connection.execute(_INSERT_VECTOR, [_vector_row(entry) for entry in entries])


def replace_entries(connection: Connection, entries: Sequence[Entry]) -> None:
    """Put traces into the index in the place of what it has of them."""
    forget(connection, [entry.trace for entry in entries])
    add_entries(connection, entries)


def forget(connection: Connection, numbers: Sequence[int]) -> None:
    """Remove traces, in the transaction that deletes them."""
    if numbers:
        sqlite = connection.dialect.name == "sqlite"
        index, number = (_FTS5, _FTS5.c.rowid) if sqlite else (_VECTORS, _VECTORS.c.trace)
        connection.execute(delete(index).where(number.in_(numbers)))


def _fts5_row(entry: Entry) -> tuple[object, ...]:
    return entry.trace, " ".join(entry.words), " ".join(entry.labels)


def _vector_row(entry: Entry) -> dict[str, object]:
    return {"trace": entry.trace, "body": tsvector(entry.words, entry.labels)}
