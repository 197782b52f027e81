"""Open the trace database of a running server, start what works on it beside the exchanges, and close it."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gemini_proxy.config import Config
from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.engine import Check, Engine
from gemini_proxy.guardrails.rules import guardrail
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.proxy.shadow_runner import ShadowRunner
from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.sections import Traces
from gemini_proxy.traces.alerts.outbox import AlertOutbox
from gemini_proxy.traces.alerts.rules import AlertRule
from gemini_proxy.traces.alerts.webhook import Webhooks
from gemini_proxy.traces.alerts.worker import AlertWorker
from gemini_proxy.traces.budgets import SharedBudgets
from gemini_proxy.traces.database import Database, connect, is_direct_postgres
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.feed import Feed
from gemini_proxy.traces.handles import Handles
from gemini_proxy.traces.leases import Lease
from gemini_proxy.traces.log_jobs import Check as LogRulesCheck
from gemini_proxy.traces.log_jobs import LogRuleWorker
from gemini_proxy.traces.masked_values import MaskedValues, forget_old_values
from gemini_proxy.traces.pinned_tools import PinnedTools, ToolLearner
from gemini_proxy.traces.push.queue import PushQueue
from gemini_proxy.traces.push.service import ExplorerService
from gemini_proxy.traces.push.worker import PushWorker
from gemini_proxy.traces.read_replica import ReadReplica
from gemini_proxy.traces.recorder import Recorder
from gemini_proxy.traces.retention import DAY, BelievedClock, Kept, Retention
from gemini_proxy.traces.revision import News
from gemini_proxy.traces.rows import TraceRow
from gemini_proxy.traces.seals import Sealer
from gemini_proxy.traces.search.indexer import Indexer
from gemini_proxy.traces.shadows import Shadows
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Annotation, annotations_for

log = logging.getLogger(__name__)

_BACKGROUND = "background"
"""The lease of what one process does for all that share the database. Logging rules are not of it: each of their jobs
is claimed by itself, and checks are work that all share."""
_DELETION_PERIOD = 10.0
"""Seconds between two looks for deleted datasets, whose traces are no longer visible, and for old budgets."""
_HANDLES_PERIOD = 60.0
"""Seconds between two looks for handles past their time, which is counted in hours."""
_VALUES_PERIOD = 60.0
"""Seconds between two looks for masked values past their time, and for such as an older key has encrypted."""
_SEALING_PAUSE = 1.0
"""Seconds between two transactions while there are some of the latter: others write as well."""
_RECORDER_PAUSE = 1.0
"""Seconds at most until a recorder that failed runs again: well within the patience of those who wait for a trace."""


@dataclass(frozen=True, slots=True)
class Storage:
    """What is open while the server runs."""

    store: TraceStore
    recorder: Recorder
    log_rules: LogRuleWorker
    feed: Feed
    push: PushWorker | None
    indexer: Indexer
    lease: Lease
    news: News
    replica: ReadReplica | None
    tool_learner: ToolLearner
    alerts: AlertWorker
    shadows: ShadowRunner

    @property
    def database(self) -> Database:
        return self.store.database

    @property
    def read_database(self) -> Database:
        """Return the database for reads that may be some seconds old: the replica if there is one."""
        return self.store.database if self.replica is None else self.replica


async def open_storage(
    config: Config,
    tasks: Tasks,
    stack: contextlib.AsyncExitStack,
    engine: Engine,
    shadow_engine: Engine,
    kept: Callable[[], Kept],
    alert_rules: Callable[[], Sequence[AlertRule]],
    masked_values: Callable[[], MaskedValues | None],
) -> Storage:
    """Open the store and start its workers. They end in reverse order: queued traces are written before it closes.

    ``engine`` runs logging rules, ``shadow_engine`` policies in shadow. ``kept`` is called each time before traces are
    deleted, ``alert_rules`` before alerts are gathered, and ``masked_values`` before values get another key.
    """
    store = await TraceStore.open(config.traces.database)
    stack.push_async_callback(store.close)
    replica = None
    if config.traces.read_database is not None:
        replica = ReadReplica(store.database, connect(config.traces.read_database, read_only=True))
        stack.push_async_callback(replica.close)
    log_rules_wait, pushes_wait, indexer_waits = asyncio.Event(), asyncio.Event(), asyncio.Event()
    believed = BelievedClock(store.database)
    feed, indexer = Feed(store), Indexer(store.database, indexer_waits, believed=believed.now)

    def written(rows: Sequence[TraceRow]) -> None:
        indexer_waits.set()
        feed.committed()
        if any(row.jobs for row in rows):
            log_rules_wait.set()
            pushes_wait.set()

    recorder = Recorder(store, written=written)
    push = await _push(config, store, pushes_wait, stack, kept, believed)
    webhooks = await stack.enter_async_context(Webhooks(config.explorer.public_url))
    alerts = AlertWorker(AlertOutbox(store.database), webhooks, alert_rules)
    lease = Lease(store.database, _BACKGROUND)
    stack.push_async_callback(tasks.close, 0.0)
    tasks.keep(lease.run, "lease")
    tasks.keep(recorder.run, "recorder", longest=_RECORDER_PAUSE)
    stack.push_async_callback(recorder.close)
    log_rules = LogRuleWorker(store, _log_rules_check(engine), log_rules_wait, done=pushes_wait)
    tasks.keep(log_rules.run, "logging rules")
    if push is not None:
        tasks.keep(partial(lease.during, push.run), "push")
    tasks.keep(partial(lease.during, alerts.run), "alerts")
    tasks.keep(partial(lease.during, partial(_empty_deleted, store)), "deletion")
    if config.explorer.enabled:
        tasks.keep(partial(lease.during, indexer.run), "digest")
        tasks.keep(feed.run, "feed")
    tasks.keep(partial(lease.during, Retention(store, kept, believed).run), "retention")
    forgets: tuple[tuple[str, Callable[[float], Awaitable[object]], float], ...] = (
        ("budgets", SharedBudgets(store.database).forget, _DELETION_PERIOD),
        ("handles", Handles(store.database).forget_old, _HANDLES_PERIOD),
        ("masked values", partial(forget_old_values, store.database), _VALUES_PERIOD),
    )
    for what, forget, period in forgets:
        tasks.keep(partial(lease.during, partial(_forget_old, what, forget, believed, period)), f"old {what}")
    tasks.keep(partial(lease.during, partial(_seal_again, masked_values)), "value keys")
    sealer = Sealer(store.database, believed.now, lambda: config.traces.daily_seals)
    tasks.keep(partial(lease.during, sealer.run), "seals")
    news = News()
    if (url := _listened_to(config.traces)) is not None:
        # Imported only for PostgreSQL, since its driver loads slowly.
        from gemini_proxy.traces.listener import ChangeListener

        tasks.keep(ChangeListener(store.database, url, news).run, "listener")
    tool_learner = ToolLearner(PinnedTools(store.database))
    tasks.keep(tool_learner.run, "tool learner")
    shadows = ShadowRunner(Shadows(store.database), shadow_engine)
    stack.push_async_callback(shadows.write)
    tasks.keep(shadows.run, "shadows")
    return Storage(store, recorder, log_rules, feed, push, indexer, lease, news, replica, tool_learner, alerts, shadows)


def _listened_to(traces: Traces) -> str | None:
    """Return the URL to listen for changes on; None for SQLite, and for a pooler, which shares its connections."""
    if traces.notify_database is not None:
        return traces.notify_database
    return traces.database if is_direct_postgres(traces.database) else None


async def _push(
    config: Config,
    store: TraceStore,
    ready: asyncio.Event,
    stack: contextlib.AsyncExitStack,
    kept: Callable[[], Kept],
    believed: BelievedClock,
) -> PushWorker | None:
    """Return the worker that sends traces to the configured Explorer; None if there is none."""
    push = config.explorer.push
    if push.url is None or push.api_key is None:
        return None
    service = await stack.enter_async_context(ExplorerService(push.url, push.api_key.get_secret_value()))

    def max_age() -> float | None:
        # A minute before retention would remove them uncounted.
        days = kept().days
        return days * DAY - 60.0 if days else None

    queue = PushQueue(store.database)
    return PushWorker(queue, service, ready, max_queue=push.max_queue, max_age=max_age, believed=believed.now)


def _log_rules_check(engine: Engine) -> LogRulesCheck:
    """Return the check for the logging rules' worker: it compiles rules as they were queued, and asks the engine."""

    async def check(messages: Sequence[Mapping[str, Any]], rules: Sequence[Mapping[str, Any]]) -> Sequence[Annotation]:
        found: list[Annotation] = []
        for rule in rules:
            one = replace(guardrail(rule["name"], rule["content"], "log", asks=True), id=rule["id"])
            judged = engine.check(Check((one,), messages, rule.get("parameters", {}), allowed=rule.get("allowed", 0)))
            verdict = judged if isinstance(judged, Verdict) else await judged
            if verdict.unchecked is not None and not verdict.violations:
                # No client waits for this: better once more than not at all.
                raise EngineUnavailable(verdict.unchecked)
            found.extend(annotations_for(verdict.violations))
        return found

    return check


