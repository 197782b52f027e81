"""``gemini-proxy policy``: check policies, test them with cases, and run them over what was recorded.

Exit codes: 0 if all is well; 1 for a fault, a failed case, or an exchange that would be refused or has no verdict; 2
for wrong usage, or an input that cannot be used, so that there is no result.
"""

import asyncio
import contextlib
import difflib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gemini_proxy.cli import shipped
from gemini_proxy.cli.policy_cases import Case, Result, read_cases, run_case
from gemini_proxy.cli.policy_files import (
    STANDARD_INPUT,
    Unusable,
    compile_file,
    described_error,
    described_note,
    described_warning,
    read_text,
    usable_policy,
)
from gemini_proxy.cli.settings import Settings
from gemini_proxy.cli.terminal import line, local_time, print_flagged, terminal, violation_lines
from gemini_proxy.cli.with_store import with_store
from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.asking import Asking
from gemini_proxy.guardrails.rules import echo_warnings
from gemini_proxy.policy import Answer, Policy, PolicyError, PolicyWarning, Question, format_policy, portability
from gemini_proxy.sections import Refusals
from gemini_proxy.traces.backtest import Backtest, FlaggedTrace, Report, count, recorded
from gemini_proxy.traces.excerpts import ShownViolation
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Trace
from gemini_proxy.traces.visible import ONE_LINE, VISIBLE, as_json, counted

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE_OR_INPUT = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.group()
def policy() -> None:
    """Check, format, test and backtest policies, and copy ready-made ones."""


policy.add_command(shipped.list_)
policy.add_command(shipped.copy)


@policy.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_FILE)
@click.option("--strict", is_flag=True, help="Treat warnings as faults.")
@click.option("--portable", is_flag=True, help="Also report what Invariant's engine reads differently, as a fault.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object per file, one per line.")
def check(files: tuple[Path, ...], strict: bool, portable: bool, as_json_: bool) -> None:
    """Load policies and report what is wrong with them; exit code 1 if something is."""
    checks = [_checked(file, portable) for file in files]
    for checked in checks:
        click.echo(as_json(checked.json) if as_json_ else "\n".join(checked.lines))
    faults = (checked.error or checked.notes or (strict and checked.warnings) for checked in checks)
    sys.exit(1 if any(faults) else 0)


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """The result of a check: the policy with warnings and notes, or the error that keeps it from loading."""

    file: Path
    policy: Policy | None = None
    error: PolicyError | None = None
    warnings: tuple[PolicyWarning, ...] = ()
    notes: tuple[PolicyWarning, ...] = ()

    @property
    def lines(self) -> list[str]:
        """Return the result in words."""
        if self.policy is None:
            return [described_error(self.error)] if self.error is not None else []
        warnings = [described_warning(self.policy, warning) for warning in self.warnings]
        notes = [described_note(self.policy, note) for note in self.notes]
        return [*warnings, *notes, _summary(self.file, self.policy, len(warnings))]

    @property
    def json(self) -> dict[str, Any]:
        """Return the result for programs. ``waits`` are the lines of the rules that need a whole response."""
        loaded, error = self.policy, self.error
        return {
            "file": str(self.file),
            "loads": loaded is not None,
            "rules": len(loaded.rules) if loaded else 0,
            "parameters": sorted(loaded.parameters) if loaded else [],
            "asks": sorted(loaded.asks) if loaded else [],
            "waits": _waiting(loaded) if loaded else [],
            "errors": [] if error is None else [_placed(error.line, error.column, error.reason, error.suggestion)],
            "warnings": [
                _placed(warning.line, warning.column, warning.message, warning.suggestion) for warning in self.warnings
            ],
            "notes": [_placed(note.line, note.column, note.message, note.suggestion) for note in self.notes],
        }


def _checked(file: Path, portable: bool) -> CheckedFile:
    try:
        loaded = compile_file(file)
    except PolicyError as error:
        return CheckedFile(file, error=error)
    warnings = (*loaded.warnings, *echo_warnings(loaded, Refusals().prefix))
    notes = portability(loaded.text, loaded.source) if portable else ()
    return CheckedFile(file, loaded, warnings=warnings, notes=notes)


def _placed(line: int, column: int, message: str, hint: str | None) -> dict[str, Any]:
    return {"line": line, "column": column, "message": message, "hint": hint}


