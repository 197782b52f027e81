"""Serve the API's route that stores traces recorded elsewhere, each once however often it is pushed."""

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gemini_proxy.errors import BadRequest
from gemini_proxy.explorer.api.endpoints import ApiCall
from gemini_proxy.explorer.api.request_bodies import ProxyRecord, TraceMetadata, TracePush, read_annotations
from gemini_proxy.explorer.api.response_bodies import PushView
from gemini_proxy.explorer.app_keys import CATALOGUE, DATASETS, FEED, TRACES
from gemini_proxy.http.browser_guard import is_same_origin
from gemini_proxy.traces.errors import RowRejected
from gemini_proxy.traces.rows import TraceRow, dump, encode
from gemini_proxy.traces.trace import Annotation, Outcome, Trace, new_id

Rows = dict[str, TraceRow]

MAX_TRACE_METADATA_BYTES: Final = 1_048_576
"""Bytes of one trace's metadata as JSON: listings show it."""
_TRIES: Final = 3
"""Attempts to write a push while other pushes write some of its traces in between."""


async def push_traces(call: ApiCall) -> PushView:
    """Store traces, and create their dataset if it does not exist. Show their ids in order.

    At most 1,000 traces and 100,000 annotations. A trace whose metadata has ``gemini_proxy.id`` is stored once: if the
    same user pushes it again, even at the same time, it has the same id and nothing is written.
    """
    push = await call.body(TracePush)
    # A thread gives the loop its turn while a large push is serialized.
    traces, rows = await asyncio.to_thread(_prepare, push, call.user, _uploader(call))
    await _keep(call, rows, push.dataset)
    call.app[FEED].committed()
    view: PushView = {"id": [trace.id for trace in traces], "username": call.user}
    return view if push.dataset is None else {**view, "dataset": push.dataset}


def _prepare(push: TracePush, user: str, uploader: str) -> tuple[Sequence[Trace], Rows]:
    """Return the traces in order, and their rows by id. A trace that is in the push twice has one row."""
    traces = _traces(push, user, uploader, time.time())
    return traces, {trace.id: encode(trace) for trace in traces}


async def _keep(call: ApiCall, rows: Rows, dataset: str | None) -> None:
    """Write the rows that are not in the database yet. Raise TooMany if the user may have no further dataset."""
    for tries_left in reversed(range(_TRIES)):
        present = await call.app[CATALOGUE].present(rows)
        new = [row for key, row in rows.items() if key not in present]
        if new and dataset is not None:
            await call.app[DATASETS].ensure(call.user, dataset)
        try:
            return await call.app[TRACES].write(new)
        except RowRejected:
            if not tries_left or await call.app[CATALOGUE].present(rows) == present:
                raise


def _uploader(call: ApiCall) -> str:
    if call.key:
        return f"Via API ...{call.key[-5:]}"
    return "Via browser" if is_same_origin(call.request) else "Via API"


def _traces(push: TracePush, owner: str, uploader: str, now: float) -> list[Trace]:
    """Return the traces of a push. Raise BadRequest in the words that Invariant's clients know."""
    count = len(push.messages)
    for name, beside in (("annotations", push.annotations), ("metadata", push.metadata)):
        if beside is not None and len(beside) != count:
            raise BadRequest(f"{name} must be the same length as messages")
    traces = []
    for index, messages in enumerate(push.messages):
        document = push.metadata[index] if push.metadata else None
        metadata = TraceMetadata.read(document or {})
        if len(dump(document or {})) > MAX_TRACE_METADATA_BYTES:
            raise BadRequest(f"The metadata of a trace must not be larger than {MAX_TRACE_METADATA_BYTES} bytes")
        annotations = read_annotations(push.annotations[index]) if push.annotations else ()
        pushed = _Pushed(messages, {**(document or {}), "uploader": uploader}, annotations, owner, push.dataset)
        record = metadata.gemini_proxy
        traces.append(pushed.trace(now) if record is None else pushed.recorded_trace(record, now))
    return traces


@dataclass(frozen=True, slots=True)
class _Pushed:
    """The data that a push has for one trace."""

    messages: Sequence[Mapping[str, Any]]
    metadata: Mapping[str, Any]
    annotations: tuple[Annotation, ...]
    owner: str
    dataset: str | None

    def trace(self, now: float) -> Trace:
        """Return a trace with an id of its own."""
        return Trace(
            new_id(),
            now,
            Outcome.PUSHED,
            self.messages,
            self.dataset,
            self.owner,
            annotations=self.annotations,
            metadata=self.metadata,
        )

    def recorded_trace(self, record: ProxyRecord, now: float) -> Trace:
        """Return the trace of an exchange that a proxy recorded, with what it recorded."""
        return Trace(
            _pushed_id(self.owner, record.id),
            # Another machine's clock may be ahead.
            now if record.created is None else min(record.created, now),
            _outcome(record.outcome),
            self.messages,
            self.dataset,
            self.owner,
            model=record.model,
            stream=bool(record.stream),
            annotations=self.annotations,
            metadata=self.metadata,
            duration_ms=record.duration_ms or 0.0,
        )


def _pushed_id(owner: str, record_id: str) -> str:
    """Return the id under which a user's push of a recorded exchange is kept: the same for every push of it."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"gemini-proxy:{owner}:{record_id}"))


def _outcome(name: str | None) -> Outcome:
    """Return the outcome with that name; PUSHED for none, or one of a later version, which the metadata still names."""
    try:
        return Outcome.PUSHED if name is None else Outcome(name)
    except ValueError:
        return Outcome.PUSHED
