from pathlib import Path

from bench.million import GOAL, Rate, Times, measure, report
from bench.million_traces import made_up

# Of so few traces, the rarer filters may find none.
ANSWERED = {
    "first page",
    "outcome, common",
    "model, common",
    "rule, 10 %",
    "text, common word",
    "text, two common words",
    "small dataset, first page",
    "all datasets, models and rules",
    "one trace by its id",
    "one trace, its page",
    "guardrails",
    "key, common",
    "datasets",
    "dashboard, 24 hours",
    "dashboard, 30 days",
}


async def test_the_questions_of_the_bench_have_answers(tmp_path: Path) -> None:
    times, rates = await measure(f"sqlite:///{tmp_path / 'traces.db'}", 500, 1, 0.01)
    assert {row.title for row in times if row.found} >= ANSWERED
    # Nobody may have been answered in so short a time.
    assert all(rate.per_second > 0 for rate in rates if "written" in rate.title)
    assert len([rate for rate in rates if "written" in rate.title]) > 1


def test_the_report_says_what_took_too_long() -> None:
    times = [Times("quick", 1, 1.0, 2.0, 1.0), Times("slow", 1, GOAL + 1.0, GOAL + 2.0, 1.0)]
    assert report(times, [Rate("written", 1.0, 2.0)]).endswith(f"Over {GOAL} ms: slow")


def test_every_run_makes_the_same_traces() -> None:
    assert list(made_up(20, 1e9)) == list(made_up(20, 1e9))
