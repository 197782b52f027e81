import traceback
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gemini_proxy.traces import schema
from gemini_proxy.traces.database import connect
from gemini_proxy.traces.errors import AmbiguousTraceId, RowRejected, StoreError
from gemini_proxy.traces.migrations.upgrade import scripts
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Annotation, Outcome
from tests.support.keys import each_kind
from tests.traces.samples import ANNOTATION, execute, forbid, locked, query, trace, url

CANARY = "canary-4711"

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def test_a_trace_comes_back_as_it_was_written(store: TraceStore) -> None:
    written = trace(
        tenant="hash",
        stream=True,
        outcome=Outcome.REFUSED_RESPONSE,
        annotations=(ANNOTATION, Annotation("b", "messages.0")),
        metadata={"usage": {"totalTokenCount": 3}},
        duration_ms=12.5,
        messages=[{"role": "user", "content": "\ud800 lone, \0 nul, é", "n": 2**80}],
    )
    await store.add([written])
    assert await store.get(written.id) == written


@each_kind
async def test_metadata_is_stored_without_keys_and_messages_as_they_are(store: TraceStore, key: str) -> None:
    written = trace(key, metadata={"url": f"/v1?key={key}"})
    await store.add([written])
    found = await store.get(written.id)
    assert found is not None
    assert found.metadata == {"url": "/v1?key=[redacted]"}
    assert found.messages == list(written.messages)


async def test_text_that_a_database_refuses_is_made_storable(store: TraceStore) -> None:
    await store.add([trace(model="a\0b", annotations=(Annotation("x\ud800", "messages"),))])
    [summary] = await store.recent(1)
    assert (summary.model, summary.rule) == ("a\ufffdb", "x?")


async def test_listing_is_newest_first_in_pages_without_gaps(store: TraceStore) -> None:
    written = [trace(dataset="a" if n % 2 else "b") for n in range(10)]
    await store.add(written)
    expected = [t.id for t in reversed(written) if t.dataset == "a"]
    first = await store.recent(3, dataset="a")
    second = await store.recent(3, dataset="a", before=first[-1].seq)
    assert [summary.id for summary in first + second] == expected


async def test_listing_filters_by_outcome_and_shows_the_first_rule(store: TraceStore) -> None:
    refused = trace(outcome=Outcome.REFUSED_REQUEST, annotations=(ANNOTATION, Annotation("later", "")))
    await store.add([trace(), refused, trace()])
    [found] = await store.recent(10, outcome=Outcome.REFUSED_REQUEST)
    assert (found.id, found.rule) == (refused.id, "no secrets")


async def test_a_trace_is_found_by_a_unique_prefix_only(store: TraceStore) -> None:
    ids = ["aaaaaaaa-0000-4000-8000-000000000000", "aaaaaabb-0000-4000-8000-000000000000"]
    await store.add([trace(id=identity) for identity in ids])
    found = await store.get("aaaaaabb")
    assert found is not None and found.id == ids[1]
    assert await store.get("bbbbbb") is None
    with pytest.raises(AmbiguousTraceId):
        await store.get("aaaaaa")
    with pytest.raises(ValueError, match="6 characters"):
        await store.get("aaaaa")


async def test_annotations_can_be_added_later_to_an_existing_trace_only(store: TraceStore) -> None:
    written = trace(annotations=(ANNOTATION,))
    await store.add([written])
    await store.annotate(written.id, [Annotation("later", "messages.0")])
    found = await store.get(written.id)
    assert found is not None and [a.content for a in found.annotations] == ["no secrets", "later"]
    with pytest.raises(RowRejected):
        await store.annotate("nobody", [ANNOTATION])


async def test_a_batch_is_written_whole_or_not_at_all(store: TraceStore) -> None:
    first = trace()
    with pytest.raises(RowRejected):
        await store.add([first, trace(id=first.id)])
    assert await store.recent(10) == []
    await store.add([first])


