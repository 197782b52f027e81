"""Set up the application from values: what it serves, what it needs while it runs, and how it ends."""

import asyncio
import contextlib
import gc
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from gemini_proxy.config import Config, configuration_digest
from gemini_proxy.explorer.app_keys import (
    CHECKING,
    COMPILING,
    DATASET_RULES,
    FEED,
    LIMITS,
    MASKED_VALUES,
    PRICES,
    READ_DATABASE,
)
from gemini_proxy.explorer.app_keys import setup as set_up_explorer
from gemini_proxy.explorer.pages.trials import TRIALS, Trials
from gemini_proxy.explorer.routes import add_routes, error_response, is_api
from gemini_proxy.guardrails.asking import Asking
from gemini_proxy.guardrails.engine import Engine, FailOpenEngine, NoEngine
from gemini_proxy.guardrails.native import NativeEngine, foreign_workers
from gemini_proxy.guardrails.remote import RemoteEngine
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.http.browser_guard import BROWSER_GUARD, BrowserGuard
from gemini_proxy.http.peers import PEERS, Peers
from gemini_proxy.http.request_body import MEMORY_BUDGET, MemoryBudget
from gemini_proxy.proxy.allowed_turns import AllowedTurns
from gemini_proxy.proxy.approval import ApprovalDesk
from gemini_proxy.proxy.authentication import Authentication
from gemini_proxy.proxy.exchange_metrics import MAX_LEARNT, ExchangeMetrics
from gemini_proxy.proxy.exchange_trace import ExchangeRecorder
from gemini_proxy.proxy.handle_keeper import HandleKeeper
from gemini_proxy.proxy.masker import Masker
from gemini_proxy.proxy.pipeline import Pipeline
from gemini_proxy.proxy.request_reader import RequestReader
from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.proxy.uploads import Uploads
from gemini_proxy.proxy.upstream import UpstreamClient, VertexUpstreams
from gemini_proxy.sections import Guardrails, Limits, alert_rule, value_keys
from gemini_proxy.server import health
from gemini_proxy.server.app_keys import (
    ASKING,
    AUTHENTICATION,
    CONFIG,
    EXCHANGE_METRICS,
    EXPLORER_SITE,
    GROUP,
    LIMITER,
    MEMORY,
    NOTEBOOK,
    RELOADS,
    SETUPS,
    STATE,
    STORAGE,
    TASKS,
    TELEMETRY,
    UPLOADS,
    UPSTREAM,
    VERTEX,
    ExplorerSite,
    Group,
    State,
)
from gemini_proxy.server.asked_services import AskedServices
from gemini_proxy.server.error_responses import error_middleware
from gemini_proxy.server.handlers import relay
from gemini_proxy.server.limiter import Limiter
from gemini_proxy.server.live import LIVE, LiveDoor
from gemini_proxy.server.metrics import Metrics, own_families
from gemini_proxy.server.middlewares import auth_middleware, guardrail_middleware, limit_middleware
from gemini_proxy.server.process import Memory
from gemini_proxy.server.reload import Reloads, Setup, Setups
from gemini_proxy.server.storage import Storage, open_storage
from gemini_proxy.server.telemetry import ExchangeTelemetry
from gemini_proxy.server.unfinished_connections import UNFINISHED, Unfinished
from gemini_proxy.traces.access import AccessControl
from gemini_proxy.traces.alerts.notebook import Notebook, Totals
from gemini_proxy.traces.alerts.outbox import AlertOutbox, note_approval
from gemini_proxy.traces.alerts.rules import AlertRule, Kind
from gemini_proxy.traces.approvals import Approvals
from gemini_proxy.traces.audit import SETTINGS_LOADED, AuditLog, Change, this_server
from gemini_proxy.traces.budgets import SharedBudgets
from gemini_proxy.traces.dataset_rules import DatasetRules
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.handles import Handles
from gemini_proxy.traces.known_digests import KnownDigests
from gemini_proxy.traces.masked_values import MaskedValues
from gemini_proxy.traces.retention import Kept
from gemini_proxy.traces.revision import Revisions
from gemini_proxy.traces.schema import allowed_turns, refused_texts

log = logging.getLogger(__name__)

_CLOSING_GRACE = 5.0
"""Seconds for what still runs when the last client has left, such as the traces of clients that went away."""

_LIMITS_PAUSE = 1.0
"""Seconds at most until the sharing of limits runs again after a failure: requests may wait for it."""


