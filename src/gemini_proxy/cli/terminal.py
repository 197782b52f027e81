"""Print what a model, a user or a file said on a terminal: text, never markup and never a control sequence."""

from datetime import datetime

from rich.console import Console
from rich.text import Text

from gemini_proxy.traces.backtest import FlaggedTrace
from gemini_proxy.traces.excerpts import Excerpt, ShownViolation
from gemini_proxy.traces.visible import ONE_LINE, as_json


def terminal(*, stderr: bool = False) -> Console:
    """Return a console that takes text as it is."""
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=False, stderr=stderr)


def line(value: object, style: str = "") -> Text:
    """Return any value as one line of visible text."""
    return Text((value if isinstance(value, str) else as_json(value)).translate(ONE_LINE), style)


def local_time(created: float) -> str:
    """Write a Unix time as date and time here."""
    return datetime.fromtimestamp(created).astimezone().strftime("%Y-%m-%d %H:%M:%S")


_FOUND_STYLE = "bold white on red"


def violation_lines(violation: ShownViolation) -> list[Text]:
    """Return the message and its line, then each range with its text."""
    lines = [Text.assemble(line(violation.message, "bold"), (f"  line {violation.rule_line}", "dim"))]
    for excerpt in violation.excerpts:
        lines.append(Text.assemble("    ", line(excerpt.address, "dim")))
        lines.append(Text.assemble("      ", excerpt_line(excerpt)))
    if violation.more:
        lines.append(Text(f"    and {violation.more} more ranges", "dim"))
    return lines


def print_flagged(console: Console, flagged: FlaggedTrace) -> None:
    """Print the violations in a trace, and the reasons for any missing verdict."""
    if flagged.failure is not None:
        console.print(Text.assemble("  ", ("no verdict: ", "bold yellow"), line(flagged.failure)), soft_wrap=True)
    for violation in flagged.violations:
        for text in violation_lines(violation):
            console.print(Text.assemble("  ", text), soft_wrap=True)
    if flagged.more:
        console.print(Text(f"  and {flagged.more} more violations", "dim"))


def excerpt_line(excerpt: Excerpt) -> Text:
    """Return one line, with the range highlighted."""
    return Text.assemble(
        line(f"{excerpt.role}: " if excerpt.role else "", "dim"),
        line(excerpt.before),
        line(excerpt.found, _FOUND_STYLE),
        line(excerpt.after),
    )
