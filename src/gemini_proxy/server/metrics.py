"""Serve ``GET /metrics``: the server's counts and the state of the push queue, in Prometheus' text format."""

import hmac
import logging
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gemini_proxy.errors import Unauthenticated, Unavailable
from gemini_proxy.http.bearer_key import bearer_key
from gemini_proxy.http.browser_guard import BROWSER_GUARD, WrongHost
from gemini_proxy.http.peers import PEERS
from gemini_proxy.proxy.exchange_metrics import ExchangeMetrics
from gemini_proxy.proxy.shadow_runner import SHADOW_RESULTS
from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.server.app_keys import (
    ASKING,
    AUTHENTICATION,
    CONFIG,
    EXCHANGE_METRICS,
    GROUP,
    LIMITER,
    RELOADS,
    STATE,
    STORAGE,
    TASKS,
    Group,
)
from gemini_proxy.server.limiter import KINDS, TOKEN_KINDS, Limiter
from gemini_proxy.server.live import LIVE
from gemini_proxy.server.process import Usage, usage
from gemini_proxy.server.reload import Reloads
from gemini_proxy.server.shared_metrics import Families, Family, Merge, process_families
from gemini_proxy.server.storage import Storage
from gemini_proxy.traces.alerts.worker import AlertWorker
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.keys import digest
from gemini_proxy.traces.push.answers import Failure
from gemini_proxy.traces.push.queue import Queued
from gemini_proxy.traces.push.worker import PushWorker

log = logging.getLogger(__name__)

_PREFIX = "gemini_proxy_"
_MERGES: Final[Mapping[str, Merge]] = {
    f"{_PREFIX}build_info": max,
    f"{_PREFIX}background_lease_held": max,
    f"{_PREFIX}last_reload_failed": max,
    f"{_PREFIX}task_up": min,
    # Every process notices the same loss.
    f"{_PREFIX}traces_lost_with_file": max,
}
"""How to merge metrics that are not sums over a server's processes."""


