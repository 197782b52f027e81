"""Judge a response as its text comes: each piece of text together with the end of the text before it.

The cost of a piece depends on its length and the overlap, never on the text before it: of that only the end is kept,
once for each way in which readers join texts (see ``readings``). A session ignores calls, outputs and media: they are
rare, and each is judged with the whole conversation. So is the complete response, whatever a session has found.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.policy import TEXT_WINDOWS, CompiledRule, Policy, RuleViolation
from gemini_proxy.policy.prefilter import prefilter_of
from gemini_proxy.policy.run.budget import Budget
from gemini_proxy.policy.run.events import Conversation, Event
from gemini_proxy.policy.run.readings import Said, said, said_last
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.values import Joined

# A piece is judged on the event loop: ten rules take about a millisecond for this many characters.
LONGEST_PIECE: Final = 65_536
# How far a slice may reach back beyond the overlap to begin at a word boundary, where a pattern's anchors are valid.
_BACK: Final = 64
# A match that begins within this many characters of a slice may lack a letter or part of an escape before it.
_CUT: Final = 16
# A list of this many ranges may have been truncated.
_MANY: Final = 100
_OFFSETS = re.compile(r":(\d+)-(\d+)$")


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a run of text: in ``message``, from 0, at ``path``. ``before`` is the part already checked."""

    message: int
    path: str = "content"
    before: str = ""
    thought: bool = False

    @property
    def address(self) -> str:
        return f"messages.{self.message}.{self.path}"


class _RunEnd:
    """The end of the run of text at ``place``: ``kept`` is what of it stays, from ``start`` on.

    ``earlier`` has the ends of the texts that readers join it to, in each of its readings. ``open`` says that more text
    may undo a match at its end.
    """

    __slots__ = ("earlier", "kept", "open", "place", "start")

    def __init__(self, place: Place, kept: str, earlier: Sequence[Joined]) -> None:
        self.place = place
        self.kept = kept
        self.start = len(place.before) - len(kept)
        self.open = False
        self.earlier = earlier

    def read(self, whole: str) -> str:
        """Return ``whole``, which continues ``kept``, with the readings that begin before it."""
        if self.start or not self.earlier:
            return whole
        text = Joined(whole, (self.place.address,), (len(whole),))
        text.readings = tuple(
            [(earlier.followed_by(text), len(earlier), len(earlier) + len(whole)) for earlier in self.earlier]
        )
        return text


class OpenTurn:
    """The turn of one candidate as it grows: one run of text after another. Sessions make them, and read them."""

    __slots__ = ("said", "text")

    def __init__(self, said: list[tuple[bool, Joined]]) -> None:
        self.said = said
        """The ends of the texts before this run, and whether each is a thought."""
        self.text: _RunEnd | None = None

    @property
    def place(self) -> Place | None:
        """Return the position of the turn's current run; None before the first."""
        return None if self.text is None else self.text.place


