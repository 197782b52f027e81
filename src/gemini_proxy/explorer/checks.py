"""Run checks for the Explorer's users, and try the rules in force on a trace. Nothing is sent, changed or recorded."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from aiohttp import web

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.explorer.app_keys import CHECKING, DATASET_RULES, ENGINE, FILE_RULES, GUARDRAILS
from gemini_proxy.guardrails.engine import Check, ConversationReader
from gemini_proxy.guardrails.response_messages import for_rules
from gemini_proxy.guardrails.rules import Guardrail, GuardrailSet
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.traces.backtest import at_places, candidates
from gemini_proxy.traces.catalogue import StoredTrace
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.trace import Trace

MAX_TRIED_BYTES: Final = 1_000_000
"""Bytes of messages of a trace that rules are tried on; a backtest takes longer ones."""
_SECONDS: Final = 20.0
"""Seconds of one trial: a person waits for it, and it occupies a process that other users' checks may need."""


@dataclass(frozen=True, slots=True)
class TriedGuardrail:
    """A guardrail's violations in one trace. ``failure`` is why part of it has no verdict, "" if all has one."""

    guardrail: Guardrail
    violations: tuple[Violation, ...]
    failure: str


async def verdict_of(app: web.Application, user: str, check: Check) -> Verdict:
    """Run a quick check at once, and one in another process when it is the user's turn.

    Raise EngineUnavailable if there is no verdict, and Unavailable if too many of the user's checks wait.
    """
    verdict = app[ENGINE].check(check)
    if isinstance(verdict, Verdict):
        return verdict
    try:
        async with app[CHECKING].hold(user):
            return await verdict
    finally:
        if asyncio.iscoroutine(verdict):
            verdict.close()


async def try_rules_in_force(app: web.Application, user: str, stored: StoredTrace) -> list[TriedGuardrail]:
    """Try the rules that now apply to exchanges like this on each candidate's conversation, without a header's rules.

    Raise Unavailable. The trace's messages must not be longer than ``MAX_TRIED_BYTES``.
    """
    messages: list[Mapping[str, Any]] = [item for item in load(stored.messages) if isinstance(item, Mapping)]
    rules = await _rules_in_force(app, stored.trace)
    settings, until = app[GUARDRAILS](), time.perf_counter() + _SECONDS
    parameters = rules.tools.within(settings.parameters, messages)
    conversations = [
        (places, for_rules([dict(messages[place]) for place in places], settings.thoughts), ConversationReader())
        for places in candidates(messages)
    ]
    tried: list[TriedGuardrail] = []
    for guardrail in rules.all:
        found: dict[tuple[str, tuple[str, ...]], Violation] = {}
        failure = ""
        for places, visible, reader in conversations:
            try:
                verdict = await _verdict_until(
                    until, app, user, Check((guardrail,), visible, parameters, reader=reader)
                )
            except EngineUnavailable as error:
                failure = error.message
                continue
            for violation in verdict.violations:
                placed = replace(violation, ranges=at_places(violation.ranges, places))
                # A violation in the request is found again with every candidate.
                found.setdefault((placed.message, placed.ranges), placed)
        tried.append(TriedGuardrail(guardrail, tuple(found.values()), failure))
    return tried


async def _rules_in_force(app: web.Application, trace: Trace) -> GuardrailSet:
    files = app[FILE_RULES]()
    return files if trace.dataset is None else await app[DATASET_RULES].of(trace.owner, trace.dataset, files)


async def _verdict_until(until: float, app: web.Application, user: str, check: Check) -> Verdict:
    """Return the verdict. Raise EngineUnavailable, also when the trial times out."""
    # Many quick checks in a row would block the loop.
    await asyncio.sleep(0)
    if (left := until - time.perf_counter()) <= 0:
        raise EngineUnavailable("No time was left to try it")
    try:
        async with asyncio.timeout(left):
            return await verdict_of(app, user, check)
    except TimeoutError:
        raise EngineUnavailable("The trial timed out") from None
