"""Hold one request and its response, from the first byte read to the trace written: a request's only mutable value."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.parts import Reference, Unchecked
from gemini_proxy.gemini.references import Earlier
from gemini_proxy.gemini.refusal import Phase, Refusal
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.gemini.uploads import UploadedFile
from gemini_proxy.gemini.upstream_fault import UpstreamFault
from gemini_proxy.gemini.wire import SSE_TYPE, ResponseReader, Wire
from gemini_proxy.gemini.wires import wire_of
from gemini_proxy.guardrails.engine import ConversationReader
from gemini_proxy.guardrails.masking import FrameEditor, Masks, Repetition
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.guardrails.stream import ResponseStream
from gemini_proxy.guardrails.verdict import Violation
from gemini_proxy.proxy.credentials import Credentials
from gemini_proxy.proxy.response import ClientResponse
from gemini_proxy.traces.approvals import Approval
from gemini_proxy.traces.handles import Kind
from gemini_proxy.traces.trace import Outcome, new_id

_NO_RULES = GuardrailSet()
_LET_GO_ON = (Outcome.COMPLETED, Outcome.UPSTREAM_CUT, Outcome.UPSTREAM_ERROR, Outcome.CLIENT_GONE)
"""Endings of exchanges that the guardrails did not end."""


class ExchangeSpans(Protocol):
    """The spans of one exchange in progress."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers by which the upstream continues the trace."""
        ...

    def checked(self, source: Phase, milliseconds: float, unchecked: str | None) -> None:
        """Note a check that has ended now; ``unchecked`` says why it gave no verdict."""
        ...

    def end(self, exchange: "Exchange", status: int | None) -> None:
        """End the spans. ``status`` is what the client got, None for a client that has left."""
        ...


