import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.traces.errors import RowRejected, StoreError, StoreUnavailable
from gemini_proxy.traces.migrations.upgrade import upgrade
from gemini_proxy.traces.recorder import LARGE, Recorder, TraceSink
from gemini_proxy.traces.rows import TraceRow
from gemini_proxy.traces.sqlite import SqliteDatabase
from gemini_proxy.traces.store import TraceStore
from tests.traces.samples import ANNOTATION, forbid, locked, query, trace

LOCKED = {"sqlite": "SQLITE_BUSY", "postgresql+asyncpg": "55P03"}


class MemorySink:
    """Keeps each committed batch. Writing waits for the gate; ids in ``bad`` are rejected, those in ``worse`` fail as
    nothing should, and ``failures`` are raised one after the other.
    """

    def __init__(self, *failures: Exception, open_gate: bool = True) -> None:
        self.failures = list(failures)
        self.batches: list[list[str]] = []
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.bad: set[str] = set()
        self.worse: set[str] = set()
        if open_gate:
            self.gate.set()

    @property
    def ids(self) -> list[str]:
        return [identity for batch in self.batches for identity in batch]

    async def write(self, rows: Sequence[TraceRow], *, again: bool = False) -> None:
        self.started.set()
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        ids = [row.trace[0] for row in rows]
        if self.bad.intersection(ids):
            raise RowRejected("a row is bad")
        if self.worse.intersection(ids):
            raise LookupError("nobody expects this")
        self.batches.append(ids)


@asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[Recorder]:
    tasks = Tasks()
    tasks.keep(recorder.run, "recorder")
    try:
        yield recorder
    finally:
        await recorder.close()
        await tasks.close(0.0)


async def test_a_committed_trace_can_be_read_at_once(store: TraceStore) -> None:
    sink: TraceSink = store
    async with running(Recorder(sink)) as recorder:
        written = trace(annotations=(ANNOTATION,))
        assert await recorder.commit(written) is True
        assert await store.get(written.id) == written


async def test_traces_that_come_during_a_commit_share_the_next_one() -> None:
    sink = MemorySink(open_gate=False)
    async with running(Recorder(sink, max_batch=4)) as recorder:
        first = asyncio.create_task(recorder.commit(trace()))
        await sink.started.wait()
        others = [asyncio.create_task(recorder.commit(trace())) for _ in range(6)]
        await asyncio.sleep(0)
        assert recorder.waiting == 6
        sink.gate.set()
        assert await asyncio.gather(first, *others) == [True] * 7
    assert [len(batch) for batch in sink.batches] == [1, 4, 2]


async def test_in_a_crowd_traces_are_written_with_those_just_behind_them_and_a_lone_one_at_once() -> None:
    sink = MemorySink()

    async def commit_after(turns: int) -> bool:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await recorder.commit(trace())

    async with running(Recorder(sink)) as recorder:
        assert await asyncio.gather(*map(commit_after, (0, 2))) == [True] * 2
        assert await asyncio.gather(*map(commit_after, (0, 0))) == [True] * 2
        assert await asyncio.gather(*map(commit_after, (0, 2, 4, 6))) == [True] * 4
    assert [len(batch) for batch in sink.batches] == [1, 1, 2, 4]


async def test_a_bad_row_is_lost_alone(caplog: pytest.LogCaptureFixture) -> None:
    sink = MemorySink()
    written = [trace() for _ in range(4)]
    sink.bad = {written[1].id}
    async with running(Recorder(sink)) as recorder:
        assert await asyncio.gather(*map(recorder.commit, written)) == [True, False, True, True]
        assert recorder.dropped == 1
    assert sink.ids == [t.id for t in written if t.id not in sink.bad]


@pytest.mark.parametrize("text", ["short", "x" * (LARGE + 1)])
async def test_a_trace_that_is_no_json_is_lost_alone(store: TraceStore, text: str) -> None:
    bad = trace(text, metadata={("no", "key"): 1})
    async with running(Recorder(store)) as recorder:
        assert await asyncio.gather(*map(recorder.commit, (trace(), bad, trace()))) == [True, False, True]
        assert recorder.dropped == 1


async def test_large_traces_are_written_too(store: TraceStore) -> None:
    large = trace("é" * (LARGE + 1))
    async with running(Recorder(store)) as recorder:
        assert await recorder.commit(large)
    found = await store.get(large.id)
    assert found is not None and found.messages == list(large.messages)


