import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, select, text, update

from gemini_proxy.traces.database import Database, connect
from gemini_proxy.traces.datasets import Dataset, Datasets
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.figures import Bucket, Figures, total
from gemini_proxy.traces.headline import KEY_LENGTH, conversation_of
from gemini_proxy.traces.migrations.upgrade import scripts
from gemini_proxy.traces.rows import dump_messages
from gemini_proxy.traces.schema import annotations, traces, usage
from gemini_proxy.traces.search.index import Entry, forget, replace_entries
from gemini_proxy.traces.search.indexer import MAX_AGAIN, MAX_REST, MAX_TRACES, Indexer, reindex, rest_after
from gemini_proxy.traces.search.listing import Listing, TraceQuery
from gemini_proxy.traces.search.query import Facets
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Annotation, Outcome, Trace
from gemini_proxy.traces.usage import MAX_NAMES, STEPS, WIDTHS, DatasetUsage, delete_old
from tests.traces.samples import trace

# The beginning of a day.
NOON = 1_700_006_400.0


@pytest.fixture
def indexer(store: TraceStore) -> Indexer:
    return Indexer(store.database, asyncio.Event())


@pytest.fixture
async def other(database_url: str, store: TraceStore) -> AsyncIterator[Database]:
    """The same database, as another process has it open."""
    database = connect(database_url)
    yield database
    await database.close()


async def _dataset(store: TraceStore, name: str = "demo") -> Dataset:
    found = await Datasets(store.database).get("", name)
    assert found is not None
    return found


async def _found(store: TraceStore, typed: str) -> int:
    page = await Listing(store.database).page(await _dataset(store), TraceQuery(text=typed), 100)
    return len(page.traces)


async def _indexed(store: TraceStore) -> int:
    """How many traces are in the index, their own rows there or not."""
    count = text("SELECT count(*) FROM search")
    return await store.database.read(lambda connection: connection.execute(count).scalar_one())


async def _figures(store: TraceStore, since: float = NOON - 86_400, until: float = NOON + 86_400) -> Figures:
    found = await DatasetUsage(store.database).by_dataset("", since, until)
    return total(bucket.figures for bucket in found.buckets)


def _refused(*rules: Annotation, **fields: Any) -> Trace:
    return trace("no", created=NOON, outcome=Outcome.REFUSED_REQUEST, annotations=rules, **fields)


def _rule(name: str, action: str = "block") -> Annotation:
    return Annotation("its message", "messages.0", guardrail={"name": name, "action": action})


async def test_what_was_said_is_found_once_it_is_indexed(store: TraceStore, indexer: Indexer) -> None:
    await store.add([trace("a xylophone"), trace("a piano")])
    assert await _found(store, "xylophone") == 0
    await indexer.catch_up()
    assert await _found(store, "xylophone") == 1
    assert await _found(store, "a") == 2


async def test_indexing_goes_on_where_it_ended(store: TraceStore, indexer: Indexer) -> None:
    await store.add([trace("one", created=NOON)])
    assert await indexer.catch_up() == 1
    assert await indexer.catch_up() == 0
    await store.add([trace("two", created=NOON)])
    assert await indexer.catch_up() == 1
    assert (await _figures(store)).requests == 2


async def test_a_step_takes_no_more_than_its_share(store: TraceStore, indexer: Indexer) -> None:
    await store.add([trace("word", created=NOON) for _ in range(MAX_TRACES + 1)])
    assert await indexer.step()
    assert await _found(store, "word") == 100
    assert (await _figures(store)).requests == MAX_TRACES


async def test_large_traces_are_taken_one_at_a_time(store: TraceStore, indexer: Indexer) -> None:
    large = {"role": "user", "content": "word " * 200_000}
    await store.add([replace(trace(created=NOON), messages=[large]) for _ in range(3)])
    assert await indexer.catch_up() == 3


async def test_processes_that_share_a_database_digest_each_trace_once(
    store: TraceStore, indexer: Indexer, other: Database
) -> None:
    indexers = [indexer, Indexer(other, asyncio.Event())]
    await store.add([trace("word", created=NOON) for _ in range(3 * MAX_TRACES)])

    async def follow(one: Indexer) -> None:
        busy = True
        while busy:
            try:
                busy = await one.step()
            except StoreError:
                busy = True

    await asyncio.gather(*(follow(one) for one in indexers))
    assert (await _figures(store)).requests == 3 * MAX_TRACES
    assert await _indexed(store) == 3 * MAX_TRACES


