import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from click.testing import CliRunner

from gemini_proxy.cli import main
from gemini_proxy.traces.backtest import count
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Outcome, Trace
from tests.cli.policy_runs import HOSTILE, rule, run
from tests.support.sqlite import make_database
from tests.traces.samples import trace


def record(folder: Path, batch: Iterable[Trace]) -> None:
    async def write() -> None:
        store = await TraceStore.open(make_database(folder / "gemini-proxy.db"))
        await store.add(list(batch))
        await store.close()

    asyncio.run(write())


def said(text: str, **fields: Any) -> Trace:
    return trace(messages=[{"role": "user", "content": "go on"}, {"role": "assistant", "content": text}], **fields)


def test_backtest_says_what_it_would_have_refused(folder: Path) -> None:
    """Trace, time, dataset, outcome, the rule's message and the excerpt; counts, times; exit code 1."""
    refused = said("see the secrets here", dataset="shop", outcome=Outcome.COMPLETED)
    record(folder, [said("nothing"), refused, said("more of nothing")])
    result = run("backtest", "leak.gr")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].startswith(f"{refused.id}  2023-11-1")
    assert lines[0].endswith("  shop  was completed")
    assert lines[1:4] == [
        "  it leaks  line 1",
        "      messages.1.content:8-15",
        "        assistant: see the secrets here",
    ]
    assert lines[5] == "leak.gr: 3 traces, 1 would be refused, 0 without a verdict"
    assert "ms in total" in lines[6]


def test_backtest_of_a_clean_record_ends_with_0(folder: Path) -> None:
    """As a step of CI it passes."""
    record(folder, [said("nothing")] * 1)
    result = run("backtest", "leak.gr")
    assert (result.exit_code, result.output.splitlines()[0]) == (
        0,
        "leak.gr: 1 trace, 0 would be refused, 0 without a verdict",
    )


def test_backtest_takes_the_newest_of_a_dataset(folder: Path) -> None:
    """``--last`` counts within ``--dataset``, and pages do not lose a trace."""
    record(folder, [said("secret", dataset="a" if number % 2 else "b") for number in range(450)])

    def counted(*options: str) -> tuple[int, int]:
        found = orjson.loads(run("backtest", "--json", "leak.gr", *options).output)
        return found["traces"], len({one["trace"] for one in found["refused"]})

    assert counted() == (450, 450)
    assert counted("--dataset", "a") == (225, 225)
    assert counted("--dataset", "a", "--last", "3") == (3, 3)
    assert counted("--last", "201") == (201, 201)
    assert counted("--last", "450") == (450, 450)
    assert counted("--dataset", "none") == (0, 0)
    newest = orjson.loads(run("backtest", "--json", "leak.gr", "--dataset", "b", "--last", "2").output)
    assert [one["dataset"] for one in newest["refused"]] == ["b", "b"]


def test_backtest_goes_from_the_newest_back(folder: Path) -> None:
    """The last one recorded comes first."""
    batch = [said("secret") for _ in range(5)]
    record(folder, batch)
    found = orjson.loads(run("backtest", "--json", "--last", "2", "leak.gr").output)
    assert [one["trace"] for one in found["refused"]] == [batch[4].id, batch[3].id]


async def test_the_progress_bar_knows_how_many_there_are(tmp_path: Path) -> None:
    """All of a dataset, or the last ones if there are so many."""
    store = await TraceStore.open(make_database(tmp_path / "traces.db"))
    await store.add([said("", dataset="a") for _ in range(3)] + [said("", dataset="b")])
    assert [await count(store, *which) for which in ((None, None), ("a", None), ("a", 2), ("b", 2))] == [4, 3, 2, 1]
    await store.close()


def test_no_verdict_is_neither_refused_nor_clean(folder: Path) -> None:
    """It is counted apart, with its reason, and ends with exit code 1."""
    (folder / "e.gr").write_text('raise "x" if:\n    (m: Message)\n    1 / len(m.content) > 2\n')
    record(folder, [said(""), said("fine")])
    result = run("backtest", "e.gr")
    assert result.exit_code == 1
    assert "  no verdict: rule at line 1: division by zero\n" in result.output
    assert "2 traces, 0 would be refused, 1 without a verdict" in result.output
    found = orjson.loads(run("backtest", "--json", "e.gr").output)
    assert (found["refused"], found["no_verdict"][0]["failure"]) == ([], "rule at line 1: division by zero")


def test_messages_that_cannot_be_read_give_no_verdict(folder: Path) -> None:
    """A trace that was pushed from elsewhere may hold anything."""
    record(folder, [trace(messages=[{"role": 3}])])
    result = run("backtest", "leak.gr")
    assert (result.exit_code, "no verdict: messages.0.role is not a string" in result.output) == (1, True)


