"""Policies over an answer that grows: each new piece of text is judged together with the end of what came before.

The cost of a piece depends on its length and the overlap, never on what came before: of earlier text only the end is
kept, once for each way in which readers join texts (see ``readings``). Calls, outputs and media are no matter of a
session: they are rare, and each is judged with the whole conversation; so is the end, whatever a session has found.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.policy import CompiledRule, Policy
from gemini_proxy.policy.run.budget import Budget
from gemini_proxy.policy.run.events import Conversation, Event
from gemini_proxy.policy.run.readings import Said, said, said_last
from gemini_proxy.policy.run.rules import Rule, RuleViolation
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.values import Joined

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
    thought: bool = False

    @property
    def address(self) -> str:
        return f"messages.{self.message}.{self.path}"


@dataclass(frozen=True, slots=True)
class Growth:
    """What a piece of text brought: for each policy its certain violations, and whether all text so far has passed."""

    violations: tuple[tuple[RuleViolation, ...], ...]
    clear: bool


class _Text:
    """The end of one growing text: ``start`` is where ``kept`` begins in the whole.

    ``earlier`` has the ends of the texts that readers join it to, in each reading of it.
    """

    __slots__ = ("earlier", "kept", "open", "place", "start")

    def __init__(self, place: Place, kept: str, earlier: Sequence[Joined]) -> None:
        self.place = place
        self.kept = kept
        self.start = len(place.before) - len(kept)
        self.open = False
        self.earlier = earlier

    def read(self, whole: str) -> str:
        """``whole``, which goes on from ``kept``, with the readings that begin before it."""
        if self.start or not self.earlier:
            return whole
        text = Joined(whole, (self.place.address,), (len(whole),))
        text.readings = tuple(
            [(earlier.followed_by(text), len(earlier), len(earlier) + len(whole)) for earlier in self.earlier]
        )
        return text


class Session:
    """Judges one growing text after another under ``key``s, such as the candidates of an answer.

    ``overlap``: every match of up to so many characters is found before any of its text is ``overlap`` characters from
    the end. A violation is only reported when the whole text will have it, whatever follows; one that more text might
    undo makes the session not ``clear``. Once ``stuck`` a session is never clear again: only the whole can tell.
    Not safe for use by several threads at a time.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        parameters: Mapping[str, Any],
        overlap: int,
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """``messages`` are those that the answer follows: where they end in the model's turn, it goes on."""
        self.overlap = overlap
        self.stuck = False
        self._parameters = parameters
        self._rules = [[each for each in policy.compiled if each.rule.window in _JUDGED] for policy in policies]
        self._texts: dict[int, _Text] = {}
        self._begun = self._needed([_piece(text) for text in said_last(messages)])
        self._turns: dict[int, list[tuple[bool, Joined]]] = {}
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
        ended = self._texts.get(key)
        turn = self._turns.get(key, self._begun)
        if ended is not None:
            self.stuck = self.stuck or ended.open
            if ended.kept and ended.place.address != place.address:
                piece = Joined(ended.kept, (ended.place.address,), (len(ended.kept),), ended.start)
                turn = self._turns[key] = self._needed([*turn, (ended.place.thought, piece)])
        others = [piece for piece in turn if piece[1].addresses != (place.address,)]
        self._texts[key] = _Text(place, self._end_of(place.before), self._earlier(others, place.thought))

    def settle(self, answers: Mapping[int, Sequence[tuple[int, Mapping[str, Any]]]] | None = None) -> None:
        """The whole conversation so far was checked and passed: what was open is closed.

        ``answers`` has the messages of each key's turn so far, with their places.
        """
        self.stuck = False
        self._texts.clear()
        self._turns = {
            key: self._needed(
                [
                    *self._begun,
                    *(_piece(text) for index, message in messages for text in said(index, message)),
                ]
            )
            for key, messages in (answers or {}).items()
        }

    def _needed(self, turn: list[tuple[bool, Joined]]) -> list[tuple[bool, Joined]]:
        """The end of the turn's texts, and of its thoughts, as far as a match may reach back."""
        kept = set()
        for kind in (False, True):
            numbers = [number for number, (thought, _) in enumerate(turn) if thought is kind]
            most = len(self._end_pieces([turn[number][1] for number in numbers]))
            kept.update(numbers[len(numbers) - most :])
        return [piece for number, piece in enumerate(turn) if number in kept]

    def _end_pieces(self, pieces: list[Joined]) -> list[Joined]:
        """The last of ``pieces`` as far as a match may reach back, and no further than they follow each other."""
        left = self.overlap + 1 + _BACK
        ends = []
        for piece in reversed(pieces):
            if left <= 0:
                break
            ends.append(piece.part(max(0, len(piece) - left), len(piece)))
            left = 0 if piece.skipped else left - len(piece)
        return ends[::-1]

    def _earlier(self, turn: list[tuple[bool, Joined]], thought: bool) -> list[Joined]:
        """What stands before a text in each reading of it: its own kind, and all where there are both."""
        alike = [piece for its, piece in turn if its is thought]
        found = [alike, [piece for _, piece in turn]] if len(alike) < len(turn) else [alike]
        return [_chained(self._end_pieces(pieces)) for pieces in found if pieces]

    def grow(self, key: int, piece: str, budget: Budget) -> Growth:
        """Judge ``piece``, which goes on from what ``key``'s text was.

        Never raises for what a rule does: a rule that fails, or a budget that does not last, leaves the session stuck.
        """
        text = self._texts[key]
        whole = text.kept + piece
        found: list[tuple[RuleViolation, ...]] = []
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

    def _judge(self, text: _Text, whole: str, budget: Budget) -> list[tuple[RuleViolation, ...]]:
        run = Run(_conversation(text.place, text.read(whole)), self._parameters, budget)
        run.sliced = True
        text.open = False
        return [tuple(self._found(text, len(whole), rules, run)) for rules in self._rules]

    def _found(self, text: _Text, size: int, rules: list[CompiledRule], run: Run) -> Iterator[RuleViolation]:
        for compiled in rules:
            for violation in compiled.check(run):
                if _is_certain(violation, size, text):
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