async def test_export_yields_each_trace_once_oldest_first(store: TraceStore) -> None:
    written = [trace(str(n), annotations=(ANNOTATION,), dataset="a" if n % 3 else "b") for n in range(20)]
    await store.add(written)
    assert [t.id async for t in store.export(page=7)] == [t.id for t in written]
    found = [t async for t in store.export("b", page=2)]
    assert [t.id for t in found] == [t.id for t in written if t.dataset == "b"]
    assert all(t.annotations == (ANNOTATION,) for t in found)


async def test_retention_deletes_the_old_with_all_that_hangs_on_it_in_steps(
    store: TraceStore, database_url: str
) -> None:
    old = [trace(created=float(n), annotations=(ANNOTATION,), log_rules=({"id": "x"},)) for n in range(25)]
    kept = [trace(created=100.0, annotations=(ANNOTATION,)) for _ in range(5)]
    await store.add(old + kept)
    assert await store.delete_before(100.0, step=10) == 25
    assert [t.id async for t in store.export()] == [t.id for t in kept]
    counts = "SELECT (SELECT count(*) FROM annotations), (SELECT count(*) FROM jobs)"
    assert await query(database_url, counts) == [(5, 0)]


async def test_a_step_of_retention_is_a_transaction_of_its_own(store: TraceStore, database_url: str) -> None:
    await store.add([trace(created=0.0) for _ in range(30)])
    # A deletion that reaches the trace numbered 25 fails: the two steps before it stay done.
    await forbid(database_url, "DELETE", "traces", when="old.seq = 25")
    with pytest.raises(StoreError):
        await store.delete_before(1.0, step=10)
    assert await query(database_url, "SELECT count(*) FROM traces") == [(10,)]


async def test_numbers_of_deleted_traces_are_not_given_again(store: TraceStore) -> None:
    await store.add([trace(created=0.0)])
    [first] = await store.recent(1)
    await store.delete_before(1.0)
    await store.add([trace()])
    [second] = await store.recent(1)
    assert second.seq > first.seq


@pytest.mark.filterwarnings("ignore:.*expression-based index")
async def test_migrations_make_the_schema_that_the_code_uses(store: TraceStore, database_url: str) -> None:

    def differences(connection: Connection) -> object:
        # The search index is of a kind that SQLAlchemy's tables do not describe, and so are partitions: these have an
        # index of ids, and nothing refers to a trace by a foreign key.
        def is_compared(name: str | None, kind: str, _parents: object) -> bool:
            return not (kind == "table" and (name or "").startswith(("search", "traces_")))

        def is_described(_object: object, name: str | None, kind: str, _reflected: bool, _other: object) -> bool:
            of_partitions = ("uq_traces_id", "fk_traces_dataset", "fk_annotations_trace", "fk_jobs_trace")
            return connection.dialect.name == "sqlite" or name not in of_partitions

        options = {"include_name": is_compared, "include_object": is_described}
        return compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)

    database = connect(database_url)
    assert await database.read(differences) == []
    await database.close()
    assert ScriptDirectory.from_config(scripts()).get_current_head() == schema.HEAD


async def test_a_statement_that_no_transaction_takes_is_run(store: TraceStore, database_url: str) -> None:
    await store.database.run_alone("VACUUM")
    reader = connect(database_url, read_only=True)
    with pytest.raises(StoreError, match="for reading only"):
        await reader.run_alone("VACUUM")
    await reader.close()


async def test_opening_again_keeps_what_is_there(store: TraceStore, database_url: str) -> None:
    written = trace()
    await store.add([written])
    again = await TraceStore.open(database_url)
    assert await again.get(written.id) is not None
    await again.close()


@sqlite_only
async def test_the_database_survives_a_kill_and_readers_beside_the_writer(store: TraceStore, database_url: str) -> None:
    """WAL, and pages large enough for two traces."""
    assert await query(database_url, "PRAGMA journal_mode") == [("wal",)]
    assert await query(database_url, "PRAGMA page_size") == [(8192,)]


