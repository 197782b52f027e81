"""Check with the policies compiled here: short checks on the event loop, long ones in processes of their own."""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.gemini.call_links import answered_calls
from gemini_proxy.guardrails.asking import Asking
from gemini_proxy.guardrails.engine import Check, GuardSession
from gemini_proxy.guardrails.plugins import load_policy
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import (
    RESTORED_PARAMETER,
    Answer,
    Budget,
    BudgetExceeded,
    CompiledRule,
    Conversation,
    ConversationError,
    EvaluationError,
    OpenTurn,
    Place,
    Policy,
    Question,
    Session,
    Unanswered,
    prefilter_of,
)

QUICK_MICROSECONDS: Final = 5_000
"""The longest check, by its estimate, that runs on the event loop: what the neighbors of a stream may wait for it."""
QUICK_MESSAGES: Final = 1_000
"""The longest conversation that is read on the event loop, in messages and their parts. It takes two milliseconds to
read, before anything is known of the check's cost."""
QUICK_STEPS: Final = 5_000
"""Steps after which a check on the event loop is stopped and started again in a process: about ten milliseconds.

Steps, not time: when the machine holds up this process, its own checks must not look long."""
QUICK_SEARCH: Final = 0.02
"""Seconds that one search of a regular expression may take on the event loop, at worst, as estimated from its program
and the text. Nothing can interrupt it there."""
FOREIGN_NICE: Final = 19
"""Checks of policies that clients send take the processor time that all others leave."""
FOREIGN_ALLOWANCE: Final = 30.0
"""Seconds of a process that the policies of one client may use at once, and in about a minute and a half over time."""
_NO_ANSWERS: Final[Mapping[Question, Answer]] = {}
_GRACE: Final = 0.5
"""Seconds beyond its own deadline after which a check's process counts as stuck."""


