"""Judges the text of a response as it comes, with the policies compiled here."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.policy import Budget, GrowingTurn, Place, Session


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

    def turn(self, messages: Sequence[tuple[int, Mapping[str, Any]]] = ()) -> GrowingTurn:
        return self._session.turn(messages)

    def begin(self, turn: GrowingTurn, place: Place) -> None:
        self._session.begin(turn, place)

    def grow(self, turn: GrowingTurn, text: str) -> Verdict:
        started = time.perf_counter()
        growth = self._session.grow(turn, text, self._budget)
        violations = tuple(
            Violation(violation.args, violation.kwargs, violation.ranges, guardrail, stays=True)
            for guardrail, certain in zip(self._guardrails, growth.violations, strict=False)
            for violation in certain
        )
        return Verdict(violations, (time.perf_counter() - started) * 1000)

    def settle(self) -> None:
        self._session.settle()
