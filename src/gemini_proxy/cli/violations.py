"""Violations on a terminal, with the texts that their ranges point at."""

from rich.text import Text

from gemini_proxy.cli.terminal import line
from gemini_proxy.traces.excerpts import Excerpt
from gemini_proxy.traces.sights import Sight

_FOUND_STYLE = "bold white on red"


def sight_lines(sight: Sight) -> list[Text]:
    """The message and its line, then each range with its text."""
    lines = [Text.assemble(line(sight.message, "bold"), (f"  line {sight.rule_line}", "dim"))]
    for one in sight.excerpts:
        lines.append(Text.assemble("    ", line(one.address, "dim")))
        lines.append(Text.assemble("      ", excerpt_line(one)))
    if sight.more:
        lines.append(Text(f"    and {sight.more} more ranges", "dim"))
    return lines


def excerpt_line(excerpt: Excerpt) -> Text:
    """One line, what was found highlighted."""
    return Text.assemble(
        line(f"{excerpt.role}: " if excerpt.role else "", "dim"),
        line(excerpt.before),
        line(excerpt.found, _FOUND_STYLE),
        line(excerpt.after),
    )