async def test_an_unexpected_failure_costs_the_trace_it_is_about_and_no_other() -> None:
    sink = MemorySink()
    written = [trace() for _ in range(8)]
    sink.worse = {written[1].id}
    async with running(Recorder(sink)) as recorder:
        assert await recorder.commit(written[0]) is True
        assert await asyncio.gather(*map(recorder.commit, written[1:])) == [False] + [True] * 6
        assert recorder.dropped == 1
    assert sink.ids == [t.id for t in written if t.id not in sink.worse]


async def test_recording_goes_on_after_a_failure_of_who_is_told_of_it() -> None:
    told: list[TraceRow] = []

    def tell(rows: Sequence[TraceRow]) -> None:
        told.extend(rows)
        if len(told) == 1:
            raise LookupError("nobody expects this")

    async with running(Recorder(MemorySink(), written=tell)) as recorder:
        assert [await recorder.commit(trace()) for _ in range(3)] == [True] * 3
        assert (len(told), recorder.dropped) == (3, 0)


async def test_a_database_that_comes_back_loses_nothing() -> None:
    sink = MemorySink(*(StoreUnavailable("the database is starting") for _ in range(3)))
    written = [trace() for _ in range(5)]
    async with running(Recorder(sink)) as recorder:
        assert await asyncio.gather(*map(recorder.commit, written)) == [True] * 5
        assert recorder.dropped == 0
    assert sink.ids == [t.id for t in written]


class _LostWord:
    """The store behind a network that loses the word of each first commit."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store
        self._attempts = 0

    async def write(self, rows: Sequence[TraceRow], *, again: bool = False) -> None:
        self._attempts += 1
        await self._store.write(rows, again=again)
        if self._attempts % 2:
            raise StoreUnavailable("the connection to the database was lost")


async def test_a_commit_of_which_no_word_came_is_repeated_without_a_second_row(
    store: TraceStore, database_url: str
) -> None:
    written = [trace(annotations=(ANNOTATION,), log_rules=({"id": "r"},)) for _ in range(3)]
    async with running(Recorder(_LostWord(store))) as recorder:
        assert await recorder.commit(written[0]) is True
        assert await asyncio.gather(*map(recorder.commit, written[1:])) == [True, True]
    counts = "SELECT (SELECT count(*) FROM traces), (SELECT count(*) FROM annotations), (SELECT count(*) FROM jobs)"
    assert await query(database_url, counts) == [(3, 3, 3)]
    assert await query(database_url, "SELECT size FROM datasets") == [(3,)]
    assert await query(database_url, "SELECT position FROM traces ORDER BY seq") == [(0,), (1,), (2,)]


class _Watched:
    """The store, and whether an attempt to write has failed."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store
        self.failed = asyncio.Event()

    async def write(self, rows: Sequence[TraceRow], *, again: bool = False) -> None:
        try:
            await self._store.write(rows, again=again)
        except StoreError:
            self.failed.set()
            raise


async def test_a_lock_that_ends_in_time_loses_nothing(store: TraceStore, database_url: str) -> None:
    sink = _Watched(store)
    async with running(Recorder(sink, patience=30.0)) as recorder:
        async with locked(database_url):
            waiting = [asyncio.create_task(recorder.commit(trace())) for _ in range(5)]
            await sink.failed.wait()
        assert await asyncio.gather(*waiting) == [True] * 5
        assert recorder.dropped == 0


async def test_a_database_locked_for_too_long_loses_traces_logs_once_and_recovers(
    store: TraceStore, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(store, patience=3.0)
    async with running(recorder):
        async with locked(database_url):
            assert await asyncio.gather(*(recorder.commit(trace()) for _ in range(5))) == [False] * 5
        assert recorder.dropped == 5
        assert await recorder.commit(trace()) is True
        assert await recorder.commit(trace()) is True
    name = LOCKED[database_url.partition(":")[0]]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, f"traces are not being written: the database is locked ({name})"),
        (logging.WARNING, "traces are being written again, 5 were not"),
    ]


async def test_a_full_disk_loses_nothing_where_there_is_room_in_time(tmp_path: Path) -> None:
    connection = SqliteDatabase(tmp_path / "traces.db", read_only=False)
    await connection.write(upgrade)
    # The limit belongs to a connection, and the writer begins again with another one after a failure.
    await connection.write(lambda writer: writer.exec_driver_sql("PRAGMA max_page_count = 1"))
    store = TraceStore(connection)
    async with running(Recorder(store)) as recorder:
        assert await recorder.commit(trace("x" * 100_000)) is True
        assert recorder.dropped == 0
    await store.close()


