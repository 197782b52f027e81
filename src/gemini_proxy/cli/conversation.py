"""Traces on a terminal. What a model or a user wrote is text here: never markup, never a control sequence."""

import re
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemini_proxy.cli.terminal import line, local_time, terminal
from gemini_proxy.cli.violations import excerpt_line
from gemini_proxy.traces.excerpts import excerpts
from gemini_proxy.traces.marks import Mark, Marks, leaves, segments
from gemini_proxy.traces.trace import Trace, TraceSummary
from gemini_proxy.traces.visible import VISIBLE

# Images and the like: a terminal's worth is enough, the whole is in --json.
_SHOWN = 8_000
_BLOCK_STYLE, _LOG_STYLE = "bold white on red", "black on yellow"
_LIST_WIDTH = 120
# Places that a value came from, or goes to, that are printed below each of them.
_ENDS = 5
_CHUNK = re.compile(r"content\.\d+\.(type|text)")


def print_list(found: Sequence[TraceSummary]) -> None:
    """Print one line a trace: time, id, dataset, model, outcome, milliseconds and first rule."""
    table = Table(box=None, pad_edge=False)
    for name in ("time", "id", "dataset", "model", "outcome"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("rule", no_wrap=True, overflow="ellipsis")
    for summary in found:
        words = (summary.id[:8], summary.dataset or "", summary.model or "", summary.outcome.value)
        spent = f"{summary.duration_ms:.0f}"
        table.add_row(local_time(summary.created), *(line(word) for word in words), spent, line(summary.rule or ""))
    console = terminal()
    # A narrow terminal breaks the line itself; squeezed columns would be a letter wide.
    console.width = max(console.width, _LIST_WIDTH)
    console.print(table)


def print_trace(trace: Trace) -> None:
    """Print a conversation with every annotated range highlighted and its rule below, then how the exchange went."""
    console = terminal()
    for name, value in _facts(trace):
        console.print(Text.assemble((f"{name:<10}", "dim"), value))
    marks = Marks(trace.annotations)

    def print_rules(found: Sequence[Mark]) -> None:
        for mark in found:
            _print_rule(console, mark)
            for end in marks.other_ends(mark)[:_ENDS]:
                _print_end(console, end, trace)

    shown: set[int] = set()
    for index, message in enumerate(trace.messages):
        console.print(Text.assemble("\n", (f"[{index}] ", "dim"), (line(message.get("role", "?")).plain, "bold cyan")))
        for path, text in leaves(message, f"messages.{index}"):
            here, name = marks.on(path), path.split(".", 2)[2]
            shown.update(mark.number for mark in here)
            chunk = _CHUNK.fullmatch(name) if message.get("role") == "user" else None
            if chunk is None or chunk[1] == "text":
                _print_leaf(console, "" if chunk else name, text, here)
                print_rules(here)
            elif text != "text" or here:
                _print_leaf(console, name, text, here)
                print_rules(here)
    elsewhere = [mark for mark in marks.all if mark.number not in shown]
    if elsewhere:
        console.print(Text("\nelsewhere", "dim"))
        print_rules(elsewhere)


def _facts(trace: Trace) -> Iterator[tuple[str, Text]]:
    yield "trace", line(trace.id)
    yield "time", Text(local_time(trace.created))
    yield "dataset", line(trace.dataset or "-")
    yield "model", line(f"{trace.model or '-'}{' (stream)' if trace.stream else ''}")
    yield "outcome", Text(trace.outcome.value, "bold")
    yield "took", Text(f"{trace.duration_ms:.1f} ms")
    for name, value in trace.metadata.items():
        yield f"{line(name).plain} ", line(value)


def _print_leaf(console: Console, name: str, text: str, marks: Sequence[Mark]) -> None:
    body = Text()
    for segment in segments(text[:_SHOWN], marks):
        body.append(segment.text.translate(VISIBLE), _style(segment.marks))
    if len(text) > _SHOWN:
        body.append(f" ... {len(text) - _SHOWN} more characters", "dim")
    label = Text("") if name in ("", "content") else Text.assemble((f"{line(name).plain}: ", "dim"))
    console.print(label + body)


def _print_rule(console: Console, mark: Mark) -> None:
    annotation = mark.annotation
    action = line(annotation.guardrail.get("action", "block")).plain
    name = line(annotation.guardrail.get("name") or "").plain
    console.print(
        Text.assemble("  ^ ", (f" {action} ", _style([mark])), " ", line(annotation.content), (f"  {name}", "dim")),
        Text.assemble((f"    {line(annotation.address).plain}", "dim")),
        sep="\n",
    )


def _print_end(console: Console, end: Mark, trace: Trace) -> None:
    """Print where a value goes, or where it came from, with the text there."""
    [found] = excerpts(trace.messages, [end.annotation.address])
    words = "goes to" if end.value_end == "call" else "came from"
    console.print(Text.assemble((f"    {words} {line(found.address).plain}", "dim"), "  ", excerpt_line(found)))


def _style(marks: Sequence[Mark]) -> str:
    """A place that one rule blocks and another logs is a blocked one."""
    if not marks:
        return ""
    return _LOG_STYLE if all(mark.logged for mark in marks) else _BLOCK_STYLE
