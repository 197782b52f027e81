"""A backtest on a terminal: what would have been refused, with excerpts, and the time it took."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from gemini_proxy.cli.terminal import line, local_time, terminal
from gemini_proxy.cli.violations import sight_lines
from gemini_proxy.traces.backtest import Finding, Report
from gemini_proxy.traces.visible import counted


def print_report(policy: Path, report: Report, shown: int) -> None:
    """Print the first ``shown`` findings of each kind and the counts."""
    console = terminal()
    refused, undecided = report.refused, report.undecided
    _print_all(console, refused, shown, "would be refused")
    _print_all(console, undecided, shown, "without a verdict")
    times = report.milliseconds
    counts = (
        f"{counted(len(report.seconds), 'trace')}, {len(refused)} would be refused, {len(undecided)} without a verdict"
    )
    console.print(line(f"{policy}: {counts}"), soft_wrap=True)
    console.print(
        f"{times['total']:.1f} ms in all, {times['median']:.2f} ms for the median trace, {times['most']:.2f} ms at most"
    )


def _print_all(console: Console, findings: Sequence[Finding], shown: int, what: str) -> None:
    for finding in findings[:shown]:
        _print(console, finding)
    if len(findings) > shown:
        console.print(Text(f"and {len(findings) - shown} more that {what}\n", "dim"))


def _print(console: Console, finding: Finding) -> None:
    facts = [finding.trace_id, local_time(finding.created), finding.dataset or "-", f"was {finding.outcome}"]
    console.print(line("  ".join(facts), "cyan"), soft_wrap=True)
    if finding.failure is not None:
        console.print(Text.assemble("  ", ("no verdict: ", "bold yellow"), line(finding.failure)), soft_wrap=True)
    for violation in finding.violations:
        for text in sight_lines(violation):
            console.print(Text.assemble("  ", text), soft_wrap=True)
    if finding.more:
        console.print(Text(f"  and {finding.more} more violations", "dim"))
    console.print()
