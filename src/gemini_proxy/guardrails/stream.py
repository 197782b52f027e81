"""Hold back a response until verdicts let it go: bytes from upstream go in, those that may leave come out. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.candidates import Delta
from gemini_proxy.gemini.framing.frames import Frame, Framing
from gemini_proxy.gemini.generate_wire import GENERATE_READER
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.wire import ResponseReader
from gemini_proxy.guardrails.engine import GuardSession
from gemini_proxy.guardrails.response_messages import CandidateMessages, for_rules
from gemini_proxy.guardrails.verdict import Violation
from gemini_proxy.policy import OpenTurn, Place

StreamCheck = Literal["final", "window", "hold"]


class TextViolated(Exception):
    """New text has ``violations`` that further text cannot undo, each with the index of its candidate."""

    def __init__(self, violations: Sequence[tuple[int, Violation]]) -> None:
        super().__init__("text of the response has violations")
        self.violations = violations


@dataclass(slots=True)
class _CandidateText:
    """The text of one candidate. ``turn`` has its current run.

    ``message`` is the index of its last message; ``checked`` is that message if a check of the whole has read it and no
    text has come since. ``text`` counts its characters so far, ``all`` those of its thoughts as well. ``piece`` is the
    newest text, which waits for the session.
    """

    turn: OpenTurn
    message: int
    checked: Message | None = None
    text: int = 0
    all: int = 0
    piece: "_NewText | None" = None


class _NewText(NamedTuple):
    """New text of one run of candidate ``number``, as it came. ``fresh`` says that it begins the run."""

    number: int
    candidate: _CandidateText
    thought: bool
    fresh: bool
    texts: list[str]


class _End(NamedTuple):
    """The end of an event's text in its candidate, counted as ``all`` for a thought, else as ``text``."""

    candidate: _CandidateText
    thought: bool
    end: int


@dataclass(slots=True)
class _PendingEvent:
    """A pending event, with the bytes before it that belong to no event.

    ``part`` says that something in it waits for a check of the whole, ``last`` that it waits for the final check.
    """

    raw: bytes
    part: bool
    last: bool
    ends: Sequence[_End] = ()

    def may_leave(self, overlap: int) -> bool:
        """Return whether nothing in the event waits and ``overlap`` characters have followed each of its texts."""
        if self.part or self.last:
            return False
        for candidate, thought, end in self.ends:
            if (candidate.all if thought else candidate.text) - end < overlap:
                return False
        return True


