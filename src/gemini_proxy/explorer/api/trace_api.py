"""Serve the API's routes for traces: list, read, append messages, annotate, try rules, reveal masked values."""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.dataset_api import dataset_by_id, dataset_by_name
from gemini_proxy.explorer.api.endpoints import ApiCall, document_response, require_operator
from gemini_proxy.explorer.api.request_bodies import (
    AnnotationCreation,
    AnnotationReplacement,
    MessageAppend,
    PlaceholderChoice,
    read_annotations,
)
from gemini_proxy.explorer.api.response_bodies import (
    AnnotationView,
    MaskedValueView,
    ReplacedView,
    SuccessView,
    TraceOutlineView,
    TriedGuardrailView,
    annotation_views,
    trace_head_view,
    trace_outline_view,
    tried_guardrail_view,
)
from gemini_proxy.explorer.app_keys import CATALOGUE, DATASETS, MASKED_VALUES, TRACES
from gemini_proxy.explorer.checks import MAX_TRIED_BYTES, try_rules_in_force
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.errors import TooMuchAtOnce
from gemini_proxy.traces.keys import Identity
from gemini_proxy.traces.masked_values import Revealed
from gemini_proxy.traces.rows import with_messages
from gemini_proxy.traces.trace import Annotation, Trace

NO_TRACE: Final = "Trace not found"
SEES_VALUES: Final = "sees masked values"
MAX_TRACES_LISTED: Final = 1_000
MAX_MESSAGES: Final = 100_000
"""Messages of one trace; to view the trace is to read them all."""
_INDEX: Final = re.compile(r"\s*([0-9]{1,10})\s*")
_LARGEST: Final = 2**31 - 1
"""The largest position that the database can hold."""
_MESSAGE: Final = re.compile(r"messages\.([0-9]+)(?=[.:]|$)")
_DIGITS: Final = 9


async def list_traces_by_name(call: ApiCall) -> list[TraceOutlineView]:
    """List a dataset's traces without their messages, the oldest first."""
    return await _traces(call, await dataset_by_name(call))


async def list_traces_by_id(call: ApiCall) -> list[TraceOutlineView]:
    """List a dataset's traces without their messages, the oldest first."""
    return await _traces(call, await dataset_by_id(call))


async def show_trace(call: ApiCall) -> object:
    """Show a trace with its messages and annotations."""
    stored = await call.app[CATALOGUE].stored(call.user, call.id("trace_id", NO_TRACE))
    if stored is None:
        raise NotFound(NO_TRACE)
    trace = stored.trace
    dataset = None if trace.dataset is None else await call.app[DATASETS].get(call.user, trace.dataset)
    head = trace_head_view(trace, dataset.id if dataset else None, stored.annotations)
    return document_response(await asyncio.to_thread(with_messages, head, stored.messages))


async def show_messages(call: ApiCall) -> object:
    """Show the messages of a trace."""
    messages = await call.app[CATALOGUE].messages(call.user, call.id("trace_id", NO_TRACE))
    if messages is None:
        raise NotFound(NO_TRACE)
    return document_response(messages)


async def try_rules(call: ApiCall) -> list[TriedGuardrailView]:
    """Run the rules in force on a trace: those of the policy files and of its dataset."""
    stored = await call.app[CATALOGUE].stored(call.user, call.id("trace_id", NO_TRACE))
    if stored is None:
        raise NotFound(NO_TRACE)
    if len(stored.messages) > MAX_TRIED_BYTES:
        raise BadRequest("The trace is too long to try rules on here")
    return [tried_guardrail_view(tried) for tried in await try_rules_in_force(call.app, call.user, stored)]


async def reveal_value(call: ApiCall) -> MaskedValueView:
    """Show the value behind a placeholder of a trace, to a key with the role operator. The audit log records this."""
    require_operator(call.identity, SEES_VALUES)
    trace_id, placeholder = call.id("trace_id", NO_TRACE), (await call.body(PlaceholderChoice)).placeholder
    stored = await call.app[CATALOGUE].stored(call.user, trace_id)
    if stored is None:
        raise NotFound(NO_TRACE)
    found = await reveal(call.app, stored.trace, placeholder, call.identity)
    value = found.value if found.state == "read" else None
    return {"placeholder": found.placeholder, "state": found.state, "value": value}


async def reveal(app: web.Application, trace: Trace, placeholder: str, identity: Identity) -> Revealed:
    """Return the value behind a placeholder of a trace. Raise Forbidden unless the caller is an operator."""
    require_operator(identity, SEES_VALUES)
    values = app[MASKED_VALUES]()
    if values is None:
        return Revealed(placeholder, "not_kept")
    return await values.reveal(trace, placeholder, identity.named)


async def append_messages(call: ApiCall) -> SuccessView:
    """Add messages to a trace, merged with the existing ones by their timestamps, and annotations."""
    trace_id = call.id("trace_id", NO_TRACE)
    appended = await call.body(MessageAppend)
    added = with_timestamps(appended.messages, time.time())
    annotations = await asyncio.to_thread(read_annotations, appended.annotations or ())

    def change(trace: Trace) -> Trace:
        merged = merge(trace.messages, added, trace.created)
        if len(merged.messages) > MAX_MESSAGES:
            raise BadRequest(f"A trace must not hold more than {MAX_MESSAGES} messages")
        moved = tuple(merged.moved(annotation) for annotation in trace.annotations)
        return replace(trace, messages=merged.messages, annotations=moved + annotations)

    if not await call.app[TRACES].change(call.user, trace_id, change):
        raise NotFound(NO_TRACE)
    return {"success": True}


