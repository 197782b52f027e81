"""The errors of the policy language.

PolicyError         a policy does not load; ``compile_policy`` raises nothing else
EvaluationError     a check has no verdict: neither violations nor a clean result
└── BudgetExceeded      it exceeds its steps, its deadline or its memory
ConversationError   messages have a form that cannot be read (a ValueError)

A ``reason`` is shown after a place and a colon, so it begins in lower case: what is wrong, and what to do about it.
"""

from dataclasses import dataclass
from typing import Literal

Fault = Literal["form", "unknown", "excess"]
"""A fault in a policy: ``unknown`` names something that does not exist, ``excess`` exceeds a limit."""


class PolicyError(Exception):
    """A policy that does not load.

    ``line`` and ``column`` count from 1, columns in characters. ``str()`` reads
    ``policies/a.gr:3:5: unknown name "secretz" (did you mean "secrets"?)``.
    """

    def __init__(
        self,
        source: str,
        line: int,
        column: int,
        reason: str,
        suggestion: str | None = None,
        *,
        fault: Fault = "form",
        text: str = "",
    ) -> None:
        super().__init__(source, line, column, reason, suggestion)
        self.source = source
        self.line = line
        self.column = column
        self.reason = reason
        self.suggestion = suggestion
        self.fault = fault
        self._text = text

    def __str__(self) -> str:
        hint = f" ({self.suggestion})" if self.suggestion else ""
        return f"{self.source}:{self.line}:{self.column}: {self.reason}{hint}"

    def caret(self) -> str:
        """Return the source line, cut to a readable length, with a caret under the column."""
        lines = self._text.splitlines()
        line = lines[self.line - 1] if 0 < self.line <= len(lines) else ""
        start = max(0, self.column - 60)
        shown = line[start : start + 100].expandtabs(1)
        return f"{shown}\n{' ' * (self.column - 1 - start)}^"


@dataclass(frozen=True, slots=True)
class PolicyWarning:
    """A note on a policy that loads but may not mean what its author thinks; ``suggestion`` is what may be meant."""

    line: int
    column: int
    message: str
    suggestion: str | None = None

    @property
    def advice(self) -> str:
        """Return the message with the suggestion, as one sentence."""
        return f"{self.message} ({self.suggestion})" if self.suggestion else self.message

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.advice}"


class EvaluationError(Exception):
    """A rule cannot be evaluated. ``line`` is the rule's, 0 if no rule is to blame."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason, line)
        self.reason = reason
        self.line = line

    def __str__(self) -> str:
        return f"rule at line {self.line}: {self.reason}" if self.line else self.reason


class BudgetExceeded(EvaluationError):
    """The check exceeds its step, time or memory budget."""


class ConversationError(ValueError):
    """Messages cannot be read. The text names the message and what was expected."""
