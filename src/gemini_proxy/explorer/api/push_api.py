"""What a push brings, read from its JSON: traces with their annotations and metadata, and what our own proxy adds."""

import asyncio
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gemini_proxy.errors import BadRequest
from gemini_proxy.explorer.api.endpoints import Call
from gemini_proxy.explorer.api.models import dataset_name, mapping, member, objects, plain_text
from gemini_proxy.explorer.app_keys import CATALOGUE, DATASETS, FEED, TRACES
from gemini_proxy.http.browser_guard import is_same_origin
from gemini_proxy.traces.annotation_bounds import MAX_ANNOTATIONS
from gemini_proxy.traces.errors import RowRejected
from gemini_proxy.traces.rows import TraceRow, dump, encode
from gemini_proxy.traces.trace import Annotation, Outcome, Trace

MAX_TRACES_PUSHED: Final = 1_000
"""Traces of one push: they are written in one transaction."""
MAX_TRACE_METADATA_BYTES: Final = 1_048_576
"""What may be said of one trace, as JSON: listings show it."""
MAX_RULE_NAME: Final = 256
"""Characters of the name of an annotation's rule: traces are looked up by it."""
MAX_SOURCE: Final = 256
"""Characters of what an annotation is from: annotations are counted, listed and replaced by it."""
USER_SOURCE: Final = "user"
"""The source of annotations that name none."""
RECORD: Final = "gemini_proxy"
"""The member of a trace's metadata in which a proxy like this one says how the exchange went."""
_MAX_MODEL: Final = 256
_RECORD_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")


@dataclass(frozen=True, slots=True)
class Push:
    """The traces of one push in order, and the dataset they go to. Traces that are the same one have the same id."""

    traces: tuple[Trace, ...]
    dataset: str | None


def read_push(body: Mapping[str, Any], owner: str, uploader: str, now: float) -> Push:
    """Raises BadRequest in the words that Invariant's clients know."""
    messages = _messages(body.get("messages"))
    annotations = _beside(body.get("annotations"), "annotations", len(messages))
    described = _beside(body.get("metadata"), "metadata", len(messages))
    dataset = None
    if body.get("dataset") is not None:
        dataset = dataset_name(member(body, "dataset", str, "dataset name must be a string"))
    counted = sum(len(some) for some in annotations or () if isinstance(some, list))
    if counted > MAX_ANNOTATIONS:
        raise BadRequest(f"a push must not hold more than {MAX_ANNOTATIONS} annotations")
    traces = []
    for index, conversation in enumerate(messages):
        metadata = _metadata(described[index] if described else None, uploader)
        marks = read_annotations(annotations[index] if annotations else [])
        traces.append(_trace(conversation, metadata, marks, owner, dataset, now))
    return Push(tuple(traces), dataset)


def read_annotations(value: object) -> tuple[Annotation, ...]:
    """A list of annotations as clients send them. Raises BadRequest."""
    given = objects(value, "annotations must be a list of annotations")
    if len(given) > MAX_ANNOTATIONS:
        raise BadRequest(f"there must not be more than {MAX_ANNOTATIONS} annotations")
    return tuple(read_annotation(one) for one in given)


def read_annotation(given: Mapping[str, Any]) -> Annotation:
    """One annotation. Raises BadRequest."""
    content = member(given, "content", str, "an annotation's content must be a string")
    address = member(given, "address", str, "an annotation's address must be a string")
    extra = mapping(given, "extra_metadata", "an annotation's extra_metadata must be a dictionary")
    source = plain_text(extra, "source", "an annotation's source must be a string", MAX_SOURCE, USER_SOURCE)
    guardrail = mapping(extra, "guardrail", "an annotation's guardrail must be a dictionary")
    plain_text(guardrail, "name", "the name of an annotation's guardrail must be a string", MAX_RULE_NAME, "")
    rest = {key: value for key, value in extra.items() if key not in ("source", "guardrail")}
    return Annotation(content, address, source, guardrail, rest)


def _messages(value: object) -> Sequence[Sequence[dict[str, Any]]]:
    if not isinstance(value, list):
        raise BadRequest("messages must be a list of traces")
    if not value:
        raise BadRequest("messages must not be empty")
    if len(value) > MAX_TRACES_PUSHED:
        raise BadRequest(f"a push must not hold more than {MAX_TRACES_PUSHED} traces")
    return [objects(trace, "messages must be a list of traces") for trace in value]


