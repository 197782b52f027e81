"""The policy engine's judgement of an answer that grows."""

import time

from gemini_proxy.guardrails.engine import Answers, Check
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.policy import Budget, Place, Session


class NativeSession:
    """A GuardSession of the policies compiled here. ``budget`` is that of one piece of text.

    Without a rule that reads text nothing has to stay behind, so the overlap is 0.
    """

    def __init__(self, check: Check, overlap: int, budget: Budget) -> None:
        self._guardrails = check.guardrails
        self._budget = budget
        policies = [guardrail.policy for guardrail in check.guardrails]
        self._session = Session(policies, check.parameters, overlap, check.messages)
        self.overlap = overlap if self._session.reads_text else 0
        self.waiting: tuple[str, ...] = tuple(
            guardrail.name
            for guardrail in check.guardrails
            if any(rule.window == "whole" for rule in guardrail.policy.rules)
        )

    @property
    def clear(self) -> bool:
        return self._session.clear

    @property
    def stuck(self) -> bool:
        return self._session.stuck

    def begin(self, candidate: int, place: Place) -> None:
        self._session.begin(candidate, place)

    def grow(self, candidate: int, text: str) -> Verdict:
        started = time.perf_counter()
        growth = self._session.grow(candidate, text, self._budget)
        violations = tuple(
            Violation(one.args, one.kwargs, one.ranges, guardrail, stays=True)
            for guardrail, found in zip(self._guardrails, growth.violations, strict=False)
            for one in found
        )
        return Verdict(violations, (time.perf_counter() - started) * 1000)

    def settle(self, answers: Answers) -> None:
        self._session.settle(answers)
