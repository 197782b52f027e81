"""Questions of detectors that are asked: rounds, what is remembered, budgets, and policies that may not ask."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from gemini_proxy.config import Config
from gemini_proxy.errors import BadRequest, EngineUnavailable
from gemini_proxy.guardrails.asking import AT_ONCE, LONGEST_REMEMBERED, MAX_ROUNDS, Allowance, AskedService, Asking
from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.header_policy import with_header
from gemini_proxy.guardrails.native import QUICK_MESSAGES, NativeEngine
from gemini_proxy.guardrails.rules import GuardrailSet, compile_guardrail, guardrail
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import Answer, PolicyError, Question, compile_policy
from gemini_proxy.server.asked_services import AskedServices

IMPORTS = "from invariant.detectors import decision\nfrom invariant import llm\n"
ONE = IMPORTS + 'raise "bad" if:\n    (m: Message)\n    decision("Is it bad?", m)\n'
CHAINED = IMPORTS + 'raise "bad" if:\n    (m: Message)\n' + "    m := llm(m)\n" * 3 + '    "end" in m\n'
JUDGE = {"model": "judge-1", "url": "http://127.0.0.1:9", "api_key": "AIzaJudge"}
HELLO = [{"role": "user", "content": "hello"}]


@dataclass
class Recorder:
    """Answers as ``says`` does, and remembers the questions."""

    says: Callable[[Question], Answer]
    asked: list[Question] = field(default_factory=list)
    gate: asyncio.Event | None = None
    full: asyncio.Event | None = None
    most: int = 0
    under_way: int = 0

    def payer(self, key: str | None) -> str:
        return key or "operator"

    async def answer(self, question: Question, key: str | None) -> Answer:
        self.asked.append(question)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if self.full is not None and self.under_way == AT_ONCE:
            self.full.set()
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
            return self.says(question)
        finally:
            self.under_way -= 1


def asking(answerer: Recorder, *, seconds: float = 5.0, allowance: Allowance | None = None) -> Asking:
    return Asking(dict.fromkeys(("decision", "llm"), AskedService(answerer, seconds, allowance or Allowance())))


async def judged(
    asked: Asking, *policies: str, messages: list[dict[str, str]] = HELLO, key: str | None = None
) -> Verdict:
    rules = tuple(guardrail(f"p{number}", text, "block", asks=True) for number, text in enumerate(policies))
    workers = Workers(1)
    try:
        verdict = NativeEngine(workers, 20.0, asking=asked).check(Check(rules, messages, gemini_key=key))
        return await verdict if isinstance(verdict, Awaitable) else verdict
    finally:
        workers.close()


@pytest.mark.parametrize("answer", [True, False])
async def test_an_answer_decides(answer: bool) -> None:
    recorder = Recorder(lambda question: answer)
    asked = asking(recorder)
    verdict = await judged(asked, ONE)
    assert [violation.ranges for violation in verdict.violations] == ([("messages.0.content",)] if answer else [])
    assert recorder.asked == [Question("decision", "hello", '{"question":"Is it bad?"}')]
    assert asked.counts == {("decision", "answered"): 1}


async def test_what_was_asked_is_remembered_for_the_same_payer_alone() -> None:
    """A chat repeats its history: only what is new is asked. What one client paid for says nothing to another."""
    recorder = Recorder(lambda question: False)
    asked = asking(recorder)
    more = [*HELLO, {"role": "assistant", "content": "hi"}]
    await judged(asked, ONE, key="a")
    await judged(asked, ONE, messages=more, key="a")
    assert [question.text for question in recorder.asked] == ["hello", "hi"]
    await judged(asked, ONE, key="b")
    assert [question.text for question in recorder.asked] == ["hello", "hi", "hello"]
    assert asked.counts["decision", "remembered"] == 1


@pytest.mark.parametrize(("size", "asked"), [(LONGEST_REMEMBERED, 1), (LONGEST_REMEMBERED + 1, 2)])
async def test_long_answers_are_not_remembered(size: int, asked: int) -> None:
    """Ten thousand of them would be all of the memory."""
    recorder = Recorder(lambda question: "x" * size)
    answering = asking(recorder)
    for _ in range(2):
        await judged(answering, IMPORTS + 'raise "bad" if:\n    (m: Message)\n    "end" in llm(m)\n')
    assert len(recorder.asked) == asked


async def test_questions_that_wait_for_others_take_rounds() -> None:
    recorder = Recorder(lambda question: "end" if question.text.endswith("..") else question.text + ".")
    verdict = await judged(asking(recorder), CHAINED)
    assert [question.text for question in recorder.asked] == ["hello", "hello.", "hello.."]
    assert verdict.violations


async def test_rounds_are_bounded() -> None:
    endless = CHAINED.replace("    m := llm(m)\n", "    m := llm(m)\n" * 3)
    recorder = Recorder(lambda question: question.text + ".")
    with pytest.raises(EngineUnavailable, match=f"more than {MAX_ROUNDS - 1} times in a row"):
        await judged(asking(recorder), endless)
    assert len(recorder.asked) == MAX_ROUNDS


async def test_nothing_is_asked_where_another_rule_objects() -> None:
    recorder = Recorder(lambda question: True)
    verdict = await judged(asking(recorder), ONE, 'raise "plain" if:\n    (m: Message)\n    "hello" in m.content\n')
    assert [violation.message for violation in verdict.violations] == ["plain"]
    assert not recorder.asked


async def test_a_run_without_all_answers_refuses_nothing() -> None:
    """A negated question holds while it has no answer: that alone is no violation."""
    recorder = Recorder(lambda question: True)
    verdict = await judged(asking(recorder), ONE.replace("    decision", "    not decision"))
    assert not verdict.violations


async def test_a_long_check_asks_from_its_process() -> None:
    """The questions of a check in another process come back, and their answers go there."""
    roles = ("user", "assistant", "system")
    messages = [{"role": roles[number % 3], "content": str(number % 3)} for number in range(QUICK_MESSAGES + 1)]
    recorder = Recorder(lambda question: question.text == "2")
    verdict = await judged(asking(recorder), ONE, messages=messages)
    assert {question.text for question in recorder.asked} == {"0", "1", "2"}
    assert verdict.violations[0].ranges == ("messages.2.content",)


async def test_a_turn_in_pieces_is_one_question() -> None:
    """What is cut into pieces is asked about as readers join it."""
    recorder = Recorder(lambda question: False)
    turn = [{"role": "user", "content": "attack at"}, {"role": "user", "content": " dawn"}]
    await judged(asking(recorder), ONE, messages=turn)
    assert [question.text for question in recorder.asked] == ["attack at dawn"]


async def test_few_are_asked_at_once() -> None:
    gate, full = asyncio.Event(), asyncio.Event()
    recorder = Recorder(lambda question: False, gate=gate, full=full)
    messages = [{"role": "user" if number % 2 else "assistant", "content": str(number)} for number in range(30)]
    async with asyncio.TaskGroup() as group:
        group.create_task(judged(asking(recorder), ONE, messages=messages))
        await full.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        gate.set()
    assert (recorder.most, len(recorder.asked)) == (AT_ONCE, 30)


async def test_one_that_is_not_answered_in_time_gives_no_verdict() -> None:
    recorder = Recorder(lambda question: False, gate=asyncio.Event())
    asked = asking(recorder, seconds=0.05)
    with pytest.raises(EngineUnavailable, match="not answered in time"):
        await judged(asked, ONE)
    assert recorder.under_way == 0
    assert asked.counts == {("decision", "failed"): 1}


async def test_a_budget_is_spent_whole_or_not_at_all() -> None:
    now = [0.0]
    recorder = Recorder(lambda question: False)
    asked = asking(recorder, allowance=Allowance(2, 3, lambda: now[0]))
    long = [{"role": role, "content": role} for role in ("user", "assistant", "system")]
    with pytest.raises(EngineUnavailable, match="budget"):
        await judged(asked, ONE, messages=long)
    assert not recorder.asked
    await judged(asked, ONE, messages=long[:2])
    now[0] = 60.0
    await judged(asked, ONE)
    now[0] = 120.0
    with pytest.raises(EngineUnavailable, match="budget"):
        await judged(asked, ONE, messages=long[2:])
    now[0] = 86_400.0
    await judged(asked, ONE, messages=long[2:])
    assert asked.counts == {("decision", "answered"): 4, ("decision", "over_budget"): 4}


async def test_without_a_service_there_is_no_verdict() -> None:
    with pytest.raises(EngineUnavailable, match=r"decision\(\.\.\.\) asks a service that is not configured"):
        await judged(Asking({}), ONE)


async def test_only_the_operators_policies_may_ask() -> None:
    """Neither a request header's nor one that is stored in the Explorer: they would spend somebody's money."""
    with pytest.raises(BadRequest, match="only the policy files of a server can ask one"):
        await with_header(GuardrailSet(), ONE.replace("\n", "\\n"), "add")
    with pytest.raises(PolicyError, match="only the policy files"):
        await compile_guardrail("stored", ONE, "block")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('X := llm("a")\n', "a constant cannot ask"),
        ('raise "b" if:\n    (m: Message)\n    decision(m)\n', 'needs "text"'),
        ('raise "b" if:\n    (m: Message)\n    decision("q", m, question="q")\n', 'gets "question" twice'),
        ('raise "b" if:\n    (m: Message)\n    decision("q", m, threshold=1)\n', 'has no option "threshold"'),
    ],
)
def test_calls_are_checked_at_load(text: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        guardrail("p", IMPORTS + text, "block", asks=True)


async def test_a_text_that_no_service_can_be_sent_gives_no_verdict() -> None:
    """Half of a surrogate pair is no character: the check ends as any that has no answer."""
    async with AskedServices(Config.model_validate({"guardrails": {"judge": JUDGE}})) as asked_services:
        with pytest.raises(EngineUnavailable, match="cannot be sent to the judge"):
            await judged(asked_services.asking, ONE, messages=[{"role": "user", "content": "half \ud800"}])


def test_the_engine_alone_has_no_detectors_that_ask() -> None:
    with pytest.raises(PolicyError, match="decision is not available"):
        compile_policy(ONE)