async def test_patience_ends_a_wait_on_a_database_that_hangs_and_late_traces_are_kept() -> None:
    sink = MemorySink(open_gate=False)
    async with running(Recorder(sink, patience=0.05)) as recorder:
        assert await asyncio.gather(*(recorder.commit(trace()) for _ in range(3))) == [False] * 3
        assert recorder.dropped == 3
        sink.gate.set()
        assert await recorder.commit(trace()) is True
        assert recorder.late == 3
    assert len(sink.ids) == 4


async def test_a_full_queue_drops_at_once() -> None:
    sink = MemorySink(open_gate=False)
    async with running(Recorder(sink, max_waiting=2)) as recorder:
        first = asyncio.create_task(recorder.commit(trace()))
        await sink.started.wait()
        queued = [asyncio.create_task(recorder.commit(trace())) for _ in range(2)]
        await asyncio.sleep(0)
        assert recorder.waiting == 2
        assert await recorder.commit(trace()) is False
        sink.gate.set()
        assert await asyncio.gather(first, *queued) == [True] * 3
    assert recorder.dropped == 1


@pytest.mark.parametrize("text", ["short", "x" * (LARGE + 1)])
async def test_cancelling_one_who_waits_loses_no_trace_and_hurts_no_other(text: str) -> None:
    sink = MemorySink(open_gate=False)
    gone, queued_gone, neighbour = trace(text), trace(text), trace()
    async with running(Recorder(sink)) as recorder:
        writing = asyncio.create_task(recorder.commit(gone))
        await sink.started.wait()
        queued = asyncio.create_task(recorder.commit(queued_gone))
        other = asyncio.create_task(recorder.commit(neighbour))
        await asyncio.sleep(0)
        assert recorder.waiting == 2
        writing.cancel()
        queued.cancel()
        await asyncio.gather(writing, queued, return_exceptions=True)
        sink.gate.set()
        assert await other is True
        assert recorder.dropped == 0
    assert sink.ids == [gone.id, queued_gone.id, neighbour.id]


async def test_closing_writes_what_is_queued_and_takes_no_more() -> None:
    sink = MemorySink(open_gate=False)
    recorder = Recorder(sink)
    task = asyncio.create_task(recorder.run())
    waiting = [asyncio.create_task(recorder.commit(trace())) for _ in range(3)]
    await sink.started.wait()
    closing = asyncio.create_task(recorder.close())
    await asyncio.sleep(0)
    assert await recorder.commit(trace()) is False
    sink.gate.set()
    await closing
    assert await asyncio.gather(*waiting) == [True] * 3
    await task


async def test_closing_does_not_wait_for_a_database_that_hangs() -> None:
    sink = MemorySink(open_gate=False)
    recorder = Recorder(sink, patience=0.05)
    task = asyncio.create_task(recorder.run())
    waiting = [asyncio.create_task(recorder.commit(trace())) for _ in range(3)]
    await sink.started.wait()
    await recorder.close()
    assert await asyncio.gather(*waiting) == [False] * 3
    assert recorder.dropped == 3
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_nobody_waits_on_a_recorder_whose_task_was_cancelled() -> None:
    sink = MemorySink(open_gate=False)
    recorder = Recorder(sink)
    task = asyncio.create_task(recorder.run())
    waiting = asyncio.create_task(recorder.commit(trace()))
    await sink.started.wait()
    task.cancel()
    assert await waiting is False
    assert await recorder.commit(trace()) is False
    assert recorder.dropped == 2


async def test_what_was_committed_is_told() -> None:
    told: list[TraceRow] = []
    async with running(Recorder(MemorySink(), written=told.extend)) as recorder:
        await recorder.commit(trace(log_rules=({"id": "r"},)))
        assert [len(row.jobs) for row in told] == [1]


async def test_a_batch_is_one_transaction(store: TraceStore, database_url: str) -> None:
    """A failure in the last insert, that of the jobs, leaves nothing of the others."""
    await forbid(database_url, "INSERT", "jobs")
    written = [trace(annotations=(ANNOTATION,), log_rules=({"id": "r"},)) for _ in range(50)]
    with pytest.raises(StoreError):
        await store.add(written)
    counts = "SELECT (SELECT count(*) FROM traces), (SELECT count(*) FROM annotations)"
    assert await query(database_url, counts) == [(0, 0)]
