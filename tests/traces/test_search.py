import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.traces.rows import dump_messages
from gemini_proxy.traces.search.query import (
    MAX_TERMS,
    MAX_WORD,
    MIN_PREFIX,
    Facets,
    Term,
    Terms,
    fts5_query,
    loosened,
    parse,
    tsquery,
    tsvector,
    words_of,
)
from gemini_proxy.traces.search.searchable_text import LARGE, MAX_TEXT, text_of

IMAGE = "data:image/png;base64," + "iVBORw0KGgo" * 200
FACETS = Facets(1, "refused_request", 'models/a"b')


def _term(*words: str, prefix: bool = False) -> Term:
    return Term(words, prefix)


@pytest.mark.parametrize(
    ("typed", "terms"),
    [
        ("Two words", Terms((_term("two"), _term("words")))),
        ('"side by side"', Terms((_term("side", "by", "side"),))),
        ("begin*", Terms((_term("begin", prefix=True),))),
        ('"and so"*', Terms((_term("and", "so"),))),
        ('"and soon"*', Terms((_term("and", "soon", prefix=True),))),
        ("a*", Terms((_term("a"),))),
        ("東*", Terms((_term("東", prefix=True),))),
        ("this -that", Terms((_term("this"),), (_term("that"),))),
        ('-"not this"', Terms((), (_term("not", "this"),))),
        ("well-known", Terms((_term("well", "known"),))),
        ("user@example.com", Terms((_term("user", "example", "com"),))),
        ("CRÈME Straße", Terms((_term("creme"), _term("straße")))),
        ('never "closed', Terms((_term("never"), _term("closed")))),
        ('no"space"between', Terms((_term("no"), _term("space"), _term("between")))),
        ("AND OR NOT NEAR", Terms((_term("and"), _term("or"), _term("not"), _term("near")))),
    ],
)
def test_what_is_typed_is_read_as_search_boxes_read_it(typed: str, terms: Terms) -> None:
    assert parse(typed) == terms


@pytest.mark.parametrize("typed", ["", "  ", "-", "*", '"', '""', '-""*', "!?;", "\0", "\ud800", "___"])
def test_there_may_be_nothing_to_look_for(typed: str) -> None:
    assert parse(typed) is None


def test_what_nobody_types_is_cut() -> None:
    terms = parse("word " * 100_000)
    assert terms is not None
    assert len(terms.wanted) == MAX_TERMS
    assert words_of("x" * 10_000) == ("x" * MAX_WORD,)
    assert words_of(f"a {'x' * MAX_WORD} b {'y' * (MAX_WORD + 1)}") == ("a", "x" * MAX_WORD, "b", "y" * MAX_WORD)
    assert len(" ".join(words_of("\ufdfa" * 10_000))) <= 20_100


@pytest.fixture(scope="module")
def index() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE VIRTUAL TABLE search USING fts5(body, facets, columnsize = 0)")
        yield connection


def _found(index: sqlite3.Connection, text: str, terms: Terms, facets: Facets = FACETS) -> bool:
    index.execute("DELETE FROM search")
    index.execute("INSERT INTO search VALUES (?, ?)", (" ".join(words_of(text)), " ".join(FACETS.tokens)))
    query = "SELECT count(*) FROM search WHERE search MATCH ?"
    return bool(index.execute(query, (fts5_query(terms, facets),)).fetchone()[0])


@given(st.text() | st.text(alphabet=' "*-^:(){}+ANDORNTaé\0\ud800'))
def test_no_input_is_a_syntax_error(index: sqlite3.Connection, typed: str) -> None:
    terms = parse(typed)
    if terms is not None:
        _found(index, "anything", terms)


# Characters that every version of Unicode has sorted alike.
@given(st.text(alphabet="abcDÉéß 12.,-_漢字\n", min_size=1), st.data())
def test_every_word_of_a_text_finds_it(index: sqlite3.Connection, text: str, data: st.DataObject) -> None:
    words = words_of(text)
    if words:
        word = data.draw(st.sampled_from(words))
        assert _found(index, text, Terms((Term((word,)),)))
        assert _found(index, text, Terms((Term(words),)))
        assert _found(index, text, Terms((Term((word[:3],), prefix=True),)))
        assert not _found(index, text, Terms((), (Term((word,)),)))
    assert not _found(index, text, Terms((Term(("absent",)),)))


@pytest.mark.parametrize(
    ("facets", "found"),
    [
        (Facets(1), True),
        (Facets(2), False),
        (Facets(1, "refused_request"), True),
        (Facets(1, "refused_response"), False),
        (Facets(1, None, 'models/a"b'), True),
        (Facets(1, None, "models"), False),
    ],
)
def test_a_search_looks_only_where_it_is_told_to(index: sqlite3.Connection, facets: Facets, found: bool) -> None:
    assert _found(index, "word", Terms((_term("word"),)), facets) is found
    assert not _found(index, "d1 d2", Terms((_term("orefusedrequest"),)), FACETS)


