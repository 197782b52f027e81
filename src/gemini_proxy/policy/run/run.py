"""Hold the state of one check: its meter, its marks, and what rules can reach. Never shared, so it needs no lock."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gemini_proxy.policy.detectors.outside import MAX_QUESTIONS, Answer, Question
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.budget import Budget, Meter
from gemini_proxy.policy.run.events import Conversation, Event
from gemini_proxy.policy.run.ranges import Mark, index_of
from gemini_proxy.policy.run.regex import Mode, Regex

# A compiled expression or line: takes the frame, whose slot 0 is the Run and whose other slots are variables.
Frame = list[Any]
Code = Callable[[Frame], Any]

_NO_ANSWERS: Mapping[Question, Answer] = MappingProxyType({})


class Run(Meter):
    """One check. ``marks`` grows as tests succeed, and is cut back when a binding fails."""

    __slots__ = (
        "_events",
        "_index",
        "_positions",
        "allowed",
        "answers",
        "conversation",
        "marks",
        "negated",
        "parameters",
        "regexes",
        "scans",
        "unanswered",
    )

    def __init__(
        self,
        conversation: Conversation,
        parameters: Mapping[str, Any],
        budget: Budget,
        answers: Mapping[Question, Answer] = _NO_ANSWERS,
        allowed: int = 0,
    ) -> None:
        """``allowed`` is how many messages at the beginning were allowed before, in this order."""
        super().__init__(budget)
        self.allowed = allowed
        self.answers = answers
        self.unanswered: dict[Question, None] = {}
        """The questions for detector services that a verdict depends on."""
        self.conversation = conversation
        self.parameters = parameters
        self.marks: list[Event | Mark] = []
        """Texts that tests found something in, and events that a count found."""
        self.scans: dict[tuple[Any, ...], Any] = {}
        """Results of searches in readings, and of methods on them."""
        self.negated = False
        """True while evaluating what a rule negates."""
        self.regexes: dict[tuple[str, Mode], Regex] = {}
        self._events: dict[str, list[Event]] = {}
        self._positions: dict[str, list[int]] = {}
        self._index: Mapping[int, str] | None = None

    def answer(self, question: Question) -> Answer | None:
        """Return the answer to a question, None if it must be asked first. Raises EvaluationError for too many."""
        self.charge(1 + (len(question.text) >> 9))
        answer = self.answers.get(question)
        if answer is None:
            self.unanswered[question] = None
            if len(self.unanswered) > MAX_QUESTIONS:
                raise EvaluationError(f"the check asks more than {MAX_QUESTIONS} questions")
        return answer

    def events(self, kind: str) -> list[Event]:
        """Return the conversation's events of a kind, built at most once a check."""
        found = self._events.get(kind)
        if found is None:
            found = self._events[kind] = self.conversation.events(kind)
        return found

    def index(self) -> Mapping[int, str]:
        """Return the addresses of all strings of the conversation by identity, built at most once a check."""
        if self._index is None:
            kinds = ("Message", "ToolCall", "ToolOutput", "Tool")
            self._index = index_of([event for kind in kinds for event in self.events(kind)])
        return self._index

    def positions(self, kind: str) -> list[int]:
        """Return the positions of ``events(kind)``, ascending."""
        found = self._positions.get(kind)
        if found is None:
            found = self._positions[kind] = [event.position for event in self.events(kind)]
        return found
