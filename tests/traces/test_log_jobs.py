import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gemini_proxy.sections import Guardrails
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.jobs import Job
from gemini_proxy.traces.log_jobs import TAKEN_AT_ONCE, LogRuleWorker
from gemini_proxy.traces.recorder import Recorder
from gemini_proxy.traces.store import JOB_LEASE, TraceStore
from gemini_proxy.traces.trace import Annotation
from tests.traces.samples import query, trace

RULE = {"id": "l1", "name": "logged", "content": "...", "action": "log", "parameters": {"n": 1}}
FOUND = Annotation("seen", "messages.0", "guardrails-error", RULE)

Messages = Sequence[Mapping[str, Any]]


class Checker:
    """Finds one thing in every trace; fails for texts that begin with "poison"."""

    def __init__(self, expected: int) -> None:
        self.seen: list[tuple[Messages, Sequence[Mapping[str, Any]]]] = []
        self.done = asyncio.Event()
        self._expected = expected

    async def __call__(self, messages: Messages, rules: Sequence[Mapping[str, Any]]) -> Sequence[Annotation]:
        self.seen.append((messages, rules))
        if len(self.seen) == self._expected:
            self.done.set()
        if str(messages[0]["content"]).startswith("poison"):
            raise ZeroDivisionError
        return [FOUND]


class Impatient:
    """The store's queue with leases that end at once; says when a job was finished."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store
        self.finished = asyncio.Event()

    async def take_jobs(self, limit: int) -> list[Job]:
        return await self._store.take_jobs(limit, lease=0.0)

    async def finish_job(self, job: Job, found: Sequence[Annotation]) -> bool:
        finished = await self._store.finish_job(job, found)
        self.finished.set()
        return finished


async def jobs_in(database_url: str) -> int:
    [(count,)] = await query(database_url, "SELECT count(*) FROM jobs")
    return int(count)


def test_what_is_taken_at_once_can_be_checked_before_others_may_take_it() -> None:
    assert TAKEN_AT_ONCE * Guardrails().timeout < JOB_LEASE


async def test_a_worker_woken_by_the_recorder_annotates_the_trace(store: TraceStore, database_url: str) -> None:
    ready = asyncio.Event()
    check = Checker(1)
    recorder, queue = Recorder(store, written=lambda _rows: ready.set()), Impatient(store)
    tasks = [asyncio.create_task(recorder.run()), asyncio.create_task(LogRuleWorker(queue, check, ready).run())]
    written = trace(log_rules=(RULE,))
    assert await recorder.commit(written)
    await queue.finished.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    found = await store.get(written.id)
    assert found is not None and found.annotations == (FOUND,)
    assert check.seen == [(list(written.messages), (RULE,))]
    assert await jobs_in(database_url) == 0


async def test_jobs_outlive_the_process_that_queued_them(store: TraceStore, database_url: str) -> None:
    written = [trace(log_rules=(RULE,)) for _ in range(40)]
    await store.add(written)
    await store.close()
    again = await TraceStore.open(database_url)
    await LogRuleWorker(again, Checker(40), asyncio.Event()).drain()
    assert [len(t.annotations) async for t in again.export()] == [1] * 40
    await again.close()
    assert await jobs_in(database_url) == 0


async def test_a_taken_job_comes_back_when_its_lease_is_over(store: TraceStore) -> None:
    await store.add([trace(log_rules=(RULE,))])
    now = time.time()
    [first] = await store.take_jobs(5, now=now, lease=60.0)
    assert await store.take_jobs(5, now=now + 59.0) == []
    [second] = await store.take_jobs(5, now=now + 61.0)
    assert (first.seq, first.attempts, second.attempts) == (second.seq, 1, 2)


async def test_a_job_done_twice_is_stored_once(store: TraceStore) -> None:
    written = trace(log_rules=(RULE,))
    await store.add([written])
    [job] = await store.take_jobs(5)
    assert await store.finish_job(job, [FOUND]) is True
    assert await store.finish_job(job, [FOUND]) is False
    found = await store.get(written.id)
    assert found is not None and found.annotations == (FOUND,)


async def test_a_job_whose_findings_cannot_be_stored_stays_queued(store: TraceStore, database_url: str) -> None:
    await store.add([trace(log_rules=(RULE,))])
    [job] = await store.take_jobs(5)
    unstorable: Any = {("no", "key"): 1}
    with pytest.raises(StoreError):
        await store.finish_job(job, [Annotation("x", "", "s", unstorable)])
    assert await jobs_in(database_url) == 1


async def test_a_check_that_always_fails_is_given_up_after_three_attempts_and_logged(
    store: TraceStore, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    poison, good = trace("poison", log_rules=(RULE,)), trace(log_rules=(RULE,))
    await store.add([poison, good])
    check = Checker(4)
    worker = LogRuleWorker(Impatient(store), check, asyncio.Event())
    await worker.drain()
    assert (len(check.seen), worker.abandoned, await jobs_in(database_url)) == (4, 1, 0)
    fields = {"trace_id": poison.id, "attempts": 3, "reason": "ZeroDivisionError"}
    assert caplog.messages[-1] == "logging rules of a trace were given up"
    assert fields.items() <= vars(caplog.records[-1]).items()
    found = await store.get(good.id)
    assert found is not None and found.annotations == (FOUND,)


async def test_a_job_that_kills_its_process_is_given_up_without_a_fourth_try(
    store: TraceStore, database_url: str
) -> None:
    await store.add([trace(log_rules=(RULE,))])
    for _ in range(3):
        await store.take_jobs(5, lease=0.0)
    check = Checker(1)
    worker = LogRuleWorker(Impatient(store), check, asyncio.Event())
    await worker.drain()
    assert (check.seen, worker.abandoned, await jobs_in(database_url)) == ([], 1, 0)


async def test_the_worker_outlives_a_failing_database(store: TraceStore) -> None:
    class Failing(Impatient):
        failures = 2

        async def take_jobs(self, limit: int) -> list[Job]:
            if self.failures:
                self.failures -= 1
                raise StoreError("the database is locked")
            return await super().take_jobs(limit)

    await store.add([trace(log_rules=(RULE,))])
    check = Checker(1)
    task = asyncio.create_task(LogRuleWorker(Failing(store), check, asyncio.Event(), poll=0.001).run())
    async with asyncio.timeout(5):
        await check.done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
