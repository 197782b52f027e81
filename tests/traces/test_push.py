"""Traces sent on to an Explorer, from the queue in the database: what is sent, and what the answers mean for it."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from gemini_proxy.traces.push.answers import Failure
from gemini_proxy.traces.push.queue import PushQueue
from gemini_proxy.traces.push.service import ExplorerService
from gemini_proxy.traces.push.worker import GivenUp, PushWorker
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Annotation
from tests.support.explorer_service import KEY, Behaviour, ExplorerDouble, Fault, Status, refusing
from tests.support.keys import GEMINI_KEYS
from tests.traces.pushing import NOW, ONE_DATABASE, RULE, pushed, waiting, working
from tests.traces.samples import ANNOTATION, GUARDRAIL, trace


async def test_a_trace_arrives_as_invariants_gateway_would_send_it(store: TraceStore, explorer: ExplorerDouble) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "tell me"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": None}]},
    ]
    metadata = {"usage": {"totalTokenCount": 3}, "method": "generateContent"}
    sent = trace(messages=messages, metadata=metadata, annotations=(ANNOTATION,), duration_ms=12.5, push=True)
    await store.add([sent])
    async with working(store, explorer.url) as running:
        await running.advance(60)
    assert explorer.stored == [
        {
            "messages": [[messages[0], {"role": "assistant", "tool_calls": messages[1]["tool_calls"]}]],
            "annotations": [
                [
                    {
                        "content": ANNOTATION.content,
                        "address": ANNOTATION.address,
                        "extra_metadata": {"source": "guardrails-error", "guardrail": GUARDRAIL},
                    }
                ]
            ],
            "dataset": "demo",
            "metadata": [
                {
                    **metadata,
                    "via_gateway": True,
                    "gemini_proxy": {
                        "id": sent.id,
                        "outcome": "completed",
                        "model": "gemini-2.5-flash",
                        "stream": False,
                        "duration_ms": 12.5,
                        "created": sent.created,
                    },
                }
            ],
        }
    ]
    assert explorer.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert (await waiting(store), running.worker.delivered) == (0, 1)


async def test_a_trace_without_a_dataset_is_sent_without_one(store: TraceStore, explorer: ExplorerDouble) -> None:
    await store.add(pushed(1, dataset=None))
    async with working(store, explorer.url) as running:
        await running.advance(60)
    assert [body["dataset"] for body in explorer.stored] == [None]


async def test_traces_that_are_not_to_be_pushed_are_not(store: TraceStore, explorer: ExplorerDouble) -> None:
    await store.add([trace(), *pushed(1), trace(log_rules=(RULE,))])
    async with working(store, explorer.url) as running:
        await running.advance(60)
    assert explorer.calls == 1


async def test_a_push_waits_for_its_logging_rules_and_takes_what_they_found_along(
    store: TraceStore, explorer: ExplorerDouble
) -> None:
    created = NOW - 10
    await store.add(pushed(1, created=created, log_rules=(RULE,)))
    async with working(store, explorer.url) as running:
        running.clock.skip(3600)
        await running.advance(60)
        assert explorer.calls == 0
        [job] = await store.take_jobs(5, now=running.clock.time())
        await store.finish_job(job, [Annotation("seen", "messages.0", guardrail=RULE)])
        await running.advance(60)
    assert [one["content"] for one in explorer.stored[0]["annotations"][0]] == ["seen"]


async def test_a_push_does_not_wait_for_logging_rules_beyond_a_day(store: TraceStore, explorer: ExplorerDouble) -> None:
    await store.add(pushed(1, created=NOW, log_rules=(RULE,)))
    async with working(store, explorer.url) as running:
        running.clock.skip(86_200)
        await running.advance(60)
        assert explorer.calls == 0
        await running.advance(200)
    assert explorer.calls == 1


FAILURES: Sequence[tuple[Behaviour, Failure]] = [
    (Status(401), Failure.UNAUTHORIZED),
    (Status(403), Failure.UNAUTHORIZED),
    (Status(404), Failure.UNEXPECTED),
    (Status(429), Failure.THROTTLED),
    (Status(500), Failure.SERVER_ERROR),
    (Status(503, {"retry-after": "7"}), Failure.SERVER_ERROR),
    (Fault.HANG, Failure.TIMEOUT),
    (Fault.RESET, Failure.UNREACHABLE),
    (Fault.GARBAGE, Failure.UNREACHABLE),
    (Fault.PAGE, Failure.UNEXPECTED),
    (Fault.ENDLESS, Failure.UNEXPECTED),
    (Fault.REDIRECT, Failure.UNEXPECTED),
]


@ONE_DATABASE
@pytest.mark.parametrize(("fault", "reason"), FAILURES, ids=str)
async def test_after_any_failure_the_trace_is_sent_again_and_arrives_once(
    store: TraceStore, explorer: ExplorerDouble, fault: Behaviour, reason: Failure
) -> None:
    [sent] = pushed(1)
    await store.add([sent])
    explorer.script = [fault]
    async with working(store, explorer.url, patience=0.3 if fault is Fault.HANG else 5.0) as running:
        await running.advance(8)
    assert explorer.received == {sent.id: 1}
    assert {name: count for name, count in running.worker.failures.items() if count} == {reason: 1}
    assert running.worker.last_error is None and explorer.calls == 2


@ONE_DATABASE
@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.CUT_ANSWER])
async def test_a_lost_answer_is_the_one_reason_why_a_trace_arrives_twice_with_the_same_id(
    store: TraceStore, explorer: ExplorerDouble, fault: Fault
) -> None:
    [sent] = pushed(1)
    await store.add([sent])
    explorer.script = [fault]
    async with working(store, explorer.url) as running:
        await running.advance(600)
    assert explorer.received == {sent.id: 2}
    assert (running.worker.delivered, await waiting(store)) == (1, 0)


async def test_a_service_that_is_not_there_is_noticed_and_the_trace_kept(store: TraceStore) -> None:
    await store.add(pushed(3))
    with refusing() as nowhere:
        async with working(store, nowhere) as running:
            await running.advance(600)
    assert running.worker.last_error is Failure.UNREACHABLE
    assert (running.worker.delivered, await waiting(store)) == (0, 3)


@ONE_DATABASE
@pytest.mark.parametrize("status", [400, 409, 413, 422])
async def test_a_trace_that_the_service_refuses_for_good_is_given_up_and_holds_up_nobody(
    store: TraceStore, explorer: ExplorerDouble, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = trace("poison", push=True), trace(push=True)
    await store.add([bad, good])
    explorer.script = [Status(status)]
    async with working(store, explorer.url) as running:
        await running.advance(1)
    assert explorer.received == {good.id: 1}
    assert (running.worker.given_up[GivenUp.REJECTED], await waiting(store)) == (1, 0)
    [line] = caplog.records
    assert line.getMessage() == "the Explorer rejected a trace"
    assert {"trace_id": bad.id, "reason": f"HTTP {status}"}.items() <= vars(line).items()


async def test_a_trace_that_breaks_the_service_every_time_does_not_keep_the_others(
    store: TraceStore, explorer: ExplorerDouble
) -> None:
    explorer.heavy = "heavy"
    others = pushed(200)
    await store.add([trace("heavy", push=True), *others[:100], trace("heavy", push=True), *others[100:]])
    async with working(store, explorer.url) as running:
        await running.advance(120)
    assert set(explorer.received) == {other.id for other in others}
    assert await waiting(store) == 2


async def test_no_key_reaches_the_body_or_the_log(
    store: TraceStore, explorer: ExplorerDouble, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    invariant = "inv-" + "c" * 64
    metadata = {
        "url": [f"https://x/{gemini}" for gemini in GEMINI_KEYS],
        "headers": {"authorization": f"Bearer {invariant}"},
        "note": invariant,
    }
    await store.add(pushed(1, metadata=metadata, tenant="t" * 64))
    explorer.script = [Status(401), Status(500), Status(400)]
    async with working(store, explorer.url) as running:
        await running.advance(600)
        await store.add(pushed(1, metadata=metadata, tenant="t" * 64))
        await running.advance(600)
    sent = orjson.dumps(explorer.stored).decode()
    assert explorer.stored and not [secret for secret in (*GEMINI_KEYS, invariant, KEY, "t" * 64) if secret in sent]
    logged = "\n".join(caplog.messages)
    assert not [secret for secret in (*GEMINI_KEYS, invariant, KEY, "tell me") if secret in logged]


async def test_a_large_trace_arrives_whole(store: TraceStore, explorer: ExplorerDouble) -> None:
    await store.add([trace("x" * 3_000_000, push=True), *pushed(3)])
    async with working(store, explorer.url) as running:
        await running.advance(5)
    assert max(len(body["messages"][0][0]["content"]) for body in explorer.stored) == 3_000_000
    assert len(explorer.stored) == 4


async def test_run_works_until_cancelled_with_the_machines_clock(store: TraceStore, explorer: ExplorerDouble) -> None:
    ready = asyncio.Event()
    async with ExplorerService(explorer.url, KEY) as service:
        worker = PushWorker(PushQueue(store.database), service, ready, max_queue=100)
        task = asyncio.create_task(worker.run())
        await store.add(pushed(1, created=time.time()))
        ready.set()
        async with asyncio.timeout(5):
            await explorer.arrived.wait()
        task.cancel()
        [ended] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError)
