"""Run policies in shadow over recorded exchanges, beside the policies in force, and count where the two differ.

Nothing here is part of an exchange. A few exchanges at most wait in memory for their comparison, and are checked one
after another; beyond that, exchanges are skipped and counted.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from gemini_proxy.errors import EngineUnavailable, Unauthenticated
from gemini_proxy.guardrails.engine import Check, Engine
from gemini_proxy.guardrails.response_messages import for_rules
from gemini_proxy.guardrails.rules import Guardrail, Shadow, compile_guardrail, stronger
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.policy import PolicyError
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.sections import Guardrails
from gemini_proxy.traces.clock import is_set_within
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.recorder import text_length
from gemini_proxy.traces.shadows import (
    DIFFERENCE_KINDS,
    Comparisons,
    Difference,
    DifferenceKind,
    KeptViolation,
    Results,
    Shadows,
)
from gemini_proxy.traces.trace import innermost

log = logging.getLogger(__name__)

MAX_WAITING: Final = 64
"""Exchanges that wait to be compared: at a few milliseconds each, the next second's work."""
MAX_WAITING_CHARACTERS: Final = 16 * 1024 * 1024
"""Characters of their texts, which are held in memory meanwhile."""
_AFTER: Final = 0.1
"""Seconds that a comparison leaves to the end of the response, which has not left when its trace is written."""
_WRITTEN_TOGETHER: Final = 32
"""Exchanges that are compared until the results are written, while others wait."""
_RETRY: Final = 15.0
"""Seconds after which results are written again that the database did not take."""
_VIOLATIONS: Final = 20
"""Violations of one side that are kept, and ranges of one violation."""
_LONGEST: Final = 600
"""Characters of a message that are kept."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """An exchange to compare. ``check`` has its messages as they came, and no guardrails yet; ``hidden`` removes from a
    text what is masked in the trace, or secret."""

    trace: str
    at: float
    shadows: tuple[Shadow, ...]
    check: Check
    size: int
    masked: bool
    hidden: Callable[[str], str] = field(repr=False)


class ShadowRunner:
    """Compare in one task, ``run()``.

    ``results`` counts the results of comparisons: ``same``, a kind of difference, ``failed`` or ``skipped``.
    """

    def __init__(self, shadows: Shadows, engine: Engine) -> None:
        self._shadows = shadows
        self._engine = engine
        self._waiting: deque[_Sample] = deque()
        self._characters = 0
        self._wake = asyncio.Event()
        self._unwritten: dict[int, Results] = {}
        self.results: Counter[str] = Counter()

    def offer(
        self, exchange: Exchange, conversation: str, guardrails: Guardrails, hidden: Callable[[str], str]
    ) -> None:
        """Have an exchange compared, if a shadow takes its conversation."""
        request, rules = exchange.request, exchange.rules
        chosen = tuple(shadow for shadow in rules.shadows if shadow.takes(conversation or exchange.id))
        if request is None or not chosen or guardrails.engine == "off":
            return
        messages = (*(exchange.asked or request.messages), *exchange.response_messages)
        size = text_length(messages)
        if len(self._waiting) >= MAX_WAITING or 0 < self._characters > MAX_WAITING_CHARACTERS - size:
            for shadow in chosen:
                self._count(shadow, "skipped", Comparisons(skipped=1))
            return
        given = exchange.credentials
        check = Check(
            (),
            for_rules(messages, guardrails.thoughts),
            rules.tools.within(guardrails.parameters, messages),
            key=given.guardrails,
            invariant_key=given.invariant,
            dataset=exchange.call.dataset,
            session=exchange.id,
            client=exchange.client,
            allowed=exchange.allowed or exchange.settled,
        )
        masked = exchange.masks is not None
        self._waiting.append(_Sample(exchange.id, exchange.created, chosen, check, size, masked, hidden))
        self._characters += size
        self._wake.set()

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            await is_set_within(self._wake, _RETRY if self._unwritten else None)
            self._wake.clear()
            await asyncio.sleep(_AFTER)
            while self._waiting:
                for _ in range(min(len(self._waiting), _WRITTEN_TOGETHER)):
                    await self._compare(self._waiting.popleft())
                await self.write()
            await self.write()

    async def write(self) -> None:
        """Write what was counted; if the database does not take it, with the next write."""
        if not self._unwritten:
            return
        unwritten, self._unwritten = self._unwritten, {}
        try:
            await self._shadows.add(unwritten)
        except StoreError as error:
            log.warning("comparisons of shadows were not written: %s", error)
            for seq, results in unwritten.items():
                self._add(seq, results.found, *results.differences)

    async def _compare(self, sample: _Sample) -> None:
        self._characters -= sample.size
        for shadow in sample.shadows:
            # Other tasks get their turn between two checks.
            await asyncio.sleep(0)
            try:
                candidate = await compile_guardrail(shadow.name, shadow.content, shadow.action)
                candidate = replace(candidate, id=shadow.policy)
                new = await self._verdict(sample.check, candidate)
                old = Verdict() if shadow.in_force is None else await self._verdict(sample.check, shadow.in_force)
            except PolicyError as error:
                self._fail(shadow, f"line {error.line}: {error.reason}")
            except (EngineUnavailable, Unauthenticated) as error:
                self._fail(shadow, error.message)
            else:
                self._keep(sample, shadow, old, new)

    async def _verdict(self, check: Check, guardrail: Guardrail) -> Verdict:
        """Return the verdict. Raises EngineUnavailable and Unauthenticated if there is none."""
        judged = self._engine.check(replace(check, guardrails=(guardrail,)))
        verdict = judged if isinstance(judged, Verdict) else await judged
        if verdict.unchecked is not None and not verdict.violations:
            raise EngineUnavailable(verdict.unchecked)
        return verdict

    def _keep(self, sample: _Sample, shadow: Shadow, old: Verdict, new: Verdict) -> None:
        kind = _difference_of(old, new)
        took = new.milliseconds
        found = Comparisons(
            compared=1,
            both=int(bool(old.violations and new.violations)),
            only_old=int(kind == "only_old"),
            only_new=int(kind == "only_new"),
            action_differs=int(kind == "action"),
            ranges_differ=int(kind == "ranges"),
            milliseconds=took,
            slowest=took,
        )
        self._count(shadow, kind or "same", found)
        if kind is not None:
            before, after = (_violations(verdict, sample) for verdict in (old, new))
            self._add(shadow.seq, Comparisons(), Difference(sample.trace, sample.at, kind, before, after))

    def _fail(self, shadow: Shadow, reason: str) -> None:
        self._count(shadow, "failed", Comparisons(failed=1, failure=reason[:_LONGEST]))

    def _count(self, shadow: Shadow, result: str, found: Comparisons) -> None:
        self.results[result] += 1
        self._add(shadow.seq, found)
        self._wake.set()

    def _add(self, seq: int, found: Comparisons, *differences: Difference) -> None:
        results = self._unwritten.setdefault(seq, Results())
        results.found = results.found.with_more(found)
        # While the database is unavailable only the first ones are kept: memory is bounded.
        results.differences += differences[: max(0, MAX_WAITING - len(results.differences))]


SHADOW_RESULTS: Final = ("same", *DIFFERENCE_KINDS, "failed", "skipped")


def _difference_of(old: Verdict, new: Verdict) -> DifferenceKind | None:
    """Say in what two verdicts on the same messages differ: who finds something, what is done about it, or where."""
    if not old.violations or not new.violations:
        return "only_old" if old.violations else "only_new" if new.violations else None
    if _action(old) != _action(new):
        return "action"
    return "ranges" if _ranges(old.violations) != _ranges(new.violations) else None


def _action(verdict: Verdict) -> str:
    action = verdict.violations[0].action
    for violation in verdict.violations:
        action = stronger(action, violation.action)
    return action


def _ranges(violations: tuple[Violation, ...]) -> frozenset[str]:
    return frozenset(innermost([address for violation in violations for address in violation.ranges]))


def _violations(verdict: Verdict, sample: _Sample) -> tuple[KeptViolation, ...]:
    """Return what a verdict found as it is kept. In a masked trace other characters stand at a range."""
    return tuple(
        KeptViolation(
            sample.hidden(violation.message)[:_LONGEST],
            violation.action,
            tuple(
                address.partition(":")[0] if sample.masked else address
                for address in innermost(violation.ranges)[:_VIOLATIONS]
            ),
        )
        for violation in verdict.violations[:_VIOLATIONS]
    )
