"""One request and its answer, from the first byte read to the trace written: the only mutable value of a request."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.parts import Unchecked
from gemini_proxy.gemini.refusal import Refusal
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.guardrails.stream import FrameGate
from gemini_proxy.guardrails.verdict import Violation
from gemini_proxy.guardrails.windows import AnswerWindows
from gemini_proxy.proxy.credentials import Credentials
from gemini_proxy.traces.trace import Outcome

_NO_RULES = GuardrailSet()
_PASSED = (Outcome.COMPLETED, Outcome.UPSTREAM_CUT, Outcome.UPSTREAM_ERROR, Outcome.CLIENT_GONE)
"""Endings of exchanges that the guardrails let go on."""


def _new_id() -> str:
    """A random UUID (RFC 9562, version 4) in text, without the object that uuid.uuid4() makes of it first."""
    number = bytearray(os.urandom(16))
    number[6] = number[6] & 0x0F | 0x40
    number[8] = number[8] & 0x3F | 0x80
    digits = number.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@dataclass(slots=True)
class Exchange:
    """``owner`` is the user whose trace it becomes, ``client`` who asks: see ``credentials.client_of``.

    ``body`` is kept until the upstream has it, ``size`` are its bytes. Times are of ``time.perf_counter``; ``outcome``
    is None until known. ``checking`` is a request check that runs beside the upstream call; ``framing`` the content
    type of an answer that goes through the gate, None before there is one. ``windows`` judges an answer as it grows;
    ``waiting`` names the rules for which that cannot be. ``undecided`` says that the end must decide over a function
    call: more of the answer may undo what was found, and asking again with each chunk would be a check of the whole
    each time. ``checked_messages`` is how many a check has had a verdict on.
    """

    call: ModelCall
    credentials: Credentials
    owner: str = ""
    client: str = ""
    id: str = field(default_factory=_new_id)
    created: float = field(default_factory=time.time)
    started: float = field(default_factory=time.perf_counter)
    rules: GuardrailSet = _NO_RULES
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    size: int = 0
    request: GeminiRequest | None = None
    checking: "asyncio.Task[None] | None" = None
    framing: str | None = None
    keep_alive: Callable[[bytes], Awaitable[None]] | None = field(default=None, repr=False)
    merger: Merger = field(default_factory=Merger)
    gate: FrameGate | None = None
    windows: AnswerWindows | None = None
    waiting: tuple[str, ...] = ()
    undecided: bool = False
    answer_messages: tuple[Message, ...] = ()
    unseen: list[Unchecked] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    refusal: Refusal | None = None
    check_ms: float = 0.0
    checked_messages: int = 0
    upstream_status: int | None = None
    headed: float | None = None
    first_byte: float | None = None
    error: str = ""
    recorded: bool = False
    _unchecked: str | None = None
    _ending: Outcome | None = None

    def pass_unchecked(self, reason: str) -> None:
        """A check gave no verdict and let the exchange go on, which nothing after it undoes."""
        if self._unchecked is None:
            self._unchecked = reason

    @property
    def unchecked(self) -> str | None:
        """Why the first check that gave no verdict did not; None where every check did."""
        return self._unchecked

    def end(self, outcome: Outcome) -> None:
        """The exchange has ended so."""
        self._ending = outcome

    @property
    def outcome(self) -> Outcome | None:
        """How it ended. What passed unchecked is told from what passed, however the upstream or the client ended it."""
        if self._unchecked is not None and self._ending in _PASSED:
            return Outcome.UNCHECKED
        return self._ending

    def mark_head(self) -> None:
        """The head of the upstream's answer has come."""
        self.headed = time.perf_counter()

    def mark_first_byte(self) -> None:
        """The first byte of the answer leaves for the client."""
        self.first_byte = time.perf_counter()

    @property
    def messages(self) -> list[Message]:
        """All that was said as a trace keeps it, the answer last; what the addresses of annotations point into."""
        return [*(self.request.stored if self.request else ()), *self.answer_messages]

    @property
    def message_count(self) -> int:
        return (len(self.request.messages) if self.request else 0) + len(self.answer_messages)


class Refused(Exception):
    """Ends an exchange with ``refusal``; caught by the guardrail middleware alone."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal
