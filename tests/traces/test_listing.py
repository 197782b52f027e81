import asyncio
import itertools
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, event

from gemini_proxy.traces.database import OutOfTime
from gemini_proxy.traces.datasets import Dataset, Datasets
from gemini_proxy.traces.search import listing as listing_module
from gemini_proxy.traces.search.indexer import Indexer
from gemini_proxy.traces.search.listing import Choices, Listing, Neighbours, TraceCount, TracePage, TraceQuery
from gemini_proxy.traces.search.query import Term, parse
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import REFUSED, Annotation, Outcome, Trace, TraceSummary
from tests.traces.samples import trace

TABLES = ("traces", "annotations", "datasets", "usage")

COUNT = 60
TEXTS = ("a red apple", "a green apple", "a red pear")
MODELS = ("flash", "pro", None)
OUTCOMES = (Outcome.COMPLETED, Outcome.REFUSED_REQUEST, Outcome.CLIENT_GONE, Outcome.PUSHED)


def _annotations(number: int) -> tuple[Annotation, ...]:
    named = Annotation("do not", "messages.0.content:0-3", guardrail={"name": "fruit", "action": "log"})
    nameless = Annotation("a remark", "messages.0", source="person")
    return (named, named) * (number % 5 == 0) + (nameless,) * (number % 7 == 0)


def _trace(number: int, **fields: Any) -> Trace:
    return trace(
        TEXTS[number % 3],
        **{
            # Dated when an exchange began, written when it ended: not quite in order.
            "created": 1_700_000_000.0 + 3600 * (number - 5 * (number % 4)),
            "model": MODELS[number % len(MODELS)],
            "outcome": OUTCOMES[number % len(OUTCOMES)],
            "annotations": _annotations(number),
            **fields,
        },
    )


@pytest.fixture
async def listing(store: TraceStore) -> Listing:
    """Of a store where two datasets' traces lie among each other, all digested but the last ten.

    PostgreSQL has them in three partitions.
    """
    for numbers in (range(COUNT // 2), range(COUNT // 2, COUNT - 10)):
        await store.add([one for number in numbers for one in (_trace(number), _trace(number, dataset="other"))])
        await Indexer(store.database, asyncio.Event()).catch_up()
        await store.turn_partition(float("inf"), None)
    await store.add([_trace(number) for number in range(COUNT - 10, COUNT)])
    return Listing(store.database)


@pytest.fixture
async def demo(store: TraceStore, listing: Listing) -> Dataset:
    found = await Datasets(store.database).get("", "demo")
    assert found is not None
    return found


async def _all(listing: Listing, dataset: Dataset, query: TraceQuery, limit: int = 1000) -> list[TraceSummary]:
    """Every page, one after the other."""
    found: list[TraceSummary] = []
    page: TracePage | None = None
    while page is None or page.older is not None:
        page = await listing.page(dataset, query, limit, page.older if page else None)
        assert len(page.traces) <= limit
        found += page.traces
    return found


def _answers(number: int, query: TraceQuery, words: Sequence[str]) -> bool:
    made = _trace(number)
    return (
        (not query.outcomes or made.outcome.value in query.outcomes)
        and query.model in (None, made.model)
        and (query.rule is None or query.rule in [said for one in made.annotations for said in _said(one)])
        and (query.since is None or made.created >= query.since)
        and (query.until is None or made.created < query.until)
        and (not words or (set(words) <= set(TEXTS[number % 3].split()) and number < COUNT - 10))
    )


def _said(annotation: Annotation) -> tuple[str, str]:
    return annotation.content, annotation.guardrail.get("name", annotation.content)


def _words(query: TraceQuery) -> list[str]:
    return {None: [], '"a red" -pear': ["red", "apple"]}.get(query.text, (query.text or "").split())


HOUR = 3600
FILTERS: tuple[tuple[TraceQuery, ...], ...] = (
    (TraceQuery(), TraceQuery(outcome=REFUSED), TraceQuery(outcome=Outcome.FAILED)),
    (TraceQuery(), TraceQuery(model="pro")),
    (TraceQuery(), TraceQuery(rule="fruit"), TraceQuery(rule="a remark"), TraceQuery(rule="do not")),
    (
        TraceQuery(),
        TraceQuery(since=1_700_000_000.0 + 20 * HOUR),
        TraceQuery(until=1_700_000_000.0 + 20 * HOUR),
        TraceQuery(since=1_700_000_000.0 + 52 * HOUR, until=1_700_000_000.0 + 53 * HOUR),
        TraceQuery(since=1e12),
    ),
    (TraceQuery(), TraceQuery(text="apple"), TraceQuery(text="red apple"), TraceQuery(text="banana")),
)


def _combined(queries: Sequence[TraceQuery]) -> TraceQuery:
    names = TraceQuery.__dataclass_fields__
    found = {name: value for query in queries for name in names if (value := getattr(query, name)) is not None}
    return TraceQuery(**found)


async def test_every_combination_of_filters_finds_what_it_says_newest_first(listing: Listing, demo: Dataset) -> None:
    for queries in itertools.product(*FILTERS):
        query = _combined(queries)
        expected = [n for n in reversed(range(COUNT)) if _answers(n, query, _words(query))]
        assert [one.position for one in await _all(listing, demo, query)] == expected, query


@pytest.mark.parametrize(
    "query", [TraceQuery(), TraceQuery(outcome=Outcome.COMPLETED), TraceQuery(rule="fruit"), TraceQuery(text="red")]
)
@pytest.mark.parametrize("limit", [1, 7])
async def test_pages_follow_each_other_without_gap_or_overlap(
    listing: Listing, demo: Dataset, query: TraceQuery, limit: int
) -> None:
    assert await _all(listing, demo, query, limit) == await _all(listing, demo, query)


async def test_the_last_page_says_that_nothing_is_older(listing: Listing, demo: Dataset) -> None:
    page = await listing.page(demo, TraceQuery(), COUNT)
    assert len(page.traces) == COUNT
    assert page.older is None
    assert await listing.page(demo, TraceQuery(), 5, 0) == TracePage([], None)


@pytest.mark.parametrize("few", [0, 1000])
async def test_a_search_without_time_gives_what_it_has_and_goes_on(
    listing: Listing, demo: Dataset, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(listing_module, "BUDGET", 0.0)
    monkeypatch.setattr(listing_module, "limited", _out_of_time)
    monkeypatch.setattr(listing_module, "FIRST_WINDOW", 8)
    monkeypatch.setattr(listing_module, "FIRST_TEXTS", 8)
    monkeypatch.setattr(listing_module, "FEW", few)
    for query in (
        TraceQuery(model="pro"),
        TraceQuery(rule="fruit"),
        TraceQuery(model="no"),
        TraceQuery(text="red", model="flash"),
        TraceQuery(text="red", rule="fruit"),
        TraceQuery(text='"a red" -pear', rule="a remark"),
        TraceQuery(text="red"),
        TraceQuery(text='"red a"'),
        TraceQuery(text="apple -a"),
    ):
        page = await listing.page(demo, query, 3)
        assert page.older is not None
        assert [one.position for one in await _all(listing, demo, query)] == [
            n for n in reversed(range(COUNT)) if _answers(n, query, _words(query))
        ]


TYPED = ("appl*", "apple*", '"red appl"*', "apples*", "a -apple*", "-pears* red", '"red a"', "-a", "-green", "gree* a")


def _is_said(text: str, typed: str) -> bool:
    terms = parse(typed)
    assert terms is not None

    def occurs(term: Term) -> bool:
        return (" " + " ".join(term.words) + (" " if not term.prefix else "")) in f" {text} "

    return all(map(occurs, terms.wanted)) and not any(map(occurs, terms.unwanted))


def _out_of_time(*_: object) -> None:
    raise OutOfTime


@pytest.mark.parametrize(("hasty", "budget"), [(False, 0.0), (False, 60.0), (True, 0.0), (True, 60.0)])
async def test_whatever_its_time_a_search_finds_all_in_the_end(
    listing: Listing, demo: Dataset, monkeypatch: pytest.MonkeyPatch, hasty: bool, budget: float
) -> None:
    """Each hit once, newest first: also where the first look at the index takes all the time there is."""
    monkeypatch.setattr(listing_module, "BUDGET", budget)
    monkeypatch.setattr(listing_module, "FIRST_TEXTS", 9)
    if hasty:
        monkeypatch.setattr(listing_module, "limited", _out_of_time)
    for typed, model in zip(TYPED, itertools.cycle((None, "pro", None)), strict=False):
        query = TraceQuery(text=typed, model=model)
        expected = [n for n in reversed(range(COUNT - 10)) if _is_said(TEXTS[n % 3], typed) and _answers(n, query, ())]
        assert [one.position for one in await _all(listing, demo, query, 7)] == expected, query


async def test_a_search_that_comes_to_nothing_says_where_it_goes_on(
    listing: Listing, demo: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_module, "BUDGET", 0.0)
    monkeypatch.setattr(listing_module, "limited", _out_of_time)
    monkeypatch.setattr(listing_module, "FIRST_TEXTS", 8)
    for typed in ('"apple red"', "apple -a", "nothing"):
        page = await listing.page(demo, TraceQuery(text=typed), 5)
        assert page == TracePage([], COUNT - 8)


async def test_a_text_that_takes_too_long_at_once_is_found_in_parts(
    listing: Listing, demo: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_module, "BUDGET", 60.0)
    monkeypatch.setattr(listing_module, "FIRST_TEXTS", 2)
    looks: list[float] = []

    def too_long_at_first(_connection: Connection, seconds: float) -> nullcontext[None]:
        looks.append(seconds)
        if len(looks) == 1:
            raise OutOfTime
        return nullcontext()

    monkeypatch.setattr(listing_module, "limited", too_long_at_first)
    page = await listing.page(demo, TraceQuery(text="red -pear"), COUNT)
    assert [one.position for one in page.traces] == [n for n in reversed(range(COUNT - 10)) if n % 3 == 0]
    assert page.older is None
    # The look at everything leaves time for those after it.
    assert looks[0] == listing_module.HASTE and all(seconds > 50 for seconds in looks[1:])


async def test_a_search_that_excludes_words_leaves_them_out(listing: Listing, demo: Dataset) -> None:
    found = await _all(listing, demo, TraceQuery(text="apple -red"))
    assert {one.position % 3 for one in found} == {1}
    assert {one.position % 3 for one in await _all(listing, demo, TraceQuery(text="-apple"))} == {2}
    assert len(await _all(listing, demo, TraceQuery(text='"red apple"'))) == len(
        await _all(listing, demo, TraceQuery(text="RED appl*"))
    )


async def test_text_without_a_word_asks_for_nothing(listing: Listing, demo: Dataset) -> None:
    assert len(await _all(listing, demo, TraceQuery(text=" ?! "))) == COUNT


@pytest.mark.parametrize("text", ['"', "a\0b", "\ud800", "NEAR(", "d1", "'", "\\", "a:b", "(((", "-" * 2000])
async def test_no_text_is_an_error(listing: Listing, demo: Dataset, text: str) -> None:
    await listing.page(demo, TraceQuery(text=text), 5)


async def test_menus_name_what_can_be_found(listing: Listing, demo: Dataset) -> None:
    choices = await listing.choices([demo])
    assert (choices.models, choices.rules) == (("flash", "pro"), ("a remark", "do not", "fruit"))
    assert await listing.choices([]) == Choices((), (), (), ())


async def test_a_dataset_without_traces_has_an_empty_page(store: TraceStore) -> None:
    dataset = await Datasets(store.database).create("", "empty")
    listing = Listing(store.database)
    assert await listing.page(dataset, TraceQuery(text="a", rule="b"), 5) == TracePage([], None)
    assert await listing.choices([dataset]) == Choices((), (), (), ())


async def test_a_dataset_that_was_deleted_shows_nothing(store: TraceStore, listing: Listing, demo: Dataset) -> None:
    await Datasets(store.database).delete("", demo.id)
    for query in (TraceQuery(), TraceQuery(text="apple"), TraceQuery(rule="fruit")):
        assert await listing.page(demo, query, 5) == TracePage([], None)


async def test_what_was_deleted_is_in_no_page(store: TraceStore, listing: Listing, demo: Dataset) -> None:
    await store.delete_before(1_700_000_000.0 + 20 * HOUR)
    for query in (TraceQuery(), TraceQuery(text="apple"), TraceQuery(rule="fruit"), TraceQuery(until=1.7e9)):
        found = await _all(listing, demo, query)
        assert all(one.created >= 1_700_000_000.0 for one in found)


PLANNED: tuple[tuple[TraceQuery, ...], ...] = (
    (TraceQuery(), TraceQuery(outcome=Outcome.FAILED)),
    (TraceQuery(), TraceQuery(rule="fruit"), TraceQuery(rule="do not")),
    (TraceQuery(), TraceQuery(since=1_700_000_000.0 + 52 * HOUR, until=1_700_000_000.0 + 53 * HOUR)),
    (
        TraceQuery(),
        TraceQuery(model="pro"),
        TraceQuery(status=429),
        TraceQuery(tool="look_up"),
        TraceQuery(key="0" * 12),
        TraceQuery(conversation="c"),
        TraceQuery(text="red apple"),
        TraceQuery(text="apple", status=429, tool="look_up", key="0" * 12, conversation="c"),
    ),
)


async def test_no_page_reads_a_table_from_end_to_end(store: TraceStore, listing: Listing, demo: Dataset) -> None:
    """Each step goes through an index, between two places of it, and only the page itself is sorted."""
    on_sqlite = await store.database.read(lambda connection: connection.dialect.name == "sqlite")
    scans = [f"SCAN {table}" if on_sqlite else f"Seq Scan on {table}" for table in TABLES]
    for queries in itertools.product(*PLANNED):
        plans = await store.database.read(partial(_plans, dataset=demo, query=_combined(queries)))
        assert plans
        for statement, plan in plans:
            for step in plan:
                assert not any(re.search(rf"{scan}(_\d+)?\b(?! USING)", step) for scan in scans), (statement, plan)
                assert "TEMP B-TREE" not in step or " IN (" in statement or "anon_1" in statement, (statement, plan)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_what_did_not_complete_has_an_index_of_its_own(store: TraceStore, demo: Dataset) -> None:
    query = TraceQuery(outcome=Outcome.FAILED, model="none")
    plans = await store.database.read(partial(_plans, dataset=demo, query=query))
    assert any("USING COVERING INDEX ix_traces_notable" in step for _, plan in plans for step in plan)


def _plans(connection: Connection, dataset: Dataset, query: TraceQuery) -> list[tuple[str, list[str]]]:
    """The statements of a page, each with the database's plan for it: on PostgreSQL, one that avoids what it can."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    listing_module._page(connection, dataset, query, 50, None)
    event.remove(connection, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN"
    if connection.dialect.name == "postgresql":
        # Of a small table it would read all, whatever indexes there are.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        explain = "EXPLAIN"
    return [
        (statement, [row[-1] for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)])
        for statement, parameters in statements
        if statement.startswith(("SELECT", "WITH"))
    ]


@pytest.fixture
async def both(store: TraceStore, listing: Listing) -> list[Dataset]:
    return await Datasets(store.database).all("")


async def _merged(listing: Listing, datasets: Sequence[Dataset], query: TraceQuery, limit: int) -> list[TraceSummary]:
    found: list[TraceSummary] = []
    page: TracePage | None = None
    while page is None or page.older is not None:
        page = await listing.over(datasets, query, limit, page.older if page else None)
        assert len(page.traces) <= limit
        found += page.traces
    return found


@pytest.mark.parametrize(
    "query",
    [TraceQuery(), TraceQuery(rule="do not"), TraceQuery(text="red", model="flash"), TraceQuery(outcome=REFUSED)],
)
async def test_datasets_are_listed_as_one(listing: Listing, both: list[Dataset], query: TraceQuery) -> None:
    """Each trace once, newest first, also where the time is too short to look through a dataset at once."""
    expected = sorted([seq for one in both for seq in (t.seq for t in await _all(listing, one, query))], reverse=True)
    assert [one.seq for one in await _merged(listing, both, query, 7)] == expected
    assert [one.seq async for one in listing.each(both, query, 9, at_once=4)] == expected[:9]


async def test_time_that_runs_out_loses_no_trace(
    listing: Listing, both: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    query = TraceQuery(model="pro")
    expected = [one.seq for one in await _merged(listing, both, query, 100)]
    monkeypatch.setattr(listing_module, "FIRST_WINDOW", 4)
    monkeypatch.setattr(listing_module, "BUDGET", 0.0)
    monkeypatch.setattr(listing_module, "_LEAST_SHARE", 0.0)
    assert [one.seq for one in await _merged(listing, both, query, 5)] == expected


async def test_counts_end_at_the_most(listing: Listing, both: list[Dataset], demo: Dataset) -> None:
    queries = [TraceQuery(), TraceQuery(outcome=REFUSED), TraceQuery(model="none")]
    assert await listing.counts([demo], queries, most=20) == [
        TraceCount(20, exact=False),
        TraceCount(COUNT // 4, exact=True),
        TraceCount(0, exact=True),
    ]
    assert (await listing.counts(both, queries))[0] == TraceCount(2 * COUNT - 10, exact=True)


async def test_what_the_index_alone_knows_finds_traces(store: TraceStore) -> None:
    """Upstream status, tool, key and conversation, each and together with a guardrail."""
    call = {"type": "function", "function": {"name": "send mail", "arguments": {}}}
    named = Annotation("do not", "", guardrail={"name": "fruit"})
    metadata = {"upstream_status": 429, "conversation": "c/1", "upstream_error": {"message": "quota"}, "asked": "hi"}
    wanted = trace(metadata=metadata, tenant="ab" * 32, messages=[{"role": "assistant", "tool_calls": [call]}])
    await store.add([wanted, trace(metadata={"upstream_status": 200}), replace(wanted, id="x", annotations=(named,))])
    await Indexer(store.database, asyncio.Event()).catch_up()
    demo = (await store.datasets("demo"))[0]
    listing = Listing(store.database)
    for query in (
        TraceQuery(status=429),
        TraceQuery(tool="send mail"),
        TraceQuery(key="ab" * 6),
        TraceQuery(conversation="c/1", text="-red"),
    ):
        page = await listing.page(demo, query, 5)
        assert [one.position for one in page.traces] == [2, 0], query
        assert [one.position for one in await _all(listing, demo, replace(query, rule="do not"))] == [2]
        line = page.headlines[page.traces[0].seq]
        assert (line.asked, line.status, line.failure) == ("hi", 429, "quota")
    assert (await listing.page(demo, TraceQuery(status=500), 5)).traces == []
    choices = await listing.choices([demo])
    assert (choices.statuses, choices.tools) == (("200", "429"), ("send mail",))


async def test_a_line_shows_the_hit_of_a_search(store: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "_READING", 10.0)
    await store.add([trace("Where is the RED apple? " + "x" * 90), trace("pear")])
    await Indexer(store.database, asyncio.Event()).catch_up()
    listing, demo = Listing(store.database), (await store.datasets("demo"))[0]
    page = await listing.page(demo, TraceQuery(text="appl* -pear"), 5)
    [line] = page.headlines.values()
    assert line.excerpt is not None and line.asked.startswith("Where is the RED apple? xxx")
    assert (line.excerpt.before, line.excerpt.hit) == ("Where is the RED ", "apple")
    assert line.excerpt.after.startswith("? x") and line.excerpt.after.endswith("…")


async def test_neighbours_are_of_the_same_dataset(store: TraceStore) -> None:
    """Over gaps, and none beyond the ends."""
    places = [trace(created=2.0), trace(created=2.0), trace(created=1.0), trace(created=2.0), trace(created=2.0)]
    await store.add([*places[:2], trace(dataset="other"), *places[2:]])
    await store.delete_before(1.5)
    ids = [place.id for place in places]
    listing, dataset = Listing(store.database), await Datasets(store.database).get("", "demo")
    assert dataset is not None
    assert [await listing.neighbours(dataset, place) for place in (0, 1, 2, 3, 4)] == [
        Neighbours(None, ids[1]),
        Neighbours(ids[0], ids[3]),
        Neighbours(ids[1], ids[3]),
        Neighbours(ids[1], ids[4]),
        Neighbours(ids[3], None),
    ]
