"""Violations with the texts that their ranges point at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from gemini_proxy.cli.excerpts import Excerpt, excerpts
from gemini_proxy.cli.visible import line
from gemini_proxy.policy import Violation


@dataclass(frozen=True, slots=True)
class Sight:
    """A violation as it is shown: the rule's message and line, its first ranges, and how many more there are."""

    message: str
    rule_line: int
    excerpts: tuple[Excerpt, ...]
    more: int

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], violation: Violation) -> "Sight":
        found = excerpts(messages, violation.ranges)
        return cls(violation.message, violation.rule.line, found, len(violation.ranges) - len(found))

    def json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        ranges = [{"address": one.address, "found": one.found, "excerpt": one.text} for one in self.excerpts]
        return {"message": self.message, "line": self.rule_line, "ranges": ranges, "more_ranges": self.more}

    def lines(self) -> list[Text]:
        """The same for a terminal."""
        lines = [Text.assemble(line(self.message, "bold"), (f"  line {self.rule_line}", "dim"))]
        for one in self.excerpts:
            lines.append(Text.assemble("    ", line(one.address, "dim")))
            lines.append(Text.assemble("      ", one.shown()))
        if self.more:
            lines.append(Text(f"    and {self.more} more ranges", "dim"))
        return lines
