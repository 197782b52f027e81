"""State what was checked and what was not, in every trace and, summed up, in a response header."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gemini_proxy.gemini.parts import Unchecked

HEADER = "x-gemini-proxy-guardrails"
_LISTED = 20
"""Parts that a trace names one by one; the rest is counted. A thousand images need no thousand lines."""


class Coverage(NamedTuple):
    """The part of one exchange that was checked.

    ``verdict`` is ``passed``, ``refused``, ``unchecked`` or ``off``; it is ``pending`` in a header that is sent before
    the end, and for an exchange that ended without its final check. ``unchecked`` says why a check gave no verdict; it
    is None if all did. ``waiting`` names the guardrails that turned ``window`` into ``hold``. ``masked`` counts the
    masked values, and ``values_kept`` says that later responses restore them too.
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
    values_kept: bool = False

    @property
    def header(self) -> str:
        """Return the header's value. Only tokens: it must not carry text from a policy, a request or a response."""
        counts = f"rules={len(self.rules)}; unseen={len(self.unchecked_content)}"
        masked = f"masked={self.masked}; " if self.masked else ""
        return f"verdict={self.verdict}; mode={self.mode}; {counts}; {masked}ms={self.milliseconds:.1f}"

    @property
    def described(self) -> dict[str, Any]:
        """Return the coverage as traces keep it."""
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
            described |= {"masked_values": self.masked, "values_kept": self.values_kept}
        if self.waiting:
            described["judged_only_at_the_end"] = list(self.waiting)
        if self.unchecked is not None:
            described["unchecked"] = self.unchecked
        return described


def listed(content: Sequence[Unchecked]) -> list[dict[str, str]]:
    """Return the first parts that were not checked, as JSON."""
    return [{"address": part.address, "reason": part.reason} for part in content[:_LISTED]]