class Session:
    """Judge the runs of text in the turns of a response's candidates.

    Every match of up to ``overlap`` characters is found before any of its text is ``overlap`` characters from the end.
    A violation is reported only if the whole text will have it, whatever follows; one that more text might undo makes
    the session not ``clear``. Once ``stuck``, a session is not clear before ``settle``: only a check of the whole can
    decide. Not safe for use by several threads at a time.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        parameters: Mapping[str, Any],
        overlap: int,
        messages: Sequence[Mapping[str, Any]] = (),
        *,
        filtered: bool = False,
    ) -> None:
        """Begin the response that follows ``messages``. If they end within the model's turn, it continues that turn.

        With ``filtered``, a prefilter tells which rules may fire; it is kept for other sessions of the same policies.
        """
        self.overlap = overlap
        self.stuck = False
        self._parameters = parameters
        self._rules = tuple([policy.judged for policy in policies])
        self._prefilter = prefilter_of(tuple(policies), TEXT_WINDOWS) if filtered else None
        self._messages = messages
        self._turns: list[OpenTurn] = []
        self.reads_text = any(self._rules)
        """Some rule is judged as text comes."""

    @cached_property
    def _begun(self) -> list[tuple[bool, Joined]]:
        """What the messages end with that the response may go on from. A response that comes whole never asks."""
        return self._needed([_piece(text) for text in said_last(self._messages)])

    @property
    def clear(self) -> bool:
        """True where all text so far has passed, as far as can be told."""
        if self.stuck:
            return False
        for turn in self._turns:
            if turn.text is not None and turn.text.open:
                return False
        return True

    def turn(self, messages: Sequence[tuple[int, Mapping[str, Any]]] = ()) -> OpenTurn:
        """Open a candidate's turn. ``messages`` are those of it that were checked, each with its index."""
        checked = [_piece(text) for index, message in messages for text in said(index, message)]
        turn = OpenTurn(self._needed([*self._begun, *checked]))
        self._turns.append(turn)
        return turn

    def begin(self, turn: OpenTurn, place: Place) -> None:
        """Begin the run at ``place`` in an open turn; the run before it is over."""
        ended = turn.text
        if ended is not None:
            self.stuck = self.stuck or ended.open
            if ended.kept and ended.place.address != place.address:
                piece = Joined(ended.kept, (ended.place.address,), (len(ended.kept),), ended.start)
                turn.said = self._needed([*turn.said, (ended.place.thought, piece)])
        others = [piece for piece in turn.said if piece[1].addresses != (place.address,)]
        turn.text = _RunEnd(place, self._end_of(place.before), self._earlier(others, place.thought))

    def settle(self) -> None:
        """Close all turns: the whole conversation so far was checked and passed."""
        self.stuck = False
        self._turns.clear()

    def _needed(self, turn: list[tuple[bool, Joined]]) -> list[tuple[bool, Joined]]:
        """Return the end of the turn's texts, and of its thoughts, as far as a match may reach back."""
        kept = set()
        for kind in (False, True):
            numbers = [number for number, (thought, _) in enumerate(turn) if thought is kind]
            most = len(self._end_pieces([turn[number][1] for number in numbers]))
            kept.update(numbers[len(numbers) - most :])
        return [piece for number, piece in enumerate(turn) if number in kept]

    def _end_pieces(self, pieces: list[Joined]) -> list[Joined]:
        """Return the last of ``pieces`` as far as a match may reach back and they follow each other."""
        left = self.overlap + 1 + _BACK
        ends = []
        for piece in reversed(pieces):
            if left <= 0:
                break
            ends.append(piece.part(max(0, len(piece) - left), len(piece)))
            left = 0 if piece.skipped else left - len(piece)
        return ends[::-1]

    def _earlier(self, turn: list[tuple[bool, Joined]], thought: bool) -> list[Joined]:
        """Return what stands before a text in each reading: the texts of its kind, and all where there are both."""
        alike = [piece for its, piece in turn if its is thought]
        readings = [alike, [piece for _, piece in turn]] if len(alike) < len(turn) else [alike]
        return [_chained(self._end_pieces(pieces)) for pieces in readings if pieces]

    def check(self, turn: OpenTurn, piece: str, budget: Budget) -> Sequence[Sequence[RuleViolation]]:
        """Judge ``piece``, which continues the current run of the turn. Return each policy's certain violations.

        Never raises for a rule: a rule that fails, or an exhausted budget, leaves the session stuck.
        """
        text = turn.text
        assert text is not None
        whole = text.kept + piece
        by_policy: Sequence[Sequence[RuleViolation]] = ()
        if self.stuck or not self.reads_text:
            return by_policy
        if len(piece) > LONGEST_PIECE or len(whole) > LONGEST_PIECE + 4 * self.overlap:
            self.stuck = True
            return by_policy
        try:
            by_policy = self._judge(text, whole, budget)
        except EvaluationError:
            self.stuck = True
        if text.open or self.stuck:
            text.kept = whole
        else:
            text.kept = self._end_of(whole)
            text.start += len(whole) - len(text.kept)
        return by_policy

    def _end_of(self, text: str) -> str:
        """Return what the next slice begins with: the overlap and a character, from a space on if one is near."""
        cut = len(text) - self.overlap - 1
        if cut <= 0:
            return text
        least = max(0, cut - _BACK)
        near = max(text.rfind(" ", least, cut + 1), text.rfind("\n", least, cut + 1))
        return text[near if near >= 0 else cut :]

    def _judge(self, text: _RunEnd, whole: str, budget: Budget) -> list[tuple[RuleViolation, ...]]:
        read = text.read(whole)
        chosen = self._rules
        if self._prefilter is not None:
            readings = [str(reading) for reading, _, _ in read.readings] if isinstance(read, Joined) else []
            chosen = self._prefilter.rules_on(whole, readings)
        text.open = False
        if not any(chosen):
            return [() for _ in chosen]
        run = Run(_conversation(text.place, read), self._parameters, budget)
        run.sliced = True
        return [tuple(self._found(text, len(whole), rules, run)) for rules in chosen]

    def _found(self, text: _RunEnd, size: int, rules: Sequence[CompiledRule], run: Run) -> Iterator[RuleViolation]:
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


def _is_certain(violation: RuleViolation, size: int, text: _RunEnd) -> bool:
    """Return whether the whole text has the violation as well, whatever comes before and after the slice."""
    if violation.rule.window == "slice":
        return text.start == 0 or not any(_is_cut(address) for address in violation.ranges)
    if violation.rule.window == "hint" or len(violation.ranges) >= _MANY:
        return False
    spans = [_OFFSETS.search(address) for address in violation.ranges if _is_of(text.place, address)]
    return 0 < len(spans) == len(violation.ranges) and all(
        span is not None and ((text.start == 0 and not text.earlier) or int(span[1]) > 0) and int(span[2]) < size
        for span in spans
    )


def _is_cut(address: str) -> bool:
    """Return whether a range begins so near the beginning of a slice that it may be the end of something else."""
    span = _OFFSETS.search(address)
    return span is not None and int(span[1]) < _CUT


def _is_of(place: Place, address: str) -> bool:
    return address.partition(":")[0] in (f"messages.{place.message}.content", place.address)


def _moved(violation: RuleViolation, place: Place, by: int) -> RuleViolation:
    """Return the violation with its ranges in the whole text."""
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
