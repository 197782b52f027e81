"""Traces as rows of the tables, and back."""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import RowMapping

from gemini_proxy.traces.errors import RowRejected
from gemini_proxy.traces.redact import redact_json
from gemini_proxy.traces.trace import Annotation, Outcome, Trace

LOG_RULES = "log_rules"

# The order of the tuples below: the columns' order in the schema.
TRACE_KEYS: Final = (
    "id",
    "created",
    "dataset",
    "tenant",
    "outcome",
    "model",
    "stream",
    "duration_ms",
    "metadata",
    "messages",
)
ANNOTATION_KEYS: Final = ("trace_id", "content", "address", "source", "guardrail", "created")
JOB_KEYS: Final = ("trace_id", "kind", "payload", "created", "due", "attempts")


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A trace serialised: parameters for the inserts, in the order of the key tuples above."""

    trace: tuple[Any, ...]
    annotations: tuple[tuple[Any, ...], ...]
    jobs: tuple[tuple[Any, ...], ...]


def encode(trace: Trace) -> TraceRow:
    """Serialise a trace; keys are redacted in its metadata. Raises RowRejected when it cannot be written as JSON."""
    identity, created = trace.id, trace.created
    row = (
        identity,
        created,
        _text(trace.dataset),
        trace.tenant,
        trace.outcome.value,
        _text(trace.model),
        trace.stream,
        trace.duration_ms,
        redact_json(dump(trace.metadata)),
        dump_messages(trace.messages),
    )
    jobs = ((identity, LOG_RULES, dump(trace.log_rules), created, created, 0),) if trace.log_rules else ()
    return TraceRow(row, annotation_rows(identity, trace.annotations, created), jobs)


def annotation_rows(trace_id: str, annotations: Iterable[Annotation], created: float) -> tuple[tuple[Any, ...], ...]:
    """Annotations as insert parameters. Raises RowRejected."""
    return tuple(
        (trace_id, _text(a.content), _text(a.address), _text(a.source), dump(a.guardrail), created) for a in annotations
    )


def decode(row: RowMapping, annotations: Iterable[Annotation]) -> Trace:
    """A trace from its row and annotations."""
    return Trace(
        id=row["id"],
        created=row["created"],
        dataset=row["dataset"],
        tenant=row["tenant"],
        outcome=Outcome(row["outcome"]),
        model=row["model"],
        stream=row["stream"],
        duration_ms=row["duration_ms"],
        metadata=load(row["metadata"]),
        messages=load(row["messages"]),
        annotations=tuple(annotations),
    )


def decode_annotation(row: RowMapping) -> Annotation:
    """An annotation from its row."""
    return Annotation(row["content"], row["address"], row["source"], load(row["guardrail"]))


def dump(value: object) -> bytes:
    """JSON for any value: what JSON lacks becomes text. Raises RowRejected for a cycle or boundless depth."""
    try:
        return orjson.dumps(value, _plain, orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return _dump_slowly(value)


def _dump_slowly(value: object) -> bytes:
    """For what orjson refuses and a JSON document may hold: lone surrogates, integers over 64 bits, depth over 254."""
    try:
        return json.dumps(value, default=_plain, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RowRejected(f"a trace cannot be written as JSON ({type(error).__name__})") from None


def dump_messages(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """A list of messages, one at a time: orjson keeps the interpreter to itself for the length of a call."""
    return b"[" + b",".join([dump(message) for message in messages]) + b"]"


def load(document: bytes) -> Any:
    """The value that ``dump`` wrote."""
    try:
        return orjson.loads(document)
    except orjson.JSONDecodeError:
        return json.loads(document)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, Sequence | Set):
        return list(value)
    return f"<{type(value).__name__}>"


def _text(text: str | None) -> str | None:
    """Text that every database takes: no lone surrogates, no NUL (which PostgreSQL refuses)."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")
