"""Policies over an answer that grows: each new piece of text is judged together with the end of what came before.

The cost of a piece depends on its length and the overlap, never on what came before: nothing is joined, and of earlier
text only its end is kept. Calls, outputs and media are no matter of a session: they are rare, and each is judged with
the whole conversation; so is the end, whatever a session has found.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gemini_proxy.policy.budget import Budget
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.events import Conversation, Event
from gemini_proxy.policy.policy import CompiledRule, Policy
from gemini_proxy.policy.rules import Rule, Violation
from gemini_proxy.policy.run import Run

_JUDGED: Final = frozenset(("slice", "edge", "hint"))
# A piece is judged on the event loop: ten rules take about a millisecond for this many characters.
LONGEST_PIECE: Final = 65_536
# How far a slice may reach back beyond the overlap to begin beside a word, where a pattern's edges are true ones.
_BACK: Final = 64
# At so many a list of ranges may have been cut short.
_MANY: Final = 100
_OFFSETS = re.compile(r":(\d+)-(\d+)$")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a growing text stands: ``message`` counts from 0, ``path`` is within it, ``before`` is its judged part."""

    message: int
    path: str = "content"
    before: str = ""


@dataclass(frozen=True, slots=True)
class Growth:
    """What a piece of text brought: for each policy its certain violations, and whether all text so far has passed."""

    violations: tuple[tuple[Violation, ...], ...]
    clear: bool


class _Text:
    """The end of one growing text: ``start`` is where ``kept`` begins in the whole."""

    __slots__ = ("kept", "open", "place", "start")

    def __init__(self, place: Place, kept: str) -> None:
        self.place = Place(place.message, place.path)
        self.kept = kept
        self.start = len(place.before) - len(kept)
        self.open = False


class Session:
    """Judges one growing text after another under ``key``s, such as the candidates of an answer.

    ``overlap``: every match of up to so many characters is found before any of its text is ``overlap`` characters from
    the end. A violation is only reported when the whole text will have it, whatever follows; one that more text might
    undo makes the session not ``clear``. Once ``stuck`` a session is never clear again: only the whole can tell.
    Not safe for use by several threads at a time.
    """

    def __init__(self, policies: Sequence[Policy], parameters: Mapping[str, Any], overlap: int) -> None:
        self.overlap = overlap
        self.stuck = False
        self._parameters = parameters
        self._rules = [[each for each in policy.compiled if each.rule.window in _JUDGED] for policy in policies]
        self._texts: dict[int, _Text] = {}
        self.waiting: tuple[Rule, ...] = tuple(
            rule for policy in policies for rule in policy.rules if rule.window == "whole"
        )
        """Rules for which nothing can be said before the end."""
        self.reads_text = any(self._rules)
        """Whether any rule is judged as text grows."""

    @property
    def clear(self) -> bool:
        """Whether all text so far has passed, as far as it can be told."""
        return not self.stuck and not any(text.open for text in self._texts.values())

    def begin(self, key: int, place: Place) -> None:
        """From here on ``key``'s text is the one at ``place``; what it was before is over."""
        earlier = self._texts.get(key)
        self.stuck = self.stuck or (earlier is not None and earlier.open)
        self._texts[key] = _Text(place, self._end_of(place.before))

    def settle(self) -> None:
        """The whole conversation so far was checked and passed: what was open is closed."""
        self.stuck = False
        self._texts.clear()

    def grow(self, key: int, piece: str, budget: Budget) -> Growth:
        """Judge ``piece``, which goes on from what ``key``'s text was.

        Never raises for what a rule does: a rule that fails, or a budget that does not last, leaves the session stuck.
        """
        text = self._texts[key]
        whole = text.kept + piece
        found: list[tuple[Violation, ...]] = []
        if self.stuck or not self.reads_text:
            return Growth((), self.clear)
        if len(piece) > LONGEST_PIECE or len(whole) > LONGEST_PIECE + 4 * self.overlap:
            self.stuck = True
            return Growth((), False)
        try:
            found = self._judge(text, whole, budget)
        except EvaluationError:
            self.stuck = True
        if text.open or self.stuck:
            text.kept = whole
        else:
            text.kept = self._end_of(whole)
            text.start += len(whole) - len(text.kept)
        return Growth(tuple(found), self.clear)

    def _end_of(self, text: str) -> str:
        """What the next slice begins with: the overlap and a character, from a space on if there is one near."""
        cut = len(text) - self.overlap - 1
        if cut <= 0:
            return text
        least = max(0, cut - _BACK)
        near = max(text.rfind(" ", least, cut + 1), text.rfind("\n", least, cut + 1))
        return text[near if near >= 0 else cut :]

    def _judge(self, text: _Text, whole: str, budget: Budget) -> list[tuple[Violation, ...]]:
        run = Run(_conversation(text.place, whole), self._parameters, budget)
        run.sliced = True
        text.open = False
        return [tuple(self._found(text, len(whole), rules, run)) for rules in self._rules]

    def _found(self, text: _Text, size: int, rules: list[CompiledRule], run: Run) -> Iterator[Violation]:
        for compiled in rules:
            for violation in compiled.check(run):
                if _is_certain(violation, size, at_start=text.start == 0):
                    yield _moved(violation, text.place, text.start)
                else:
                    text.open = True
                    self.stuck = self.stuck or compiled.rule.window == "hint"


def _conversation(place: Place, text: str) -> Conversation:
    data = {"role": "assistant", "content": text}
    event = Event("Message", 0, f"messages.{place.message}", data)
    event.content = text
    events: dict[str, list[Event]] = {"Message": [event], "ToolCall": [], "ToolOutput": [], "Tool": []}
    return Conversation((data,), events, len(text))


def _is_certain(violation: Violation, size: int, *, at_start: bool) -> bool:
    """Whether the whole text will have the violation as well, whatever comes before and after the slice."""
    if violation.rule.window == "slice":
        return True
    if violation.rule.window == "hint" or len(violation.ranges) >= _MANY:
        return False
    spans = [_OFFSETS.search(address) for address in violation.ranges]
    return bool(spans) and all(
        span is not None and (at_start or int(span[1]) > 0) and int(span[2]) < size for span in spans
    )


def _moved(violation: Violation, place: Place, by: int) -> Violation:
    """The violation with its ranges in the whole text."""
    content = f"messages.{place.message}.content"
    exact = f"messages.{place.message}.{place.path}"

    def moved(address: str) -> str:
        span = _OFFSETS.search(address)
        if span is not None:
            address = f"{address[: span.start()]}:{int(span[1]) + by}-{int(span[2]) + by}"
        return exact + address.removeprefix(content) if address.startswith(content) else address

    ranges = tuple(moved(address) for address in violation.ranges)
    return Violation(violation.rule, violation.args, violation.kwargs, ranges)
