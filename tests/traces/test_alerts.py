"""Alerts: what is gathered into messages, how they read, and how they get to a webhook on a real socket."""

import asyncio
import base64
import contextlib
import hmac
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.traces.alerts.notebook import MAX_NOTED, OTHER, Notebook
from gemini_proxy.traces.alerts.outbox import KEPT, AlertOutbox, note_approval
from gemini_proxy.traces.alerts.rules import AlertMessage, AlertRule, Gathered, Kind, Notice
from gemini_proxy.traces.alerts.webhook import Webhooks, body_of, signature
from gemini_proxy.traces.alerts.worker import AlertWorker
from gemini_proxy.traces.approvals import ApprovalRequest, Approvals
from gemini_proxy.traces.push.answers import Failure
from gemini_proxy.traces.store import TraceStore
from tests.support.clock import JumpingClock
from tests.support.webhook import WebhookDouble, webhook_double
from tests.traces.pushing import NOW, ONE_DATABASE

SECRET = b"s" * 32
RULE = AlertRule("security", frozenset[Kind]({"refusals"}), "http://127.0.0.1:9/x", silence=100.0, window=60.0)


def refusals(count: int = 1, at: float = NOW, key: str = "secrets.gr", **example: Any) -> Notice:
    return Notice("refusals", key, count, at, example)


def message(**fields: Any) -> AlertMessage:
    values = AlertMessage(1, "msg_1", "security", "refusals", "secrets.gr", 1, NOW, NOW, NOW + KEPT, 1, {})
    return replace(values, **fields)


@pytest.fixture
async def webhook() -> AsyncIterator[WebhookDouble]:
    async with webhook_double() as double:
        yield double


@pytest.mark.parametrize(
    ("times", "crossed"),
    [([0, 1, 2], True), ([0, 1], False), ([0, 30, 59], True), ([0, 30, 61], False), ([0, 61, 62, 63], True)],
)
def test_a_threshold_is_of_a_window(times: Sequence[float], crossed: bool) -> None:
    rule, gathered = replace(RULE, threshold=3), Gathered()
    for at in times:
        gathered = gathered.add(refusals(at=NOW + at), rule)
    assert (gathered.crossed, gathered.total) == (crossed, len(times))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 200), st.integers(0, 5)), max_size=30),
    st.integers(1, 8),
    st.floats(1, 300),
)
def test_nothing_is_told_twice_or_lost_and_silence_is_kept(
    steps: list[tuple[float, int]], threshold: int, silence: float
) -> None:
    """Whatever comes when: each notice is in one message or is still held, and two messages are a silence apart."""
    rule, gathered, now = replace(RULE, threshold=threshold, silence=silence), Gathered(), NOW
    told: list[tuple[float, int]] = []
    for later, count in steps:
        now += later
        if count:
            gathered = gathered.add(refusals(count, now), rule)
        if gathered.is_due(now, rule):
            assert gathered.crossed and gathered.total >= threshold
            told.append((now, gathered.total))
            gathered = gathered.told(now, rule)
        assert len(gathered.buckets) <= 62
    assert sum(count for _, count in told) + gathered.total == sum(count for _, count in steps)
    assert all(after - before >= silence - 1e-6 for (before, _), (after, _) in zip(told, told[1:], strict=False))


def test_a_clock_that_was_set_back_does_not_silence_for_ever() -> None:
    silent = Gathered().told(NOW + 1_000_000, RULE).add(refusals(), RULE)
    assert silent.is_due(NOW, RULE)
    assert not Gathered().told(NOW, RULE).add(refusals(), RULE).is_due(NOW + 99, RULE)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of its specification's libraries."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    signed = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "1 exchange was refused by secrets.gr."),
        (
            {"count": 2, "example": {"dataset": "a\nb"}},
            "2 exchanges were refused by secrets.gr, the last one in dataset",
        ),
        ({"kind": "approval_waiting", "example": {"tools": ["pay"]}}, "an exchange waits for approval to call pay ("),
        ({"kind": "approval_waiting", "count": 3}, "approval was asked for 3 times (secrets.gr), since 2027-01-15T"),
        ({"kind": "upstream_errors", "key": "503", "count": 1000}, "1,000 calls to the upstream failed with HTTP 503"),
        ({"kind": "upstream_errors", "key": "no_response"}, "1 call to the upstream failed (no response)."),
        ({"kind": "unrecorded_traces", "key": "traces"}, "1 trace was not recorded."),
        ({"kind": "budget_spent", "key": "soft_input_tokens"}, "the budget of soft input tokens per day is spent"),
    ],
)
def test_texts_say_what_and_how_many(fields: dict[str, Any], text: str) -> None:
    said = orjson.loads(body_of(message(**fields), RULE, None))["text"]
    assert said.startswith(f"gemini-proxy: {text}")
    assert said.isprintable()


