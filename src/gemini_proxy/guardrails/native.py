"""The policy engine in this process, with its long checks in other ones."""

import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.gemini.call_links import answered_calls
from gemini_proxy.guardrails.engine import Check, GuardSession
from gemini_proxy.guardrails.native_session import NativeSession
from gemini_proxy.guardrails.plugins import load_policy
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import (
    Budget,
    BudgetExceeded,
    Conversation,
    ConversationError,
    EvaluationError,
    Policy,
)

QUICK_MICROSECONDS: Final = 5_000
"""The longest expected check that runs on the event loop: what a stream's neighbours may wait for it."""
QUICK_MESSAGES: Final = 1_000
"""The longest conversation that is read on the event loop, in messages and their parts: two milliseconds, before
anything is known of its cost."""
QUICK_STEPS: Final = 5_000
"""Where a check that was expected to be quick is stopped and started again in another process: about ten milliseconds.
In steps, not in time: a process that the machine holds up must not take its own checks for long ones."""
_GRACE: Final = 3.0
"""Seconds beyond its own deadline after which a check's process is taken for stuck: a new one takes two to begin."""


@dataclass(frozen=True, slots=True)
class Found:
    """A violation without its guardrail: what travels between processes."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ranges: tuple[str, ...]
    stays: bool


class NativeEngine:
    """Checks with the policies compiled here. ``timeout`` is in seconds a check, all its guardrails together."""

    def __init__(self, workers: Workers, timeout: float) -> None:
        self._workers = workers
        self._timeout = timeout
        self._quick = Budget(steps=QUICK_STEPS, seconds=timeout)

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        """Pieces are judged here, within the quick limit; one that takes more waits for the end of its answer."""
        if not check.guardrails:
            return None
        return NativeSession(check, overlap, self._quick)

    def judge(self, check: Check) -> Verdict | Awaitable[Verdict]:
        """Raises EngineUnavailable for a check over its budget, or one whose evaluation failed."""
        started = time.perf_counter()
        if _pieces(check.messages) > QUICK_MESSAGES:
            return self._judge_elsewhere(check, started)
        try:
            conversation = Conversation.of(check.messages, answered_calls(check.messages))
            if self._expected(check, conversation) <= QUICK_MICROSECONDS:
                policies = [guardrail.policy for guardrail in check.guardrails]
                return _verdict(check, _check_all(policies, conversation, check.parameters, self._quick), started)
        except BudgetExceeded:
            return self._judge_elsewhere(check, started)
        except (EvaluationError, ConversationError) as error:
            raise _unavailable(error) from None
        return self._judge_elsewhere(check, started)

    async def _judge_elsewhere(self, check: Check, started: float) -> Verdict:
        texts = [(guardrail.policy.text, guardrail.policy.source) for guardrail in check.guardrails]
        try:
            found = await self._workers.run_within(
                self._timeout + _GRACE, check_in_worker, texts, check.messages, check.parameters, self._timeout
            )
        except EvaluationError as error:
            raise _unavailable(error) from None
        return _verdict(check, found, started)

    @staticmethod
    def _expected(check: Check, conversation: Conversation) -> int:
        return sum(guardrail.policy.expected_cost(conversation) for guardrail in check.guardrails)


def _pieces(messages: Sequence[Mapping[str, Any]]) -> int:
    """Messages, and what they hold in lists."""
    lists = (value for message in messages[:QUICK_MESSAGES] for value in message.values() if isinstance(value, list))
    return len(messages) + sum(map(len, lists))


def _unavailable(error: EvaluationError | ConversationError) -> EngineUnavailable:
    return EngineUnavailable(f"the check gave no verdict: {error}")


def _verdict(check: Check, found: Sequence[Sequence[Found]], started: float) -> Verdict:
    violations = tuple(
        Violation(one.args, one.kwargs, one.ranges, guardrail, one.stays)
        for guardrail, ones in zip(check.guardrails, found, strict=True)
        for one in ones
    )
    return Verdict(violations, (time.perf_counter() - started) * 1000)


def _check_all(
    policies: Sequence[Policy], conversation: Conversation, parameters: Mapping[str, Any], budget: Budget
) -> list[list[Found]]:
    return [
        [
            Found(one.args, one.kwargs, one.ranges, one.rule.stays)
            for one in policy.check(conversation, parameters, budget)
        ]
        for policy in policies
    ]


def check_in_worker(
    texts: Sequence[tuple[str, str]],
    messages: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    seconds: float,
) -> list[list[Found]]:
    """``_check_all`` in a process of its own, which compiles each policy once."""
    policies = [load_policy(text, source) for text, source in texts]
    budget = Budget(deadline=time.perf_counter() + seconds)
    return _check_all(policies, Conversation.of(messages, answered_calls(messages)), parameters, budget)
