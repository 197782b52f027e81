"""The application, composed from values: what it serves, what it needs while it runs, and how it ends."""

import asyncio
import contextlib
import gc
import logging
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiohttp import web

from gemini_proxy.config import Config
from gemini_proxy.guardrails.engine import Check, Engine, FailOpenEngine, NoEngine
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.rules import RuleSet, guardrail
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.server import health
from gemini_proxy.server.errors import error_middleware
from gemini_proxy.server.handlers import relay
from gemini_proxy.server.intake import Intake
from gemini_proxy.server.keys import CONFIG, INTAKE, LIFECYCLE, SCRIBE, STATE, STORE, TASKS, UPSTREAM, State
from gemini_proxy.server.lifecycle import Lifecycle
from gemini_proxy.server.middlewares import auth_middleware, guardrail_middleware
from gemini_proxy.server.record import Scribe
from gemini_proxy.server.tasks import Tasks
from gemini_proxy.server.upstream import Upstream
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.log_jobs import Check as LogRulesCheck
from gemini_proxy.traces.log_jobs import LogRuleWorker
from gemini_proxy.traces.recorder import Recorder
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Annotation, annotations_for

log = logging.getLogger(__name__)

_RETENTION_PERIOD = 3600.0
"""Seconds between two looks for traces past their time: their age is counted in days."""
_CLOSING_GRACE = 5.0
"""Seconds for what still runs when the last client has left, such as the traces of clients that went away."""


def create_app(config: Config, rules: RuleSet, engine: Engine | None = None) -> web.Application:
    """The proxy as an aiohttp application. ``rules`` are those of the configured policy files, compiled.

    ``engine`` checks in place of the one that the configuration names.
    """
    app = web.Application(middlewares=[error_middleware, auth_middleware, guardrail_middleware])
    app[CONFIG] = config
    app[STATE] = State()
    app[TASKS] = tasks = Tasks()
    workers = Workers()
    checking = engine or _engine(config, workers)
    app[INTAKE] = Intake(config, rules, workers)
    app[LIFECYCLE] = Lifecycle(checking, config.guardrails, config.refusals, tasks, config.upstream.max_answer_bytes)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(workers.close)
            await _open_traces(app, stack, checking)
            app[UPSTREAM] = upstream = Upstream(config.upstream)
            stack.push_async_callback(upstream.close)
            stack.push_async_callback(tasks.settle, "record", _CLOSING_GRACE)
            _settle_interpreter()
            yield

    app.cleanup_ctx.append(resources)
    _add_routes(app)
    return app


def _add_routes(app: web.Application) -> None:
    app.router.add_get("/healthz", health.alive)
    app.router.add_get("/readyz", health.ready)
    app.router.add_get("/api/v1/gateway/health", health.gateway)
    app.router.add_route("*", "/{target:.*}", relay)


def _engine(config: Config, workers: Workers) -> Engine:
    if config.guardrails.engine == "off":
        return NoEngine()
    engine = NativeEngine(workers, config.guardrails.timeout)
    return FailOpenEngine(engine) if config.guardrails.unavailable == "allow" else engine


async def _open_traces(app: web.Application, stack: contextlib.AsyncExitStack, engine: Engine) -> None:
    """Open the store and start what writes to it. They end in reverse: what is queued is written before it closes."""
    config, tasks = app[CONFIG], app[TASKS]
    app[STORE] = store = await TraceStore.open(config.traces.database)
    stack.push_async_callback(store.close)
    jobs_ready = asyncio.Event()
    recorder = Recorder(store, jobs_ready=jobs_ready)
    app[SCRIBE] = Scribe(recorder, config.guardrails, tasks, required=config.traces.required)
    stack.push_async_callback(tasks.close, 0.0)
    tasks.spawn(recorder.run(), "recorder")
    stack.push_async_callback(recorder.close)
    tasks.spawn(LogRuleWorker(store, _log_rules_check(engine), jobs_ready).run(), "logging rules")
    if config.traces.retention_days:
        tasks.spawn(_retain(store, config.traces.retention_days), "retention")


def _log_rules_check(engine: Engine) -> LogRulesCheck:
    """What the logging rules' worker calls: compile the rules as they were queued, and ask the engine."""

    async def check(messages: Sequence[Mapping[str, Any]], rules: Sequence[Mapping[str, Any]]) -> Sequence[Annotation]:
        found: list[Annotation] = []
        for rule in rules:
            one = guardrail(rule["name"], rule["content"], "log")
            judged = engine.judge(Check((one,), messages, rule.get("parameters", {})))
            verdict = judged if isinstance(judged, Verdict) else await judged
            found.extend(annotations_for(verdict.violations))
        return found

    return check


async def _retain(store: TraceStore, days: int) -> None:
    while True:
        try:
            deleted = await store.delete_before(time.time() - days * 86_400)
            if deleted:
                log.info("deleted %d traces older than %d days", deleted, days)
        except StoreError as error:
            log.warning("old traces were not deleted: %s", error)
        await asyncio.sleep(_RETENTION_PERIOD)


def _settle_interpreter() -> None:
    """Keep the loop responsive.

    What is loaded by now stays: the collector need not walk it again with every few requests. And where a thread works
    beside the loop, the loop gets its turn after one millisecond, not five.
    """
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
