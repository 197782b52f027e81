"""Get answers for detectors that are asked outside the engine: await, limit and remember them.

A check runs, names the questions without an answer, and runs again with the answers. All questions of a run are asked
together, so a check takes more than one round only if some questions depend on the answers to others. The answers of an
incomplete run are kept, its violations are not.
"""

import asyncio
import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.policy import Answer, Question, Unanswered

T = TypeVar("T")

MAX_ROUNDS: Final = 5
"""Runs of a check: four for lines of a rule that each wait for the one before, and one for the verdict."""
AT_ONCE: Final = 8
"""Questions that one service is asked at the same time."""
_REMEMBERED: Final = 10_000
"""Cached answers; each request of a chat repeats the earlier messages."""

LONGEST_REMEMBERED: Final = 4_000
"""Characters of a cached answer; all together take 40 MB at most."""


_PLACE: Final = 80
"""Characters that a label's range takes beside the label."""


class Answerer(Protocol):
    """Ask one service or program."""

    def payer(self, key: str | None) -> str:
        """Return the account that pays for a question of a caller with this Gemini key. Answers are kept by account.

        Raises EngineUnavailable if there is no key to ask with.
        """
        ...

    async def answer(self, question: Question, key: str | None) -> Answer:
        """Ask for a caller whose Gemini key is ``key``. Raises EngineUnavailable."""
        ...


class Allowance:
    """Limit the questions of a minute and of a day, by the clock ``now`` in seconds. 0 is no limit."""

    def __init__(self, per_minute: int = 0, per_day: int = 0, now: Callable[[], float] = time.time) -> None:
        self._limits = ((60, per_minute), (86_400, per_day))
        self._now = now
        self._used: dict[int, tuple[int, int]] = {}

    def take(self, count: int) -> bool:
        """Take ``count``. If that is too much, take nothing and return False: half of its answers help no check."""
        now = self._now()
        used = {}
        for seconds, limit in self._limits:
            period = int(now // seconds)
            last, before = self._used.get(seconds, (period, 0))
            used[seconds] = (period, (before if last == period else 0) + count)
            if limit and used[seconds][1] > limit:
                return False
        self._used = used
        return True


@dataclass(frozen=True, slots=True)
class AskedService:
    """An answerer, how much it may be asked, and the seconds that the questions of one round may take."""

    answerer: Answerer
    seconds: float
    allowance: Allowance = field(default_factory=Allowance)
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


class Asking:
    """Ask ``services``, by the name of their detector.

    ``counts`` has the number of questions by detector and outcome: ``answered``, ``remembered``, ``failed`` or
    ``over_budget``.
    """

    def __init__(self, services: Mapping[str, AskedService]) -> None:
        self._services = services
        self._kept: OrderedDict[bytes, Answer] = OrderedDict()
        self.counts: Counter[tuple[str, str]] = Counter()

    async def verdict(self, check: Callable[[Mapping[Question, Answer]], Awaitable[T]], key: str | None) -> T:
        """Return the result of ``check`` once it has the answers for which it raises Unanswered.

        ``key`` is the caller's Gemini key. Raises what ``check`` raises, and EngineUnavailable if there is no answer:
        no service, a failure, a budget that is used up, or too many rounds.
        """
        answers: dict[Question, Answer] = {}
        for _ in range(MAX_ROUNDS):
            try:
                return await check(answers)
            except Unanswered as missing:
                questions = missing.questions
            answers |= await self._ask(questions, key)
        raise EngineUnavailable(f"The check asks more than {MAX_ROUNDS - 1} times in a row")

    async def _ask(self, questions: Sequence[Question], key: str | None) -> Mapping[Question, Answer]:
        """Answer the questions, from memory where possible. Raises EngineUnavailable."""
        answers: dict[Question, Answer] = {}
        fresh: dict[str, list[tuple[Question, bytes]]] = {}
        for question in questions:
            digest = _digest(question, self._service(question.detector).answerer.payer(key))
            if digest in self._kept:
                self._kept.move_to_end(digest)
                answers[question] = self._kept[digest]
                self.counts[question.detector, "remembered"] += 1
            else:
                fresh.setdefault(question.detector, []).append((question, digest))
        for name, asked in fresh.items():
            if not self._service(name).allowance.take(len(asked)):
                self.counts[name, "over_budget"] += len(asked)
                raise EngineUnavailable(f"The budget for questions of {name}(...) is used up")
        try:
            async with asyncio.TaskGroup() as group:
                for asked in fresh.values():
                    for question, digest in asked:
                        group.create_task(self._answer(question, digest, key, answers))
        except ExceptionGroup as failed:
            # The first failure cancelled the others.
            raise failed.exceptions[0] from None
        return answers

    async def _answer(
        self, question: Question, digest: bytes, key: str | None, answers: dict[Question, Answer]
    ) -> None:
        service, name = self._service(question.detector), question.detector
        try:
            async with asyncio.timeout(service.seconds), service.places:
                answer = await service.answerer.answer(question, key)
        except TimeoutError:
            self.counts[name, "failed"] += 1
            raise EngineUnavailable(f"{name}(...) was not answered in time") from None
        except EngineUnavailable:
            self.counts[name, "failed"] += 1
            raise
        self.counts[name, "answered"] += 1
        answers[question] = answer
        if _size(answer) <= LONGEST_REMEMBERED:
            self._kept[digest] = answer
            if len(self._kept) > _REMEMBERED:
                self._kept.popitem(last=False)

    def _service(self, name: str) -> AskedService:
        if name not in self._services:
            raise EngineUnavailable(f"{name}(...) asks a service that is not configured here")
        return self._services[name]


def _size(answer: Answer) -> int:
    if isinstance(answer, tuple):
        return sum(len(label) if isinstance(label, str) else len(label.label) + _PLACE for label in answer)
    return len(answer) if isinstance(answer, str) else 0


def _digest(question: Question, payer: str) -> bytes:
    digest = hashlib.sha256()
    for part in (payer, question.detector, question.options, question.text):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.digest()