async def _forget_old(
    what: str, forget: Callable[[float], Awaitable[object]], believed: BelievedClock, period: float
) -> None:
    """Delete expired data at an interval in seconds: not by a clock that may be ahead."""
    while True:
        now = believed.now()
        try:
            if now is not None:
                await forget(now)
        except StoreError as error:
            log.warning("old %s were not deleted: %s", what, error)
        await asyncio.sleep(period)


async def _seal_again(values: Callable[[], MaskedValues | None]) -> None:
    """Encrypt masked values with the first key that an older one has encrypted, a few at a time."""
    while True:
        kept = values()
        try:
            sealed = 0 if kept is None else await kept.seal_again()
        except StoreError as error:
            sealed = 0
            log.warning("masked values were not re-encrypted with the first key: %s", error)
        if sealed:
            log.info("re-encrypted %d masked values with the first key", sealed)
        await asyncio.sleep(_SEALING_PAUSE if sealed else _VALUES_PERIOD)


async def _empty_deleted(store: TraceStore) -> None:
    while True:
        try:
            if deleted := await store.empty_deleted():
                log.info("removed %d traces of deleted datasets", deleted)
        except StoreError as error:
            log.warning("traces of deleted datasets were not removed: %s", error)
        await asyncio.sleep(_DELETION_PERIOD)