@dataclass(frozen=True, slots=True)
class Made:
    """An object that Gemini keeps from an exchange: a handle without the exchange's own data. See ``Handle``."""

    kind: Kind
    name: str
    expires: float
    unchecked: str = ""
    refused: bool = False
    digest: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Exchange:
    """``owner`` is the user who will own its trace; ``client`` is the caller (see ``credentials.client_of``).

    ``conversation`` is the client's own name for the conversation, or the conversation of the interaction that the
    request continues; "" if neither is known. ``earlier`` is the content of the request's references, and ``origins``
    has the ids of the traces of the exchanges that made it. ``made`` has the objects of this exchange that Gemini keeps
    under a name. ``spans`` reports the exchange to OpenTelemetry, None if that is off.

    ``file`` is the file of an upload, which has no body. ``body`` is kept until the upstream has it; ``size`` is its
    length in bytes. ``request_check`` is a check that runs beside the upstream call. ``framing`` is the content type of
    a response that goes through ``stream``, None before there is one; ``waiting`` names the guardrails that see the
    response only when it is whole.

    ``masks`` are the masked values, and ``restoring`` puts them back into the response. ``heals`` says that texts of
    the history that were refused before may be masked. ``repetitions`` are the restored placeholders, noted if masked
    values are kept; ``spelled`` has their spellings to keep (placeholder, kind and text); ``lasting`` has the
    placeholders whose values need not be written again, by conversation.

    ``asked`` are the request's messages as they came: kept if masked values are kept, if a rule checks only new
    content, or if a policy is in shadow. ``allowed`` is the number of them that passed before. ``checked_messages`` is
    the number of messages that a check has had a verdict on.

    In a turn of a live session ``settled`` is the number of messages that passed in earlier turns, ``sent`` the number
    of messages that the model has, in which nothing can be masked any more, and ``frames`` makes the framing of the
    response. Times are of ``time.perf_counter``.
    """

    call: ModelCall
    credentials: Credentials
    response: ClientResponse
    owner: str = ""
    client: str = ""
    conversation: str = ""
    id: str = field(default_factory=new_id)
    created: float = field(default_factory=time.time)
    started_at: float = field(default_factory=time.perf_counter)

    rules: GuardrailSet = _NO_RULES
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    size: int = 0
    file: UploadedFile | None = field(default=None, repr=False)
    request: GeminiRequest | None = None
    earlier: Mapping[Reference, Earlier] = field(default_factory=dict, repr=False)
    origins: tuple[str, ...] = ()
    made: list[Made] = field(default_factory=list)
    request_check: "asyncio.Task[None] | None" = None
    reader: ConversationReader = field(default_factory=ConversationReader, repr=False)
    spans: ExchangeSpans | None = None

    upstream_status: int | None = None
    upstream_error: UpstreamFault | None = None
    head_at: float | None = None
    framing: str | None = None
    merger: Merger = field(default_factory=Merger)
    response_reader: ResponseReader | None = None
    restoring: FrameEditor | None = None
    repetitions: list[Repetition] | None = None
    spelled: tuple[tuple[str, str, str], ...] = ()
    lasting: Mapping[str, frozenset[str]] = field(default_factory=dict)
    stream: ResponseStream | None = None
    waiting: tuple[str, ...] = ()
    response_messages: tuple[Message, ...] = ()

    unchecked_content: list[Unchecked] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    masks: Masks | None = None
    approvals: list[Approval] = field(default_factory=list)
    heals: bool = False
    asked: tuple[Message, ...] | None = None
    allowed: int = 0
    refusal: Refusal | None = None
    check_ms: float = 0.0
    checked_messages: int = 0
    settled: int = 0
    sent: int = 0
    frames: Callable[[], Framing] | None = None
    error: str = ""
    recorded: bool = False
    _unchecked: str | None = None
    _ending: Outcome | None = None

    @property
    def is_of_user(self) -> bool:
        """Return whether it belongs to a known user: callers without a key of this server cannot be told apart."""
        return bool(self.owner)

    @property
    def checked_request(self) -> GeminiRequest:
        """Return the request as the rules read it. There is none before its body has been read."""
        assert self.request is not None
        return self.request

    @property
    def wire(self) -> Wire:
        """Return what reads the call and its response."""
        return wire_of(self.call)

    @property
    def model(self) -> str | None:
        """Return the model's name from the body, else from the path; None if neither has it."""
        return (self.request.model if self.request else None) or self.call.model

    @property
    def streams(self) -> bool:
        """Return whether the client asked for a stream, by the path or in the body."""
        return self.call.streams or (self.request is not None and self.request.streams)

    def new_framing(self) -> Framing:
        """Return a framing of the response, by what it says it is."""
        if self.frames is not None:
            return self.frames()
        return self.wire.new_framing(self.framing or SSE_TYPE, streams=self.streams)

    def pass_unchecked(self, reason: str) -> None:
        """Note that a check gave no verdict and let the exchange continue; nothing later undoes this."""
        if self._unchecked is None:
            self._unchecked = reason

    @property
    def unchecked(self) -> str | None:
        """Say why the first check that gave no verdict did not; None where every check did."""
        return self._unchecked

    def end(self, outcome: Outcome) -> None:
        """Note how the exchange has ended."""
        self._ending = outcome

    @property
    def outcome(self) -> Outcome | None:
        """Return the outcome, None until the exchange has ended.

        An exchange that passed unchecked stays ``unchecked``, however the upstream or the client ended it.
        """
        if self._unchecked is not None and self._ending in _LET_GO_ON:
            return Outcome.UNCHECKED
        return self._ending

    @property
    def messages(self) -> list[Message]:
        """Return all that was said as a trace keeps it, the response last; addresses of annotations point into it."""
        return [*(self.request.stored if self.request else ()), *self.response_messages]

    @property
    def message_count(self) -> int:
        """Return how many messages the rules read so far."""
        return (len(self.request.messages) if self.request else 0) + len(self.response_messages)


class Refused(Exception):
    """End an exchange with ``refusal``; caught by the guardrail middleware alone."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal
