"""What checks conversations: the protocol, and the choice of what happens when a check gives no verdict."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.rules import Guardrail
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.policy import OpenTurn, Place


@dataclass(frozen=True, slots=True)
class Check:
    """One question: do these guardrails allow these messages? ``parameters`` are what policies read as ``input``.

    For an engine that asks a service: ``key`` is the one that the caller gave for it, ``invariant_key`` the one that
    they use everywhere, for an engine that has none; ``dataset`` is the one in the request's path, and ``session`` is
    the same for all checks of an exchange. ``client`` is who asks, for the fair turns of long checks; ``gemini_key`` is
    the one that the exchange goes upstream with, for a judge that it pays for.
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


class GuardSession(Protocol):
    """Judges the text of a response as it comes, in one turn for each candidate.

    A violation here is one that the whole response would be refused for. ``overlap`` characters at the end of a text
    have to stay behind: they may be the beginning of something. ``waiting`` names the guardrails that can be judged
    only at the end. Never raises: without a verdict on a piece the session is not ``clear``.
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

    def check(self, turn: OpenTurn, text: str) -> Verdict:
        """Judge ``text``, which goes on from the turn's run. Addresses are those of the whole text."""
        ...

    def settle(self) -> None:
        """Close all turns: the whole conversation so far was checked and passed."""
        ...


class Engine(Protocol):
    """Answers checks."""

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        """For an answer to the messages of ``check``, which are checked already. None where nothing is to be judged."""
        ...

    def check(self, check: Check) -> Verdict | Awaitable[Verdict]:
        """The verdict at once, or one to wait for where finding it takes a while.

        Raises EngineUnavailable when there is no verdict, Unauthenticated when a service that checks did not accept
        the key, and nothing else; so does the awaited one.
        """
        ...


class FailOpenEngine:
    """Lets pass what the engine behind it cannot check, and says so in the verdict (``unavailable = "allow"``).

    A key that a service did not accept is the caller's fault, and no reason to let anything pass.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        """As the engine's: a piece without a verdict waits for the end, where this engine has the last word."""
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


class NoEngine:
    """Checks nothing (``engine = "off"``): the proxy only streams and records."""

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        return None

    def check(self, check: Check) -> Verdict | Awaitable[Verdict]:
        return Verdict()
