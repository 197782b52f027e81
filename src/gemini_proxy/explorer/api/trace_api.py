"""Traces: list, read, append messages, annotate."""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.dataset_api import dataset_by_id, dataset_by_name
from gemini_proxy.explorer.api.endpoints import Call, document_response
from gemini_proxy.explorer.api.models import annotations_json, outline_json, plain_text, trace_json
from gemini_proxy.explorer.api.push_api import MAX_SOURCE, read_annotation, read_annotations
from gemini_proxy.explorer.app_keys import CATALOGUE, DATASETS, TRACES
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.errors import TooMuchAtOnce
from gemini_proxy.traces.rows import with_messages
from gemini_proxy.traces.trace import Annotation, Trace

NO_TRACE: Final = "Trace not found"
MAX_TRACES_LISTED: Final = 1_000
MAX_MESSAGES: Final = 100_000
"""Messages of one trace: whoever looks at it reads them all."""
_INDEX: Final = re.compile(r"\s*([0-9]{1,10})\s*")
_LARGEST: Final = 2**31 - 1
"""The largest position that the database can hold."""


async def listed_by_name(call: Call) -> object:
    """``GET /api/v1/dataset/byuser/{user}/{dataset}/traces``: see ``_listed``."""
    return await _listed(call, await dataset_by_name(call))


async def listed_by_id(call: Call) -> object:
    """``GET /api/v1/dataset/byid/{dataset_id}/traces``: see ``_listed``."""
    return await _listed(call, await dataset_by_id(call))


async def _listed(call: Call, dataset: Dataset) -> object:
    """A dataset's traces without their messages, the oldest first.

    ``indices`` are places in the dataset, at most 1,000, separated by commas; ``limit`` is at most 1,000, which it
    is where it is not given; ``offset`` is how many to leave out first.
    """
    indices = _indices(call.request.query.get("indices"))
    limit = call.number("limit", MAX_TRACES_LISTED, MAX_TRACES_LISTED)
    offset = call.number("offset", 0, _LARGEST)
    try:
        found = await call.app[CATALOGUE].outlines(dataset, limit, offset, indices)
    except TooMuchAtOnce:
        raise BadRequest("The metadata of these traces is too much for one answer: ask for fewer with limit") from None
    return [outline_json(one) for one in found]


async def whole(call: Call) -> object:
    """``GET /api/v1/trace/{id}``"""
    found = await call.app[CATALOGUE].stored(call.user, call.id("trace_id", NO_TRACE))
    if found is None:
        raise NotFound(NO_TRACE)
    trace = found.trace
    dataset = None if trace.dataset is None else await call.app[DATASETS].get(call.user, trace.dataset)
    shown = trace_json(trace, dataset.id if dataset else None, found.annotations)
    return document_response(await asyncio.to_thread(with_messages, shown, found.messages))


async def messages(call: Call) -> object:
    """``GET /api/v1/trace/{id}/messages``: the list of them."""
    found = await call.app[CATALOGUE].messages(call.user, call.id("trace_id", NO_TRACE))
    if found is None:
        raise NotFound(NO_TRACE)
    return document_response(found)


async def append(call: Call) -> object:
    """``POST /api/v1/trace/{id}/messages``: merged with those that are there by their timestamps."""
    trace_id = call.id("trace_id", NO_TRACE)
    given = await call.json()
    now = time.time()
    added = read_messages(given.get("messages"), now)
    annotations = () if given.get("annotations") is None else read_annotations(given["annotations"])

    def change(trace: Trace) -> Trace:
        together = merge(trace.messages, added, trace.created)
        if len(together.messages) > MAX_MESSAGES:
            raise BadRequest(f"a trace must not hold more than {MAX_MESSAGES} messages")
        moved = tuple(together.moved(annotation) for annotation in trace.annotations)
        return replace(trace, messages=together.messages, annotations=moved + annotations)

    if not await call.app[TRACES].change(call.user, trace_id, change):
        raise NotFound(NO_TRACE)
    return {"success": True}


async def annotations(call: Call) -> object:
    """``GET /api/v1/trace/{id}/annotations``: the oldest first."""
    trace_id = call.id("trace_id", NO_TRACE)
    found = await call.app[CATALOGUE].annotations(call.user, trace_id)
    if found is None:
        raise NotFound(NO_TRACE)
    return annotations_json(trace_id, call.user, found)


