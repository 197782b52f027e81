"""What a check says: the violations it found, where they are, and how long it took."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gemini_proxy.guardrails.rules import Action, Guardrail, stronger

_MESSAGE = re.compile(r"messages\.(\d+)(?=[.:]|$)")


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that fired. ``ranges`` are addresses into the messages, such as ``messages.2.content:10-25``.

    ``stays`` says that a violation in a part of an answer will be one in the whole of it, whatever follows.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ranges: tuple[str, ...]
    guardrail: Guardrail
    stays: bool = False

    @property
    def message(self) -> str:
        """The rule's own words."""
        return str(self.args[0]) if self.args else ""

    @property
    def action(self) -> Action:
        """What is done about it: the guardrail's action, or a stronger one that the rule asks for."""
        return stronger(self.guardrail.action, self.kwargs.get("action"))

    @property
    def described(self) -> Mapping[str, Any]:
        """The guardrail as annotations name it."""
        return {**self.guardrail.described, "action": self.action}

    @property
    def traced(self) -> bool:
        """Whether the rule's policy asks where values come from, so that ranges may be the two ends of one."""
        return "untrusted" in self.guardrail.policy.called

    @property
    def error(self) -> dict[str, Any]:
        """For a refusal: what the client may know. Objects in kwargs could hold the refused content and stay here."""
        return {
            "args": [value for value in self.args if _scalar(value)],
            "kwargs": {name: value for name, value in self.kwargs.items() if _scalar(value)},
            "ranges": list(self.ranges),
            "guardrail": {"id": self.guardrail.id, "name": self.guardrail.name, "action": self.action},
        }

    def moved(self, start: int, by: int) -> "Violation":
        """The same violation where messages from index ``start`` on stand ``by`` places later."""

        def shift(match: re.Match[str]) -> str:
            index = int(match[1])
            return f"messages.{index + by if index >= start else index}"

        return replace(self, ranges=tuple(_MESSAGE.sub(shift, address, count=1) for address in self.ranges))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one check. ``unchecked`` says why there was none, where that is allowed to pass; else None."""

    violations: tuple[Violation, ...] = ()
    milliseconds: float = 0.0
    unchecked: str | None = None


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))