async def test_a_database_of_a_later_version_is_refused(store: TraceStore, database_url: str) -> None:
    await store.close()
    await execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    for opened in (TraceStore.open, TraceStore.try_open):
        with pytest.raises(StoreError, match="not known to this version"):
            await opened(database_url)
    with pytest.raises(StoreError, match="schema 9999.*newer version"):
        await TraceStore.open_read_only(database_url)


async def test_opening_is_tried_beside_a_server(store: TraceStore, database_url: str) -> None:
    """Nothing is made, and where there are no tables yet, none stay."""
    await TraceStore.try_open(database_url)
    await store.ping()
    await store.close()
    for table in ("trace_annotations", "alembic_version"):
        await execute(database_url, f"DROP TABLE IF EXISTS {table}")
    with pytest.raises(StoreError):
        await TraceStore.try_open(database_url)
    with pytest.raises(StoreError, match="not made by gemini-proxy"):
        await TraceStore.open_read_only(database_url)


async def test_ping_says_whether_the_database_takes_writes(store: TraceStore, database_url: str) -> None:
    await store.ping()
    await store.ping()
    async with locked(database_url):
        with pytest.raises(StoreError, match="locked"):
            await store.ping()
    await store.ping()


async def test_a_read_only_store_changes_nothing(store: TraceStore, database_url: str) -> None:
    written = trace()
    await store.add([written])
    reader = await TraceStore.open_read_only(database_url)
    assert await reader.get(written.id) is not None
    with pytest.raises(StoreError, match="reading only"):
        await reader.add([trace()])
    await reader.close()


async def test_a_file_that_is_not_there_is_not_made_to_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no trace database"):
        await TraceStore.open_read_only(url(tmp_path / "missing.db"))
    assert not (tmp_path / "missing.db").exists()


def _text(path: Path) -> None:
    path.write_text(CANARY * 100)


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [_text, _folder])
async def test_what_is_no_database_is_a_store_error_without_its_contents(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "x.db")
    for opening in (TraceStore.open, TraceStore.open_read_only):
        with pytest.raises(StoreError) as caught:
            await opening(url(tmp_path / "x.db"))
        assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("bad", ["sqlite://", "sqlite:///:memory:", "nonsense", f"nosuch://u:{CANARY}@h/db"])
async def test_a_url_without_a_database_behind_it_is_a_store_error(bad: str) -> None:
    with pytest.raises(StoreError) as caught:
        await TraceStore.open(bad)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_errors_never_hold_what_a_row_holds(store: TraceStore, database_url: str) -> None:
    canaries = trace(CANARY, id=CANARY, model=CANARY, annotations=(Annotation(CANARY, CANARY, CANARY, {"id": CANARY}),))
    await store.add([canaries])
    await forbid(database_url, "INSERT", "probe", words=CANARY)
    for attempt in (store.add([canaries]), store.annotate(CANARY + "x", canaries.annotations), store.ping()):
        with pytest.raises(StoreError) as caught:
            await attempt
        assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_a_value_that_is_no_json_is_rejected_without_being_shown(store: TraceStore) -> None:
    with pytest.raises(RowRejected) as caught:
        await store.add([trace(metadata={(CANARY,): 1})])
    assert CANARY not in str(caught.value)


async def test_odd_values_become_text_or_plain_json(store: TraceStore, database_url: str) -> None:
    await store.add([trace(metadata={1: {"b"}, "o": object(), "y": b"123"})])
    [(stored,)] = await query(database_url, "SELECT metadata FROM traces")
    assert orjson.loads(stored) == {"1": ["b"], "o": "<object>", "y": "<3 bytes>"}


@sqlite_only
async def test_newest_first_of_a_dataset_is_read_from_an_index(store: TraceStore, database_url: str) -> None:
    plan = await query(
        database_url,
        "EXPLAIN QUERY PLAN SELECT seq FROM traces WHERE dataset = 1 AND seq < 9 ORDER BY position DESC LIMIT 5",
    )
    assert "ix_traces_listing" in str(plan) and "TEMP B-TREE" not in str(plan)