async def test_a_trace_that_changes_while_it_is_indexed_is_read_again(store: TraceStore, indexer: Indexer) -> None:
    written = trace("before")
    await store.add([written])
    reads = _Interrupted(store.database, lambda: _append(store, written, "after"))
    await Indexer(reads, asyncio.Event()).step()
    await indexer.catch_up()
    assert await _found(store, "before") == 0
    assert await _found(store, "after") == 1


async def test_a_trace_that_is_deleted_while_it_is_indexed_is_not_indexed(store: TraceStore, indexer: Indexer) -> None:
    await store.add([trace("gone", created=1.0), trace("stays", created=NOON)])
    reads = _Interrupted(store.database, lambda: store.delete_before(2.0))
    await Indexer(reads, asyncio.Event()).step()
    await indexer.catch_up()
    assert await _found(store, "gone") == 0
    assert await _found(store, "stays") == 1


class _Interrupted:
    """A database where something happens right after the first read."""

    def __init__(self, database: Database, happens: Any) -> None:
        self._database = database
        self._happens = happens

    async def read(self, work: Any, *, owner: str | None = None) -> Any:
        found = await self._database.read(work)
        happens, self._happens = self._happens, None
        if happens is not None:
            await happens()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


async def _append(store: TraceStore, written: Trace, said: str) -> None:
    messages = dump_messages([{"role": "user", "content": said}])

    def work(connection: Connection) -> None:
        seq = connection.execute(select(traces.c.seq).where(traces.c.id == written.id)).scalar_one()
        connection.execute(update(traces).where(traces.c.seq == seq).values(messages=messages, updated=time.time()))
        reindex(connection, seq, messages)

    await store.database.write(work)


async def test_messages_added_later_are_found(store: TraceStore, indexer: Indexer) -> None:
    written = trace("before")
    await store.add([written])
    await indexer.catch_up()
    await _append(store, written, "after")
    assert await _found(store, "after") == 1
    assert await _found(store, "before") == 0


async def test_messages_added_before_the_digest_came_are_found_once(store: TraceStore, indexer: Indexer) -> None:
    written = trace("before")
    await store.add([written, trace("beside")])
    await _append(store, written, "after")
    await indexer.catch_up()
    assert await _found(store, "after") == 1
    assert await _found(store, "beside") == 1


def _as_before(connection: Connection) -> None:
    """Leave the index, and the database, as a version without those filters did."""
    for seq, dataset, outcome in connection.execute(select(traces.c.seq, traces.c.dataset, traces.c.outcome)).all():
        replace_entries(connection, [Entry(seq, ("words", "said"), Facets(dataset, outcome))])
    config = scripts()
    config.attributes["connection"] = connection
    command.downgrade(config, "0021")
    command.upgrade(config, "head")


async def test_traces_of_an_older_version_are_indexed_again(store: TraceStore, indexer: Indexer) -> None:
    """The newest first, after what is new, in steps of any process; until then it is said since when all are found."""
    call: dict[str, Any] = {"role": "assistant", "tool_calls": [{"function": {"name": "send", "arguments": {}}}]}
    asked: dict[str, Any] = {"role": "user", "content": "words"}
    more: dict[str, Any] = {"messages": [asked, call], "metadata": {"upstream_status": 429}, "tenant": "k" * 20}
    older = [trace(created=NOON + number, **more) for number in range(MAX_AGAIN + 2)]
    await store.add([*older, trace("pushed", outcome=Outcome.PUSHED, created=NOON + MAX_AGAIN + 2)])
    await indexer.catch_up()
    await store.database.write(_as_before)
    listing, dataset = Listing(store.database), await _dataset(store)
    every = len(older)
    conversation = conversation_of([asked, call])
    queries = [
        TraceQuery(tool="send"), TraceQuery(status=429), TraceQuery(key="k" * KEY_LENGTH),
        TraceQuery(conversation=conversation),
    ]  # fmt: skip

    async def found() -> list[int]:
        return [len((await listing.page(dataset, query, 500)).traces) for query in queries]

    assert await found() == [0] * 4
    assert await listing.filled_since("") is not None
    again = Indexer(store.database, asyncio.Event())
    await store.add([trace("new", created=NOON + 1_000)])
    assert await again.step() and await _found(store, "new") == 1 and await found() == [0] * 4
    assert await again.step() and await found() == [MAX_AGAIN - 1] * 4
    assert await listing.filled_since("") == NOON + 3
    # What is deleted meanwhile is nobody's.
    await store.delete_before(NOON + 1)
    assert await Indexer(store.database, asyncio.Event()).catch_up() == 2
    assert (await found(), await listing.filled_since("")) == ([every - 1] * 4, None)
    # The one that was pushed has nothing that its entry lacks.
    assert await _found(store, "words") == every
    assert await _indexed(store) == every + 1