def _beside(value: object, name: str, count: int) -> Sequence[Any] | None:
    """A list with one entry for each trace, or None."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise BadRequest(f"{name} must be a list of {name}")
    if len(value) != count:
        raise BadRequest(f"{name} must be the same length as messages")
    return value


def _metadata(value: object, uploader: str) -> dict[str, Any]:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise BadRequest("metadata must be a list of metadata")
    member(value, "name", str, "metadata.name must be a string", "")
    path = member(value, "hierarchy_path", list, "metadata.hierarchy_path must be a list of strings", [])
    if any(type(step) is not str for step in path):
        raise BadRequest("metadata.hierarchy_path must be a list of strings")
    if len(dump(value)) > MAX_TRACE_METADATA_BYTES:
        raise BadRequest(f"the metadata of a trace must not be larger than {MAX_TRACE_METADATA_BYTES} bytes")
    return {**value, "uploader": uploader}


def _trace(
    messages: Sequence[Mapping[str, Any]],
    metadata: Mapping[str, Any],
    annotations: tuple[Annotation, ...],
    owner: str,
    dataset: str | None,
    now: float,
) -> Trace:
    """A trace with an id of its own; or, of an exchange of a proxy, with what that recorded."""
    if RECORD not in metadata:
        return Trace(
            str(uuid.uuid4()), now, Outcome.PUSHED, messages, dataset, owner, annotations=annotations, metadata=metadata
        )
    record = mapping(metadata, RECORD, _wrong("", "an object"))
    return Trace(
        pushed_id(owner, _record_id(record)),
        # Another machine's clock may be ahead.
        min(_number(record, "created", now), now),
        _outcome(record),
        messages,
        dataset,
        owner,
        model=_model(record),
        stream=member(record, "stream", bool, _wrong("stream", "a boolean"), False),
        annotations=annotations,
        metadata=metadata,
        duration_ms=_number(record, "duration_ms", 0.0),
    )


def pushed_id(owner: str, record_id: str) -> str:
    """The id under which a user's push of a recorded exchange is kept: the same for every push of it."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"gemini-proxy:{owner}:{record_id}"))


def _record_id(record: Mapping[str, Any]) -> str:
    given = member(record, "id", str, _wrong("id", "a string"))
    if not _RECORD_ID.fullmatch(given):
        raise BadRequest(_wrong("id", "an id"))
    return given


def _outcome(record: Mapping[str, Any]) -> Outcome:
    """How the exchange ended; one that only a later version knows is kept in the metadata, and here as pushed."""
    given = member(record, "outcome", str, _wrong("outcome", "an outcome"), Outcome.PUSHED.value)
    try:
        return Outcome(given)
    except ValueError:
        return Outcome.PUSHED


def _model(record: Mapping[str, Any]) -> str | None:
    if record.get("model") is None:
        return None
    model = member(record, "model", str, _wrong("model", "a string"))
    if len(model) > _MAX_MODEL:
        raise BadRequest(_wrong("model", f"a string of at most {_MAX_MODEL} characters"))
    return model


def _number(record: Mapping[str, Any], name: str, default: float) -> float:
    value = record.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or value < 0:
        raise BadRequest(_wrong(name, "a number from 0"))
    return float(value)


def _wrong(name: str, expected: str) -> str:
    return f"metadata.{RECORD}{'.' if name else ''}{name} must be {expected}"


Rows = dict[str, TraceRow]
_TRIES: Final = 3
"""How often a push is written anew because another one brought a trace of it in between."""


async def push_trace(call: Call) -> object:
    """``POST /api/v1/push/trace``: the ids of the traces in order; their dataset is made if it is missing.

    At most 1,000 traces and 10,000 annotations. A trace whose metadata has ``gemini_proxy.id`` is kept once: pushed
    again by the same user, be it at the same time, it has the same id and nothing is written.
    """
    body = await call.json()
    # A thread gives the loop its turn while a large push is read and serialised.
    pushed, rows = await asyncio.to_thread(_prepare, body, call.user, _uploader(call))
    await _keep(call, rows, pushed.dataset)
    call.app[FEED].committed()
    return _answer(call, pushed)


def _prepare(body: Mapping[str, Any], user: str, uploader: str) -> tuple[Push, Rows]:
    pushed = read_push(body, user, uploader, time.time())
    return pushed, {trace.id: encode(trace) for trace in pushed.traces}


async def _keep(call: Call, rows: Rows, dataset: str | None) -> None:
    """Write what is not there yet, each once. Raises TooMany for a dataset that cannot be made."""
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


def _answer(call: Call, pushed: Push) -> dict[str, object]:
    dataset = {} if pushed.dataset is None else {"dataset": pushed.dataset}
    return {"id": [trace.id for trace in pushed.traces], **dataset, "username": call.user}


def _uploader(call: Call) -> str:
    if call.key:
        return f"Via API ...{call.key[-5:]}"
    return "Via browser" if is_same_origin(call.request) else "Via API"
