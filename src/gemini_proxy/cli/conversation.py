"""Traces on a terminal. What a model or a user wrote is text here: never markup, never a control sequence."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemini_proxy.cli.visible import VISIBLE, leaves, line, local_time, terminal
from gemini_proxy.traces.trace import Annotation, Trace, TraceSummary

# Images and the like: a terminal's worth is enough, the whole is in --json.
_SHOWN = 8_000
_ADDRESS = re.compile(r"(?P<path>[^:]*)(?::(?P<start>\d+)-(?P<end>\d+))?")
_BLOCK_STYLE, _LOG_STYLE = "bold white on red", "black on yellow"


@dataclass(frozen=True, slots=True)
class _Mark:
    annotation: Annotation
    path: str
    start: int | None
    end: int | None

    def covers(self, leaf: str) -> bool:
        return leaf == self.path or (self.start is None and leaf.startswith(self.path + "."))


_LIST_WIDTH = 120


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
    marks = [_mark(annotation) for annotation in trace.annotations]
    shown: set[int] = set()
    for index, message in enumerate(trace.messages):
        console.print(Text.assemble("\n", (f"[{index}] ", "dim"), (line(message.get("role", "?")).plain, "bold cyan")))
        for path, text in leaves(message, f"messages.{index}"):
            here = [mark for mark in marks if mark.covers(path)]
            shown.update(id(mark) for mark in here)
            _print_leaf(console, path.split(".", 2)[2], text, here)
    elsewhere = [mark for mark in marks if id(mark) not in shown]
    if elsewhere:
        console.print(Text("\nelsewhere", "dim"))
        _print_rules(console, elsewhere)


def _facts(trace: Trace) -> Iterator[tuple[str, Text]]:
    yield "trace", line(trace.id)
    yield "time", Text(local_time(trace.created))
    yield "dataset", line(trace.dataset or "-")
    yield "model", line(f"{trace.model or '-'}{' (stream)' if trace.stream else ''}")
    yield "outcome", Text(trace.outcome.value, "bold")
    yield "took", Text(f"{trace.duration_ms:.1f} ms")
    for name, value in trace.metadata.items():
        yield f"{line(name).plain} ", line(value)


def _print_leaf(console: Console, name: str, text: str, marks: Sequence[_Mark]) -> None:
    body = Text(text[:_SHOWN].translate(VISIBLE))
    for mark in marks:
        body.stylize(_style(mark), mark.start or 0, mark.end)
    if len(text) > _SHOWN:
        body.append(f" ... {len(text) - _SHOWN} more characters", "dim")
    label = Text("") if name == "content" else Text.assemble((f"{line(name).plain}: ", "dim"))
    console.print(label + body)
    _print_rules(console, marks)


def _print_rules(console: Console, marks: Sequence[_Mark]) -> None:
    for mark in marks:
        annotation = mark.annotation
        action = line(annotation.guardrail.get("action", "block")).plain
        name = line(annotation.guardrail.get("name") or "").plain
        console.print(
            Text.assemble("  ^ ", (f" {action} ", _style(mark)), " ", line(annotation.content), (f"  {name}", "dim")),
            Text.assemble((f"    {line(annotation.address).plain}", "dim")),
            sep="\n",
        )


def _mark(annotation: Annotation) -> _Mark:
    found = _ADDRESS.fullmatch(annotation.address)
    if found is None or found["start"] is None:
        return _Mark(annotation, annotation.address, None, None)
    return _Mark(annotation, found["path"], int(found["start"]), int(found["end"]))


def _style(mark: _Mark) -> str:
    return _LOG_STYLE if mark.annotation.guardrail.get("action") == "log" else _BLOCK_STYLE
