"""Define the protocol of engines, which check conversations, and what happens when a check gives no verdict."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, Protocol

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.gemini.call_links import CallPlace, answered_calls
from gemini_proxy.guardrails.rules import Guardrail
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.policy import CompiledRule, Conversation, FoundNeeds, OpenTurn, Place, Prefilter


class ConversationReader:
    """Read the messages of one exchange's checks. The messages of its first check are read only once.

    If a later check does not begin with these very objects, its messages count as the first from then on.
    """

    __slots__ = ("_answered", "_conversation", "_messages", "_seen")

    def __init__(self) -> None:
        self._messages: Sequence[Mapping[str, Any]] = ()
        self._answered: Mapping[int, CallPlace] = {}
        self._conversation: Conversation | None = None
        self._seen: dict[Prefilter, FoundNeeds | None] = {}

    def rules(
        self, prefilter: Prefilter, messages: Sequence[Mapping[str, Any]]
    ) -> tuple[tuple[CompiledRule, ...], ...]:
        """Return for each policy of the prefilter its rules that may fire on ``messages``."""
        self._begin(messages)
        first = self._messages
        try:
            seen = self._seen[prefilter]
        except KeyError:
            seen = self._seen[prefilter] = prefilter.see(first)
        return prefilter.rules(messages, len(first), seen)

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """Return the conversation of ``messages``. Raises ConversationError."""
        self._begin(messages)
        if self._conversation is None:
            self._answered = answered_calls(self._messages)
            self._conversation = Conversation.of(self._messages, self._answered)
        rest = messages[len(self._messages) :]
        if not rest:
            return self._conversation
        has_outputs = any(message.get("role") == "tool" for message in rest)
        return self._conversation.continued(rest, answered_calls(messages) if has_outputs else self._answered)

    def _begin(self, messages: Sequence[Mapping[str, Any]]) -> None:
        first = self._messages
        if not first or len(messages) < len(first) or not all(map(is_, messages, first)):
            self._messages, self._conversation = messages, None
            self._seen.clear()


# Not frozen: one is made for each check, and that would take as long as finding that no rule may fire.
@dataclass(slots=True)
class Check:
    """The input of a check: do these guardrails allow these messages? Policies read ``parameters`` as ``input``.

    An engine that asks a service uses ``key``, which the caller gave for it; without a key of its own it uses the
    caller's ``invariant_key``. ``dataset`` is the one in the request's path, and ``session`` is the same for all checks
    of an exchange. ``client`` is the caller; long checks are distributed fairly among callers. ``gemini_key`` is the
    key that the exchange uses upstream, for a judge that the caller pays for. Checks of one exchange share a
    ``reader``. ``allowed`` is the number of messages at the beginning that these guardrails allowed in an earlier
    exchange. ``restored`` has the values by placeholder that were masked in the request and are put back into the
    checked response; no service gets them.
    """

    guardrails: tuple[Guardrail, ...]
    messages: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = field(default=None, repr=False)
    invariant_key: str | None = field(default=None, repr=False)
    dataset: str | None = None
    session: str | None = None
    client: str = ""
    gemini_key: str | None = field(default=None, repr=False)
    reader: ConversationReader = field(default_factory=ConversationReader, repr=False, compare=False)
    restored: Mapping[str, str] = field(default_factory=dict, repr=False)
    allowed: int = 0


class GuardSession(Protocol):
    """Judge the text of a response as it comes. Each candidate is one turn.

    A violation here would also refuse the whole response. The last ``overlap`` characters of a text must be withheld: a
    match may begin in them. ``waiting`` names the guardrails that can be judged only at the end. Never raises: without
    a verdict on a piece the session is not ``clear``.
    """

    overlap: int
    waiting: tuple[str, ...]

    @property
    def clear(self) -> bool:
        """True where all text so far has passed."""
        ...

    @property
    def stuck(self) -> bool:
        """True where the session is not clear again before ``settle``."""
        ...

    def turn(self, messages: Sequence[tuple[int, Mapping[str, Any]]] = ()) -> OpenTurn:
        """Open a candidate's turn. ``messages`` are those of it that were checked, each with its index."""
        ...

    def begin(self, turn: OpenTurn, place: Place) -> None:
        """Begin the run of text at ``place`` in an open turn."""
        ...

    def check(self, turn: OpenTurn, text: str) -> Sequence[Violation]:
        """Return violations of ``text``, which continues the turn's run. Their addresses are in the whole text."""
        ...

    def settle(self) -> None:
        """Close all turns: the whole conversation so far was checked and passed."""
        ...


class Engine(Protocol):
    """Check conversations."""

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        """Open a session for the response to the messages of ``check``, which passed. None if there is no guardrail."""
        ...

    def check(self, check: Check) -> Verdict | Awaitable[Verdict]:
        """Return the verdict, or an awaitable of the verdict if the check takes long.

        Raises EngineUnavailable if there is no verdict, Unauthenticated if a service did not accept the key, and
        nothing else, at once or when awaited.
        """
        ...


class NoEngine:
    """Check nothing (``engine = "off"``): the proxy only streams and records."""

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        return None

    def check(self, check: Check) -> Verdict | Awaitable[Verdict]:
        return Verdict()


class FailOpenEngine:
    """Allow what ``engine`` cannot check, and say so in the verdict (``unavailable = "allow"``).

    A key that a service rejects is the caller's fault: such a request is not allowed.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        """Open the engine's session: a piece without a verdict waits for the end, where this engine decides."""
        return self._engine.open_session(check, overlap)

    def check(self, check: Check) -> Verdict | Awaitable[Verdict]:
        try:
            verdict = self._engine.check(check)
        except EngineUnavailable as error:
            return Verdict(unchecked=error.message)
        return verdict if isinstance(verdict, Verdict) else self._wait(verdict)

    async def _wait(self, verdict: Awaitable[Verdict]) -> Verdict:
        try:
            return await verdict
        except EngineUnavailable as error:
            return Verdict(unchecked=error.message)