async def test_what_is_forgotten_is_not_found(store: TraceStore, indexer: Indexer) -> None:
    await store.add([trace("word"), trace("word")])
    await indexer.catch_up()

    def work(connection: Connection) -> None:
        seq = connection.scalars(select(traces.c.seq).limit(1)).one()
        forget(connection, [seq])
        connection.execute(traces.delete().where(traces.c.seq == seq))

    await store.database.write(work)
    assert await _found(store, "word") == 1
    assert await _indexed(store) == 1


async def test_deleting_traces_leaves_nothing_of_them_in_the_index(store: TraceStore, indexer: Indexer) -> None:
    await store.add([trace("word"), trace("word", dataset="other")])
    await indexer.catch_up()
    await Datasets(store.database).delete("", (await _dataset(store)).id)
    await store.empty_deleted()
    assert await _indexed(store) == 1
    await store.delete_before(NOON)
    assert await _indexed(store) == 0


async def test_figures_count_outcomes_rules_models_and_tokens(store: TraceStore, indexer: Indexer) -> None:
    usage_said = {"usage": {"promptTokenCount": 3, "candidatesTokenCount": 2}, "latencies_ms": {"first_byte": 8.0}}
    await store.add(
        [
            trace(created=NOON, metadata=usage_said, duration_ms=10.0),
            _refused(_rule("secrets"), _rule("secrets"), _rule("tone", "log"), model="other"),
        ]
    )
    await indexer.catch_up()
    figures = await _figures(store)
    assert figures.outcomes == {"completed": 1, "refused_request": 1}
    assert figures.refusals == {"secrets": 1}
    assert figures.logged == {"tone": 1}
    assert figures.prompts == {"gemini-2.5-flash": 3}
    assert figures.models == {"gemini-2.5-flash": 1, "other": 1}
    assert (figures.prompt_tokens, figures.output_tokens) == (3, 2)
    assert (figures.durations.count, figures.first_bytes.count) == (2, 1)


@pytest.mark.parametrize("indexed", ["before", "meanwhile", "after"])
async def test_what_logging_rules_find_is_counted_once(store: TraceStore, indexer: Indexer, indexed: str) -> None:
    """Whether the indexer comes to the trace before the rule does, while it ends, or after it."""
    await store.add([trace(created=NOON, log_rules=({"id": "tone", "name": "tone", "content": "", "action": "log"},))])
    found = [_rule("tone", "log"), _rule("tone", "log")]
    if indexed == "before":
        await indexer.catch_up()
    (job,) = await store.take_jobs(1)
    if indexed == "meanwhile":
        reads = _Interrupted(store.database, lambda: store.finish_job(job, found))
        await Indexer(reads, asyncio.Event()).step()
    await store.finish_job(job, found)
    await indexer.catch_up()
    figures = await _figures(store)
    assert (figures.requests, figures.logged) == (1, {"tone": 1})


async def test_names_that_a_client_makes_up_do_not_fill_the_figures(store: TraceStore, indexer: Indexer) -> None:
    await store.add([_refused(_rule(f"rule {number}")) for number in range(2 * MAX_NAMES)])
    await indexer.catch_up()
    refusals = (await _figures(store)).refusals
    assert len(refusals) == MAX_NAMES
    assert sum(refusals.values()) == 2 * MAX_NAMES


async def test_figures_are_of_one_dataset_or_of_all_of_a_user(store: TraceStore, indexer: Indexer) -> None:
    await store.add(
        [trace(created=NOON), trace(created=NOON, dataset="two"), trace(created=NOON, owner="someone else")]
    )
    await indexer.catch_up()
    asked = DatasetUsage(store.database)
    of_demo = await asked.of_dataset(await _dataset(store), NOON, NOON + 600)
    assert total(bucket.figures for bucket in of_demo).requests == 1
    assert (await _figures(store)).requests == 2


@pytest.mark.parametrize("days", [1, 7, 30, 365])
async def test_any_time_is_shown_in_no_more_points_than_asked_for(
    store: TraceStore, indexer: Indexer, days: int
) -> None:
    await store.add([trace(created=NOON - 86_400 * age) for age in range(days)])
    await indexer.catch_up()
    since = NOON - 86_400 * (days - 1)
    buckets = (await DatasetUsage(store.database).by_dataset("", since, NOON + 1, 100)).buckets
    assert len(buckets) <= 100
    assert {bucket.seconds for bucket in buckets} < set(STEPS)
    assert [one.start + one.seconds for one in buckets[:-1]] == [one.start for one in buckets[1:]]
    assert buckets[0].start <= since and buckets[-1].start <= NOON < buckets[-1].start + buckets[-1].seconds
    assert sum(bucket.figures.requests for bucket in buckets) == days