def create_app(
    config: Config,
    rules: GuardrailSet,
    engine: Engine | None = None,
    group: Group | None = None,
    clock: Callable[[], float] = time.time,
) -> web.Application:
    """Return the proxy as an aiohttp application. ``rules`` are the compiled rules of the configured policy files.

    ``engine`` replaces the engine that the configuration names. ``group`` is the group of processes that serve
    together, None for a single process. ``clock`` returns the Unix seconds that limits use.
    """
    app = web.Application(middlewares=[error_middleware, auth_middleware, limit_middleware, guardrail_middleware])
    _set_values(app, config, group or Group(), clock)
    checkers = _make_checkers(config, engine)
    app[ASKING] = checkers.services.asking
    app.cleanup_ctx.append(partial(_resources, rules=rules, checkers=checkers))
    app.on_shutdown.append(_end_watches)
    _add_routes(app)
    return app


def _set_values(app: web.Application, config: Config, group: Group, clock: Callable[[], float]) -> None:
    """Give the application what needs neither the store nor the event loop."""
    app[CONFIG] = config
    app[BROWSER_GUARD] = guard = BrowserGuard(config.explorer.hosts, config.server.listen)
    app[PEERS] = Peers(guard, config.access.trusted_proxies, open_access=config.access.mode == "open")
    app[LIMITER] = limiter = Limiter(partial(_limits, app), clock)
    app[UNFINISHED] = Unfinished(app[PEERS], limiter, lambda: _limits(app).unfinished_connections)
    app[STATE] = State()
    app[MEMORY] = Memory()
    app[RELOADS] = Reloads()
    app[GROUP] = group
    # The limit is for the machine, so each process gets a part.
    app[MEMORY_BUDGET] = MemoryBudget(config.server.max_held_bytes // group.processes)
    app[TASKS] = Tasks()
    # With several users, the names of their rules are not for others.
    app[EXCHANGE_METRICS] = ExchangeMetrics(learns=0 if config.access.mode == "keys" else MAX_LEARNT)


@dataclass(frozen=True, slots=True)
class _Checkers:
    """The engines, made once: for exchanges, and for users' checks in the Explorer (``asked_for``).

    ``services`` answer what detectors ask. ``bodies`` are the processes that read large bodies, and ``workers`` all
    processes here.
    """

    engine: Engine
    remote: RemoteEngine | None
    services: AskedServices
    bodies: Workers
    asked_for: Workers
    workers: tuple[Workers, ...]


def _make_checkers(config: Config, engine: Engine | None) -> _Checkers:
    # Neither policies that clients send nor large bodies take processes from the checks of the operator's rules.
    checks, foreign, bodies = Workers(), foreign_workers(config.guardrails.timeout), Workers(1)
    # Neither users' requests nor policies in shadow take processes from the exchanges, or end one of theirs.
    asked_for = Workers(1)
    remote = _remote_engine(config.guardrails) if engine is None else None
    services = AskedServices(config)
    checking = engine or remote or _own_engine(config.guardrails, checks, foreign, services.asking)
    return _Checkers(checking, remote, services, bodies, asked_for, (checks, foreign, bodies, asked_for))


async def _resources(app: web.Application, rules: GuardrailSet, checkers: _Checkers) -> AsyncIterator[None]:
    """Open what the application needs while it runs, and close it in the opposite order."""
    config, tasks, group = app[CONFIG], app[TASKS], app[GROUP]
    async with contextlib.AsyncExitStack() as stack:
        for workers in checkers.workers:
            stack.callback(workers.close)
        await stack.enter_async_context(checkers.services)
        if checkers.remote is not None:
            await stack.enter_async_context(checkers.remote)
        storage = await _open_storage(app, stack, checkers)
        app[TELEMETRY] = telemetry = _telemetry(config, group)
        if telemetry is not None:
            stack.push_async_callback(telemetry.close)
        _set_up(app, storage, rules, checkers)
        tasks.keep(app[NOTEBOOK].run, "notices")
        budgets = SharedBudgets(storage.database)
        await app[LIMITER].learn(budgets)
        tasks.keep(partial(app[LIMITER].share, budgets), "limits", longest=_LIMITS_PAUSE)
        tasks.keep(app[MEMORY].give_back_regularly, "memory")
        app[UPLOADS] = uploads = Uploads(lambda: app[SETUPS].current.config.files, group.processes, group.number)
        stack.callback(uploads.close)
        tasks.keep(uploads.run, "uploads")
        app[UPSTREAM] = upstream = UpstreamClient(config.upstream, config.upstream.base_url)
        stack.push_async_callback(upstream.close)
        app[VERTEX] = vertex = VertexUpstreams(config.upstream)
        stack.push_async_callback(vertex.close)
        app[LIVE] = await stack.enter_async_context(LiveDoor(config.upstream, tasks))
        if group.metrics is not None:
            tasks.keep(partial(group.metrics.follow, partial(own_families, app)), "metrics")
            stack.callback(lambda metrics: metrics.write(own_families(app)), group.metrics)
        stack.push_async_callback(tasks.settle, "record", _CLOSING_GRACE)
        _tune_interpreter()
        yield


async def _open_storage(app: web.Application, stack: contextlib.AsyncExitStack, checkers: _Checkers) -> Storage:
    config = app[CONFIG]
    native = config.guardrails.engine == "native"
    return await open_storage(
        config,
        app[TASKS],
        stack,
        checkers.engine,
        NativeEngine(checkers.asked_for, config.guardrails.timeout) if native else checkers.engine,
        lambda: _kept(app),
        lambda: _alert_rules(app),
        lambda: _masked_values(app),
    )


def _limits(app: web.Application) -> Limits:
    return app[SETUPS].current.config.limits


def _kept(app: web.Application) -> Kept:
    traces = app[SETUPS].current.config.traces
    return Kept(traces.retention_days, traces.max_size)


def _masked_values(app: web.Application) -> MaskedValues | None:
    return app[SETUPS].current.masked_values if SETUPS in app else None


def _telemetry(config: Config, group: Group) -> ExchangeTelemetry | None:
    if not config.telemetry.enabled:
        return None
    return ExchangeTelemetry(config.telemetry, config.upstream.base_url, group.number)


def _alert_rules(app: web.Application) -> Sequence[AlertRule]:
    return app[SETUPS].current.alerts if SETUPS in app else ()


def _notebook(app: web.Application, storage: Storage) -> Notebook:
    """Return this process's counts for alerts."""
    recorder, limiter = storage.recorder, app[LIMITER]
    totals: dict[Kind, Totals] = {
        "unrecorded_traces": lambda: {"traces": recorder.dropped},
        "budget_spent": limiter.spent_budgets,
    }

    def wanted() -> frozenset[Kind]:
        return frozenset[Kind]().union(*(rule.on for rule in _alert_rules(app)))

    return Notebook(AlertOutbox(storage.database), wanted, totals)


def _set_up(app: web.Application, storage: Storage, rules: GuardrailSet, checkers: _Checkers) -> None:
    """Give the parts of an exchange, and the Explorer, what they need of the open store."""
    config, database = app[CONFIG], storage.database
    revisions = Revisions(database, storage.news)
    access = AccessControl(database, revisions, config.access.mode)
    if access.mode == "keys":
        app[TASKS].keep(access.keep_uses, "key uses")
    app[STORAGE] = storage
    app[AUTHENTICATION] = Authentication(access, spends=config.upstream.api_key is not None)
    app[NOTEBOOK] = _notebook(app, storage)
    dataset_rules = DatasetRules(database, revisions)
    assembly = _Assembly(app, storage, dataset_rules, checkers)
    app[SETUPS] = setups = Setups(assembly.build, config, rules)
    if config.explorer.enabled:
        engine = NativeEngine(checkers.asked_for, config.guardrails.timeout)

        def guardrails() -> Guardrails:
            return setups.current.config.guardrails

        app[READ_DATABASE], app[LIMITS] = storage.read_database, lambda: _limits(app)
        app[MASKED_VALUES] = lambda: setups.current.masked_values
        app[DATASET_RULES] = dataset_rules
        app[PRICES] = lambda: setups.current.config.prices
        set_up_explorer(
            app, config, storage.store, access, engine, storage.feed, lambda: setups.current.rules, guardrails
        )
        app[TRIALS] = Trials(checkers.asked_for, guardrails, app[COMPILING], app[CHECKING])


async def _end_watches(app: web.Application) -> None:
    """End feeds and live sessions before connections are waited for: neither would end soon without it."""
    if FEED in app:
        app[FEED].close()
    if LIVE in app:
        app[LIVE].drain(app[CONFIG].server.shutdown_grace)


def _add_routes(app: web.Application) -> None:
    app.router.add_get("/healthz", health.alive)
    app.router.add_get("/readyz", health.ready)
    app.router.add_get("/metrics", Metrics().show)
    app.router.add_get("/api/v1/gateway/health", health.gateway)
    if app[CONFIG].explorer.enabled:
        add_routes(app)
        app[EXPLORER_SITE] = ExplorerSite(is_api, error_response)
    # Most calls name a version first. A resource of their own spares the router what else begins at the root.
    for prefix in ("/v1beta", "/v1", ""):
        app.router.add_route("*", f"{prefix}/{{target:.*}}", relay)


def _own_engine(guardrails: Guardrails, checks: Workers, foreign: Workers, asking: Asking) -> Engine:
    return NoEngine() if guardrails.engine == "off" else NativeEngine(checks, guardrails.timeout, foreign, asking)


def _remote_engine(guardrails: Guardrails) -> RemoteEngine | None:
    if guardrails.engine != "remote":
        return None
    url, key = guardrails.remote.url, guardrails.remote.api_key
    assert url is not None, "load_config guarantees it"
    return RemoteEngine(url, key.get_secret_value() if key else None, guardrails.timeout)


class _Assembly:
    """Build setups from configurations, over the parts that are made once."""

    def __init__(
        self, app: web.Application, storage: Storage, dataset_rules: DatasetRules, checkers: _Checkers
    ) -> None:
        self._tasks = app[TASKS]
        self._metrics = app[EXCHANGE_METRICS]
        self._notebook, self._telemetry = app[NOTEBOOK], app[TELEMETRY]
        self._storage = storage
        self._dataset_rules = dataset_rules
        self._checkers = checkers
        self._ahead: asyncio.Task[None] | None = None

    def build(self, config: Config, rules: GuardrailSet) -> Setup:
        """Return the setup for ``config`` with ``rules`` of its policy files."""
        self._metrics.know(rule.name for rule in rules.all if rule.action != "log")
        guardrails, storage, checkers = config.guardrails, self._storage, self._checkers
        keys = value_keys(guardrails)
        values = None
        if keys is not None:
            values = MaskedValues(storage.database, keys, guardrails.value_days, self._metrics.masked_values)
        if checkers.remote is not None:
            self._send_ahead(checkers.remote, guardrails, rules)
        engine = FailOpenEngine(checkers.engine) if guardrails.unavailable == "allow" else checkers.engine
        recorder = ExchangeRecorder(
            storage.recorder,
            guardrails,
            self._tasks,
            self._metrics,
            required=config.traces.required,
            learner=storage.tool_learner,
            deferred=config.traces.durability == "deferred",
            push=storage.push is not None,
            notebook=self._notebook,
            tell=None if self._telemetry is None else self._telemetry.tell,
            values=values,
            shadows=storage.shadows,
        )
        key = config.upstream.api_key
        keeper = HandleKeeper(
            Handles(storage.database),
            key.get_secret_value() if key else None,
            restores=guardrails.restore != "off",
            keeps_values=values is not None,
        )
        reader = RequestReader(config, rules, self._dataset_rules, checkers.bodies, keeper)
        self._tasks.spawn(self._keep_settings(config, rules), "audit")
        masker = Masker(guardrails, KnownDigests(storage.database, refused_texts), values)
        turns = AllowedTurns(guardrails, KnownDigests(storage.database, allowed_turns))
        alerts = tuple(map(alert_rule, config.alerts))
        tells = any("approval_waiting" in rule.on for rule in alerts)
        desk = ApprovalDesk(Approvals(storage.database, note_approval if tells else None), guardrails.ask_timeout)
        most = config.upstream.max_answer_bytes
        return Setup(
            config,
            rules,
            reader,
            keeper,
            Pipeline(reader, desk, masker, turns, engine, guardrails, config.refusals, recorder, self._tasks, most),
            config.doors.duties,
            alerts,
            values,
        )

    async def _keep_settings(self, config: Config, rules: GuardrailSet) -> None:
        """Record the settings and policies in force from now on in the audit log, if they have changed."""
        after = {
            "configuration": configuration_digest(config),
            "policies": {rule.name: rule.loaded for rule in rules.all},
        }
        change = Change(SETTINGS_LOADED, this_server(), "gemini-proxy", after=after)
        try:
            await AuditLog(self._storage.database).append_new(change)
        except StoreError as error:
            log.warning("the audit log does not record these changed settings: %s", error)

    def _send_ahead(self, remote: RemoteEngine, guardrails: Guardrails, rules: GuardrailSet) -> None:
        """Let the service load the files' policies before they are needed; that needs a key of the server's own."""
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
        if guardrails.remote.api_key is not None:
            texts = [rule.policy.text for rule in rules.all]
            self._ahead = self._tasks.spawn(remote.run(texts), "policies preloaded")
        elif rules.logging:
            log.warning("guardrails.remote.api_key is not set: logging rules cannot be checked")


def _tune_interpreter() -> None:
    """Keep the loop responsive.

    Loaded objects stay: the collector need not walk them again every few requests. And if a thread works beside the
    loop, the loop gets its turn after one millisecond, not five.
    """
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
