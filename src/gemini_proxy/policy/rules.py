"""What a policy is once compiled, and what a check answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

RuleScope = Literal["text", "message", "flow"]


@dataclass(frozen=True, slots=True)
class Rule:
    """``line`` counts from 1; ``text`` is the rule's source.

    ``scope``: ``text`` when more text can only add violations and each rests on text of one message alone, ``message``
    when one event decides, ``flow`` when several events, a count or the whole conversation do.
    """

    line: int
    text: str
    scope: RuleScope


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that fired for one binding. ``args`` and ``kwargs`` are JSON-able, events as their dictionaries.

    ``ranges`` are addresses such as ``messages.2.content:10-25``, offsets in characters, the most exact known.
    """

    rule: Rule
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ranges: tuple[str, ...]

    @property
    def message(self) -> str:
        """The rule's own message: the first argument as text."""
        return str(self.args[0]) if self.args else "policy violation"
