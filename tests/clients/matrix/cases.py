"""What is asked of every client, and what has to come of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from tests.clients.matrix.model import ALLOWED, CALL_REASON, FORBIDDEN_CALL, REFUSED_ANSWER, REFUSED_REQUEST, TOOL


class Before(StrEnum):
    """The proxy that is asked, by its configuration."""

    DEFAULT = "default"
    HTTP_400 = "http_400"
    """``refusals.before_stream = "http_400"``"""
    HOLD = "hold"
    """``guardrails.stream_check = "hold"`` besides: every refusal is an error."""
    OPEN = "open"
    """Without a policy."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a client made of one prompt: the text that it showed, what it raised, the tools that it ran."""

    text: str
    raised: str | None
    ran: Sequence[str]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Turn":
        return cls(found["text"], found["raised"], tuple(found["ran"]))

    @property
    def shown(self) -> str:
        return self.text if self.raised is None else f"{self.text!r}, raised {self.raised}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The turns of one task, the requests that the client sent for it and those that reached the model."""

    turns: Sequence[Turn]
    sent: int
    reached: int

    @property
    def last(self) -> Turn:
        return self.turns[-1]


@dataclass(frozen=True, slots=True)
class Cell:
    """What the table says of a case; whether that is as it has to be, or would be if the reason were not ``hidden``."""

    word: str
    holds: bool
    hidden: bool = False


Judge = Callable[[Outcome], Cell]
_HIDDEN: Final = "**hidden**"


def shows(text: str) -> Judge:
    """The client shows the text, for one request."""

    def judge(outcome: Outcome) -> Cell:
        right = outcome.last.raised is None and text in outcome.last.text and outcome.sent == 1
        return Cell("ok" if right else "**no**", right)

    return judge


def refuses(reason: str, withheld: str | None = None) -> Judge:
    """The client shows why, as text or as an error, and nothing ``withheld``; it sent one request and ran no tool."""

    def judge(outcome: Outcome) -> Cell:
        word = _where(reason, outcome.last)
        leaked = withheld is not None and withheld in outcome.last.shown
        refused = outcome.sent == 1 and not outcome.last.ran and not leaked
        hidden = word == _HIDDEN
        said = word if outcome.sent == 1 else f"{word}, {outcome.sent} requests"
        return Cell(said, refused and not hidden, refused and hidden)

    return judge


def runs(tool: str, *, text: str) -> Judge:
    """The tool is run once, and the client shows what the model says then."""

    def judge(outcome: Outcome) -> Cell:
        right = tuple(outcome.last.ran) == (tool,) and text in outcome.last.text and outcome.sent == 2
        return Cell("ok" if right else "**no**", right)

    return judge


def can_run(tool: str) -> Judge:
    """The tool is run: else that it does not run where it is forbidden would say nothing."""

    def judge(outcome: Outcome) -> Cell:
        right = tool in outcome.last.ran
        return Cell("ok" if right else "**no**", right)

    return judge


def goes_on(outcome: Outcome) -> Cell:
    """Whether the last turn of a chat is answered."""
    right = outcome.last.raised is None and outcome.last.text == ALLOWED[1]
    return Cell("yes" if right else "no", right)


def _where(reason: str, turn: Turn) -> str:
    if reason in turn.text:
        return "text"
    return "error" if turn.raised and reason in turn.raised else _HIDDEN


@dataclass(frozen=True, slots=True)
class Case:
    """``do`` is a driver's operation; ``must`` says that the command fails where the case does not hold."""

    column: str
    do: str
    prompts: tuple[str, ...]
    judge: Judge
    before: Before = Before.DEFAULT
    must: bool = True


_REFUSED_REQUEST: Final = refuses(REFUSED_REQUEST[1])
_REFUSED_ANSWER: Final = refuses(REFUSED_ANSWER[1])
_WITHHELD_ANSWER: Final = refuses(REFUSED_ANSWER[1], withheld="Dublin")
_AFTER_REQUEST: Final = (REFUSED_REQUEST[0], ALLOWED[0])
_AFTER_ANSWER: Final = (REFUSED_ANSWER[0], ALLOWED[0])
_FORBIDDEN: Final = refuses(CALL_REASON)

CASES: Final = (
    Case("allowed: unary", "unary", (ALLOWED[0],), shows(ALLOWED[1])),
    Case("allowed: stream", "stream", (ALLOWED[0],), shows(ALLOWED[1])),
    Case("allowed: structured", "structured", (ALLOWED[0],), shows(ALLOWED[1])),
    Case("tool: unary", "tool", (TOOL[0],), runs("weather", text=TOOL[1])),
    Case("tool: stream", "tool_stream", (TOOL[0],), runs("weather", text=TOOL[1])),
    Case("forbidden call: unary", "tool", (FORBIDDEN_CALL,), _FORBIDDEN),
    Case("forbidden call: stream", "tool_stream", (FORBIDDEN_CALL,), _FORBIDDEN),
    Case("without a policy it runs: unary", "tool", (FORBIDDEN_CALL,), can_run("delete_file"), Before.OPEN),
    Case("without a policy it runs: stream", "tool_stream", (FORBIDDEN_CALL,), can_run("delete_file"), Before.OPEN),
    Case("refused request: unary", "unary", (REFUSED_REQUEST[0],), _REFUSED_REQUEST),
    Case("refused request: stream", "stream", (REFUSED_REQUEST[0],), _REFUSED_REQUEST),
    Case("refused request: structured", "structured", (REFUSED_REQUEST[0],), _REFUSED_REQUEST),
    Case("refused answer: unary", "unary", (REFUSED_ANSWER[0],), _REFUSED_ANSWER),
    Case("refused answer: stream", "stream", (REFUSED_ANSWER[0],), _REFUSED_ANSWER),
    Case("refused answer: structured", "structured", (REFUSED_ANSWER[0],), _REFUSED_ANSWER),
    Case("with hold and http_400: stream", "stream", (REFUSED_ANSWER[0],), _WITHHELD_ANSWER, Before.HOLD),
    Case("with hold and http_400: structured", "structured", (REFUSED_ANSWER[0],), _WITHHELD_ANSWER, Before.HOLD),
    Case("chat goes on: request", "chat", _AFTER_REQUEST, goes_on, must=False),
    Case("chat goes on: answer", "chat", _AFTER_ANSWER, goes_on, must=False),
    Case("chat goes on, http_400: request", "chat", _AFTER_REQUEST, goes_on, Before.HTTP_400, must=False),
    Case("chat goes on, http_400: answer with hold", "chat", _AFTER_ANSWER, goes_on, Before.HOLD, must=False),
)