def _waiting(loaded: Policy) -> list[int]:
    """Return the lines of the rules for which, with stream_check = "window", every response waits for its end."""
    return [rule.line for rule in loaded.rules if rule.window == "whole"]


def _summary(file: Path, loaded: Policy, warnings: int) -> str:
    facts = [counted(len(loaded.rules), "rule")]
    if warnings:
        facts.append(counted(warnings, "warning"))
    if loaded.parameters:
        facts.append(f"reads {', '.join(f'input.{name}' for name in sorted(loaded.parameters))}")
    if loaded.asks:
        facts.append(f"asks {', '.join(sorted(loaded.asks))}")
    if waiting := _waiting(loaded):
        facts.append(f"needs the whole response for line {', '.join(map(str, waiting))}")
    return f"{file}: loads: {', '.join(facts)}"


@policy.command("fmt")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_FILE_OR_INPUT)
@click.option("--check", "check_", is_flag=True, help="Change nothing; name the files that would change, exit code 1.")
@click.option("--diff", is_flag=True, help="Change nothing; show what would change.")
def format_(files: tuple[Path, ...], check_: bool, diff: bool) -> None:
    """Write policies in the standard form, which preserves their meaning and comments.

    "-" is standard input, which goes to standard output. Exit code 2 if a policy does not parse: its file stays as it
    is.
    """
    changed = failed = False
    for name in files:
        file = STANDARD_INPUT if name == STANDARD_INPUT else name
        before = read_text(file)
        try:
            after = format_policy(before, str(file))
        except PolicyError as error:
            click.echo(described_error(error), err=True)
            failed = True
            continue
        changed = changed or after != before
        if diff:
            click.echo(_difference(file, before, after), nl=False)
        elif check_ and after != before:
            click.echo(f"{file}: would change".translate(ONE_LINE))
        elif file is STANDARD_INPUT and not check_:
            click.echo(after, nl=False)
        elif after != before:
            file.write_bytes(after.encode())
            click.echo(f"{file}: formatted".translate(ONE_LINE))
    sys.exit(2 if failed else 1 if check_ and changed else 0)


def _difference(file: Path, before: str, after: str) -> str:
    lines = difflib.unified_diff(before.split("\n"), after.split("\n"), f"{file}", f"{file}, formatted", lineterm="")
    return "".join(f"{text.translate(VISIBLE)}\n" for text in lines)


