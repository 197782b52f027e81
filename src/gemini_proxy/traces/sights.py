"""Violations with the texts that their ranges point at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.policy import RuleViolation
from gemini_proxy.traces.excerpts import Excerpt, excerpts


@dataclass(frozen=True, slots=True)
class Sight:
    """A violation as it is shown: the rule's message and line, its first ranges, and how many more there are."""

    message: str
    rule_line: int
    excerpts: tuple[Excerpt, ...]
    more: int

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], violation: RuleViolation) -> "Sight":
        found = excerpts(messages, violation.ranges)
        return cls(violation.message, violation.rule.line, found, len(violation.ranges) - len(found))

    def json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        ranges = [{"address": one.address, "found": one.found, "excerpt": one.text} for one in self.excerpts]
        return {"message": self.message, "line": self.rule_line, "ranges": ranges, "more_ranges": self.more}
