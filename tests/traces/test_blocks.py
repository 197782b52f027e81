import sqlite3
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.traces.search.index import MOST, SIZES, blocks_of, covering
from gemini_proxy.traces.search.query import Facets, fts5_query, parse

NUMBERS = st.integers(0, 2**12) | st.integers(0, 2**26)


@given(NUMBERS, NUMBERS, st.data())
def test_a_range_is_covered_and_little_else(after: int, count: int, data: st.DataObject) -> None:
    to = after + count + 1
    covered = covering(after, to)
    number = data.draw(st.integers(after + 1, to))
    assert set(blocks_of(number)) & set(covered)
    widest = 2 ** SIZES[-1]
    outside = max(to - after, 2 ** SIZES[0]) if len(covered) <= MOST else widest
    assert not set(blocks_of(to + outside + 2 ** SIZES[0])) & set(covered)
    assert len(set(covered)) == len(covered) <= max(MOST, (to - after) // widest + 2)


def test_a_search_reads_no_more_than_its_blocks() -> None:
    """However far a phrase that is nowhere would have to be looked for."""
    terms = parse('"to and"')
    assert terms is not None
    with closing(sqlite3.connect(":memory:")) as index:
        index.execute("CREATE VIRTUAL TABLE search USING fts5(body, facets, columnsize = 0)")
        rows = ((n, "and to", " ".join((*Facets(1).tokens, *blocks_of(n)))) for n in range(1, 20 * 4096))
        index.executemany("INSERT INTO search (rowid, body, facets) VALUES (?, ?, ?)", rows)
        everywhere = _steps(index, fts5_query(terms, Facets(1)))
        assert _steps(index, fts5_query(terms, Facets(1), covering(10 * 4096 - 1, 11 * 4096 - 1))) < everywhere / 3


def _steps(index: sqlite3.Connection, query: str) -> int:
    """What SQLite does to find nothing, which is mostly reading pages of the index."""
    done: list[None] = []
    index.set_progress_handler(lambda: done.append(None), 1)
    try:
        assert index.execute("SELECT rowid FROM search WHERE search MATCH ?", (query,)).fetchall() == []
    finally:
        index.set_progress_handler(None, 0)
    return len(done)
