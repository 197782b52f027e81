"""The results of cases: a table, for each failure what fired instead, or JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemini_proxy.cli.policy_cases import Result
from gemini_proxy.cli.terminal import line, terminal
from gemini_proxy.cli.violations import sight_lines
from gemini_proxy.traces.sights import Sight


def results_json(policy: Path, results: Sequence[Result]) -> dict[str, Any]:
    """All results as plain JSON."""
    passed = sum(result.ok for result in results)
    return {
        "policy": str(policy),
        "passed": passed,
        "failed": len(results) - passed,
        "cases": [_result_json(result) for result in results],
    }


def _result_json(result: Result) -> dict[str, Any]:
    case = result.case
    messages = case.conversation.messages
    return {
        "name": case.name,
        "fires": case.fires if isinstance(case.fires, bool) else sorted(case.fires),
        "ok": result.ok,
        "fired": [Sight.of(messages, violation).json() for violation in result.violations],
        "failure": result.failure,
    }


def print_results(policy: Path, results: Sequence[Result]) -> None:
    """Print the table, a diff for each case that failed, and the count."""
    console = terminal()
    table = Table(box=None, pad_edge=False)
    for name in ("case", "expected", "got", "ok"):
        table.add_column(name, overflow="fold")
    for result in results:
        verdict = Text("yes", "green") if result.ok else Text("NO", "bold red")
        table.add_row(line(result.case.name), line(result.case.expected), line(result.got), verdict)
    console.print(table)
    failed = [result for result in results if not result.ok]
    for result in failed:
        _print_failure(console, result)
    console.print()
    console.print(line(f"{policy}: {len(results) - len(failed)} of {len(results)} cases ok"), soft_wrap=True)


def _print_failure(console: Console, result: Result) -> None:
    console.print()
    console.print(line(result.case.name, "bold"), soft_wrap=True)
    if result.failure is not None:
        console.print(Text.assemble(("! ", "red"), "no verdict: ", line(result.failure)), soft_wrap=True)
    for message in result.missing:
        console.print(Text.assemble(("- ", "red"), line(message)), soft_wrap=True)
    for violation in result.surplus:
        head, *rest = sight_lines(Sight.of(result.case.conversation.messages, violation))
        console.print(Text.assemble(("+ ", "green"), head), *rest, sep="\n", soft_wrap=True)