async def show_annotations(call: ApiCall) -> list[AnnotationView]:
    """List a trace's annotations, the oldest first."""
    trace_id = call.id("trace_id", NO_TRACE)
    annotations = await call.app[CATALOGUE].annotations(call.user, trace_id)
    if annotations is None:
        raise NotFound(NO_TRACE)
    return annotation_views(trace_id, call.user, annotations)


async def annotate_trace(call: ApiCall) -> AnnotationView:
    """Annotate a trace. Show the annotation with its id."""
    trace_id = call.id("trace_id", NO_TRACE)
    creation = await call.body(AnnotationCreation)
    stored = await call.app[CATALOGUE].annotate(call.user, trace_id, creation.annotation())
    if stored is None:
        raise NotFound(NO_TRACE)
    return annotation_views(trace_id, call.user, [stored])[0]


async def replace_annotations(call: ApiCall) -> ReplacedView:
    """Replace a trace's annotations from one source."""
    trace_id = call.id("trace_id", NO_TRACE)
    replacement = await call.body(AnnotationReplacement)
    source = replacement.source
    annotations = await asyncio.to_thread(read_annotations, replacement.annotations)
    added = [replace(annotation, source=source) for annotation in annotations]
    deleted = await call.app[CATALOGUE].replace_annotations(call.user, trace_id, source, added)
    if deleted is None:
        raise NotFound(NO_TRACE)
    return {"deleted": deleted, "inserted": len(added)}


async def _traces(call: ApiCall, dataset: Dataset) -> list[TraceOutlineView]:
    indices = _indices(call.request.query.get("indices"))
    limit = call.number("limit", MAX_TRACES_LISTED, MAX_TRACES_LISTED)
    offset = call.number("offset", 0, _LARGEST)
    try:
        outlines = await call.app[CATALOGUE].outlines(dataset, limit, offset, indices)
    except TooMuchAtOnce:
        raise BadRequest(
            "The metadata of these traces is too large for one response: ask for fewer traces with limit"
        ) from None
    return [trace_outline_view(outline) for outline in outlines]


def _indices(text: str | None) -> Sequence[int] | None:
    """Return the positions in a list such as ``0,7``, sorted, without those that no trace has. Raise BadRequest."""
    if text is None:
        return None
    matches = [_INDEX.fullmatch(item) for item in text.split(",")]
    if len(matches) > MAX_TRACES_LISTED or not all(matches):
        raise BadRequest(f"indices must be at most {MAX_TRACES_LISTED} numbers from 0, separated by commas")
    numbers = sorted({int(match[1]) for match in matches if match})
    return [number for number in numbers if number <= _LARGEST]


def with_timestamps(messages: Sequence[Mapping[str, Any]], now: float) -> list[dict[str, Any]]:
    """Return new messages, each with a timestamp in UTC: its own, read as UTC if it names no zone, or else ``now``.

    Raise BadRequest for a timestamp that is not ISO 8601.
    """
    arrived = datetime.fromtimestamp(now, UTC).isoformat()
    return [{**message, "timestamp": _timestamp(message.get("timestamp"), arrived)} for message in messages]


@dataclass(frozen=True, slots=True)
class Merged:
    """Messages in the order of time; ``indexes`` are the new positions of the messages that were there before."""

    messages: Sequence[Mapping[str, Any]]
    indexes: Sequence[int]

    def moved(self, annotation: Annotation) -> Annotation:
        """Return an annotation of a message that was there before, with the message's new address."""
        match = _MESSAGE.match(annotation.address)
        if match is None or len(match[1]) > _DIGITS or int(match[1]) >= len(self.indexes):
            return annotation
        address = f"messages.{self.indexes[int(match[1])]}{annotation.address[match.end() :]}"
        return replace(annotation, address=address)


def merge(before: Sequence[Mapping[str, Any]], added: Sequence[Mapping[str, Any]], created: float) -> Merged:
    """Merge ``added`` into the messages ``before`` in the order of time; at the same moment ``before`` goes first.

    Both keep their own order. A message without a readable timestamp counts as one of the moment ``created``.
    """
    merged: list[Mapping[str, Any]] = []
    indexes: list[int] = []
    times = [_moment(message.get("timestamp"), created) for message in before]

    def take() -> None:
        merged.append(before[len(indexes)])
        indexes.append(len(merged) - 1)

    for message in added:
        moment = _moment(message.get("timestamp"), created)
        while len(indexes) < len(before) and times[len(indexes)] <= moment:
            take()
        merged.append(message)
    while len(indexes) < len(before):
        take()
    return Merged(merged, indexes)


def _timestamp(timestamp: object, arrived: str) -> str:
    if timestamp is None:
        return arrived
    moment = _read(timestamp)
    if moment is None:
        raise BadRequest(
            "Invalid timestamp format in message. Expected format: ISO 8601, e.g., 2025-01-23T10:30:00+00:00"
        )
    return moment.isoformat()


def _moment(timestamp: object, created: float) -> datetime:
    return _read(timestamp) or datetime.fromtimestamp(created, UTC)


def _read(timestamp: object) -> datetime | None:
    """Return a timestamp as a moment in UTC; None if it is not ISO 8601, or outside the years 1 to 9999."""
    if not isinstance(timestamp, str):
        return None
    try:
        moment = datetime.fromisoformat(timestamp)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
