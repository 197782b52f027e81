"""Traces on a terminal. What a model or a user wrote is text here: never markup, never a control sequence."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemini_proxy.traces.trace import Annotation, Trace, TraceSummary

# Images and the like: a terminal's worth is enough, the whole is in --json.
_SHOWN = 8_000
_ADDRESS = re.compile(r"(?P<path>[^:]*)(?::(?P<start>\d+)-(?P<end>\d+))?")
_BLOCK_STYLE, _LOG_STYLE = "bold white on red", "black on yellow"
# Each control character to one visible one, so that offsets stay right: C0 and DEL to their pictures; C1, the
# bidirectional controls and lone surrogates, which have none, to the replacement character.
_VISIBLE = (
    {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
    | {0x7F: 0x2421}
    | {code: 0xFFFD for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)}
    | {code: 0xFFFD for code in range(0xD800, 0xE000)}
)
_ONE_LINE = _VISIBLE | {0x09: 0x2409, 0x0A: 0x240A}


@dataclass(frozen=True, slots=True)
class _Mark:
    annotation: Annotation
    path: str
    start: int | None
    end: int | None

    def covers(self, leaf: str) -> bool:
        return leaf == self.path or (self.start is None and leaf.startswith(self.path + "."))


def print_list(found: Sequence[TraceSummary]) -> None:
    """Print one line a trace: time, id, dataset, model, outcome, first rule and milliseconds."""
    table = Table(box=None, pad_edge=False)
    for name in ("time", "id", "dataset", "model", "outcome", "rule"):
        table.add_column(name, no_wrap=name != "rule", overflow="ellipsis")
    table.add_column("ms", justify="right", no_wrap=True)
    for summary in found:
        words = (summary.id[:8], summary.dataset or "", summary.model or "", summary.outcome.value, summary.rule or "")
        table.add_row(_time(summary.created), *(_line(word) for word in words), f"{summary.duration_ms:.0f}")
    _console().print(table)


def print_trace(trace: Trace) -> None:
    """Print a conversation with every annotated range highlighted and its rule below, then how the exchange went."""
    console = _console()
    for name, value in _facts(trace):
        console.print(Text.assemble((f"{name:<10}", "dim"), value))
    marks = [_mark(annotation) for annotation in trace.annotations]
    shown: set[int] = set()
    for index, message in enumerate(trace.messages):
        console.print(Text.assemble("\n", (f"[{index}] ", "dim"), (_line(message.get("role", "?")).plain, "bold cyan")))
        for path, text in _leaves(message, f"messages.{index}"):
            here = [mark for mark in marks if mark.covers(path)]
            shown.update(id(mark) for mark in here)
            _print_leaf(console, path.split(".", 2)[2], text, here)
    elsewhere = [mark for mark in marks if id(mark) not in shown]
    if elsewhere:
        console.print(Text("\nelsewhere", "dim"))
        _print_rules(console, elsewhere)


def _console() -> Console:
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=False)


def _facts(trace: Trace) -> Iterator[tuple[str, Text]]:
    yield "trace", _line(trace.id)
    yield "time", Text(_time(trace.created))
    yield "dataset", _line(trace.dataset or "-")
    yield "model", _line(f"{trace.model or '-'}{' (stream)' if trace.stream else ''}")
    yield "outcome", Text(trace.outcome.value, "bold")
    yield "took", Text(f"{trace.duration_ms:.1f} ms")
    for name, value in trace.metadata.items():
        yield f"{_line(name).plain} ", _line(value)


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Every value that is neither a mapping nor a list, with its address, the message's role left out."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not (name == "role" and path.count(".") == 1):
                yield from _leaves(item, f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    elif value is not None:
        yield path, value if isinstance(value, str) else _json(value)


def _print_leaf(console: Console, name: str, text: str, marks: Sequence[_Mark]) -> None:
    body = Text(text[:_SHOWN].translate(_VISIBLE))
    for mark in marks:
        body.stylize(_style(mark), mark.start or 0, mark.end)
    if len(text) > _SHOWN:
        body.append(f" ... {len(text) - _SHOWN} more characters", "dim")
    label = Text("") if name == "content" else Text.assemble((f"{_line(name).plain}: ", "dim"))
    console.print(label + body)
    _print_rules(console, marks)


def _print_rules(console: Console, marks: Sequence[_Mark]) -> None:
    for mark in marks:
        annotation = mark.annotation
        action = _line(annotation.guardrail.get("action", "block")).plain
        name = _line(annotation.guardrail.get("name") or "").plain
        console.print(
            Text.assemble("  ^ ", (f" {action} ", _style(mark)), " ", _line(annotation.content), (f"  {name}", "dim")),
            Text.assemble((f"    {_line(annotation.address).plain}", "dim")),
            sep="\n",
        )


def _mark(annotation: Annotation) -> _Mark:
    found = _ADDRESS.fullmatch(annotation.address)
    if found is None or found["start"] is None:
        return _Mark(annotation, annotation.address, None, None)
    return _Mark(annotation, found["path"], int(found["start"]), int(found["end"]))


def _style(mark: _Mark) -> str:
    return _LOG_STYLE if mark.annotation.guardrail.get("action") == "log" else _BLOCK_STYLE


def _line(value: object) -> Text:
    """Any value as one line of visible text."""
    return Text((value if isinstance(value, str) else _json(value)).translate(_ONE_LINE))


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _time(created: float) -> str:
    return datetime.fromtimestamp(created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
