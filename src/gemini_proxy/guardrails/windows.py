"""Which text of an answer grows where: from what candidates get to the places in the messages that a session judges."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemini_proxy.gemini.candidates import Delta
from gemini_proxy.gemini.messages import Message
from gemini_proxy.guardrails.engine import GuardSession
from gemini_proxy.guardrails.response_messages import CandidateMessages, for_rules
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.policy import Place


@dataclass(slots=True)
class _Speaker:
    """A candidate's last message: its index, whether it is a thought (None before there is one), and, where it was
    read whole and not gone on with, the message."""

    message: int
    thought: bool | None = None
    last: Message | None = None


class AnswerWindows:
    """Follows the texts of one answer. ``first`` is the index of its first message; skipped thoughts are not judged."""

    def __init__(self, session: GuardSession, first: int, *, skips_thoughts: bool) -> None:
        self._session = session
        self._first = first
        self._thoughts = "skip" if skips_thoughts else "check"
        self._speakers: dict[int, _Speaker] = {}
        self._waits = False

    @property
    def clear(self) -> bool:
        """Whether all text so far has passed."""
        return self._session.clear and not self.waits

    @property
    def waits(self) -> bool:
        """Whether nothing more may leave before the final check."""
        return self._waits or self._session.stuck

    def wait(self) -> None:
        """A check of the whole found what more of the answer may undo."""
        self._waits = True

    def grow(self, grown: Sequence[Delta]) -> list[tuple[int, Verdict]]:
        """Judge what candidates got, texts only. Answers with each candidate that has violations."""
        found = []
        for candidate, thought, fresh, text in _pieces(grown):
            self._turn(candidate, thought, fresh)
            if text and not (thought and self._thoughts == "skip"):
                verdict = self._session.grow(candidate, text)
                if verdict.violations:
                    found.append((candidate, verdict))
        return found

    def resume(self, candidates: Sequence[CandidateMessages]) -> None:
        """All of the answer so far was checked whole and passed; texts go on from these messages."""
        self._session.settle(
            {
                each.index: list(enumerate(for_rules(each.messages[: each.turn], self._thoughts), self._first))
                for each in candidates
            }
        )
        self._speakers = {
            each.index: _Speaker(self._first + len(turn) - 1, bool(turn[-1].get("thought")), turn[-1])
            for each in candidates
            if (turn := each.messages[: each.turn])
        }

    def _turn(self, candidate: int, thought: bool, fresh: bool) -> None:
        """Begin a new text where this one is not the one that the candidate was at."""
        speaker = self._speakers.setdefault(candidate, _Speaker(self._first - 1))
        last, speaker.last = speaker.last, None
        if last is not None and _continues(last, thought, fresh):
            self._session.begin(candidate, Place(speaker.message, before=last["content"], thought=thought))
        elif last is not None or speaker.thought is not thought:
            speaker.message += 1
            self._session.begin(candidate, Place(speaker.message, thought=thought))
        speaker.thought = thought


def _pieces(grown: Sequence[Delta]) -> list[tuple[int, bool, bool, str]]:
    """Texts of one candidate that follow each other, as one text."""
    joined: list[tuple[Delta, list[str]]] = []
    latest: dict[int, tuple[Delta, list[str]]] = {}
    for each in grown:
        if each.text is None:
            continue
        before = latest.get(each.candidate)
        if before is not None and not each.fresh and before[0].thought is each.thought:
            before[1].append(each.text)
        else:
            joined.append((each, [each.text]))
            latest[each.candidate] = joined[-1]
    return [(first.candidate, first.thought, first.fresh, "".join(texts)) for first, texts in joined]


def _continues(last: Message, thought: bool, fresh: bool) -> bool:
    """Return whether text goes on in the last message: in the same run, which nothing came between."""
    return not fresh and isinstance(last.get("content"), str) and bool(last.get("thought")) is thought