async def annotate(call: Call) -> object:
    """``POST /api/v1/trace/{id}/annotate``: the annotation, with its id."""
    trace_id = call.id("trace_id", NO_TRACE)
    added = read_annotation(await call.json())
    stored = await call.app[CATALOGUE].annotate(call.user, trace_id, added)
    if stored is None:
        raise NotFound(NO_TRACE)
    return annotations_json(trace_id, call.user, [stored])[0]


async def update_annotations(call: Call) -> object:
    """``POST /api/v1/trace/{id}/annotations/update``: those from ``source`` are replaced by ``annotations``.

    They are from ``source`` then, whatever they say themselves.
    """
    trace_id = call.id("trace_id", NO_TRACE)
    given = await call.json()
    source = plain_text(given, "source", "Source must be a string", MAX_SOURCE)
    added = [replace(one, source=source) for one in read_annotations(given.get("annotations"))]
    deleted = await call.app[CATALOGUE].replace_annotations(call.user, trace_id, source, added)
    if deleted is None:
        raise NotFound(NO_TRACE)
    return {"deleted": deleted, "inserted": len(added)}


def _indices(given: str | None) -> Sequence[int] | None:
    """Places in a dataset; those larger than any are left out. Raises BadRequest."""
    if given is None:
        return None
    found = [_INDEX.fullmatch(one) for one in given.split(",")]
    if len(found) > MAX_TRACES_LISTED or not all(found):
        raise BadRequest(f"indices must be at most {MAX_TRACES_LISTED} numbers from 0, separated by commas")
    numbers = sorted({int(one[1]) for one in found if one})
    return [number for number in numbers if number <= _LARGEST]


_MESSAGE = re.compile(r"messages\.([0-9]+)(?=[.:]|$)")
_DIGITS = 9
_MALFORMED = "Invalid messages format - expected a non-empty list of dictionaries"


def read_messages(value: object, now: float) -> list[dict[str, Any]]:
    """New messages, each with a timestamp in UTC: its own, read as UTC where it names no zone, or else ``now``.

    Raises BadRequest for what is no list of objects, an empty one, and a timestamp that is not ISO 8601.
    """
    if not isinstance(value, list) or not value or any(type(message) is not dict for message in value):
        raise BadRequest(_MALFORMED)
    arrived = datetime.fromtimestamp(now, UTC).isoformat()
    return [{**message, "timestamp": _timestamp(message.get("timestamp"), arrived)} for message in value]


@dataclass(frozen=True, slots=True)
class Merged:
    """``places`` are the indexes at which the messages that were there are now."""

    messages: Sequence[Mapping[str, Any]]
    places: Sequence[int]

    def moved(self, annotation: Annotation) -> Annotation:
        """An annotation of a message that was there, with the address that the message has now."""
        found = _MESSAGE.match(annotation.address)
        if found is None or len(found[1]) > _DIGITS or int(found[1]) >= len(self.places):
            return annotation
        address = f"messages.{self.places[int(found[1])]}{annotation.address[found.end() :]}"
        return replace(annotation, address=address)


def merge(before: Sequence[Mapping[str, Any]], added: Sequence[Mapping[str, Any]], created: float) -> Merged:
    """Both lists in one, in the order of time; each keeps its own order, and what is there goes first at one moment.

    A message that is there without a readable timestamp is from the moment of ``created``.
    """
    merged: list[Mapping[str, Any]] = []
    places: list[int] = []
    times = [_moment(message.get("timestamp"), created) for message in before]

    def take() -> None:
        merged.append(before[len(places)])
        places.append(len(merged) - 1)

    for message in added:
        moment = _moment(message.get("timestamp"), created)
        while len(places) < len(before) and times[len(places)] <= moment:
            take()
        merged.append(message)
    while len(places) < len(before):
        take()
    return Merged(merged, places)


def _timestamp(given: object, arrived: str) -> str:
    if given is None:
        return arrived
    moment = _read(given)
    if moment is None:
        raise BadRequest(
            "Invalid timestamp format in message. Expected format: ISO 8601, e.g., 2025-01-23T10:30:00+00:00"
        )
    return moment.isoformat()


def _moment(given: object, created: float) -> datetime:
    return _read(given) or datetime.fromtimestamp(created, UTC)


def _read(given: object) -> datetime | None:
    """A moment in UTC; None for what is no text of one, or lies outside the years that can be written."""
    if not isinstance(given, str):
        return None
    try:
        moment = datetime.fromisoformat(given)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
