"""The engine and the event loop: what would hold up the one leaves it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from gemini_proxy.guardrails import engine
from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.rules import compile_guardrail, guardrail
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.guardrails.workers import Workers

RULE = 'raise "x" if:\n    (m: Message)\n    m.role == "zz"\n'
PART = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("messages", "quick"),
    [
        ([{"role": "user", "content": "a"}] * 10, True),
        ([{"role": "user", "content": "a"}] * 2_000, False),
        ([{"role": "user", "content": [PART] * 10}], True),
        ([{"role": "user", "content": [PART] * 2_000}], False),
        ([{"role": "user", "content": [PART] * 50}] * 100, False),
    ],
)
async def test_a_long_conversation_is_not_read_on_the_loop(
    messages: list[Mapping[str, Any]], quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is long in messages or in their parts: nothing here looks at more than their number."""
    if not quick:
        monkeypatch.setattr(engine, "Conversation", None)
    judged = NativeEngine(Workers(1), 1.0).check(Check((guardrail("r", RULE, "block"),), messages, {}))
    assert isinstance(judged, Verdict) == quick
    if asyncio.iscoroutine(judged):
        judged.close()


async def test_a_conversation_on_which_no_rule_can_fire_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefilter looks through the messages; where one rule may fire, that one is checked."""
    words = guardrail("w", 'raise "w" if:\n    (m: Message)\n    "zebra" in m.content\n' + RULE, "block")
    checks = NativeEngine(Workers(1), 1.0)
    verdict = checks.check(Check((words,), [{"role": "user", "content": "a zebra"}], {}))
    assert isinstance(verdict, Verdict) and [violation.ranges for violation in verdict.violations] == [
        ("messages.0.content:2-7",)
    ]
    monkeypatch.setattr(engine, "Conversation", None)
    verdict = checks.check(Check((words,), [{"role": "user", "content": "a horse"}], {}))
    assert isinstance(verdict, Verdict) and not verdict.violations


async def test_policies_that_wait_to_be_compiled_leave_the_threads_to_others() -> None:
    """However many there are, what else is done in a thread is done at once."""
    conditions = "".join(f'    "word{number}" in m.content\n' for number in range(300))
    texts = [f"{RULE}{conditions}# {number}\n" for number in range(40)]
    async with asyncio.TaskGroup() as tasks:
        compiling = [tasks.create_task(compile_guardrail("r", text, "block")) for text in texts]
        await asyncio.sleep(0)
        await asyncio.to_thread(int)
        assert sum(task.done() for task in compiling) < 20
        for task in compiling:
            task.cancel()