class ResponseStream:
    """Take in the bytes of a response and return those that may leave, in order and unchanged.

    ``final`` withholds from the first event that finishes every candidate on, and every event with a function call and
    what follows it. ``window`` judges text as it comes, with ``session``, and withholds an event until

    - ``session.overlap`` characters more of its candidate's text have followed each text in it, and each thought so
      many of either kind: readers join what is text, and what came in order;
    - a check of the whole has passed every part in it that is not plain text;
    - it is not one of the events that end the response.

    ``hold`` withholds everything. ``window`` becomes ``final`` without a session, and ``hold`` if the session names
    guardrails in ``waiting``, which have to see the whole. ``mode`` is the result.

    Verdicts come from outside. While ``wants_check`` is true, nothing more leaves before a check of everything so far:
    report its outcome by ``passed`` or ``postpone``. After ``close`` the final check decides about the rest, which
    ``release`` returns.

    Calls, media and thoughts do not end a text, since readers join the text after them to it. Thoughts are joined with
    each other as well, but the end of a thought does not wait for another thought: otherwise a response would wait
    until its end.
    """

    __slots__ = (
        "_candidate_count",
        "_candidates",
        "_deltas",
        "_ending",
        "_first_message",
        "_framing",
        "_max_bytes",
        "_merger",
        "_part_waits",
        "_pending",
        "_pieces",
        "_postponed",
        "_reader",
        "_ready",
        "_room",
        "_separators",
        "_session",
        "_thoughts",
        "empty",
        "events_left",
        "mode",
    )

    def __init__(
        self,
        framing: Framing,
        merger: Merger,
        mode: StreamCheck,
        candidate_count: int | None,
        max_bytes: int,
        *,
        session: GuardSession | None = None,
        first_message: int = 0,
        skips_thoughts: bool = False,
        reader: ResponseReader | None = None,
    ) -> None:
        """Begin a response whose first message has the index ``first_message``. Skipped thoughts are not judged.

        ``reader`` translates frames of other wires than ``generateContent`` for the merger.

        ``max_bytes`` bounds the response: it is kept whole for the final check.
        """
        if mode == "window" and (session is None or session.waiting):
            mode = "final" if session is None else "hold"
        self.mode: StreamCheck = mode
        self.empty = True
        """No event has come yet: nothing, blank lines, comments or an array without elements."""
        self.events_left = 0
        """The number of events that have left, which a refusal inside a JSON array depends on."""
        self._framing = framing
        self._merger = merger
        self._reader: ResponseReader = reader or GENERATE_READER
        self._candidate_count = candidate_count
        self._max_bytes = self._room = max_bytes
        self._ready: list[bytes] = []
        self._pending: list[_PendingEvent] = []
        # Bytes after the last event. They may be the end of the body (an array's bracket), so they wait for the next
        # event.
        self._separators: list[bytes] = []
        self._ending = mode == "hold"
        self._part_waits = False
        self._postponed = False
        self._session = session if mode == "window" else None
        self._first_message = first_message
        self._thoughts = "skip" if skips_thoughts else "check"
        if mode == "window":
            # Read only where there is a session. A thousand silent streams without one take half a megabyte less.
            self._deltas: list[Delta] = merger.follow()
            self._candidates: dict[int, _CandidateText] = {}
            self._pieces: list[_NewText] = []

    @property
    def size(self) -> int:
        """Return the number of bytes received so far."""
        return self._max_bytes - self._room

    @property
    def wants_check(self) -> bool:
        """True while a whole function call, in ``window`` any part but text, keeps back what could leave after it."""
        if not self._part_waits or self._waits_for_end or self._reader.has_open_call:
            return False
        return not any(candidate.has_open_call for candidate in self._merger.candidates)

    @property
    def following(self) -> bytes:
        """Return the first bytes that will leave next, empty if nothing waits."""
        if self._ready:
            return self._ready[0]
        if self._pending:
            return self._pending[0].raw
        return self._separators[0] if self._separators else b""

    def read(self, data: bytes) -> None:
        """Take in bytes when more are already available: nothing is decided yet.

        Raises DecodeError for bytes that cannot be read, and for a response over ``max_bytes``.
        """
        self._room -= len(data)
        if self._room < 0:
            raise DecodeError("The upstream's response is larger than upstream.max_answer_bytes allows")
        self._add(self._framing.feed(data))

    def feed(self, data: bytes) -> bytes:
        """Take in bytes and return those that may leave now, none while ``wants_check`` is true.

        Raises TextViolated, and DecodeError as ``read`` does.
        """
        self.read(data)
        if self._session is not None:
            if self._part_waits or self._waits_for_end:
                return b""
            self._judge_texts(self._session)
        elif self._part_waits and self.wants_check:
            return b""
        return self.take()

    def overtake(self) -> None:
        """Note an event that leaves before those that wait, since there is nothing in it to check."""
        self.empty = False
        self.events_left += 1

    def passed(self, candidates: Sequence[CandidateMessages]) -> bytes:
        """Return what may leave now that a check of everything so far, which is ``candidates``, has passed."""
        if self._session is None:
            return self.release()
        self._resume(self._session, candidates)
        if self._session.clear:
            self._let_leave()
        return self.take()

    def postpone(self) -> bytes:
        """Leave all pending events to the final check: more of the response may undo a violation.

        Another check after each chunk would be a check of the whole each time. Return the bytes that may still leave.
        """
        self._postponed = True
        return self.take()

    def close(self) -> None:
        """Take in the end of the body. What is withheld now waits for ``release``. Raises DecodeError as ``read``."""
        if self._session is not None:
            # Nothing more leaves before the final check, which reads all text: no need to judge it as it comes.
            self._session, self._ending = None, True
        self._add(self._framing.end())
        self.settle()

    def settle(self) -> None:
        """Merge what waited for more of the response, of which no more will come. Raises DecodeError as ``read``."""
        for payload in self._reader.end():
            self._merger.add(payload)

    def release(self) -> bytes:
        """Return everything withheld, after a verdict that covers it."""
        self.events_left += len(self._pending)
        for event in self._pending:
            self._ready.append(event.raw)
        self._ready += self._separators
        self._pending.clear()
        self._separators.clear()
        self._part_waits = False
        return self.take()

    def take(self) -> bytes:
        """Return the bytes that may leave now. They have to: a refusal continues where they end."""
        ready = self._ready
        if not ready:
            return b""
        taken = ready[0] if len(ready) == 1 else b"".join(ready)
        ready.clear()
        return taken

    @property
    def _waits_for_end(self) -> bool:
        """True where nothing more may leave before the final check."""
        return self._ending or self._postponed or (self._session is not None and self._session.stuck)

    def _add(self, frames: list[Frame]) -> None:
        for raw, payload in frames:
            if payload is None:
                self._separators.append(raw)
                continue
            carried_call = self._merge(payload)
            self.empty = False
            if not self._ending:
                self._ending = self._merger.finished(self._candidate_count)
            if self._separators:
                raw = b"".join((*self._separators, raw))
                self._separators.clear()
            if self._session is not None:
                self._pending.append(self._event(self._session, raw))
            elif self._pending or self._ending or carried_call:
                self._part_waits = self._part_waits or carried_call
                self._pending.append(_PendingEvent(raw, carried_call, self._ending))
            else:
                self._ready.append(raw)
                self.events_left += 1

    def _merge(self, payload: Mapping[str, Any]) -> bool:
        """Add a frame to what has come. Return whether it held a call, or a piece of one."""
        merger, reader = self._merger, self._reader
        carried_call = False
        for said in reader.read(payload):
            merger.add(said)
            carried_call = carried_call or merger.carried_call
        return carried_call or reader.carried_call

    def _event(self, session: GuardSession, raw: bytes) -> _PendingEvent:
        """Follow the text of an event that has been merged."""
        part = self._reader.carried_call
        self._part_waits = self._part_waits or part
        ends: list[_End] = []
        for number, text, thought, fresh in self._deltas:
            if text is None:
                part = self._part_waits = True
                continue
            candidate = self._candidates.get(number)
            if candidate is None:
                candidate = self._candidates[number] = _CandidateText(session.turn(), self._first_message - 1)
            if text and not (thought and self._thoughts == "skip"):
                candidate.all += len(text)
                candidate.text += 0 if thought else len(text)
                ends.append(_End(candidate, thought, candidate.all if thought else candidate.text))
            piece = candidate.piece
            if piece is None or fresh or piece.thought is not thought:
                piece = candidate.piece = _NewText(number, candidate, thought, fresh, [])
                self._pieces.append(piece)
            piece.texts.append(text)
        self._deltas.clear()
        return _PendingEvent(raw, part, self._ending, ends)

    def _judge_texts(self, session: GuardSession) -> None:
        """Judge the text that has come since the last time; what has passed may leave. Raises TextViolated."""
        violations: list[tuple[int, Violation]] = []
        for number, candidate, thought, fresh, texts in self._take_pieces():
            _begin(session, candidate, thought, fresh)
            text = "".join(texts)
            if text and not (thought and self._thoughts == "skip"):
                violations += [(number, violation) for violation in session.check(candidate.turn, text)]
        if violations:
            raise TextViolated(violations)
        if session.clear:
            self._let_leave()

    def _take_pieces(self) -> list[_NewText]:
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            piece.candidate.piece = None
        return pieces

    def _resume(self, session: GuardSession, checked: Sequence[CandidateMessages]) -> None:
        """Continue after a whole check has passed: text continues the messages that it read."""
        self._part_waits = False
        for event in self._pending:
            event.part = False
        self._take_pieces()
        session.settle()
        first = self._first_message
        turns = {candidate.index: candidate.messages[: candidate.turn] for candidate in checked}
        for index in {**self._candidates, **turns}:
            messages = turns.get(index, ())
            turn = session.turn(list(enumerate(for_rules(messages, self._thoughts), first)))
            candidate = self._candidates.get(index)
            if candidate is None:
                candidate = self._candidates[index] = _CandidateText(turn, first)
            candidate.turn = turn
            candidate.message = first + len(messages) - 1
            candidate.checked = messages[-1] if messages else None

    def _let_leave(self) -> None:
        """Let the events leave that nothing holds back now: all text so far has passed."""
        assert self._session is not None
        overlap = self._session.overlap
        leaving = 0
        for event in self._pending:
            if not event.may_leave(overlap):
                break
            self._ready.append(event.raw)
            leaving += 1
        del self._pending[:leaving]
        self.events_left += leaving


def _begin(session: GuardSession, candidate: _CandidateText, thought: bool, fresh: bool) -> None:
    """Begin a run of text where it is not the one that the candidate is in."""
    checked, candidate.checked = candidate.checked, None
    if checked is not None and _continues(checked, thought, fresh):
        session.begin(candidate.turn, Place(candidate.message, before=checked["content"], thought=thought))
        return
    place = candidate.turn.place
    if place is None or place.thought is not thought:
        candidate.message += 1
        session.begin(candidate.turn, Place(candidate.message, thought=thought))


def _continues(checked: Message, thought: bool, fresh: bool) -> bool:
    """Return whether text continues in the message: in the same run, which nothing came between."""
    return not fresh and isinstance(checked.get("content"), str) and bool(checked.get("thought")) is thought