def test_postgresql_is_given_quoted_words_with_their_places() -> None:
    facets = Facets(7)
    assert tsvector(("a", "b", "a"), facets.tokens) == "'a':1,3 'b':2 '=d7'"
    terms = Terms((_term("a", "b"), _term("beg", prefix=True)), (_term("c"),))
    assert tsquery(terms, facets) == "'=d7' & ('a' <-> 'b') & ('beg':*) & !(('c'))"
    assert tsquery(Terms((_term("a"),)), facets, ("x", "y")) == "('=x' | '=y') & '=d7' & ('a')"


@pytest.mark.parametrize(
    ("typed", "found", "left"),
    [
        ('some "of these" -those', 'some "of these" -those', None),
        ("beginn* of", "of begi*", "beginn*"),
        ("begi*", "begi*", None),
        ('"and beginn"*', '"and begi"*', '"and beginn"*'),
        ("some -beginn*", "some", "-beginn*"),
        ("some 東*", "some", "東*"),
    ],
)
def test_beginnings_that_no_index_has_are_checked_on_what_the_rest_finds(
    typed: str, found: str, left: str | None
) -> None:
    terms = parse(typed)
    assert terms is not None
    assert loosened(terms, MIN_PREFIX) == (parse(found), parse(left or "") or Terms(()))


@given(st.lists(st.text(alphabet="abc漢", min_size=1, max_size=6), min_size=1, max_size=3), st.booleans())
def test_loosened_terms_find_all_that_the_terms_find(index: sqlite3.Connection, words: list[str], quoted: bool) -> None:
    said = " ".join(words)
    terms = (
        Terms((Term(tuple(words), prefix=True),)) if quoted else Terms(tuple(Term((w,), prefix=True) for w in words))
    )
    for prefix in (0, MIN_PREFIX):
        assert _found(index, f"a {said}and {said} more", loosened(terms, prefix)[0])


def test_everything_that_was_said_is_text_to_look_for() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": IMAGE}}],
        },
        {"role": "assistant", "content": "I think", "thought": True},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "find", "arguments": {"id": "A7", "deep": ["x"]}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": {"type": "invoice", "total": 3, "by": "me"}},
        {"tools": [{"name": "find", "description": "declared"}]},
    ]
    assert text_of(dump_messages(messages)).split() == "be brief look I think find A7 x invoice me".split()


def test_records_that_a_tool_gave_are_found_by_all_they_say() -> None:
    """A list that is content is the format's only if it is one of chunks."""
    record = {"id": "ORD-77", "type": "parcel", "role": "sent", "field": "north"}
    chunk = {"type": "text", "text": "asked", "field": "partMetadata"}
    messages = [{"role": "user", "content": [chunk]}, {"role": "tool", "tool_name": "track", "content": [record]}]
    assert text_of(dump_messages(messages)).split() == "asked track ORD-77 parcel sent north".split()


KEYS = st.sampled_from(["content", "role", "tool_calls", "function", "arguments", "id", "other"])
LEAVES = st.none() | st.integers() | st.text(max_size=9)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=5)


@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
def test_any_messages_have_a_text_that_databases_take(messages: list[dict[str, Any]]) -> None:
    text = text_of(dump_messages(messages))
    text.encode()
    assert "\0" not in text


def test_a_long_text_is_found_by_its_beginning() -> None:
    text = text_of(dump_messages([{"role": "user", "content": "word " * MAX_TEXT}, {"role": "user", "content": "end"}]))
    assert len(text) <= MAX_TEXT
    assert text.startswith("word word") and "end" not in text


@pytest.mark.parametrize("size", [1, LARGE])
def test_text_behind_an_image_is_found_however_large_the_image(size: int) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE + "A" * size}}]},
        {"role": "user", "content": 'say "é\n" \U0001f600 \ud800 please'},
    ]
    words = words_of(text_of(json.dumps(messages, separators=(",", ":")).encode()))
    assert words[-3:] == ("say", "e", "please")
    assert not any(word.startswith("ivbor") for word in words)


@pytest.mark.parametrize("piece", ["a ", "é", "漢", "\\", '"', "\n", "\U0001f600", "\\\\é"])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_string_of_megabytes_is_cut_between_its_characters(piece: str, escaped: bool) -> None:
    for shift in range(0, 12, 5):
        content = "b " * shift + piece * (LARGE // len(piece))
        document = json.dumps([{"content": content}], ensure_ascii=escaped, separators=(",", ":")).encode()
        text = text_of(document)
        assert len(text) >= MAX_TEXT // 2 - 1
        assert content.startswith(text.rstrip("?"))