@dataclass(frozen=True, slots=True)
class PlainViolation:
    """A violation without its guardrail, to travel between processes."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ranges: tuple[str, ...]
    stays: bool


def foreign_workers(timeout: float) -> Workers:
    """Make processes for checks of policies that clients send, so that these checks take no process from others.

    Such a check may run for half of ``timeout`` seconds: a caller who waits for another check still has the other half.
    """
    return Workers(longest=timeout / 2 + _GRACE, allowance=FOREIGN_ALLOWANCE, nice=FOREIGN_NICE)


class NativeEngine:
    """Check with the policies compiled here.

    ``timeout`` limits a check in seconds, for all its guardrails together. The wait for a process counts; the wait for
    answers of ``asking`` does not. Long checks of foreign guardrails run in ``foreign``, all other long ones in
    ``workers``. Without ``asking`` no detector outside the engine can be asked.
    """

    def __init__(
        self, workers: Workers, timeout: float, foreign: Workers | None = None, asking: Asking | None = None
    ) -> None:
        self._asking = asking or Asking({})
        self._own = _Lane(workers, timeout)
        self._foreign = _Lane(foreign or workers, timeout / 2)
        self._timeout = timeout
        self._quick = Budget(steps=QUICK_STEPS, seconds=timeout, longest_search=QUICK_SEARCH)

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        """Open a session that judges text on the event loop; what takes longer waits for the end of its response."""
        if not check.guardrails:
            return None
        return NativeSession(check, overlap, self._quick)

    def check(self, check: Check) -> Verdict | Awaitable[Verdict]:
        """Check with all guardrails. Raises EngineUnavailable for a check that fails or exceeds its budget.

        Foreign guardrails are checked separately: if they give no verdict, the others still decide.
        """
        if check.restored:
            check = replace(check, parameters={**check.parameters, RESTORED_PARAMETER: check.restored})
        for guardrail in check.guardrails:
            if guardrail.foreign or guardrail.policy.asks:
                return self._check_by_kind(check)
        return self._check(check, self._own)

    def _check_by_kind(self, check: Check) -> Verdict | Awaitable[Verdict]:
        """Check foreign guardrails, and those that ask outside, each in their own way."""
        foreign = tuple(guardrail for guardrail in check.guardrails if guardrail.foreign)
        if not foreign:
            return self._check_own(check)
        if len(foreign) == len(check.guardrails):
            return self._check(check, self._foreign)
        own = tuple(guardrail for guardrail in check.guardrails if not guardrail.foreign)
        own_verdict = self._check_own(replace(check, guardrails=own))
        foreign_verdict: Verdict | Awaitable[Verdict] | EngineUnavailable
        try:
            foreign_verdict = self._check(replace(check, guardrails=foreign), self._foreign)
        except EngineUnavailable as error:
            foreign_verdict = error
        if isinstance(own_verdict, Verdict) and isinstance(foreign_verdict, Verdict | EngineUnavailable):
            return _joined(own_verdict, foreign_verdict)
        return _both(own_verdict, foreign_verdict)

    def _check_own(self, check: Check) -> Verdict | Awaitable[Verdict]:
        if any(guardrail.policy.asks for guardrail in check.guardrails):
            return self._check_asking(check)
        return self._check(check, self._own)

    async def _check_asking(self, check: Check) -> Verdict:
        """Ask only if no other guardrail objects already: answers cost time and money."""
        started = time.perf_counter()
        plain = tuple(guardrail for guardrail in check.guardrails if not guardrail.policy.asks)
        if plain:
            verdict = await _awaited(self._check(replace(check, guardrails=plain), self._own))
            if verdict.violations:
                return verdict
        rest = replace(check, guardrails=tuple(guardrail for guardrail in check.guardrails if guardrail.policy.asks))

        async def check_rest(answers: Mapping[Question, Answer]) -> Verdict:
            return await _awaited(self._check(rest, self._own, answers))

        verdict = await self._asking.verdict(check_rest, check.gemini_key)
        return replace(verdict, milliseconds=(time.perf_counter() - started) * 1000)

    def _check(
        self, check: Check, lane: "_Lane", answers: Mapping[Question, Answer] = _NO_ANSWERS
    ) -> Verdict | Awaitable[Verdict]:
        """Check on the event loop, or in a process if the check takes too long for it.

        Raises Unanswered, at once or when awaited, if guardrails need answers that ``answers`` lacks.
        """
        started = time.perf_counter()
        if len(check.messages) > QUICK_MESSAGES:
            return self._check_elsewhere(check, lane, started, answers)
        policies = tuple([guardrail.policy for guardrail in check.guardrails])
        rules = check.reader.rules(prefilter_of(policies), check.messages) if lane is self._own else None
        if rules is not None and not any(rules):
            return Verdict((), (time.perf_counter() - started) * 1000)
        if _size(check.messages) > QUICK_MESSAGES:
            return self._check_elsewhere(check, lane, started, answers)
        try:
            conversation = check.reader.conversation(check.messages)
            if self._expected(check, conversation) <= QUICK_MICROSECONDS:
                violations = _check_all(
                    policies, conversation, check.parameters, self._quick, answers, rules, _allowed(check)
                )
                return _verdict(check, violations, started)
        except Unanswered:
            raise
        except BudgetExceeded:
            return self._check_elsewhere(check, lane, started, answers)
        except (EvaluationError, ConversationError) as error:
            raise _unavailable(error) from None
        return self._check_elsewhere(check, lane, started, answers)

    async def _check_elsewhere(
        self, check: Check, lane: "_Lane", started: float, answers: Mapping[Question, Answer]
    ) -> Verdict:
        texts = [(guardrail.policy.text, guardrail.policy.source) for guardrail in check.guardrails]
        ends = started + self._timeout
        try:
            violations = await lane.workers.run_within(
                check.client,
                ends - time.perf_counter() + _GRACE,
                _check_in_worker,
                texts,
                check.messages,
                check.parameters,
                ends,
                lane.seconds,
                answers,
                _allowed(check),
            )
        except Unanswered:
            raise
        except EvaluationError as error:
            raise _unavailable(error) from None
        return _verdict(check, violations, started)

    @staticmethod
    def _expected(check: Check, conversation: Conversation) -> int:
        return sum(guardrail.policy.expected_cost(conversation) for guardrail in check.guardrails)


class NativeSession:
    """A GuardSession of the policies compiled here. ``budget`` limits the check of one piece of text.

    Without a rule that reads text nothing has to be withheld, so the overlap is 0.
    """

    def __init__(self, check: Check, overlap: int, budget: Budget) -> None:
        self._guardrails = check.guardrails
        self._budget = budget
        policies = [guardrail.policy for guardrail in check.guardrails]
        own = not any(guardrail.foreign for guardrail in check.guardrails)
        self._session = Session(policies, check.parameters, overlap, check.messages, filtered=own)
        self.overlap = overlap if self._session.reads_text else 0
        self.waiting = tuple([guardrail.name for guardrail in check.guardrails if guardrail.policy.waits])

    @property
    def clear(self) -> bool:
        return self._session.clear

    @property
    def stuck(self) -> bool:
        return self._session.stuck

    def turn(self, messages: Sequence[tuple[int, Mapping[str, Any]]] = ()) -> OpenTurn:
        return self._session.turn(messages)

    def begin(self, turn: OpenTurn, place: Place) -> None:
        self._session.begin(turn, place)

    def check(self, turn: OpenTurn, text: str) -> Sequence[Violation]:
        by_policy = self._session.check(turn, text, self._budget)
        if not any(by_policy):
            return ()
        return [
            Violation(violation.args, violation.kwargs, violation.ranges, guardrail, stays=True)
            for guardrail, certain in zip(self._guardrails, by_policy, strict=True)
            for violation in certain
        ]

    def settle(self) -> None:
        self._session.settle()


@dataclass(frozen=True, slots=True)
class _Lane:
    """The processes of a kind of check, and the ``seconds`` that one may take there."""

    workers: Workers
    seconds: float


async def _awaited(verdict: Verdict | Awaitable[Verdict]) -> Verdict:
    return verdict if isinstance(verdict, Verdict) else await verdict


async def _both(
    own: Verdict | Awaitable[Verdict], foreign: Verdict | Awaitable[Verdict] | EngineUnavailable
) -> Verdict:
    own_outcome, foreign_outcome = await asyncio.gather(_outcome(own), _outcome(foreign))
    if isinstance(own_outcome, EngineUnavailable):
        raise own_outcome
    return _joined(own_outcome, foreign_outcome)


async def _outcome(verdict: Verdict | Awaitable[Verdict] | EngineUnavailable) -> Verdict | EngineUnavailable:
    if isinstance(verdict, Verdict | EngineUnavailable):
        return verdict
    try:
        return await verdict
    except EngineUnavailable as error:
        return error


def _joined(own: Verdict, foreign: Verdict | EngineUnavailable) -> Verdict:
    """Join the verdicts. Raises EngineUnavailable if only the foreign guardrails could still refuse and did not run."""
    if isinstance(foreign, EngineUnavailable):
        if own.violations:
            return own
        raise foreign
    return Verdict(own.violations + foreign.violations, own.milliseconds + foreign.milliseconds)


def _size(messages: Sequence[Mapping[str, Any]]) -> int:
    """Count the messages and the elements of the lists in them."""
    size = len(messages)
    for message in messages[:QUICK_MESSAGES]:
        for value in message.values():
            if type(value) is list:
                size += len(value)
    return size


def _allowed(check: Check) -> Sequence[int]:
    """Return for each guardrail the number of messages that were allowed before.

    For one that masks it is 0: clients send masked values in clear again, and they must be masked again.
    """
    if not check.allowed:
        return ()
    return [0 if guardrail.action == "mask" else check.allowed for guardrail in check.guardrails]


def _unavailable(error: EvaluationError | ConversationError) -> EngineUnavailable:
    return EngineUnavailable(f"The check gave no verdict: {error}")


def _verdict(check: Check, by_policy: Sequence[Sequence[PlainViolation]], started: float) -> Verdict:
    violations = tuple(
        Violation(violation.args, violation.kwargs, violation.ranges, guardrail, violation.stays)
        for guardrail, violations in zip(check.guardrails, by_policy, strict=True)
        for violation in violations
    )
    return Verdict(violations, (time.perf_counter() - started) * 1000)


def _check_all(
    policies: Sequence[Policy],
    conversation: Conversation,
    parameters: Mapping[str, Any],
    budget: Budget,
    answers: Mapping[Question, Answer],
    rules: Sequence[Sequence[CompiledRule]] | None = None,
    allowed: Sequence[int] = (),
) -> list[list[PlainViolation]]:
    """Check with each policy, or only with ``rules`` of each; ``allowed`` counts the messages allowed before, for each.

    Raises EvaluationError, and Unanswered with the questions of all policies.
    """
    by_policy: list[list[PlainViolation]] = []
    questions: dict[Question, None] = {}
    for number, policy in enumerate(policies):
        chosen = None if rules is None else rules[number]
        try:
            violations = policy.check(
                conversation, parameters, budget, answers, chosen, allowed[number] if allowed else 0
            )
        except Unanswered as missing:
            questions.update(dict.fromkeys(missing.questions))
        else:
            by_policy.append(
                [
                    PlainViolation(violation.args, violation.kwargs, violation.ranges, violation.rule.stays)
                    for violation in violations
                ]
            )
    if questions:
        raise Unanswered(tuple(questions))
    return by_policy


def _check_in_worker(
    texts: Sequence[tuple[str, str]],
    messages: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    ends: float,
    seconds: float,
    answers: Mapping[Question, Answer],
    allowed: Sequence[int] = (),
) -> list[list[PlainViolation]]:
    """Check in a process of its own, which compiles each policy once.

    The check ends after ``seconds``, or at ``ends`` by ``time.perf_counter``, which all processes of a machine share.
    """
    budget = Budget(deadline=min(ends, time.perf_counter() + seconds))
    policies = [load_policy(text, source, asks=True) for text, source in texts]
    conversation = Conversation.of(messages, answered_calls(messages))
    return _check_all(policies, conversation, parameters, budget, answers, allowed=allowed)
