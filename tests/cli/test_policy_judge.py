"""``policy check``, ``test`` and ``backtest`` with policies that ask a judge."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main
from gemini_proxy.traces.store import TraceStore
from tests.cli.policy_runs import CASES, run
from tests.cli.test_policy_backtest import said
from tests.support.upstream import Call, Reply, ScriptedUpstream, candidate, unary
from tests.traces.samples import url

POLICY = """
from invariant.detectors import decision
raise "it leaks" if:
    (m: Message)
    m.role == "assistant"
    decision("Does it leak?", m)
"""


def decided(call: Call) -> Reply:
    text = call.json["contents"][0]["parts"][0]["text"]
    return unary(candidate(orjson.dumps({"decision": "secret" in text}).decode(), "STOP"))


@pytest.fixture
async def judge(folder: Path) -> AsyncIterator[ScriptedUpstream]:
    """A judge that the configuration names, and a policy that asks it."""
    server = ScriptedUpstream()
    await server.start()
    server.reply(decided)
    (folder / "leak.gr").write_text(POLICY)
    lines = ("[guardrails.judge]", 'model = "judge-1"', f'url = "{server.url}"', 'api_key = "AIzaJudge"')
    (folder / "config.toml").write_text("\n".join(lines))
    yield server
    await server.stop()


async def asking(*arguments: str) -> Result:
    """Run a command beside the judge, which answers in this thread's loop."""
    return await asyncio.to_thread(CliRunner().invoke, main, ["--config", "config.toml", "policy", *arguments])


async def test_cases_are_asked_about(judge: ScriptedUpstream) -> None:
    result = await asking("test", "leak.gr", "leak.yaml")
    assert result.exit_code == 0, result.output
    assert "2 of 2 cases ok" in result.output
    assert len(judge.calls) == 1


async def test_a_case_without_an_answer_is_not_ok(judge: ScriptedUpstream) -> None:
    judge.reply(Reply(status=503))
    result = await asking("test", "leak.gr", "leak.yaml")
    assert result.exit_code == 1
    assert "no verdict: The judge answered with HTTP 503" in result.output


async def test_a_backtest_asks(judge: ScriptedUpstream, folder: Path) -> None:
    """The same text twice is one question; a trace without an answer has no verdict."""
    store = await TraceStore.open(url(folder / "gemini-proxy.db"))
    await store.add([said("a secret"), said("nothing"), said("nothing")])
    await store.close()
    found = orjson.loads((await asking("backtest", "--json", "leak.gr")).output)
    assert (found["traces"], len(found["refused"]), len(found["no_verdict"])) == (3, 1, 0)
    assert len(judge.calls) == 2
    judge.reply(Reply(status=503))
    found = orjson.loads((await asking("backtest", "--json", "leak.gr")).output)
    assert (found["traces"], len(found["refused"]), len(found["no_verdict"])) == (3, 0, 3)
    assert "HTTP 503" in found["no_verdict"][0]["failure"]


@pytest.mark.parametrize("command", [("test", "leak.gr", "leak.yaml"), ("backtest", "leak.gr")])
def test_without_a_judge_it_says_what_is_missing(folder: Path, command: tuple[str, ...]) -> None:
    (folder / "leak.gr").write_text(POLICY)
    (folder / "leak.yaml").write_text(CASES)
    asyncio.run(_empty(folder))
    result = run(*command)
    assert result.exit_code == 2
    assert "leak.gr: decision(...) needs a judge: set guardrails.judge.model" in result.output
    assert "asks decision" in run("check", "leak.gr").output


async def _empty(folder: Path) -> None:
    await (await TraceStore.open(url(folder / "gemini-proxy.db"))).close()
