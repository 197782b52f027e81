"""What a policy can get wrong at load, what a check can fail with, and what a conversation can be refused for.

PolicyError       a policy that does not load; nothing else leaves ``compile_policy``
EvaluationError   a check that gave no answer: neither a violation nor clean
└── BudgetExceeded    over its steps, its deadline or its memory bound
ConversationError messages of a shape that cannot be read (a ValueError)
"""

from dataclasses import dataclass
from typing import Literal

Fault = Literal["form", "unknown", "excess"]
"""What is wrong with a policy: it asks something for what it has not, is more than there may be, or anything else."""


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
        """The offending source line, cut to a readable length, with a caret under the column."""
        lines = self._text.splitlines()
        line = lines[self.line - 1] if 0 < self.line <= len(lines) else ""
        start = max(0, self.column - 60)
        shown = line[start : start + 100].expandtabs(1)
        return f"{shown}\n{' ' * (self.column - 1 - start)}^"


@dataclass(frozen=True, slots=True)
class PolicyWarning:
    """Something in a policy that loads but may not mean what its author thinks."""

    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.message}"


class EvaluationError(Exception):
    """A rule could not be evaluated; ``line`` is the rule's, 0 where no rule is to blame."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason, line)
        self.reason = reason
        self.line = line

    def __str__(self) -> str:
        return f"rule at line {self.line}: {self.reason}" if self.line else self.reason


class BudgetExceeded(EvaluationError):
    """The check would go, or went, over its step, time or memory budget."""


class ConversationError(ValueError):
    """Messages that cannot be read; the text names the message and what was expected."""
