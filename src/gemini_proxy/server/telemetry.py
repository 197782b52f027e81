"""Report exchanges to OpenTelemetry: spans, metrics and guardrail results, sent by OTLP over HTTP. The extra ``otel``.

Only this module imports the SDK, and only if it is switched on. The SDK sends in threads of its own: no exchange waits
for it, and data that a receiver does not take in time is dropped. Names are those of the conventions for generative AI,
of which those for guardrails are a draft.
"""

import asyncio
import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from gemini_proxy.gemini.fields import camel_case
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.refusal import Phase
from gemini_proxy.guardrails.masking import hide_in_messages
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.sections import Telemetry as TelemetrySettings
from gemini_proxy.traces.clock import is_set_within
from gemini_proxy.traces.redact import redact
from gemini_proxy.traces.rows import dump
from gemini_proxy.traces.trace import Outcome

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Span, Tracer

Value = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, Value]

_SCOPE: Final = "gemini_proxy"
_BRIEF: Final = 1.0
"""Milliseconds of a check that gets no span of its own."""
_PATIENCE: Final = 5.0
"""Seconds for what was not sent yet when the server stops."""
_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS: Final = tuple(4.0**power for power in range(14))
_CHECK_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_FAULTS: Final = (Outcome.FAILED, Outcome.UPSTREAM_ERROR, Outcome.UPSTREAM_CUT)
_REFUSED: Final = "guardrail_refused"
"""``error.type`` of an exchange that a guardrail ended."""
_COMPONENT: Final = "gemini-proxy"
_MOST_CONTENT: Final = 262_144
"""Bytes of an exchange whose content is sent: writing it down takes the event loop a millisecond."""
_NAME: Final = 200
_PARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MEMBER: Final = r"[a-z0-9][a-z0-9_*/@-]{0,255}=[!-+\--<>-~]{1,256}"
_STATE: Final = re.compile(rf"(?=.{{1,512}}\Z){_MEMBER}(?:,{_MEMBER}){{0,31}}")
"""The form of trace headers by W3C's Trace Context, without spaces."""
_OPERATIONS: Final[Mapping[str, str]] = {
    "generateContent": "generate_content",
    "streamGenerateContent": "generate_content",
    "embedContent": "embeddings",
    "batchEmbedContents": "embeddings",
    "createInteraction": "interactions.create",
    "getInteraction": "fetch_response",
    "openaiChatCompletions": "chat",
    "openaiEmbeddings": "embeddings",
    "bidiGenerateContent": "generate_content",
}
_PROVIDERS: Final[Mapping[str, str]] = {"gemini": "gcp.gemini", "vertex": "gcp.vertex_ai"}
# By their names in camelCase, the form of a generation's settings here.
_SETTINGS: Final[Mapping[str, tuple[str, type]]] = {
    "temperature": ("gen_ai.request.temperature", float),
    "topP": ("gen_ai.request.top_p", float),
    "topK": ("gen_ai.request.top_k", float),
    "seed": ("gen_ai.request.seed", int),
    "maxOutputTokens": ("gen_ai.request.max_tokens", int),
    "candidateCount": ("gen_ai.request.choice.count", int),
    "frequencyPenalty": ("gen_ai.request.frequency_penalty", float),
    "presencePenalty": ("gen_ai.request.presence_penalty", float),
}
_ROLES: Final[Mapping[str, str]] = {"user": "user", "assistant": "assistant", "tool": "tool"}


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
        own = {"service.name": _COMPONENT, "service.version": version(_COMPONENT), "service.instance.id": instance}
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
        common = _common_attributes(exchange, self._host, self._port)
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
                _span_name(exchange), kind=SpanKind.CLIENT, attributes=common, start_time=begun
            )
            return
        propagator = TraceContextTextMapPropagator()
        route = exchange.call.row.paths[0]
        asked = {"http.request.method": request.method, "http.route": route, "url.path": plain(request.path)}
        self._server = tracer.start_span(
            f"{request.method} {route}",
            propagator.extract(_client_trace(request.headers)),
            SpanKind.SERVER,
            asked,
            start_time=begun,
        )
        self._call = tracer.start_span(
            _span_name(exchange),
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
        named = {"gen_ai.guardrail.component.name": _COMPONENT, "gen_ai.guardrail.source": source}
        attributes = {"gen_ai.operation.name": "apply_guardrail", **named}
        span = self._tracer.start_span(
            f"apply_guardrail {_COMPONENT}",
            set_span_in_context(self._call),
            attributes=attributes if unchecked is None else {**attributes, "error.type": "unchecked"},
            start_time=ended - int(milliseconds * 1e6),
        )
        span.end(ended)

    def end(self, exchange: Exchange, status: int | None) -> None:
        """End the spans and count the exchange. A refused exchange is not a server error."""
        from opentelemetry.trace import StatusCode

        call, server = self._call, self._server
        call.set_attributes(_ending_attributes(exchange))
        if self._content:
            masks, messages = exchange.masks, exchange.messages
            told = messages if masks is None else hide_in_messages(messages, masks)
            call.set_attributes(_content_attributes(exchange, told))
        for result in _guardrail_results(exchange):
            call.add_event("gen_ai.guardrail.result", result)
        outcome, error = exchange.outcome or Outcome.FAILED, _error_type(exchange)
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
        usage = _usage_of(exchange)
        for kind in ("input", "output"):
            if count := usage.get(f"{kind}_tokens"):
                self._tokens.record(count, {**common, "gen_ai.token.type": kind})
        if (seconds := _first_chunk_seconds(exchange)) is not None:
            self._first.record(seconds, common)
        for result in _guardrail_results(exchange):
            kept = ("gen_ai.guardrail.policy.id", "gen_ai.guardrail.result.value", "gen_ai.guardrail.source")
            self._violations.add(1, {name: result[name] for name in kept})


def _at(endpoint: str | None, signal: str) -> str | None:
    """Return where a signal is posted; None where the environment says, or else the collector of this machine."""
    return None if endpoint is None else f"{endpoint}/v1/{signal}"


def _operation_of(exchange: Exchange) -> str:
    """Return what the model is asked to do."""
    return _OPERATIONS.get(exchange.call.method.value, exchange.call.method.value)


def _span_name(exchange: Exchange) -> str:
    """Return the name of the span around the model's call."""
    model = _model_of(exchange)
    return f"{_operation_of(exchange)} {model}" if model else _operation_of(exchange)


def _model_of(exchange: Exchange) -> str | None:
    """Return the requested model as a plain name; None if none is given."""
    model = exchange.model
    return None if model is None else plain(model)


def _common_attributes(exchange: Exchange, host: str, port: int) -> dict[str, Value]:
    """Return the attributes that spans and metrics have in common."""
    found: dict[str, Value] = {
        "gen_ai.operation.name": _operation_of(exchange),
        "gen_ai.provider.name": _PROVIDERS.get(exchange.call.host, "gcp.gen_ai"),
        "server.address": host,
        "server.port": port,
    }
    if (model := _model_of(exchange)) is not None:
        found["gen_ai.request.model"] = model
    return found


def _ending_attributes(exchange: Exchange) -> dict[str, Value]:
    """Return what is known of an exchange at its end: its settings, response, tokens, and what became of it."""
    merger = exchange.merger
    found: dict[str, Value] = {"gemini_proxy.outcome": str(exchange.outcome or Outcome.FAILED)}
    found["gemini_proxy.trace.id"] = exchange.id
    if exchange.call.dataset:
        found["gemini_proxy.dataset"] = exchange.call.dataset
    if exchange.conversation:
        found["gen_ai.conversation.id"] = plain(exchange.conversation)
    if exchange.call.streams:
        found["gen_ai.request.stream"] = True
    found |= _settings(exchange)
    if merger.response_id:
        found["gen_ai.response.id"] = plain(merger.response_id)
    if merger.model_version:
        found["gen_ai.response.model"] = plain(merger.model_version)
    if reasons := [plain(one.finish_reason) for one in merger.candidates if one.finish_reason]:
        found["gen_ai.response.finish_reasons"] = reasons
    if (seconds := _first_chunk_seconds(exchange)) is not None:
        found["gen_ai.response.time_to_first_chunk"] = seconds
    found |= {f"gen_ai.usage.{kind}": count for kind, count in _usage_of(exchange).items()}
    if (error := _error_type(exchange)) is not None:
        found["error.type"] = error
    return found


def _usage_of(exchange: Exchange) -> dict[str, int]:
    """Return the tokens as the upstream counted them, by the conventions' kinds; without those that are 0."""
    usage = exchange.merger.usage or {}

    def count(*names: str) -> int:
        return sum(value for name in names if type(value := usage.get(name)) is int and 0 < value < 2**40)

    found = {
        "input_tokens": count("promptTokenCount", "toolUsePromptTokenCount"),
        "output_tokens": count("candidatesTokenCount", "thoughtsTokenCount"),
        "reasoning.output_tokens": count("thoughtsTokenCount"),
        "cache_read.input_tokens": count("cachedContentTokenCount"),
    }
    return {kind: value for kind, value in found.items() if value}


def _first_chunk_seconds(exchange: Exchange) -> float | None:
    """Return the seconds to the first byte of a stream that the client got."""
    first = exchange.response.first_byte_at
    return first - exchange.started_at if exchange.call.streams and first is not None else None


def _error_type(exchange: Exchange) -> str | None:
    """Return what went wrong, of a few words; None where nothing did."""
    if exchange.refusal is not None:
        return _REFUSED
    if exchange.upstream_status is not None and exchange.upstream_status >= 400:
        return str(exchange.upstream_status)
    outcome = exchange.outcome or Outcome.FAILED
    return None if outcome in (Outcome.COMPLETED, Outcome.UNCHECKED) else outcome.value


def _guardrail_results(exchange: Exchange) -> Iterator[Attributes]:
    """Yield the attributes of ``gen_ai.guardrail.result`` for each violation: nothing of what was found."""
    before = len(exchange.request.messages) if exchange.request else 0
    for violation in exchange.violations:
        found: dict[str, Value] = {
            "gen_ai.guardrail.component.name": _COMPONENT,
            "gen_ai.guardrail.policy.id": plain(violation.guardrail.name),
            "gen_ai.guardrail.policy.version": violation.guardrail.id,
            "gen_ai.guardrail.result.type": "action",
            "gen_ai.guardrail.result.value": violation.action,
            "gen_ai.guardrail.source": _source(violation.ranges, before),
        }
        yield found


def _content_attributes(exchange: Exchange, messages: Sequence[Message]) -> dict[str, Value]:
    """Return what was said, in the conventions' JSON: ``messages``, which hold what may be told. None of a long one."""
    if exchange.size > _MOST_CONTENT:
        return {}
    asked = len(exchange.request.stored) if exchange.request else 0
    sides = {"gen_ai.input.messages": messages[:asked], "gen_ai.output.messages": messages[asked:]}
    written = {name: dump(list(map(_message, side))) for name, side in sides.items() if side}
    return {name: text.decode() for name, text in written.items() if len(text) <= _MOST_CONTENT}


def _client_trace(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that describe a client's trace, if they are well-formed and hold no key.

    They are the client's words: the SDK would write malformed ones into the log, and send the state on.
    """
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if not _PARENT.fullmatch(parent):
        return {}
    if not _STATE.fullmatch(state) or redact(state) != state:
        return {"traceparent": parent}
    return {"traceparent": parent, "tracestate": state}


def plain(text: str) -> str:
    """Return a name as it can be sent: without keys, cut, and without lone surrogates, which no receiver takes."""
    return str(redact(text))[:_NAME].encode(errors="replace").decode()


def _message(message: Message) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    content = message.get("content")
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []:
        if message.get("role") == "tool":
            parts.append({"type": "tool_call_response", "response": part.get("text", "")})
        elif part.get("type") == "text":
            parts.append({"type": "text", "content": part.get("text", "")})
        else:
            parts.append({"type": str(part.get("type", "blob"))})
    for call in message.get("tool_calls") or ():
        function = call["function"]
        named = {"name": function["name"], "arguments": function["arguments"]}
        parts.append({"type": "tool_call", "id": str(call.get("id", "")), **named})
    role = str(message.get("role", ""))
    told: dict[str, Any] = redact({"role": _ROLES.get(role, role), "parts": parts})
    return told


def _settings(exchange: Exchange) -> dict[str, Value]:
    settings = exchange.request.settings if exchange.request else {}
    config = settings.get("generationConfig", settings.get("generation_config"))
    if not isinstance(config, Mapping):
        return {}
    found: dict[str, Value] = {}
    for name, value in config.items():
        camel = camel_case(name)
        known = _SETTINGS.get(camel)
        if known is not None and isinstance(value, int | float) and _fits(value, known[1]):
            found[known[0]] = int(value) if camel == "topK" else value
        elif camel == "responseMimeType" and value == "application/json":
            found["gen_ai.output.type"] = "json"
    return found


def _fits(value: float, kind: type) -> bool:
    """Tell whether a receiver takes the number: a 64-bit integer, or a float that is one."""
    if isinstance(value, bool) or not abs(value) < 2**63:
        return False
    return kind is float or isinstance(value, int)


def _source(ranges: Sequence[str], before: int) -> str:
    """Return where a violation is, by the first of its ranges."""
    steps = ranges[0].partition(":")[0].split(".") if ranges else []
    index = int(steps[1]) if len(steps) > 1 and steps[1].isdecimal() else 0
    if "tool_calls" in steps:
        return "tool_call"
    return "response" if index >= before else "request"
