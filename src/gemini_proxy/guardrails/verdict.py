"""Define the verdict of a check: its violations, where they are, and how long it took."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gemini_proxy.guardrails.rules import Action, Guardrail, stronger

_MESSAGE = re.compile(r"messages\.(\d+)(?=[.:]|$)")


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that fired. ``ranges`` are addresses into the messages, such as ``messages.2.content:10-25``.

    ``stays`` says that more of the response cannot undo the violation. ``healed`` says that it is in the history and
    was refused before, so that it is masked now.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ranges: tuple[str, ...]
    guardrail: Guardrail
    stays: bool = False
    healed: bool = False

    @property
    def message(self) -> str:
        """Return the rule's message."""
        return str(self.args[0]) if self.args else ""

    @property
    def action(self) -> Action:
        """Return what is done about it: the guardrail's action, or a stronger one that the rule asks for."""
        return "mask" if self.healed else stronger(self.guardrail.action, self.kwargs.get("action"))

    @property
    def described(self) -> Mapping[str, Any]:
        """Return the guardrail as annotations name it."""
        return {**self.guardrail.described, "action": self.action}

    @property
    def traced(self) -> bool:
        """True if the policy asks where values come from, so that two ranges may be the ends of one value."""
        return "untrusted" in self.guardrail.policy.called

    @property
    def error(self) -> dict[str, Any]:
        """Return the details for the client, without objects in args and kwargs, which could hold refused content."""
        return {
            "args": [value for value in self.args if _scalar(value)],
            "kwargs": {name: value for name, value in self.kwargs.items() if _scalar(value)},
            "ranges": list(self.ranges),
            "guardrail": {"id": self.guardrail.id, "name": self.guardrail.name, "action": self.action},
        }

    def moved(self, start: int, by: int) -> "Violation":
        """Return the violation with the messages from index ``start`` on counted ``by`` places later."""

        def shift(match: re.Match[str]) -> str:
            index = int(match[1])
            return f"messages.{index + by if index >= start else index}"

        return replace(self, ranges=tuple(_MESSAGE.sub(shift, address, count=1) for address in self.ranges))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one check. ``unchecked`` says why there was no check, if that is allowed to pass; else None."""

    violations: tuple[Violation, ...] = ()
    milliseconds: float = 0.0
    unchecked: str | None = None


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))
