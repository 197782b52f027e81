"""Rules as values: what a rule says and needs, and the violations that it reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

RuleWindow = Literal["slice", "edge", "hint", "event", "late", "whole"]
TEXT_WINDOWS: Final[frozenset[RuleWindow]] = frozenset(("slice", "edge", "hint"))
"""Windows of rules that are judged as text comes."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``line`` counts from 1; ``text`` is the rule's source; ``message`` is its message, None if that depends on the
    match; ``action`` is the requested action, as in ``PolicyViolation("...", action="mask")``, None if there is none.
    With ``only_new`` a match in content that was allowed before is not a violation: ``scope="new"``.

    ``window`` says how the rule is judged while a response grows:

    - ``slice``: a piece of the text decides, and its result stays true for any longer text;
    - ``edge``: as ``slice``, but a match at the edge of the piece waits for the text beside it;
    - ``hint``: a piece without a match is clean, one with a match waits for the whole text;
    - ``event``: only calls, outputs and media change the result, not the text, and a violation stays;
    - ``late``: as ``event``, but later content can undo a violation;
    - ``whole``: only the whole text decides.
    """

    line: int
    text: str
    window: RuleWindow = "whole"
    message: str | None = None
    action: str | None = None
    only_new: bool = False

    @property
    def stays(self) -> bool:
        """Return whether a violation found in a response so far will be one in the whole response."""
        return self.window in ("slice", "event")


LONGEST_NEED: Final = 256
"""Bytes of the longest text that a need matches."""


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """A pattern in RE2's syntax to look for in JSON; for a ``call`` the name of the called tool.

    A ``numeric`` pattern may match a number as rules read it, which JSON may write differently.
    """

    pattern: str
    numeric: bool = False
    call: bool = False


@dataclass(frozen=True, slots=True)
class Needs:
    """The conditions on a conversation for a rule to fire: events of all ``kinds``, and of each clause one need.

    They are necessary, not sufficient. If nothing is known about a rule, it needs nothing.
    """

    kinds: frozenset[str] = frozenset()
    clauses: tuple[frozenset[Need], ...] = ()


@dataclass(frozen=True, slots=True)
class RuleViolation:
    """A rule fired for one binding. ``args`` and ``kwargs`` are JSON-able, events as their dictionaries.

    ``ranges`` are addresses such as ``messages.2.content:10-25``, offsets in characters, the most exact known.
    """

    rule: Rule
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ranges: tuple[str, ...]

    @property
    def message(self) -> str:
        """Return the rule's own message: the first argument as text."""
        return str(self.args[0]) if self.args else "policy violation"