class Metrics:
    """``/metrics``: for this machine if access is open, else for callers with a key.

    Volumes and the names of rules are only for users of the server.
    """

    def __init__(self) -> None:
        self._accepted = ""

    async def show(self, request: web.Request) -> web.Response:
        """If the database gives no figures about the queue, only their lines are missing.

        Raises WrongHost, ThroughProxy, Unauthenticated, and Unavailable if keys cannot be read.
        """
        await self._admit(request)
        app = request.app
        queued = await queue_figures(app[STORAGE].push)
        shown: list[Metric] = list(_snapshot(app).collect())
        if (shared := app[GROUP].metrics) is not None:
            shown = [_metric(family) for family in shared.all(_families(shown), _MERGES).values()]
        if queued is not None:
            shown += _queue(queued)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(shown))
        return web.Response(body=generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _admit(self, request: web.Request) -> None:
        """The key that was accepted last is good while the database is away: then the figures are wanted most."""
        request.app[PEERS].check(request)
        if request.app[CONFIG].access.mode == "open":
            if not request.app[BROWSER_GUARD].is_own_host(request):
                raise WrongHost("This server does not answer to that host name: add it to explorer.hosts")
            return
        key = bearer_key(request)
        if key is None:
            raise Unauthenticated("The metrics need a key of this server: Authorization: Bearer inv-...")
        try:
            await request.app[AUTHENTICATION].identity(key)
        except Unavailable:
            if not hmac.compare_digest(digest(key), self._accepted):
                raise
        else:
            self._accepted = digest(key)


def own_families(app: web.Application) -> Families:
    """Return this process's own counts, without figures that all processes on the database share."""
    return _families(_snapshot(app).collect())


def _snapshot(app: web.Application) -> "_Snapshot":
    return _Snapshot(
        app[EXCHANGE_METRICS],
        app[STATE].in_flight,
        app[LIVE].sessions,
        app[LIMITER],
        app[RELOADS],
        app[TASKS],
        app[STORAGE],
        app[GROUP],
        app[ASKING].counts,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Collected(Collector):
    metrics: Sequence[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.metrics


def _families(metrics: Iterable[Metric]) -> Families:
    return {
        metric.name: Family(
            metric.name,
            metric.documentation,
            metric.type,
            {(sample.name, tuple(sample.labels.items())): sample.value for sample in metric.samples},
        )
        for metric in metrics
    }


def _metric(family: Family) -> Metric:
    metric = Metric(family.name, family.says, family.type)
    for (name, labels), value in family.samples.items():
        metric.add_sample(name, dict(labels), value)
    return metric


async def queue_figures(push: PushWorker | None) -> Queued | None:
    """Return the state of the push queue; None without one, or if the database cannot be read."""
    if push is None:
        return None
    try:
        return await push.queue.queued()
    except StoreError as error:
        log.warning("the push queue cannot be counted: %s", error)
        return None


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The figures of one moment as metric families. No label holds text of a client or a model."""

    exchanges: ExchangeMetrics
    in_flight: int
    live_sessions: int
    limiter: Limiter
    reloads: Reloads
    tasks: Tasks
    storage: Storage
    group: Group
    questions: Mapping[tuple[str, str], int]

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(f"{_PREFIX}build_info", "The running version.", labels=["version", "python"])
        build.add_metric([version("gemini-proxy"), platform.python_version()], 1)
        yield build
        yield from self._exchanges()
        yield from self._traces()
        yield _limited(self.limiter.refused)
        yield _questions(self.questions)
        soft = _counter("soft_limits_crossed", "Soft limits on tokens that a client crossed in a dataset.", "limit")
        for kind in TOKEN_KINDS:
            soft.add_metric([kind], self.limiter.soft[kind])
        yield soft
        yield from _reloads(self.reloads)
        yield from _process(usage(), self.group)
        if self.group.metrics is None:
            yield from map(_metric, process_families(1, 0).values())
        yield from _tasks(self.tasks)
        if self.storage.push is not None:
            yield from _push(self.storage.push)
        yield from _alerts(self.storage.alerts)

    def _exchanges(self) -> Iterator[Metric]:
        exchanges = self.exchanges
        ended = _counter("exchanges", "Exchanges by outcome.", "method", "outcome")
        for (method, outcome), count in exchanges.exchanges.items():
            ended.add_metric([method.value, outcome.value], count)
        yield ended
        answered = _counter("upstream_responses", "Responses of the upstream by the class of their status.", "status")
        for status, count in exchanges.upstream.items():
            answered.add_metric([status], count)
        yield answered
        duration = _histogram("exchange_duration_seconds", "From the request to the end of its response.", "stream")
        for stream, observed in exchanges.duration.items():
            duration.add_metric([str(stream).lower()], observed.buckets, observed.sum)
        yield duration
        first = _histogram("time_to_first_byte_seconds", "From the request to the first byte of its response.")
        first.add_metric([], exchanges.first_byte.buckets, exchanges.first_byte.sum)
        yield first
        check = _histogram("guardrail_duration_seconds", "All checks of an exchange that has blocking rules.")
        check.add_metric([], exchanges.check.buckets, exchanges.check.sum)
        yield check
        refusals = _counter("guardrail_refusals", "Refused exchanges by the rules that fired.", "rule")
        for rule, count in exchanges.refusals.items():
            refusals.add_metric([rule], count)
        yield refusals
        masked = _counter("guardrail_masks", "Exchanges in which a rule masked something.", "rule")
        for rule, count in exchanges.masked.items():
            masked.add_metric([rule], count)
        yield masked
        values = _counter("masked_values", "Masked values looked up in the database.", "result")
        for result in ("read", "unreadable", "unavailable"):
            values.add_metric([result], exchanges.masked_values[result])
        yield values
        tokens = _counter("tokens", "Tokens as the upstream counted them.", "type")
        for kind, count in exchanges.tokens.items():
            tokens.add_metric([kind], count)
        yield tokens
        yield _gauge("in_flight_requests", "Requests in progress, including this one.", self.in_flight)
        yield _gauge("live_sessions", "Open live sessions.", self.live_sessions)

    def _traces(self) -> Iterator[Metric]:
        recorder, log_rules = self.storage.recorder, self.storage.log_rules
        yield _count("traces_dropped", "Traces that were not written in time.", recorder.dropped)
        yield _count(
            "traces_lost_with_file",
            "Traces of a deleted or replaced database file that are not in the current file.",
            self.storage.database.lost,
        )
        yield _gauge("traces_waiting", "Traces that wait to be written.", recorder.waiting)
        replica = self.storage.replica
        yield _count(
            "replica_fallbacks",
            "Reads from traces.database because traces.read_database was unavailable.",
            0 if replica is None else replica.fallbacks,
        )
        yield _gauge(
            "background_lease_held",
            "1 if this server indexes, pushes and deletes traces for all servers on the database.",
            self.storage.lease.held,
        )
        yield _count("log_rules_given_up", "Traces whose logging rules could not be run.", log_rules.abandoned)
        says = "Exchanges compared with a policy in shadow, by result."
        compared = _counter("shadow_comparisons", says, "result")
        for result in SHADOW_RESULTS:
            compared.add_metric([result], self.storage.shadows.results[result])
        yield compared
        skipped = self.storage.indexer.skipped
        yield _count(
            "digest_skipped", "Traces that are missing in search and figures because they cannot be read.", skipped
        )


def _process(usage: Usage, group: Group) -> Iterator[Metric]:
    """Under the names that Prometheus' own clients give these, which dashboards know. Limits hold for each process."""
    labels = {"process": str(group.number)} if group.processes > 1 else {}
    figures = (
        ("process_open_fds", "Open file descriptors.", usage.descriptors),
        ("process_max_fds", "Limit of open file descriptors.", usage.descriptor_limit),
        (
            "process_resident_memory_bytes",
            "Memory of this process, without the processes for checks.",
            usage.resident_bytes,
        ),
    )
    for name, says, value in figures:
        if value is not None:
            figure = GaugeMetricFamily(name, says, labels=list(labels))
            figure.add_metric(list(labels.values()), value)
            yield figure


def _limited(limited: Mapping[str, int]) -> Metric:
    counted = _counter("limited_requests", "Requests and connections that a limit of [limits] refused.", "limit")
    for kind in KINDS:
        counted.add_metric([kind], limited.get(kind, 0))
    return counted


def _questions(counts: Mapping[tuple[str, str], int]) -> Metric:
    says = "Questions that detectors asked, by result."
    asked = _counter("questions", says, "detector", "result")
    for (detector, result), count in counts.items():
        asked.add_metric([detector, result], count)
    return asked


def _reloads(reloads: Reloads) -> Iterator[Metric]:
    counted = _counter("reloads", "Reloads of configuration and policies, by result.", "result")
    counted.add_metric(["succeeded"], reloads.succeeded)
    counted.add_metric(["failed"], reloads.failed)
    yield counted
    yield _gauge(
        "last_reload_failed", "1 if the last reload failed and the earlier settings stay in force.", reloads.last_failed
    )


def _tasks(tasks: Tasks) -> Iterator[Metric]:
    restarts = _counter("task_restarts", "Background tasks started again after a failure.", "task")
    running = GaugeMetricFamily(f"{_PREFIX}task_up", "0 while a background task has failed.", labels=["task"])
    for name, count in tasks.restarts.items():
        restarts.add_metric([name], count)
        running.add_metric([name], name not in tasks.down)
    yield restarts
    yield running


def _push(push: PushWorker) -> Iterator[Metric]:
    yield _count("push_delivered", "Traces that the configured Explorer has accepted.", push.delivered)
    failures = _counter("push_failures", "Attempts that are repeated.", "reason")
    for failure, count in push.failures.items():
        failures.add_metric([failure.value], count)
    yield failures
    given_up = _counter("push_given_up", "Traces that will not be pushed.", "reason")
    for why, count in push.given_up.items():
        given_up.add_metric([why.value], count)
    yield given_up


def _alerts(alerts: AlertWorker) -> Iterator[Metric]:
    sent = _counter("alerts_sent", "Messages of an alert that were accepted.", "alert")
    given_up = _counter("alerts_given_up", "Messages of an alert that will not be sent.", "alert")
    failures = _counter("alert_failures", "Attempts that are repeated.", "alert", "reason")
    for rule in alerts.rules:
        sent.add_metric([rule.name], alerts.sent[rule.name])
        given_up.add_metric([rule.name], alerts.given_up[rule.name])
        for failure in Failure:
            failures.add_metric([rule.name, failure.value], alerts.failures[rule.name, failure])
    yield from (sent, given_up, failures)


def _queue(queued: Queued) -> Iterator[Metric]:
    yield _gauge("push_queue_traces", "Traces that wait to be pushed, in all processes.", queued.waiting)
    yield _gauge("push_oldest_seconds", "How long the oldest trace has waited to be pushed.", oldest_seconds(queued))


def oldest_seconds(queued: Queued) -> float:
    """Return for how many seconds the oldest job has waited; 0 if none does."""
    return max(0.0, round(time.time() - queued.oldest, 3)) if queued.oldest is not None else 0.0


def _counter(name: str, says: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, says, labels=labels)


def _histogram(name: str, says: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(_PREFIX + name, says, labels=labels)


def _count(name: str, says: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, says, value=value)


def _gauge(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, says, value=value)
