"""What checks conversations: the protocol, and the choice of what happens when a check gives no verdict."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.rules import Guardrail
from gemini_proxy.guardrails.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Check:
    """One question: do these guardrails allow these messages? ``parameters`` are what policies read as ``input``."""

    guardrails: tuple[Guardrail, ...]
    messages: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """Answers checks."""

    def judge(self, check: Check) -> Verdict | Awaitable[Verdict]:
        """The verdict at once, or one to wait for where finding it takes a while.

        Raises EngineUnavailable, and nothing else, when there is no verdict; so does the awaited one.
        """
        ...


class FailOpenEngine:
    """Lets pass what the engine behind it cannot check, and says so in the verdict (``unavailable = "allow"``)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def judge(self, check: Check) -> Verdict | Awaitable[Verdict]:
        try:
            verdict = self._engine.judge(check)
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

    def judge(self, check: Check) -> Verdict | Awaitable[Verdict]:
        return Verdict()
