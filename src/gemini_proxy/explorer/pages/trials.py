"""Check policies as they are written, and try them on recorded traces in another process."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from aiohttp import web

from gemini_proxy.explorer.api.request_bodies import MAX_POLICY
from gemini_proxy.explorer.pages.templating import clock
from gemini_proxy.explorer.pages.trial_batch import try_batch
from gemini_proxy.guardrails.plugins import installed_detectors
from gemini_proxy.guardrails.rules import BRIEF_POLICY, ToolFacts
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.http.fair_lock import FairLock
from gemini_proxy.policy import PolicyError, PolicyWarning, compile_policy
from gemini_proxy.sections import Guardrails
from gemini_proxy.traces.backtest import FlaggedTrace
from gemini_proxy.traces.trace import Trace

MAX_TRIED: Final = 500
"""The most traces that a policy is tried on."""
BATCH: Final = 10
"""Traces that go to the other process at a time: each may hold megabytes."""
_TRIAL_SECONDS: Final = 20.0
"""Seconds of one trial: a person waits for it, and it occupies a process that other users' checks may need."""
_GRACE: Final = 2.0
_SHOWN: Final = 100
"""Findings that are returned; the rest is counted."""


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """Whether a policy loads, and if not, where: ``line`` and ``column`` count from 1, ``caret`` shows the place.

    A warning without a place has the line 0.
    """

    ok: bool
    rules: int = 0
    line: int = 0
    column: int = 0
    reason: str = ""
    caret: str = ""
    warnings: tuple[PolicyWarning, ...] = ()

    @property
    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Trial:
    """The results of a policy on the newest traces. ``complete`` is False if the time was up before the last one."""

    checked: int = 0
    flagged: list[FlaggedTrace] = field(default_factory=list)
    milliseconds: float = 0.0
    complete: bool = True

    @property
    def json(self) -> dict[str, Any]:
        refused = [trace for trace in self.flagged if trace.refused]
        undecided = [trace for trace in self.flagged if not trace.refused]
        return {
            "ok": True,
            "checked": self.checked,
            "complete": self.complete,
            "milliseconds": round(self.milliseconds, 1),
            "refused": len(refused),
            "undecided": len(undecided),
            "findings": [_flagged_json(trace) for trace in self.flagged[:_SHOWN]],
            "more": max(0, len(self.flagged) - _SHOWN),
        }


class Trials:
    """Check and try policies as the proxy would: with its parameters, its treatment of thoughts and its timeout.

    Users take turns. Raise Unavailable if too many of a user's requests wait.
    """

    def __init__(
        self, workers: Workers, guardrails: Callable[[], Guardrails], compiling: FairLock, checking: FairLock
    ) -> None:
        """Take ``guardrails``, which returns the current settings, and the locks by which users take turns."""
        self._workers = workers
        self._guardrails = guardrails
        self._compiling = compiling
        self._checking = checking

    async def check(self, user: str, text: str) -> PolicyCheck:
        """Return whether ``text`` loads, and if not, where and why. Raise Unavailable."""
        if len(text) > MAX_POLICY:
            return PolicyCheck(False, line=1, column=1, reason=f"the policy is over {MAX_POLICY} characters")
        if not text.strip():
            return PolicyCheck(False, line=1, column=1, reason="the policy is empty")
        if (nul := text.find("\0")) >= 0:
            return PolicyCheck(
                False, line=text.count("\n", 0, nul) + 1, column=1, reason="the policy holds the character NUL"
            )
        if len(text) <= BRIEF_POLICY:
            return _check(text, self._guardrails().parameters)
        # A thread gives the loop its turn; several compiling threads would leave it only a fraction of the processor.
        async with self._compiling.hold(user):
            return await asyncio.to_thread(_check, text, self._guardrails().parameters)

    async def over(self, user: str, text: str, tools: ToolFacts, batches: AsyncIterator[Sequence[Trace]]) -> Trial:
        """Try a policy that loads on the traces, which come in batches, with ``tools`` as its facts about tools.

        Raise EngineUnavailable for a check that does not end, and Unavailable.
        """
        trial = Trial()
        guardrails = self._guardrails()
        parameters = tools.within(guardrails.parameters, ())
        async with self._checking.hold(user):
            started = time.perf_counter()
            async for batch in batches:
                left = _TRIAL_SECONDS - (time.perf_counter() - started)
                if left <= 0:
                    trial.complete = False
                    break
                done, flagged = await self._workers.run_within(
                    user,
                    left + guardrails.timeout + _GRACE,
                    try_batch,
                    text,
                    batch,
                    parameters,
                    guardrails.thoughts,
                    guardrails.timeout,
                    left,
                )
                trial.checked += done
                trial.flagged.extend(flagged)
                trial.complete = done == len(batch)
            trial.milliseconds = (time.perf_counter() - started) * 1000
        return trial


TRIALS = web.AppKey("TRIALS", Trials)


def _check(text: str, parameters: Mapping[str, Any]) -> PolicyCheck:
    try:
        # Without the cache: half-written policies would evict those that are in use.
        loaded = compile_policy(text, "policy", detectors=installed_detectors())
    except PolicyError as error:
        hint = f" ({error.suggestion})" if error.suggestion else ""
        return PolicyCheck(False, 0, error.line, error.column, f"{error.reason}{hint}", error.caret())
    missing = sorted(loaded.parameters - parameters.keys())
    unset = (PolicyWarning(0, 0, f"input.{name} is not set: guardrails.parameters has no {name}") for name in missing)
    return PolicyCheck(True, len(loaded.rules), warnings=(*loaded.warnings, *unset))


def _flagged_json(trace: FlaggedTrace) -> dict[str, Any]:
    return {
        "trace": trace.trace_id,
        "created": trace.created,
        "time": clock(trace.created),
        "outcome": trace.outcome,
        "failure": trace.failure,
        "more": trace.more,
        "violations": [
            {
                "message": violation.message,
                "line": violation.rule_line,
                "more": violation.more,
                "excerpts": [
                    {"role": excerpt.role, "before": excerpt.before, "found": excerpt.found, "after": excerpt.after}
                    for excerpt in violation.excerpts[:3]
                ],
            }
            for violation in trace.violations[:5]
        ],
    }