def test_a_chat_reads_no_markup_in_names() -> None:
    slack = replace(RULE, format="slack")
    body = orjson.loads(body_of(message(key="<!channel> & co"), slack, "https://p.example"))
    said = "gemini-proxy: 1 exchange was refused by &lt;!channel&gt; &amp; co."
    assert body == {"text": f"{said}\n<https://p.example/explorer/traffic?outcome=refused|Open>"}
    # Mattermost and Discord know more.
    for markup in ("@everyone", "[Open](https://evil.example)"):
        assert markup not in orjson.loads(body_of(message(key=f"a {markup}"), slack, None))["text"]


def test_keys_are_in_no_message_and_secrets_in_no_repr() -> None:
    key = "AIza" + "x" * 35
    body = body_of(message(key=key, example={"trace": "t", "dataset": key}), RULE, "https://p.example")
    assert key.encode() not in body
    assert orjson.loads(body)["url"] == "https://p.example/explorer/traces/t"
    assert "127.0.0.1" not in (shown := repr(replace(RULE, signing_secret=SECRET))) and "sss" not in shown


@contextlib.asynccontextmanager
async def working(
    store: TraceStore, *rules: AlertRule, patience: float = 5.0
) -> AsyncIterator[tuple[AlertWorker, JumpingClock]]:
    """A worker at the speed of the test."""
    clock = JumpingClock(NOW)
    async with Webhooks("https://p.example", timeout=patience) as webhooks:
        worker = AlertWorker(AlertOutbox(store.database), webhooks, lambda: rules, clock=clock, jitter=lambda: 0.0)
        task = asyncio.create_task(worker.run())
        yield worker, clock
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def pass_time(clock: JumpingClock, seconds: float) -> None:
    async with asyncio.timeout(20):
        await clock.advance(seconds)


async def test_a_message_is_signed_and_sent_once_and_then_there_is_silence(
    store: TraceStore, webhook: WebhookDouble
) -> None:
    rule = replace(RULE, url=webhook.url, signing_secret=SECRET, threshold=2)
    outbox = AlertOutbox(store.database)
    await outbox.note([refusals(trace="t1", dataset="shop"), refusals(key="other.gr")])
    async with working(store, rule) as (_, clock), working(store, rule) as (_, other):
        await asyncio.gather(pass_time(clock, 3), pass_time(other, 3))
        assert webhook.calls == 0
        await outbox.note([refusals(2, trace="t2", dataset="shop")])
        await asyncio.gather(pass_time(clock, 3), pass_time(other, 3))
        [told] = webhook.taken
        assert (told["count"], told["key"], told["example"]["trace"]) == (3, "secrets.gr", "t2")
        headers, body = webhook.received[0]
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        good = base64.b64encode(hmac.digest(SECRET, signed, "sha256")).decode()
        assert headers["webhook-signature"] == f"v1,{good}"
        await outbox.note([refusals(5, at=clock.now)])
        await pass_time(clock, 50)
        assert webhook.calls == 1
        await pass_time(clock, 60)
        assert [told["count"] for told in webhook.taken] == [3, 5]
        assert await outbox.waiting() == 0


@ONE_DATABASE
async def test_a_webhook_that_fails_is_tried_after_growing_pauses(store: TraceStore, webhook: WebhookDouble) -> None:
    """What happens meanwhile is told with it. A redirect leads nowhere."""
    webhook.script = [500, 302, 0, 429]
    rule = replace(RULE, url=webhook.url, silence=1.0)
    outbox = AlertOutbox(store.database)
    await outbox.note([refusals()])
    async with working(store, rule, patience=0.1) as (worker, clock):
        await pass_time(clock, 1)
        await outbox.note([refusals(4, at=clock.now)])
        calls = []
        for seconds in (1, 3, 5, 9):
            await pass_time(clock, seconds)
            calls.append(webhook.calls)
        assert calls == [2, 3, 4, 5]
        assert [told["count"] for told in webhook.taken] == [5]
        failures = (Failure.SERVER_ERROR, Failure.UNEXPECTED, Failure.TIMEOUT, Failure.THROTTLED)
        assert {reason for _, reason in worker.failures} == set(failures)
        assert (worker.last_errors, worker.given_up.total(), webhook.elsewhere) == ({}, 0, 0)


@ONE_DATABASE
async def test_what_is_rejected_or_too_old_is_given_up(store: TraceStore, webhook: WebhookDouble) -> None:
    webhook.status = 400
    outbox = AlertOutbox(store.database)
    await outbox.note([refusals()])
    async with working(store, replace(RULE, url=webhook.url)) as (worker, clock):
        await pass_time(clock, 3)
        assert (webhook.calls, worker.given_up["security"], await outbox.waiting()) == (1, 1, 0)
        webhook.status = 503
        await pass_time(clock, 100)
        await outbox.note([refusals(at=clock.now)])
        await pass_time(clock, 3)
        assert worker.last_errors == {"security": Failure.SERVER_ERROR}
        clock.skip(KEPT)
        await pass_time(clock, 3)
        assert (worker.given_up["security"], await outbox.waiting()) == (2, 0)