def test_candidates_are_checked_one_by_one(folder: Path) -> None:
    """Each answer with the request, not with its siblings; addresses are the trace's."""
    (folder / "two.gr").write_text(
        'raise "two" if:\n    (a: Message) -> (b: Message)\n    a.role == "assistant"\n    b.role == "assistant"\n\n'
        'raise "leaks" if:\n    (m: Message)\n    any(find("secret", m.content))\n'
    )
    messages = [
        {"role": "user", "content": "a secret?"},
        {"role": "assistant", "content": "no", "candidate": 0},
        {"role": "assistant", "content": "my secret", "candidate": 1},
    ]
    record(folder, [trace(messages=messages)])
    found = orjson.loads(run("backtest", "--json", "two.gr").output)
    (one,) = found["refused"]
    assert [(each["message"], each["ranges"][0]["address"]) for each in one["violations"]] == [
        ("leaks", "messages.0.content:2-8"),
        ("leaks", "messages.2.content:3-9"),
    ]


def test_backtest_uses_the_configured_parameters_and_thoughts(folder: Path) -> None:
    """As the proxy would: parameters from the configuration, or by hand over them; skipped thoughts stay unread."""
    (folder / "p.gr").write_text('raise "x" if:\n    (m: Message)\n    input.word in m.content\n')
    record(folder, [trace(messages=[{"role": "assistant", "content": "hush", "thought": True}])])
    assert run("backtest", "p.gr").exit_code == 2
    assert run("backtest", "p.gr", "--parameter", "word").exit_code == 2
    assert run("backtest", "p.gr", "--parameter", "word=hush").exit_code == 1
    assert run("backtest", "p.gr", "--parameter", "word=[1]").exit_code == 1
    (folder / "config.toml").write_text('[guardrails]\nthoughts = "skip"\nparameters = { word = "hush" }\n')
    result = CliRunner().invoke(main, ["--config", "config.toml", "policy", "backtest", "p.gr"])
    assert result.exit_code == 0, result.output
    (folder / "config.toml").write_text('[guardrails]\nparameters = { word = "hush" }\n')
    assert CliRunner().invoke(main, ["--config", "config.toml", "policy", "backtest", "p.gr"]).exit_code == 1


def test_backtest_stops_at_the_configured_time(folder: Path) -> None:
    """A check that takes longer than ``guardrails.timeout`` gives no verdict."""
    (folder / "slow.gr").write_text(
        rule("(a: Message) -> (b: Message)", "(c: Message) -> (d: Message)", 'a.content + d.content == "y"')
    )
    record(folder, [trace(messages=[{"role": "user", "content": "z"}] * 300)])
    (folder / "config.toml").write_text("[guardrails]\ntimeout = 0.05\n")
    result = CliRunner().invoke(main, ["--config", "config.toml", "policy", "backtest", "slow.gr", "--json"])
    found = orjson.loads(result.output)
    assert (result.exit_code, found["no_verdict"][0]["failure"]) == (1, "rule at line 1: the check timed out")
    assert found["milliseconds"]["most"] < 1000


def test_backtest_shows_so_many_and_counts_the_rest(folder: Path) -> None:
    """``--show`` bounds what is printed, never what is checked."""
    record(folder, [said("secret " * 30) for _ in range(4)])
    output = run("backtest", "leak.gr", "--show", "1").output
    assert output.count("it leaks") == 1
    assert "and 10 more ranges" in output
    assert "and 3 more that would be refused" in output
    assert "4 traces, 4 would be refused" in output


def test_long_texts_are_cut_around_what_was_found(folder: Path) -> None:
    """An excerpt fits a line, whatever the text."""
    record(folder, [said("a" * 5000 + "secret" + "b" * 5000)])
    found = orjson.loads(run("backtest", "--json", "leak.gr").output)
    (place,) = found["refused"][0]["violations"][0]["ranges"]
    assert place["address"] == f"messages.1.content:{5000}-{5006 + 5000}"
    assert len(place["excerpt"]) < 300 and place["excerpt"].startswith("..." + "a" * 40 + "secret")


def test_recorded_text_is_never_markup_nor_a_control_sequence(folder: Path) -> None:
    """What was said, datasets and rules' words that quote both."""
    quoting = 'raise PolicyViolation(m.content) if:\n    (m: Message)\n    any(find("not.*", m.content))\n'
    (folder / "h.gr").write_text(quoting)
    record(folder, [said(HOSTILE, dataset=HOSTILE)])
    output = run("backtest", "h.gr").output
    assert "[red]not markup[/red] :smile:" in output
    assert not {"\x1b", "\x9b", "\u202e", "\r"} & set(output)


def test_backtest_without_a_database_is_wrong_usage(folder: Path) -> None:
    """Exit code 2, and no database is made."""
    result = run("backtest", "leak.gr")
    assert (result.exit_code, "there is no trace database" in result.output) == (2, True)
    assert not (folder / "gemini-proxy.db").exists()


def test_backtest_changes_nothing(folder: Path) -> None:
    """The database is opened for reading only."""
    record(folder, [said("secret")])
    before = (folder / "gemini-proxy.db").read_bytes()
    run("backtest", "leak.gr")
    assert (folder / "gemini-proxy.db").read_bytes() == before
