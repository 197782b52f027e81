"""Both engines on the same policies and conversations, and what came of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from gemini_proxy.policy import Conversation, ConversationError, EvaluationError, Policy, compile_policy
from tests.differential.conversations import ConversationMaker
from tests.differential.differences import Messages, known_error, our_known_error, rewritings
from tests.differential.oracle import Oracle, OracleError, Outcome, running_oracle
from tests.differential.policies import CASES, Case

UNEXPLAINED: Final = "UNEXPLAINED"
_REWRITTEN: Final = "rewritten: "
_KEPT: Final = 3


@dataclass(frozen=True, slots=True)
class Differing:
    """A conversation on which the engines differ, and why."""

    case: Case
    number: int
    messages: Messages
    ours: Outcome
    stock: Outcome
    why: str


@dataclass(slots=True)
class Report:
    """What a run found. ``kept`` holds every unexplained difference, and a few of each other kind."""

    checks: int = 0
    agreed: Counter[str] = field(default_factory=Counter)
    why: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    kept: list[Differing] = field(default_factory=list)
    refused_there: set[str] = field(default_factory=set)

    def add(self, found: Differing) -> None:
        self.why[found.why] += 1
        self.kinds[(found.why, found.case.name, found.ours.word, found.stock.word)] += 1
        if found.why == UNEXPLAINED or self.why[found.why] <= _KEPT:
            self.kept.append(found)

    def merge(self, other: "Report") -> None:
        """Add what another run found."""
        self.checks += other.checks
        self.agreed.update(other.agreed)
        self.why.update(other.why)
        self.kinds.update(other.kinds)
        self.kept.extend(other.kept)
        self.refused_there |= other.refused_there

    @property
    def unexplained(self) -> list[Differing]:
        return [found for found in self.kept if found.why == UNEXPLAINED]


class Comparison:
    """Policies loaded in both engines. Those the stock engine refuses are checked there as rewritten only."""

    def __init__(self, oracle: Oracle, cases: Sequence[Case]) -> None:
        self._oracle = oracle
        self.report = Report()
        self._ours = [(case, compile_policy(case.text, case.name)) for case in cases]
        for case in cases:
            self._load(case)

    def _load(self, case: Case) -> None:
        try:
            self._oracle.load(case.name, case.text)
        except OracleError:
            if case.stock is None:
                raise
            self.report.refused_there.add(case.name)
            self._oracle.load(case.name, case.stock)
        if case.stock is not None:
            self._oracle.load(_REWRITTEN + case.name, case.stock)

    def run(self, seed: int, conversations: int) -> Report:
        """Compare ``conversations`` conversations of the seeds from ``seed`` on."""
        for number in range(seed, seed + conversations):
            self.compare(number, ConversationMaker(number).conversation())
        return self.report

    def compare(self, number: int, messages: Messages) -> None:
        """One conversation against every policy."""
        for parameters, pairs in _by_parameters(self._ours):
            theirs = self._oracle.check([case.name for case, _ in pairs], messages, parameters)
            for (case, policy), stock in zip(pairs, theirs, strict=True):
                ours = our_outcome(policy, messages, case)
                self.report.checks += 1
                if ours.word == stock.word:
                    self.report.agreed[ours.word] += 1
                else:
                    why = self._explain(case, messages, ours, stock)
                    self.report.add(Differing(case, number, messages, ours, stock, why))

    def _explain(self, case: Case, messages: Messages, ours: Outcome, stock: Outcome) -> str:
        for names, changed in rewritings(messages):
            variants = [(case.name, names)] if names else []
            if case.stock is not None:
                variants.append((_REWRITTEN + case.name, (*names, *case.why)))
            for name, why in variants:
                found = self._oracle.check([name], changed, case.parameters)[0]
                if found.word == ours.word:
                    return " + ".join(why)
                error = known_error(found, messages)
                if error:
                    return " + ".join((*why, error))
        if case.why and case.stock is None:
            return " + ".join(case.why)
        return our_known_error(ours, messages) or known_error(stock, messages) or UNEXPLAINED


def chosen(names: Sequence[str]) -> list[Case]:
    """The policies with one of ``names`` in their own, all without names."""
    return [case for case in CASES if not names or any(name in case.name for name in names)]


def compare_portion(names: Sequence[str], seed: int, conversations: int) -> Report:
    """Compare some conversations, with an oracle of this call's own."""
    with running_oracle() as oracle:
        return Comparison(oracle, chosen(names)).run(seed, conversations)


def our_outcome(policy: Policy, messages: Messages, case: Case) -> Outcome:
    """What our engine says."""
    try:
        found = policy.check(Conversation.of(messages), case.parameters)
    except (EvaluationError, ConversationError) as error:
        return Outcome(error=type(error).__name__, reason=str(error))
    return Outcome(tuple(one.ranges for one in found))


def _by_parameters(
    pairs: Sequence[tuple[Case, Policy]],
) -> Iterator[tuple[dict[str, object], list[tuple[Case, Policy]]]]:
    plain = [pair for pair in pairs if not pair[0].parameters]
    if plain:
        yield {}, plain
    for case, policy in pairs:
        if case.parameters:
            yield dict(case.parameters), [(case, policy)]
