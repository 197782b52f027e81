"""A receiver of OTLP over HTTP on a real socket, which reads protobuf as collectors do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    status: int
    attributes: Mapping[str, Any]
    events: tuple[tuple[str, Mapping[str, Any]], ...]


@dataclass
class OtlpReceiver:
    """What came: spans, and the points of metrics by name, each with its attributes, count and sum or value.

    It answers while ``gate`` is set.
    """

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    points: dict[str, list[tuple[Mapping[str, Any], Any]]] = field(default_factory=dict)
    resources: list[Mapping[str, Any]] = field(default_factory=list)
    raw: bytes = b""
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def named(self, start: str) -> ReceivedSpan:
        """The one span whose name begins so."""
        [found] = [span for span in self.spans if span.name.startswith(start)]
        return found

    async def traces(self, request: web.Request) -> web.Response:
        await self.gate.wait()
        self.raw += (body := await request.read())
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(_attributes(group.resource.attributes))
            for scope in group.scope_spans:
                self.spans += map(_span, scope.spans)
        return web.Response(content_type="application/x-protobuf")

    async def metrics(self, request: web.Request) -> web.Response:
        self.raw += (body := await request.read())
        for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in group.scope_metrics:
                for metric in scope.metrics:
                    for point in (*metric.histogram.data_points, *metric.sum.data_points):
                        value = (point.count, point.sum) if hasattr(point, "count") else point.as_int
                        self.points.setdefault(metric.name, []).append((_attributes(point.attributes), value))
        return web.Response(content_type="application/x-protobuf")


def _span(span: Any) -> ReceivedSpan:
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    events = tuple((event.name, _attributes(event.attributes)) for event in span.events)
    return ReceivedSpan(span.name, span.kind, *ids, span.status.code, _attributes(span.attributes), events)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextlib.asynccontextmanager
async def otlp_receiver() -> AsyncIterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.traces)
    app.router.add_post("/v1/metrics", receiver.metrics)
    async with TestServer(app, host="127.0.0.1") as server:
        receiver.gate.set()
        receiver.url = f"http://127.0.0.1:{server.port}"
        yield receiver
        receiver.gate.set()
