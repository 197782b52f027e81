"""Define a trace: what one exchange said, how it ended, and what rules objected to. Values only, no I/O."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

from gemini_proxy.traces.value_keys import SealedValue

GUARDRAILS_SOURCE = "guardrails-error"
TRACED: Final = "traced"
"""The member of an annotation's ``extra`` that says of which violation it is an end, and which."""
End = Literal["call", "source"]
"""The destination or the origin of a value."""


def new_id() -> str:
    """Return a new trace's id: a random UUID (RFC 9562, version 4)."""
    return str(uuid.uuid4())


class Outcome(StrEnum):
    """The outcome of an exchange; each has exactly one."""

    COMPLETED = "completed"
    REFUSED_REQUEST = "refused_request"
    REFUSED_RESPONSE = "refused_response"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_CUT = "upstream_cut"
    CLIENT_GONE = "client_gone"
    UNCHECKED = "unchecked"
    FAILED = "failed"
    # Not an exchange of this proxy: a trace that a client pushed.
    PUSHED = "pushed"


REFUSED: Final = frozenset({Outcome.REFUSED_REQUEST, Outcome.REFUSED_RESPONSE})


OUTCOME_GROUPS: Final = {
    "refused": REFUSED,
    "errors": frozenset({Outcome.UPSTREAM_ERROR, Outcome.UPSTREAM_CUT, Outcome.FAILED}),
}
"""Outcomes that one looks for together."""


def outcomes_named(name: str) -> Outcome | frozenset[Outcome]:
    """Return the outcome, or the outcomes of a group. Raises ValueError for an unknown name."""
    group = OUTCOME_GROUPS.get(name)
    return Outcome(name) if group is None else group


@dataclass(frozen=True, slots=True)
class Annotation:
    """A rule's message at one place of a trace.

    ``address`` is a dotted path with an optional character range: ``messages.2.content:10-25``.
    ``guardrail`` holds ``id``, ``name``, ``content`` (the rule's text) and ``action`` (``block`` or ``log``); ``extra``
    what else a client that annotates says of it.
    """

    content: str
    address: str
    source: str = GUARDRAILS_SOURCE
    guardrail: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def extra_metadata(self) -> dict[str, Any]:
        """Return the annotation in the shape that Invariant's clients push and read."""
        source = {"source": self.source} if self.source else {}
        guardrail = {"guardrail": dict(self.guardrail)} if self.guardrail else {}
        return {**self.extra, **source, **guardrail}


# Not frozen, which would triple the cost of making one, and each exchange does.
@dataclass(slots=True)
class Trace:
    """The record of one exchange. Treat it as immutable.

    ``id`` is a UUID in text, ``created`` in Unix seconds, as is ``updated``, when messages were last added to it.
    ``owner`` is the user whose trace it is, "" for nobody's; ``tenant`` the keyed hash of the key it came with.
    ``position`` is its place in its dataset, which the store assigns. ``log_rules`` are
    rules (``id``, ``name``, ``content``, ``action`` and perhaps ``parameters``) still to be run over the messages;
    they are queued in the transaction that writes the trace and empty in a trace read back; so is ``push``, that the
    trace is to be sent to the configured Explorer, and so are ``masked``, the values behind its placeholders.
    """

    id: str
    created: float
    outcome: Outcome
    messages: Sequence[Mapping[str, Any]]
    dataset: str | None = None
    owner: str = ""
    tenant: str | None = None
    position: int = 0
    updated: float | None = None
    model: str | None = None
    stream: bool = False
    annotations: tuple[Annotation, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    duration_ms: float = 0.0
    log_rules: tuple[Mapping[str, Any], ...] = ()
    push: bool = False
    masked: tuple[SealedValue, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One line of a listing. ``seq`` is its place among all traces, ``position`` that in its dataset; ``rule`` is the
    first rule's message."""

    seq: int
    position: int
    id: str
    created: float
    owner: str
    dataset: str | None
    model: str | None
    outcome: Outcome
    stream: bool
    duration_ms: float
    rule: str | None


class ViolationLike(Protocol):
    """What a verdict says of one rule: its message, the ranges it points at, and its guardrail as annotations name it.

    ``traced`` says that ranges in a call are values whose sources the other ranges are.
    """

    @property
    def message(self) -> str: ...
    @property
    def ranges(self) -> Sequence[str]: ...
    @property
    def described(self) -> Mapping[str, Any]: ...
    @property
    def traced(self) -> bool: ...


def annotations_for(violations: Iterable[ViolationLike]) -> tuple[Annotation, ...]:
    """Return an annotation for each of a violation's most precise ranges, or one with address ``""`` if it has none.

    Those of a traced violation say in ``extra`` which end of a value they are, if there are both.
    """
    return tuple(
        Annotation(violation.message, address, GUARDRAILS_SOURCE, violation.described, extra)
        for number, violation in enumerate(violations)
        for address, extra in _with_ends(violation, number)
    )


def _with_ends(violation: ViolationLike, number: int) -> list[tuple[str, dict[str, Any]]]:
    addresses = innermost(violation.ranges) or ("",)
    ends: list[End] = ["call" if ".tool_calls." in address else "source" for address in addresses]
    if not violation.traced or len(set(ends)) < 2:
        return [(address, {}) for address in addresses]
    return [
        (address, {TRACED: {"violation": number, "end": end}}) for address, end in zip(addresses, ends, strict=True)
    ]


def innermost(addresses: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses, each once and in order, without those that are a proper ancestor of another one.

    Ancestry goes by path segments, a character range counting as one more: ``messages.1`` contains
    ``messages.1.content:3-9`` and not ``messages.10``.
    """
    paths = {address: _segments(address) for address in addresses if address}
    ancestors = {path[:end] for path in paths.values() for end in range(len(path))}
    return tuple(address for address, path in paths.items() if path not in ancestors)


def _segments(address: str) -> tuple[str, ...]:
    path, colon, characters = address.partition(":")
    return (*path.split("."), *([colon + characters] if colon else []))


def trace_json(trace: Trace) -> dict[str, Any]:
    """Return the trace as plain JSON, annotations in the shape that Invariant's clients push and read; no tenant."""
    return {
        "id": trace.id,
        "created": trace.created,
        "dataset": trace.dataset,
        "outcome": trace.outcome.value,
        "model": trace.model,
        "stream": trace.stream,
        "duration_ms": trace.duration_ms,
        "messages": list(trace.messages),
        "annotations": [annotation_json(annotation) for annotation in trace.annotations],
        "metadata": dict(trace.metadata),
    }


def annotation_json(annotation: Annotation) -> dict[str, Any]:
    """Return the annotation in the shape that Invariant's clients push and read."""
    return {
        "content": annotation.content,
        "address": annotation.address,
        "extra_metadata": annotation.extra_metadata,
    }
