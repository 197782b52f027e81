"""Run a policy over recorded traces: what it would have refused, and where it gave no verdict."""

import re
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from typing import Any, Final

from gemini_proxy.gemini.call_links import answered_calls
from gemini_proxy.guardrails.response_messages import for_rules
from gemini_proxy.policy import (
    Answer,
    Budget,
    Conversation,
    ConversationError,
    EvaluationError,
    Policy,
    Question,
    RuleViolation,
    Unanswered,
)
from gemini_proxy.traces.excerpts import ShownViolation
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Trace

# The most violations of one trace that are kept; the rest are counted.
_KEPT: Final = 20
_INDEX = re.compile(r"messages\.(\d+)")
# Summaries read at once, to count the traces and to iterate over them; whole traces are in memory one at a time.
_COUNTED, _PAGE = 5_000, 200


@dataclass(frozen=True, slots=True)
class FlaggedTrace:
    """A trace that did not come out clean. ``failure`` says why there was no verdict on some of it."""

    trace_id: str
    created: float
    dataset: str | None
    outcome: str
    violations: tuple[ShownViolation, ...]
    more: int
    failure: str | None

    @classmethod
    def undecided(cls, trace: Trace, failure: str) -> "FlaggedTrace":
        """Return a trace on which there is no verdict at all."""
        return cls(trace.id, trace.created, trace.dataset, trace.outcome.value, (), 0, failure)

    @property
    def refused(self) -> bool:
        return bool(self.violations)

    def json(self) -> dict[str, Any]:
        """Return the same as plain JSON."""
        return {
            "trace": self.trace_id,
            "created": self.created,
            "dataset": self.dataset,
            "outcome": self.outcome,
            "violations": [violation.json() for violation in self.violations],
            "more_violations": self.more,
            "failure": self.failure,
        }


@dataclass(frozen=True, slots=True)
class Backtest:
    """A policy under the conditions of the proxy: its parameters, ``thoughts`` and seconds for a check.

    ``answers`` are those given to its detectors outside the engine.
    """

    policy: Policy
    parameters: Mapping[str, Any]
    thoughts: str
    seconds: float
    answers: Mapping[Question, Answer] = field(default_factory=dict)

    def run(self, trace: Trace) -> FlaggedTrace | None:
        """Check a recorded exchange. Return None if it is clean. Raise Unanswered if answers are missing."""
        by_place: dict[tuple[object, ...], RuleViolation] = {}
        failure: str | None = None
        questions: dict[Question, None] = {}
        for places in candidates(trace.messages):
            messages = [trace.messages[place] for place in places]
            try:
                violations = self._check(messages)
            except Unanswered as missing:
                questions.update(dict.fromkeys(missing.questions))
                continue
            except (EvaluationError, ConversationError) as error:
                failure = str(error)
                continue
            for violation in violations:
                moved = _moved(violation, places)
                # A violation in the request is found again with every candidate.
                by_place.setdefault((moved.rule.line, moved.message, moved.ranges), moved)
        if questions:
            raise Unanswered(tuple(questions))
        found = list(by_place.values())
        if not found and failure is None:
            return None
        shown = tuple(ShownViolation.of(trace.messages, violation) for violation in found[:_KEPT])
        more = len(found) - len(shown)
        return FlaggedTrace(trace.id, trace.created, trace.dataset, trace.outcome.value, shown, more, failure)

    def _check(self, messages: Sequence[Mapping[str, Any]]) -> tuple[RuleViolation, ...]:
        read = for_rules([dict(message) for message in messages], self.thoughts)
        conversation = Conversation.of(read, answered_calls(read))
        return self.policy.check(conversation, self.parameters, Budget(seconds=self.seconds), self.answers)


@dataclass(slots=True)
class Report:
    """All of a backtest."""

    flagged: list[FlaggedTrace] = field(default_factory=list)
    seconds: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, backtest: Backtest, trace: Trace) -> None:
        """Check one more trace, and measure."""
        before = perf_counter()
        flagged = backtest.run(trace)
        self.seconds.append(perf_counter() - before)
        if flagged is not None:
            self.flagged.append(flagged)

    @property
    def refused(self) -> list[FlaggedTrace]:
        """Return the traces that would have been refused, the newest first."""
        return [trace for trace in self._newest() if trace.refused]

    @property
    def undecided(self) -> list[FlaggedTrace]:
        """Return the traces without a verdict: ``guardrails.unavailable = "block"`` would have refused them as well."""
        return [trace for trace in self._newest() if not trace.refused]

    def _newest(self) -> list[FlaggedTrace]:
        return sorted(self.flagged, key=lambda trace: trace.created, reverse=True)

    @property
    def milliseconds(self) -> dict[str, float]:
        """Return the time for all traces together, for the median trace and for the slowest."""
        times = self.seconds or array("d", [0.0])
        figures = {"total": sum(times), "median": median(times), "most": max(times)}
        return {name: round(seconds * 1000, 3) for name, seconds in figures.items()}

    def json(self) -> dict[str, Any]:
        """Return the same as plain JSON."""
        return {
            "traces": len(self.seconds),
            "refused": [trace.json() for trace in self.refused],
            "no_verdict": [trace.json() for trace in self.undecided],
            "milliseconds": self.milliseconds,
        }


def candidates(messages: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Return the places of the messages of each check that the proxy makes: the request's, with one candidate's."""
    indexes = dict.fromkeys(message["candidate"] for message in messages if "candidate" in message)
    return [
        [place for place, message in enumerate(messages) if message.get("candidate", index) == index]
        for index in indexes or (None,)
    ]


def _moved(violation: RuleViolation, places: Sequence[int]) -> RuleViolation:
    return replace(violation, ranges=at_places(violation.ranges, places))


def at_places(addresses: Sequence[str], places: Sequence[int]) -> tuple[str, ...]:
    """Return addresses into the messages at ``places`` of a trace, counted through the whole trace."""

    def move(found: re.Match[str]) -> str:
        return f"messages.{places[int(found[1])]}"

    return tuple(_INDEX.sub(move, address, count=1) for address in addresses)


async def count(store: TraceStore, dataset: str | None, last: int | None) -> int:
    """Return how many traces ``recorded`` will give, if none is added or deleted meanwhile."""
    total = 0
    before: int | None = None
    while last is None or total < last:
        page = await store.recent(_COUNTED, dataset=dataset, before=before)
        total += len(page)
        if len(page) < _COUNTED:
            break
        before = page[-1].seq
    return total if last is None else min(total, last)


async def recorded(store: TraceStore, dataset: str | None, last: int | None) -> AsyncIterator[Trace]:
    """Yield the last traces, newest first, or all, oldest first, which takes a tenth of the time for each."""
    if last is None:
        async for trace in store.export(dataset):
            yield trace
        return
    before: int | None = None
    while last > 0:
        limit = min(_PAGE, last)
        page = await store.recent(limit, dataset=dataset, before=before)
        for summary in page:
            # Retention may delete one between the two queries.
            if (found := await store.get(summary.id)) is not None:
                yield found
        if len(page) < limit:
            return
        before = page[-1].seq
        last -= limit
