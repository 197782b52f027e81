"""The full-text index in the database, a row for each trace: of FTS5 in SQLite, with a ``tsvector`` in PostgreSQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, Text, and_, cast, column, delete, func, literal, table, text
from sqlalchemy.dialects.postgresql import TSQUERY, TSVECTOR

from gemini_proxy.traces.search.query import Facets, Term, Terms, fts5_query, tsquery, tsvector

# FTS5 asks the whole table whether it matches, by a hidden column of the table's name.
_FTS5: Final = table("search", column("rowid"), column("body", Text), column("search"))
_VECTORS: Final = table("search", column("trace"), column("body", TSVECTOR))

_INSERT: Final = {
    "sqlite": text("INSERT INTO search (rowid, body, facets) VALUES (:trace, :body, :facets)"),
    "postgresql": text("INSERT INTO search (trace, body) VALUES (:trace, CAST(CAST(:body AS text) AS tsvector))"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A trace, by its number, and what it is found by."""

    trace: int
    words: Sequence[str]
    facets: Facets


@dataclass(frozen=True, slots=True)
class Matches:
    """The rows of the index that answer a search: the column with the trace's number, and the condition.

    ``holds`` is the same for a row that is found by its number: FTS5 would look for a phrase in all others, too.
    """

    number: ColumnElement[int]
    condition: ColumnElement[bool]
    holds: ColumnElement[bool]


def matches(connection: Connection, terms: Terms, facets: Facets) -> Matches:
    """For the database of ``connection``."""
    if connection.dialect.name == "sqlite":
        condition = _FTS5.c.search.bool_op("MATCH")(fts5_query(terms, facets))
        return Matches(_FTS5.c.rowid, condition, _says(terms))
    query = cast(cast(literal(tsquery(terms, facets)), Text), TSQUERY)
    condition = _VECTORS.c.body.bool_op("@@")(query)
    return Matches(_VECTORS.c.trace, condition, condition)


def _says(terms: Terms) -> ColumnElement[bool]:
    """Whether a body has the terms, which are its words with a space between them."""
    body = literal(" ") + _FTS5.c.body + literal(" ")

    def found(term: Term) -> ColumnElement[int]:
        return func.instr(body, " " + " ".join(term.words) + ("" if term.prefix else " "))

    return and_(*(found(term) > 0 for term in terms.wanted), *(found(term) == 0 for term in terms.unwanted))


def add_entries(connection: Connection, entries: Sequence[Entry]) -> None:
    """Add traces that the index does not have."""
    name = connection.dialect.name
    if entries:
        row = _fts5_row if name == "sqlite" else _vector_row
        connection.execute(_INSERT[name], [row(entry) for entry in entries])


def replace_entry(connection: Connection, entry: Entry) -> None:
    """Put a trace into the index in the place of what it has of it."""
    if connection.dialect.name == "sqlite":
        connection.execute(delete(_FTS5).where(_FTS5.c.rowid == entry.trace))
    else:
        connection.execute(delete(_VECTORS).where(_VECTORS.c.trace == entry.trace))
    add_entries(connection, [entry])


def forget(connection: Connection, numbers: Sequence[int]) -> None:
    """Remove traces, in the transaction that deletes them. In PostgreSQL a foreign key does it."""
    if numbers and connection.dialect.name == "sqlite":
        connection.execute(delete(_FTS5).where(_FTS5.c.rowid.in_(numbers)))


def _fts5_row(entry: Entry) -> dict[str, object]:
    return {"trace": entry.trace, "body": " ".join(entry.words), "facets": " ".join(entry.facets.tokens)}


def _vector_row(entry: Entry) -> dict[str, object]:
    return {"trace": entry.trace, "body": tsvector(entry.words, entry.facets)}