@pytest.mark.parametrize(("since", "until", "points"), [(0, 1, 1), (0, 1, 5000), (1, 1, 9), (2, 1, 9), (0, 1e12, 9)])
async def test_a_time_that_makes_no_plot_is_refused(store: TraceStore, since: float, until: float, points: int) -> None:
    with pytest.raises(ValueError, match="points|time"):
        await DatasetUsage(store.database).by_dataset("", since, until, points)


async def test_only_the_widest_figures_are_kept_for_ever(store: TraceStore, indexer: Indexer) -> None:
    await store.add([trace(created=NOON)])
    await indexer.catch_up()
    await store.database.write(lambda connection: delete_old(connection, NOON + 86_400 * 1000))
    kept = await store.database.read(lambda connection: connection.scalars(select(usage.c.seconds)).all())
    assert kept == [WIDTHS[-1]]


async def test_no_figures_are_removed_by_a_clock_that_is_not_believed(store: TraceStore) -> None:
    await store.add([trace(created=NOON)])
    asked: asyncio.Queue[None] = asyncio.Queue()
    indexer = Indexer(store.database, asyncio.Event(), believed=lambda: asked.put_nowait(None))
    running = asyncio.create_task(indexer.run())
    # Once after the step that took the trace in, and once more, for nothing was removed the first time.
    await asked.get()
    await asked.get()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    kept = await store.database.read(lambda connection: connection.scalars(select(usage.c.seconds)).all())
    assert sorted(kept) == sorted(WIDTHS)


async def test_the_digest_follows_what_is_written_and_rests(store: TraceStore) -> None:
    wake, database = asyncio.Event(), _Watched(store.database)
    running = asyncio.create_task(Indexer(database, wake).run())
    try:
        for said in ("first", "second"):
            await store.add([trace(said)])
            wake.set()
            async with asyncio.timeout(10):
                while not await _found(store, said):
                    await database.written.wait()
                    database.written.clear()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("worked", "cpu", "passed", "rest"),
    [
        (0.01, 0.05, 1.0, 0.19),
        (0.01, 0.51, 1.0, 0.19),
        (0.01, 0.52, 1.0, 0.49),
        (0.01, 1.9, 1.0, 0.49),
        (0.4, 0.9, 1.0, 7.6),
        (0.0, 1.0, 1.0, 0.0),
    ],
)
def test_it_rests_longer_while_exchanges_need_the_processor(
    worked: float, cpu: float, passed: float, rest: float
) -> None:
    """A twentieth of the time goes into it, or a fiftieth; what it took itself is not held against it."""
    assert rest_after(worked, cpu, passed) == pytest.approx(min(rest, MAX_REST))


class _Watched:
    """A database that says when something was written."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.written = asyncio.Event()

    async def write(self, work: Any) -> Any:
        found = await self._database.write(work)
        self.written.set()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def test_a_bucket_is_empty_unless_it_is_given_figures() -> None:
    assert Bucket(0, 300).figures == Figures()


async def test_a_row_that_cannot_be_read_is_left_out_and_no_other(
    store: TraceStore, indexer: Indexer, database_url: str
) -> None:
    written = [trace(f"word {number}", created=NOON) for number in range(40)]
    refused = _refused(_rule("secrets"))
    await store.add([*written, refused])
    not_json = await _spoil(store, written[11].id, metadata=b"{not json")
    not_a_mapping = await _spoil(store, refused.id)
    assert (not_json, not_a_mapping) == (12, 41)
    await indexer.catch_up()
    assert indexer.skipped == 2
    assert await _found(store, "word") == 39
    assert (await _figures(store)).requests == 39


async def _spoil(store: TraceStore, trace_id: str, metadata: bytes | None = None) -> int:
    """Write over a trace what no version of ours writes: its metadata, or what its annotations say of a rule."""

    def work(connection: Connection) -> int:
        seq = connection.execute(select(traces.c.seq).where(traces.c.id == trace_id)).scalar_one()
        if metadata is not None:
            connection.execute(update(traces).where(traces.c.seq == seq).values(metadata=metadata))
        else:
            connection.execute(update(annotations).where(annotations.c.trace == seq).values(guardrail=b"[]"))
        return int(seq)

    return await store.database.write(work)
