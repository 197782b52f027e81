"""OpenTelemetry: spans, metrics and guardrail results of exchanges, sent by OTLP over HTTP. The extra ``otel``.

Only this module imports the SDK, and only if it is switched on. The SDK sends in threads of its own: no exchange waits
for it, and data that a receiver does not take in time is dropped.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from gemini_proxy.gemini.refusal import Phase
from gemini_proxy.guardrails.masking import hide_in_messages
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.telemetry import (
    COMPONENT,
    client_trace,
    common_attributes,
    content_attributes,
    ending_attributes,
    error_type,
    first_chunk_seconds,
    guardrail_results,
    plain,
    span_name,
    usage_of,
)
from gemini_proxy.sections import Telemetry as TelemetrySettings
from gemini_proxy.traces.clock import is_set_within
from gemini_proxy.traces.trace import Outcome

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Span, Tracer

_SCOPE: Final = "gemini_proxy"
_BRIEF: Final = 1.0
"""Milliseconds of a check that gets no span of its own."""
_PATIENCE: Final = 5.0
"""Seconds for what was not sent yet when the server stops."""
_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS: Final = tuple(4.0**power for power in range(14))
_CHECK_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_FAULTS: Final = (Outcome.FAILED, Outcome.UPSTREAM_ERROR, Outcome.UPSTREAM_CUT)


class ExchangeTelemetry:
    """Begin the spans of exchanges. ``close()`` sends what is left."""

    def __init__(
        self, settings: TelemetrySettings, upstream: str, process: int, *, patience: float = _PATIENCE
    ) -> None:
        """``upstream`` is the URL of the Gemini API, ``process`` the number of this one; ``patience`` is in seconds."""
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        instance = f"{socket.gethostname()}-{os.getpid()}-{process}"
        own = {"service.name": COMPONENT, "service.version": version(COMPONENT), "service.instance.id": instance}
        # The environment's settings for the service take precedence.
        resource = Resource.get_empty().merge(Resource(own)).merge(OTELResourceDetector().detect())
        self._spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(_at(settings.endpoint, "traces"))))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(_at(settings.endpoint, "metrics")))
        self._metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self.tracer = self._spans.get_tracer(_SCOPE, own["service.version"])
        self._figures = _GenAiMetrics(self._metrics.get_meter(_SCOPE, own["service.version"]))
        self._content, self._patience = settings.content, patience
        parts = urlsplit(upstream)
        self._host, self._port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    def begin(self, exchange: Exchange, request: web.Request | None) -> "Spans":
        """Begin the spans of an exchange, as children of its client's if that sends a ``traceparent``.

        ``request`` is None for an exchange without an HTTP request, such as a turn of a live session.
        """
        common = common_attributes(exchange, self._host, self._port)
        return Spans(self.tracer, self._figures, exchange, request, common, content=self._content)

    def tell(self, exchange: Exchange) -> None:
        """Tell of an exchange that has ended and was not told of yet."""
        if exchange.spans is None:
            exchange.spans = self.begin(exchange, None)
            exchange.spans.end(exchange, None)

    async def close(self) -> None:
        """Send what is left, for some seconds at most."""
        sent, loop = asyncio.Event(), asyncio.get_running_loop()

        def send() -> None:
            self._spans.shutdown()
            self._metrics.shutdown()
            with contextlib.suppress(RuntimeError):
                # The loop may be closed already if this took longer than the caller waits.
                loop.call_soon_threadsafe(sent.set)

        # Not a thread of the loop's executor: the process would wait for its end.
        threading.Thread(target=send, name="telemetry", daemon=True).start()
        await is_set_within(sent, self._patience)


class Spans:
    """The spans of one exchange: the request that the server takes, and below it the call of the model."""

    def __init__(
        self,
        tracer: "Tracer",
        figures: "_GenAiMetrics",
        exchange: Exchange,
        request: web.Request | None,
        common: Mapping[str, Any],
        *,
        content: bool,
    ) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer, self._figures, self._common, self._content = tracer, figures, common, content
        begun = int(exchange.created * 1e9)
        self.headers: dict[str, str] = {}
        self._server: Span | None = None
        if request is None:
            self._call: Span = tracer.start_span(
                span_name(exchange), kind=SpanKind.CLIENT, attributes=common, start_time=begun
            )
            return
        propagator = TraceContextTextMapPropagator()
        route = exchange.call.row.paths[0]
        asked = {"http.request.method": request.method, "http.route": route, "url.path": plain(request.path)}
        self._server = tracer.start_span(
            f"{request.method} {route}",
            propagator.extract(client_trace(request.headers)),
            SpanKind.SERVER,
            asked,
            start_time=begun,
        )
        self._call = tracer.start_span(
            span_name(exchange),
            set_span_in_context(self._server),
            SpanKind.CLIENT,
            common,
            start_time=begun,
        )
        propagator.inject(self.headers, set_span_in_context(self._call))

    def checked(self, source: Phase, milliseconds: float, unchecked: str | None) -> None:
        """Note a check that has ended now: its duration, and a span where it took a millisecond."""
        result = "passed" if unchecked is None else "unchecked"
        self._figures.checks.record(milliseconds / 1000, {"gen_ai.guardrail.source": source, "result": result})
        if milliseconds < _BRIEF:
            return
        from opentelemetry.trace import set_span_in_context

        ended = time.time_ns()
        named = {"gen_ai.guardrail.component.name": COMPONENT, "gen_ai.guardrail.source": source}
        attributes = {"gen_ai.operation.name": "apply_guardrail", **named}
        span = self._tracer.start_span(
            f"apply_guardrail {COMPONENT}",
            set_span_in_context(self._call),
            attributes=attributes if unchecked is None else {**attributes, "error.type": "unchecked"},
            start_time=ended - int(milliseconds * 1e6),
        )
        span.end(ended)

    def end(self, exchange: Exchange, status: int | None) -> None:
        """End the spans and count the exchange. A refused exchange is not a server error."""
        from opentelemetry.trace import StatusCode

        call, server = self._call, self._server
        call.set_attributes(ending_attributes(exchange))
        if self._content:
            masks, messages = exchange.masks, exchange.messages
            told = messages if masks is None else hide_in_messages(messages, masks)
            call.set_attributes(content_attributes(exchange, told))
        for result in guardrail_results(exchange):
            call.add_event("gen_ai.guardrail.result", result)
        outcome, error = exchange.outcome or Outcome.FAILED, error_type(exchange)
        if outcome in _FAULTS:
            call.set_status(StatusCode.ERROR)
        call.end()
        if server is not None:
            if status is not None:
                server.set_attribute("http.response.status_code", status)
                if status >= 500:
                    server.set_status(StatusCode.ERROR)
            if error is not None:
                server.set_attribute("error.type", error)
            server.end()
        self._figures.count(exchange, self._common, error)


class _GenAiMetrics:
    """The metrics of exchanges."""

    def __init__(self, meter: "Meter") -> None:
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "Time from the request to the end of its response.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens as the upstream counted them.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._first = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "Time from the request to the first byte of a stream.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.checks = meter.create_histogram(
            "gemini_proxy.guardrail.check.duration",
            "s",
            "Duration of checks, with those without a verdict counted apart.",
            explicit_bucket_boundaries_advisory=_CHECK_SECONDS,
        )
        self._violations = meter.create_counter(
            "gemini_proxy.guardrail.violations", "{violation}", "Violations by guardrail and action."
        )

    def count(self, exchange: Exchange, common: Mapping[str, Any], error: str | None) -> None:
        labels = {**common, **({} if error is None else {"error.type": error})}
        self._duration.record(time.perf_counter() - exchange.started_at, labels)
        usage = usage_of(exchange)
        for kind in ("input", "output"):
            if count := usage.get(f"{kind}_tokens"):
                self._tokens.record(count, {**common, "gen_ai.token.type": kind})
        if (seconds := first_chunk_seconds(exchange)) is not None:
            self._first.record(seconds, common)
        for result in guardrail_results(exchange):
            kept = ("gen_ai.guardrail.policy.id", "gen_ai.guardrail.result.value", "gen_ai.guardrail.source")
            self._violations.add(1, {name: result[name] for name in kept})


def _at(endpoint: str | None, signal: str) -> str | None:
    """Return where a signal is posted; None where the environment says, or else the collector of this machine."""
    return None if endpoint is None else f"{endpoint}/v1/{signal}"
