"""The policy engine in this process, with its long checks in other ones."""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.gemini.call_links import answered_calls
from gemini_proxy.guardrails.asking import Asking
from gemini_proxy.guardrails.engine import Check, GuardSession
from gemini_proxy.guardrails.native_session import NativeSession
from gemini_proxy.guardrails.plugins import load_policy
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import (
    Answer,
    Budget,
    BudgetExceeded,
    Conversation,
    ConversationError,
    EvaluationError,
    Policy,
    Question,
    Unanswered,
)

QUICK_MICROSECONDS: Final = 5_000
"""The longest expected check that runs on the event loop: what a stream's neighbours may wait for it."""
QUICK_MESSAGES: Final = 1_000
"""The longest conversation that is read on the event loop, in messages and their parts: two milliseconds, before
anything is known of its cost."""
QUICK_STEPS: Final = 5_000
"""Where a check that was expected to be quick is stopped and started again in another process: about ten milliseconds.
In steps, not in time: a process that the machine holds up must not take its own checks for long ones."""
QUICK_SEARCH: Final = 0.02
"""Seconds that one search of a regular expression may take at worst, estimated from its program and the text, to be
made on the event loop: nothing can interrupt it there."""
FOREIGN_NICE: Final = 19
"""Checks of policies that clients send take the processor time that all others leave."""
FOREIGN_ALLOWANCE: Final = 30.0
"""Seconds of a process that the policies of one client may use at once, and in about a minute and a half over time."""
_NO_ANSWERS: Final[Mapping[Question, Answer]] = {}
_GRACE: Final = 0.5
"""Seconds beyond its own deadline after which a check's process is taken for stuck."""


@dataclass(frozen=True, slots=True)
class PlainViolation:
    """A violation without its guardrail: what travels between processes."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ranges: tuple[str, ...]
    stays: bool


def foreign_workers(timeout: float) -> Workers:
    """Processes for checks of policies that clients send, which take none from others.

    Such a check may run half of ``timeout`` seconds: a caller who waits behind one still has the other half.
    """
    return Workers(longest=timeout / 2 + _GRACE, allowance=FOREIGN_ALLOWANCE, nice=FOREIGN_NICE)


class NativeEngine:
    """Checks with the policies compiled here. ``timeout`` is in seconds a check, all its guardrails together, and the
    wait for a process included, the wait for answers of ``asking`` not. Long checks of foreign guardrails run in
    ``foreign``, all others in ``workers``. Without ``asking`` no detector outside can be asked.
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
        """Pieces are judged here, within the quick limit; one that takes more waits for the end of its answer."""
        if not check.guardrails:
            return None
        return NativeSession(check, overlap, self._quick)

    def judge(self, check: Check) -> Verdict | Awaitable[Verdict]:
        """Raises EngineUnavailable for a check over its budget, or one whose evaluation failed.

        Foreign guardrails are checked apart: where they give no verdict, the others still decide.
        """
        foreign = tuple(guardrail for guardrail in check.guardrails if guardrail.foreign)
        if not foreign:
            return self._judge_own(check)
        if len(foreign) == len(check.guardrails):
            return self._judge(check, self._foreign)
        own = tuple(guardrail for guardrail in check.guardrails if not guardrail.foreign)
        first = self._judge_own(replace(check, guardrails=own))
        second: Verdict | Awaitable[Verdict] | EngineUnavailable
        try:
            second = self._judge(replace(check, guardrails=foreign), self._foreign)
        except EngineUnavailable as error:
            second = error
        if isinstance(first, Verdict) and isinstance(second, Verdict | EngineUnavailable):
            return _together(first, second)
        return _both(first, second)

    def _judge_own(self, check: Check) -> Verdict | Awaitable[Verdict]:
        if any(guardrail.policy.asks for guardrail in check.guardrails):
            return self._judge_asking(check)
        return self._judge(check, self._own)

    async def _judge_asking(self, check: Check) -> Verdict:
        """Ask only where no other guardrail objects already: answers cost time and money."""
        started = time.perf_counter()
        plain = tuple(guardrail for guardrail in check.guardrails if not guardrail.policy.asks)
        if plain:
            first = await _awaited(self._judge(replace(check, guardrails=plain), self._own))
            if first.violations:
                return first
        rest = replace(check, guardrails=tuple(guardrail for guardrail in check.guardrails if guardrail.policy.asks))

        async def judge(answers: Mapping[Question, Answer]) -> Verdict:
            return await _awaited(self._judge(rest, self._own, answers))

        second = await self._asking.verdict(judge, check.gemini_key)
        return replace(second, milliseconds=(time.perf_counter() - started) * 1000)

    def _judge(
        self, check: Check, lane: "_Lane", answers: Mapping[Question, Answer] = _NO_ANSWERS
    ) -> Verdict | Awaitable[Verdict]:
        """Raises Unanswered where guardrails need other answers than ``answers``; so does what is awaited."""
        started = time.perf_counter()
        if _pieces(check.messages) > QUICK_MESSAGES:
            return self._judge_elsewhere(check, lane, started, answers)
        try:
            conversation = Conversation.of(check.messages, answered_calls(check.messages))
            if self._expected(check, conversation) <= QUICK_MICROSECONDS:
                policies = [guardrail.policy for guardrail in check.guardrails]
                found = _check_all(policies, conversation, check.parameters, self._quick, answers)
                return _verdict(check, found, started)
        except Unanswered:
            raise
        except BudgetExceeded:
            return self._judge_elsewhere(check, lane, started, answers)
        except (EvaluationError, ConversationError) as error:
            raise _unavailable(error) from None
        return self._judge_elsewhere(check, lane, started, answers)

    async def _judge_elsewhere(
        self, check: Check, lane: "_Lane", started: float, answers: Mapping[Question, Answer]
    ) -> Verdict:
        texts = [(guardrail.policy.text, guardrail.policy.source) for guardrail in check.guardrails]
        ends = started + self._timeout
        try:
            found = await lane.workers.run_within(
                check.client,
                ends - time.perf_counter() + _GRACE,
                check_in_worker,
                texts,
                check.messages,
                check.parameters,
                ends,
                lane.seconds,
                answers,
            )
        except Unanswered:
            raise
        except EvaluationError as error:
            raise _unavailable(error) from None
        return _verdict(check, found, started)

    @staticmethod
    def _expected(check: Check, conversation: Conversation) -> int:
        return sum(guardrail.policy.expected_cost(conversation) for guardrail in check.guardrails)


