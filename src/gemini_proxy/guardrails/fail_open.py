"""Let an exchange continue without a verdict, for ``guardrails.unavailable = "allow"``."""

from collections.abc import Awaitable

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.engine import Check, Engine, GuardSession
from gemini_proxy.guardrails.verdict import Verdict


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