@ONE_DATABASE
async def test_another_process_sends_what_a_killed_one_had_taken(store: TraceStore, webhook: WebhookDouble) -> None:
    rule = replace(RULE, url=webhook.url)
    outbox = AlertOutbox(store.database)
    await outbox.note([refusals()])
    await outbox.gather([rule], NOW)
    assert len(await outbox.take(10, NOW, 120.0)) == 1
    async with working(store, rule) as (_, clock):
        await pass_time(clock, 115)
        assert webhook.calls == 0
        await pass_time(clock, 10)
        assert webhook.calls == 1


@ONE_DATABASE
async def test_what_is_added_while_a_message_is_sent_is_told_after_it(store: TraceStore) -> None:
    outbox, rule = AlertOutbox(store.database), replace(RULE, silence=1.0)
    await outbox.note([refusals(2)])
    await outbox.gather([rule], NOW)
    [taken] = await outbox.take(10, NOW, 120.0)
    await outbox.note([refusals(3, at=NOW + 2)])
    await outbox.gather([rule], NOW + 2)
    await outbox.finish(taken)
    [rest] = await outbox.take(10, NOW + 2, 120.0)
    assert (rest.count, rest.attempts) == (3, 1) and rest.id != taken.id


@ONE_DATABASE
async def test_alerts_that_are_gone_leave_nothing_behind(store: TraceStore) -> None:
    outbox = AlertOutbox(store.database)
    await outbox.note([refusals()])
    await outbox.gather([RULE], NOW)
    await outbox.note([refusals(at=NOW + 1)])
    assert await outbox.gather([], NOW + 1) == 1
    async with working(store) as (worker, clock):
        await pass_time(clock, 3)
        assert (await outbox.waiting(), worker.given_up.total()) == (0, 1)


async def test_an_approval_is_told_while_it_waits_without_its_arguments(
    store: TraceStore, webhook: WebhookDouble
) -> None:
    rule = replace(RULE, on=frozenset[Kind]({"approval_waiting"}), url=webhook.url, threshold=9)
    calls = [{"tool": "pay", "arguments": {"to": "CANARY"}}] * 9
    asked = {"asked": [*calls, {"role": "user", "texts": ["CANARY"]}]}
    request = ApprovalRequest("ada", "shop", "t1", "payments.gr", "a CANARY", "d" * 64, asked)
    approvals = Approvals(store.database, note_approval)
    approval = await approvals.open(request, 1e9)
    assert await approvals.open(request, 1e9) == approval
    async with working(store, rule) as (_, clock):
        await pass_time(clock, 3)
        [told] = webhook.taken
        assert told["text"].endswith("waits for approval to call pay (payments.gr), in dataset shop.")
        assert told["url"] == f"https://p.example/explorer/approvals#{approval.id}"
        assert told["example"]["approval"] == approval.id
        assert b"CANARY" not in webhook.received[0][1]
        # One that was decided before its turn came is not told of.
        second = await approvals.open(replace(request, subject="e" * 64), 1e9)
        await approvals.decide(approval.id, allow=True, by="ada")
        await approvals.decide(second.id, allow=True, by="ada")
        await pass_time(clock, 150)
        assert webhook.calls == 1


@ONE_DATABASE
async def test_a_notebook_keeps_what_the_database_does_not_take(store: TraceStore) -> None:
    totals = {"traces": 5}
    wanted = frozenset[Kind]({"refusals", "unrecorded_traces"})
    outbox = AlertOutbox(store.database)
    notebook = Notebook(outbox, lambda: wanted, {"unrecorded_traces": lambda: totals})
    for number in range(MAX_NOTED + 7):
        notebook.note("refusals", f"rule {number}", {"trace": str(number)})
    notebook.note("upstream_errors", "500", {})
    totals["traces"] += 2
    await store.database.write(lambda connection: connection.exec_driver_sql("ALTER TABLE alert_notices RENAME TO x"))
    await notebook.flush()
    await store.database.write(lambda connection: connection.exec_driver_sql("ALTER TABLE x RENAME TO alert_notices"))
    await notebook.flush()
    rule = replace(RULE, on=wanted)
    await outbox.gather([rule], NOW)
    counts = {(taken.kind, taken.key): taken.count for taken in await outbox.take(1000, NOW + 1e9, 1.0)}
    assert len(counts) == MAX_NOTED + 2
    assert (counts["refusals", OTHER], counts["unrecorded_traces", OTHER]) == (7, 2)