@policy.command("test")
@click.argument("file", metavar="FILE", type=_FILE)
@click.argument("cases_file", metavar="CASES", type=_FILE)
@click.option("--only", multiple=True, help="Only cases with this number or id, or with this in their name.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def test(settings: Settings, file: Path, cases_file: Path, only: tuple[str, ...], as_json_: bool) -> None:
    """Run the conversations of CASES (YAML or JSON) through the policy; exit code 1 if a case fails.

    Services that the policy asks are asked as configured.
    """
    loaded = usable_policy(file)
    cases = [case for case in read_cases(cases_file) if _chosen(case, only)]
    if not cases:
        raise Unusable(f"{cases_file}: no case matches {', '.join(only)}")
    results = asyncio.run(_results(settings, loaded, cases))
    if as_json_:
        click.echo(as_json(_results_json(file, results)))
    else:
        _print_results(file, results)
    sys.exit(0 if all(result.ok for result in results) else 1)


async def _results(settings: Settings, loaded: Policy, cases: Sequence[Case]) -> list[Result]:
    async def result(asking: Asking, case: Case) -> Result:
        async def run(answers: Mapping[Question, Answer]) -> Result:
            return run_case(loaded, case, answers)

        try:
            return await asking.verdict(run, None)
        except EngineUnavailable as error:
            return Result(case, failure=error.message)

    async with _asking(settings, loaded) as asking:
        return [await result(asking, case) for case in cases]


@contextlib.asynccontextmanager
async def _asking(settings: Settings, loaded: Policy) -> AsyncIterator[Asking]:
    """Open the services that answer the policy. Raise Unusable if it asks one that is not configured."""
    if not loaded.asks:
        yield Asking({})
        return
    from gemini_proxy.server.asked_services import AskedServices, unanswerable

    if missing := unanswerable(settings.config, loaded.asks):
        raise Unusable(f"{loaded.source}: {missing[0]}")
    async with AskedServices(settings.config) as asked_services:
        yield asked_services.asking


def _chosen(case: Case, only: tuple[str, ...]) -> bool:
    return not only or any(word == case.id or (not word.isdecimal() and word in case.name) for word in only)


@policy.command()
@click.argument("file", metavar="FILE", type=_FILE)
@click.option("--dataset", help="Only traces of this dataset.")
@click.option("--last", type=click.IntRange(1), help="Only this many of the newest traces. Default: all.")
@click.option(
    "--parameter", "given", multiple=True, metavar="NAME=VALUE", help="A policy parameter; VALUE is JSON or plain text."
)
@click.option("--show", type=click.IntRange(0), default=50, show_default=True, help="How many exchanges to show.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object with everything.")
@click.pass_obj
def backtest(
    settings: Settings,
    file: Path,
    dataset: str | None,
    last: int | None,
    given: tuple[str, ...],
    show: int,
    as_json_: bool,
) -> None:
    """Run a policy over recorded traces and report what it would have refused.

    Parameters, thoughts and the time for a check are those of the configuration. Exit code 1 if an exchange would be
    refused or has no verdict.
    """
    guardrails = settings.config.guardrails
    loaded = usable_policy(file)
    parameters = {**guardrails.parameters, **dict(_parameter(text) for text in given)}
    if missing := sorted(loaded.parameters - set(parameters)):
        raise Unusable(f"{file}: {missing[0]} is not given: set guardrails.parameters or --parameter {missing[0]}=...")
    trial = Backtest(loaded, parameters, guardrails.thoughts, guardrails.timeout)
    report = _over_traces(settings, trial, dataset, last)
    if as_json_:
        click.echo(as_json({"policy": str(file), **report.json()}))
    else:
        _print_report(file, report, show)
    sys.exit(1 if report.flagged else 0)


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f'--parameter takes NAME=VALUE, not "{text}"')
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _over_traces(settings: Settings, trial: Backtest, dataset: str | None, last: int | None) -> Report:
    """Return what the policy finds in recorded traces. Raise Unusable if there is no database to read."""

    async def run(store: TraceStore) -> Report:
        total = await count(store, dataset, last)
        report = Report()
        async with _asking(settings, trial.policy) as asking:
            with _progress() as progress:
                task = progress.add_task("traces", total=total)
                async for trace in recorded(store, dataset, last):
                    await _add(asking, report, trial, trace)
                    progress.advance(task)
        return report

    return with_store(settings.traces.database, run, failure=Unusable)


async def _add(asking: Asking, report: Report, trial: Backtest, trace: Trace) -> None:
    async def add(answers: Mapping[Question, Answer]) -> None:
        report.add(replace(trial, answers=answers), trace)

    try:
        await asking.verdict(add, None)
    except EngineUnavailable as error:
        report.flagged.append(FlaggedTrace.undecided(trace, error.message))
        report.seconds.append(0.0)


def _progress() -> Progress:
    """Return a bar on standard error that disappears when all is done; none if that is not a terminal."""
    console = terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _results_json(policy: Path, results: Sequence[Result]) -> dict[str, Any]:
    """Return all results as plain JSON."""
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
        "fired": [ShownViolation.of(messages, violation).json() for violation in result.violations],
        "failure": result.failure,
    }


def _print_results(policy: Path, results: Sequence[Result]) -> None:
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
        head, *rest = violation_lines(ShownViolation.of(result.case.conversation.messages, violation))
        console.print(Text.assemble(("+ ", "green"), head), *rest, sep="\n", soft_wrap=True)


def _print_report(policy: Path, report: Report, shown: int) -> None:
    """Print the first ``shown`` traces of each kind and the counts."""
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
        f"{times['total']:.1f} ms in total, median {times['median']:.2f} ms and most {times['most']:.2f} ms per trace"
    )


def _print_all(console: Console, traces: Sequence[FlaggedTrace], shown: int, what: str) -> None:
    for trace in traces[:shown]:
        _print(console, trace)
    if len(traces) > shown:
        console.print(Text(f"and {len(traces) - shown} more that {what}\n", "dim"))


def _print(console: Console, trace: FlaggedTrace) -> None:
    facts = [trace.trace_id, local_time(trace.created), trace.dataset or "-", f"was {trace.outcome}"]
    console.print(line("  ".join(facts), "cyan"), soft_wrap=True)
    print_flagged(console, trace)
    console.print()
