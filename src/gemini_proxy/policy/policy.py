"""Check conversations against a compiled policy: its rules, and the violations that they report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from gemini_proxy.policy.compile.cost import Cost, Costs
from gemini_proxy.policy.detectors.outside import Answer, Question, Unanswered
from gemini_proxy.policy.errors import BudgetExceeded, EvaluationError, PolicyWarning
from gemini_proxy.policy.run.budget import Budget
from gemini_proxy.policy.run.events import Conversation, Event
from gemini_proxy.policy.run.ranges import locate
from gemini_proxy.policy.run.run import Code, Frame, Run
from gemini_proxy.policy.run.values import plain

# Enough for a reader: a flow in which everything matches would report millions.
MAX_VIOLATIONS = 200
_NO_PARAMETERS: Mapping[str, Any] = MappingProxyType({})
_NO_ANSWERS: Mapping[Question, Answer] = MappingProxyType({})
_DEFAULT_BUDGET = Budget()

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


class CompiledRule:
    """A rule as code. ``body`` calls ``fire`` for each binding for which all lines hold."""

    __slots__ = ("_args", "_body", "_events", "_kwargs", "_size", "cost", "needs", "rule")

    def __init__(
        self,
        rule: Rule,
        body: Code,
        events: tuple[int, ...],
        args: list[Code],
        kwargs: Mapping[str, Code],
        size: int,
        cost: Cost,
        needs: Needs,
    ) -> None:
        self.rule = rule
        self.cost = cost
        self.needs = needs
        self._body = body
        self._events = events
        self._args = args
        self._kwargs = kwargs
        self._size = size

    def check(self, run: Run) -> list[RuleViolation]:
        """Return the rule's violations. Any failure in it becomes an EvaluationError with its line."""
        found: list[RuleViolation] = []
        frame: Frame = [None] * (self._size + 1)
        frame[0] = run
        frame[self._size] = found
        run.marks.clear()
        try:
            self._body(frame)
        except EvaluationError as error:
            error.line = self.rule.line
            raise
        # The only boundary: after any error in a rule, the check has no verdict.
        except Exception as error:
            raise EvaluationError(f"{type(error).__name__}: {error}", self.rule.line) from error
        return found

    def fire(self, frame: Frame) -> bool:
        """Record a violation; True once there are enough."""
        run: Run = frame[0]
        if run.allowed and self.rule.only_new and self._was_allowed(run, frame):
            return False
        marks = list(run.marks)
        run.charge(10 + len(marks))
        args = tuple(plain(code(frame), run) for code in self._args)
        kwargs = {name: plain(code(frame), run) for name, code in self._kwargs.items()}
        found: list[RuleViolation] = frame[self._size]
        found.append(RuleViolation(self.rule, args, kwargs, self._ranges(run, frame, marks)))
        return len(found) >= MAX_VIOLATIONS

    def _was_allowed(self, run: Run, frame: Frame) -> bool:
        """Return whether all events of this binding were allowed before.

        Such a rule asks only about its events, so later content changes nothing: see ``only_new``.
        """
        bound = [frame[slot] for slot in self._events if type(frame[slot]) is Event]
        return bool(bound) and all(_message_of(event) < run.allowed for event in bound)

    def _ranges(self, run: Run, frame: Frame, marks: list[Any]) -> tuple[str, ...]:
        bound = [frame[slot] for slot in self._events if type(frame[slot]) is Event]
        events = [*bound, *(mark for mark in marks if type(mark) is Event)]
        spans = [mark for mark in marks if type(mark) is tuple]
        return locate(spans, events, run.index)


class Policy:
    """Rules compiled from one text. Immutable and safe to share between threads.

    ``parameters`` are the names that it reads as ``input``, ``called`` the built-in functions that it calls, ``asks``
    its detectors that are asked outside the engine. ``narrows`` says that one of its rules checks only new content.
    ``compiled`` are the rules as code, in the order of ``rules``, and ``judged`` those of them that are judged as text
    comes. ``waits`` says that one of the rules is judged only at the end.
    """

    __slots__ = (
        "_costs",
        "asks",
        "called",
        "compiled",
        "judged",
        "narrows",
        "parameters",
        "rules",
        "source",
        "text",
        "waits",
        "warnings",
    )

    def __init__(
        self,
        source: str,
        text: str,
        rules: tuple[CompiledRule, ...],
        parameters: frozenset[str],
        called: frozenset[str],
        asks: frozenset[str],
        warnings: tuple[PolicyWarning, ...],
    ) -> None:
        self.source = source
        self.text = text
        self.parameters = parameters
        self.called = called
        self.asks = asks
        self.warnings = warnings
        self.rules: tuple[Rule, ...] = tuple(compiled.rule for compiled in rules)
        self.narrows = any(rule.only_new for rule in self.rules)
        self.compiled = rules
        self.judged = tuple(compiled for compiled in rules if compiled.rule.window in TEXT_WINDOWS)
        self.waits = any(rule.window == "whole" for rule in self.rules)
        self._costs = Costs(compiled.cost for compiled in rules)

    def check(
        self,
        conversation: Conversation,
        parameters: Mapping[str, Any] = _NO_PARAMETERS,
        budget: Budget | None = None,
        answers: Mapping[Question, Answer] = _NO_ANSWERS,
        rules: Sequence[CompiledRule] | None = None,
        allowed: int = 0,
    ) -> tuple[RuleViolation, ...]:
        """Violations in the order of the rules, at most ``MAX_VIOLATIONS`` a rule.

        Raises EvaluationError if there is no verdict: then the conversation is neither known to be clean nor known to
        violate a rule. BudgetExceeded and Unanswered are EvaluationErrors; the latter means that ``answers`` lacks some
        that a rule needs. ``rules`` are the rules of ``compiled`` to check, by default all. ``allowed`` is the number
        of messages at the beginning that were allowed before, in this order, up to the end of a turn.
        """
        run = Run(conversation, parameters, budget if budget is not None else _DEFAULT_BUDGET, answers, allowed)
        violations: list[RuleViolation] = []
        for rule in self.compiled if rules is None else rules:
            try:
                violations.extend(rule.check(run))
            except BudgetExceeded:
                raise
            except EvaluationError:
                # The error may be caused by an answer that is still missing.
                if not run.unanswered:
                    raise
        if run.unanswered:
            raise Unanswered(tuple(run.unanswered))
        return tuple(violations)

    def expected_cost(self, conversation: Conversation) -> int:
        """Estimate the cost of a check in microseconds, rather too high, without looking at the messages."""
        counts, chars = conversation.counts, conversation.chars
        return int(self._costs.microseconds(counts, chars)) + 1


def _message_of(event: Event) -> int:
    """Return the index of the message that an event is in."""
    return int(event.address.split(".", 2)[1])