@dataclass(frozen=True, slots=True)
class _Lane:
    """Where checks run, and the ``seconds`` that one may."""

    workers: Workers
    seconds: float


async def _awaited(judged: Verdict | Awaitable[Verdict]) -> Verdict:
    return judged if isinstance(judged, Verdict) else await judged


async def _both(
    first: Verdict | Awaitable[Verdict], second: Verdict | Awaitable[Verdict] | EngineUnavailable
) -> Verdict:
    own, foreign = await asyncio.gather(_outcome(first), _outcome(second))
    if isinstance(own, EngineUnavailable):
        raise own
    return _together(own, foreign)


async def _outcome(judged: Verdict | Awaitable[Verdict] | EngineUnavailable) -> Verdict | EngineUnavailable:
    if isinstance(judged, Verdict | EngineUnavailable):
        return judged
    try:
        return await judged
    except EngineUnavailable as error:
        return error


def _together(own: Verdict, foreign: Verdict | EngineUnavailable) -> Verdict:
    """Raises EngineUnavailable where only the foreign rules could have refused, and gave no verdict."""
    if isinstance(foreign, EngineUnavailable):
        if own.violations:
            return own
        raise foreign
    return Verdict(own.violations + foreign.violations, own.milliseconds + foreign.milliseconds)


def _pieces(messages: Sequence[Mapping[str, Any]]) -> int:
    """Messages, and what they hold in lists."""
    lists = (value for message in messages[:QUICK_MESSAGES] for value in message.values() if isinstance(value, list))
    return len(messages) + sum(map(len, lists))


def _unavailable(error: EvaluationError | ConversationError) -> EngineUnavailable:
    return EngineUnavailable(f"the check gave no verdict: {error}")


def _verdict(check: Check, found: Sequence[Sequence[PlainViolation]], started: float) -> Verdict:
    violations = tuple(
        Violation(one.args, one.kwargs, one.ranges, guardrail, one.stays)
        for guardrail, ones in zip(check.guardrails, found, strict=True)
        for one in ones
    )
    return Verdict(violations, (time.perf_counter() - started) * 1000)


def _check_all(
    policies: Sequence[Policy],
    conversation: Conversation,
    parameters: Mapping[str, Any],
    budget: Budget,
    answers: Mapping[Question, Answer],
) -> list[list[PlainViolation]]:
    """Raises EvaluationError; Unanswered with the questions of all policies."""
    found: list[list[PlainViolation]] = []
    questions: dict[Question, None] = {}
    for policy in policies:
        try:
            violations = policy.check(conversation, parameters, budget, answers)
        except Unanswered as missing:
            questions.update(dict.fromkeys(missing.questions))
        else:
            found.append([PlainViolation(one.args, one.kwargs, one.ranges, one.rule.stays) for one in violations])
    if questions:
        raise Unanswered(tuple(questions))
    return found


def check_in_worker(
    texts: Sequence[tuple[str, str]],
    messages: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    ends: float,
    seconds: float,
    answers: Mapping[Question, Answer],
) -> list[list[PlainViolation]]:
    """``_check_all`` in a process of its own, which compiles each policy once.

    It is given up at ``ends``, a moment of ``time.perf_counter``, which is the same clock for all processes of a
    machine, or after ``seconds``.
    """
    budget = Budget(deadline=min(ends, time.perf_counter() + seconds))
    policies = [load_policy(text, source, asks=True) for text, source in texts]
    return _check_all(policies, Conversation.of(messages, answered_calls(messages)), parameters, budget, answers)
