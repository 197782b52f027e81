"""Encode traces as rows of the tables, and decode them."""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import RowMapping

from gemini_proxy.traces.errors import RowRejected
from gemini_proxy.traces.redact import redact_json
from gemini_proxy.traces.trace import Annotation, Outcome, Trace
from gemini_proxy.traces.value_keys import SealedValue

LOG_RULES = "log_rules"
PUSH = "push"
# A push waits for the logging rules of its trace, so that it includes their annotations; but for a day at most.
PUSH_HOLD: Final = 86_400.0
# Characters of a rule's name, or of a message in its place: PostgreSQL takes 2,700 bytes into an index.
MAX_RULE: Final = 200

# The order of the tuples below: the columns' order in the schema.
TRACE_KEYS: Final = (
    "id",
    "dataset",
    "position",
    "created",
    "tenant",
    "outcome",
    "model",
    "stream",
    "duration_ms",
    "metadata",
    "messages",
)
ANNOTATION_KEYS: Final = ("trace_id", "content", "address", "source", "rule", "guardrail", "extra", "created")
JOB_KEYS: Final = ("trace_id", "kind", "payload", "created", "due", "attempts")


class TraceRow(NamedTuple):
    """A trace serialized: parameters for the inserts, in the order of the key tuples above.

    ``trace`` lacks the second and third, which the database assigns: the dataset's number, and the place in it.
    ``masked`` are the values behind its placeholders, which may be there already.
    """

    owner: str
    dataset: str
    created: float
    trace: tuple[Any, ...]
    annotations: tuple[tuple[Any, ...], ...]
    jobs: tuple[tuple[Any, ...], ...]
    masked: tuple[SealedValue, ...] = ()


def encode(trace: Trace, *, short: bool = False) -> TraceRow:
    """Serialize a trace; keys are redacted in its metadata. Raises RowRejected when it cannot be written as JSON.

    With ``short`` its messages are serialized in one call, which keeps the interpreter to itself.
    """
    identity, created = trace.id, trace.created
    row = (
        identity,
        created,
        trace.tenant,
        trace.outcome.value,
        _text(trace.model),
        trace.stream,
        trace.duration_ms,
        redact_json(dump(trace.metadata)),
        dump(trace.messages) if short else dump_messages(trace.messages),
    )
    return TraceRow(
        trace.owner,
        _text(trace.dataset) or "",
        created,
        row,
        annotation_rows(identity, trace.annotations, created) if trace.annotations else (),
        _job_rows(trace),
        trace.masked,
    )


def _job_rows(trace: Trace) -> tuple[tuple[Any, ...], ...]:
    identity, created = trace.id, trace.created
    rules = ((identity, LOG_RULES, dump(trace.log_rules), created, created, 0),) if trace.log_rules else ()
    if not trace.push:
        return rules
    due = created + PUSH_HOLD if rules else created
    return (*rules, (identity, PUSH, b"{}", created, due, 0))


RULE: Final = 4
"""The index of the rule's name in such a row."""


def annotation_rows(trace_id: str, annotations: Iterable[Annotation], created: float) -> tuple[tuple[Any, ...], ...]:
    """Return annotations as insert parameters, in the order of ANNOTATION_KEYS. Raises RowRejected."""
    return tuple(
        (
            trace_id,
            _text(a.content),
            _text(a.address),
            _text(a.source),
            _text(str(a.guardrail.get("name") or a.content)[:MAX_RULE]),
            dump(a.guardrail),
            dump(a.extra),
            created,
        )
        for a in annotations
    )


def decode(row: RowMapping, annotations: Iterable[Annotation]) -> Trace:
    """Decode a trace from its row, joined with its dataset's ``owner`` and ``name``, and its annotations."""
    return replace(decode_apart(row, annotations), messages=load(row["messages"]))


def decode_apart(row: RowMapping, annotations: Iterable[Annotation]) -> Trace:
    """Decode a trace without its messages, which the row need not have."""
    return Trace(
        id=row["id"],
        created=row["created"],
        dataset=row["name"] or None,
        owner=row["owner"],
        tenant=row["tenant"],
        position=row["position"],
        updated=row["updated"],
        outcome=Outcome(row["outcome"]),
        model=row["model"],
        stream=row["stream"],
        duration_ms=row["duration_ms"],
        metadata=load(row["metadata"]),
        messages=(),
        annotations=tuple(annotations),
    )


def decode_annotation(row: RowMapping) -> Annotation:
    """Decode an annotation from its row."""
    return Annotation(row["content"], row["address"], row["source"], load(row["guardrail"]), load(row["extra"]))


def dump(value: object) -> bytes:
    """Serialize any value as JSON: what JSON lacks becomes text. Raises RowRejected for a cycle or boundless depth."""
    try:
        return orjson.dumps(value, _plain, orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return _dump_slowly(value)


def _dump_slowly(value: object) -> bytes:
    """Serialize what orjson refuses and JSON may hold: lone surrogates, integers over 64 bits, depth over 254."""
    try:
        return json.dumps(value, default=_plain, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RowRejected(f"a trace cannot be written as JSON ({type(error).__name__})") from None


def dump_messages(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """Serialize messages one at a time: orjson keeps the interpreter to itself for the length of a call."""
    # Into one buffer: orjson's result for a short message would block four kilobytes from reuse.
    document = bytearray(b"[")
    for message in messages:
        document += dump(message)
        document += b","
    if messages:
        document.pop()
    document += b"]"
    return bytes(document)


def with_messages(rest: Mapping[str, Any], messages: bytes) -> bytes:
    """Serialize ``rest``, which is not empty, with ``messages``, which are JSON already, as its last member.

    Raises RowRejected as ``dump`` does.
    """
    # In a thread this leaves the interpreter to others, as ``+`` does not.
    return b"".join((dump(rest)[:-1], b',"messages":', messages, b"}"))


def load(document: bytes) -> Any:
    """Return the value that ``dump`` wrote."""
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
    """Return text that every database takes: no lone surrogates, no NUL (which PostgreSQL refuses)."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")