def _piece(text: Said) -> tuple[bool, Joined]:
    return text.thought, Joined.of([(text.text, text.address)])


def _chained(pieces: list[Joined]) -> Joined:
    chain = pieces[0]
    for piece in pieces[1:]:
        chain = chain.followed_by(piece)
    return chain


def _is_certain(violation: RuleViolation, size: int, text: _Text) -> bool:
    """Whether the whole text will have the violation as well, whatever comes before and after the slice."""
    if violation.rule.window == "slice":
        return True
    if violation.rule.window == "hint" or len(violation.ranges) >= _MANY:
        return False
    spans = [_OFFSETS.search(address) for address in violation.ranges if _is_of(text.place, address)]
    return 0 < len(spans) == len(violation.ranges) and all(
        span is not None and ((text.start == 0 and not text.earlier) or int(span[1]) > 0) and int(span[2]) < size
        for span in spans
    )


def _is_of(place: Place, address: str) -> bool:
    return address.partition(":")[0] in (f"messages.{place.message}.content", place.address)


def _moved(violation: RuleViolation, place: Place, by: int) -> RuleViolation:
    """The violation with its ranges in the whole text."""
    content = f"messages.{place.message}.content"

    def moved(address: str) -> str:
        if not _is_of(place, address):
            return address
        span = _OFFSETS.search(address)
        if span is not None:
            address = f"{address[: span.start()]}:{int(span[1]) + by}-{int(span[2]) + by}"
        return address if address.startswith(place.address) else place.address + address.removeprefix(content)

    ranges = tuple(moved(address) for address in violation.ranges)
    return RuleViolation(violation.rule, violation.args, violation.kwargs, ranges)
