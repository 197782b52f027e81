"""What was checked and what was not: a part of every trace, summed up in a response header."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.gemini.parts import Unchecked

HEADER = "x-gemini-proxy-guardrails"
_LISTED = 20
"""Parts named one by one in a trace; the rest is counted. A batch of a thousand images needs no thousand lines."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """``verdict`` is ``passed``, ``refused``, ``unchecked``, ``off``; ``pending`` in a header sent before the end, and
    where an exchange ended without its final check. ``unchecked`` says why a check gave no verdict, None where all did;
    ``waiting`` names rules for which ``window`` had to become ``hold``. ``masked`` counts the values that were masked.
    """

    mode: str
    rules: tuple[str, ...]
    checked_messages: int
    unchecked_content: tuple[Unchecked, ...]
    verdict: str
    unchecked: str | None = None
    milliseconds: float = 0.0
    waiting: tuple[str, ...] = ()
    masked: int = 0

    @property
    def header(self) -> str:
        """Tokens only: header values must not carry text from a policy, a prompt or an answer."""
        counts = f"rules={len(self.rules)}; unseen={len(self.unchecked_content)}"
        masked = f"masked={self.masked}; " if self.masked else ""
        return f"verdict={self.verdict}; mode={self.mode}; {counts}; {masked}ms={self.milliseconds:.1f}"

    @property
    def described(self) -> dict[str, Any]:
        """For the trace."""
        described: dict[str, Any] = {
            "verdict": self.verdict,
            "mode": self.mode,
            "rules": list(self.rules),
            "checked_messages": self.checked_messages,
            "not_checked": listed(self.unchecked_content),
            "milliseconds": round(self.milliseconds, 3),
        }
        if len(self.unchecked_content) > _LISTED:
            described["not_checked_in_all"] = len(self.unchecked_content)
        if self.masked:
            described["masked_values"] = self.masked
        if self.waiting:
            described["judged_only_at_the_end"] = list(self.waiting)
        if self.unchecked is not None:
            described["unchecked"] = self.unchecked
        return described


def listed(content: Sequence[Unchecked]) -> list[dict[str, str]]:
    return [{"address": one.address, "reason": one.reason} for one in content[:_LISTED]]
