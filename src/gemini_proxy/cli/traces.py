"""``gemini-proxy traces`` and ``backup``: list, show and export what was recorded, copy it, and delete what is old."""

import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO

import click
import orjson
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemini_proxy.cli.settings import Settings
from gemini_proxy.cli.terminal import excerpt_line, line, local_time, print_flagged, terminal
from gemini_proxy.cli.with_store import shell_user, with_store
from gemini_proxy.errors import ProxyError
from gemini_proxy.guardrails.rules import Guardrail, GuardrailSet
from gemini_proxy.policy import Unanswered
from gemini_proxy.sections import SMALLEST_DATABASE, value_keys
from gemini_proxy.traces.annotation_ranges import AnnotationRange, AnnotationRanges, leaves, segments
from gemini_proxy.traces.backtest import Backtest, FlaggedTrace
from gemini_proxy.traces.dataset_rules import DatasetRules
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.excerpts import excerpts
from gemini_proxy.traces.export import FORMATS
from gemini_proxy.traces.headline import KEY_LENGTH
from gemini_proxy.traces.masked_values import MaskedValues, Revealed
from gemini_proxy.traces.retention import DAY
from gemini_proxy.traces.revision import Revisions
from gemini_proxy.traces.rows import dump
from gemini_proxy.traces.search.listing import Listing, TraceQuery
from gemini_proxy.traces.sqlite import back_up
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import OUTCOME_GROUPS, Outcome, Trace, TraceSummary, outcomes_named, trace_json
from gemini_proxy.traces.visible import VISIBLE, as_json


@click.group()
def traces() -> None:
    """List, show, export and delete recorded exchanges."""


class _Time(click.ParamType[float]):
    """A moment as Unix seconds: a date, a date with a time, or how long ago, such as 90m, 12h or 7d."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if ago := _AGO.fullmatch(str(value)):
            return time.time() - int(ago[1]) * _SECONDS[ago[2]]
        try:
            return datetime.fromisoformat(str(value)).timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail("not a time such as 2026-01-31, 2026-01-31T18:30 or 7d (that long ago)", param, ctx)


_AGO = re.compile(r"([0-9]{1,6})([mhd])")
_SECONDS = {"m": 60, "h": 3_600, "d": DAY}
_OUTCOMES = [*OUTCOME_GROUPS, *(word.value for word in Outcome)]
_FILTERS = (
    click.option("--dataset", help="Only traces of this dataset."),
    click.option("--outcome", type=click.Choice(_OUTCOMES), help="Only exchanges with this outcome."),
    click.option("--model", help="Only exchanges with this model."),
    click.option(
        "--rule", metavar="NAME", help="Only exchanges in which this guardrail, or a rule with this message, fired."
    ),
    click.option(
        "--status", type=click.IntRange(100, 999), help="Only exchanges whose upstream response had this status."
    ),
    click.option("--tool", metavar="NAME", help="Only exchanges that call this tool."),
    click.option("--key", help="Only exchanges with this key, written as a trace shows it."),
    click.option("--conversation", metavar="ID", help="Only exchanges of this conversation."),
    click.option(
        "--since",
        type=_Time(),
        metavar="TIME",
        help="Only exchanges begun at this time or later, or within the last 90m, 12h or 7d.",
    ),
    click.option("--until", type=_Time(), metavar="TIME", help="Only exchanges begun before this time."),
    click.option(
        "--text", metavar="WORDS", help="Only exchanges that contain these words, searched for as in the pages."
    ),
)


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Add the filters of a list of traces to a command, which takes them as ``dataset`` and ``query``."""

    @wraps(command)
    def run(*args: Any, dataset: str | None, outcome: str | None, **options: Any) -> None:
        asked = {field.name: options.pop(field.name) for field in fields(TraceQuery) if field.name in options}
        query = TraceQuery(outcome=outcomes_named(outcome) if outcome else None, **asked)
        command(*args, dataset=dataset, query=query, **options)

    for option in reversed(_FILTERS):
        run = option(run)
    return run


async def _found(store: TraceStore, dataset: str | None, query: TraceQuery, limit: int) -> list[TraceSummary]:
    if query == TraceQuery():
        return await store.recent(limit, dataset=dataset)
    datasets = await store.datasets(dataset)
    return [summary async for summary in Listing(store.database).each(datasets, query, limit)]


@traces.command("list")
@_filtered
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many traces to list.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.pass_obj
def list_(settings: Settings, dataset: str | None, query: TraceQuery, limit: int, as_json: bool) -> None:
    """List traces, the newest first."""
    summaries = with_store(settings.traces.database, lambda store: _found(store, dataset, query, limit))
    if not as_json:
        print_list(summaries)
        return
    for summary in summaries:
        click.echo(orjson.dumps(asdict(summary)))


@traces.command()
@click.argument("trace_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the whole trace as one JSON object.")
@click.pass_obj
def show(settings: Settings, trace_id: str, as_json: bool) -> None:
    """Show one trace as a conversation. ID is the trace's id or its beginning, six characters or more."""

    try:
        trace = with_store(settings.traces.database, lambda store: store.get(trace_id))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if trace is None:
        raise click.ClickException(f"no trace begins with {trace_id}")
    if as_json:
        click.echo(dump(trace_json(trace)))
    else:
        print_trace(trace)


@traces.command("try")
@click.argument("trace_id", metavar="ID")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object per guardrail.")
@click.pass_obj
def try_(settings: Settings, trace_id: str, as_json_: bool) -> None:
    """Run the rules in force on one trace: those of the policy files and of its dataset.

    Nothing is sent, changed or recorded. The exit code is 1 where something is found or a rule gives no verdict.
    """
    trace, rules = with_store(settings.traces.database, lambda store: _with_rules(store, trace_id, settings.rules))
    guardrails = settings.config.guardrails
    parameters = rules.tools.within(guardrails.parameters, trace.messages)
    clean = True
    for rule in rules.all:
        try:
            flagged = Backtest(rule.policy, parameters, guardrails.thoughts, guardrails.timeout).run(trace)
        except Unanswered:
            flagged = FlaggedTrace.undecided(trace, "it needs a detector service, which this command does not call")
        clean = clean and flagged is None
        if as_json_:
            found = {} if flagged is None else flagged.json()
            told = {name: found.get(name) for name in ("violations", "more_violations", "failure")}
            click.echo(as_json({"guardrail": rule.name, "action": rule.action, **told}))
        else:
            _print_tried(rule, flagged)
    if not rules.all and not as_json_:
        click.echo("no guardrail applies to exchanges like this")
    sys.exit(0 if clean else 1)


async def _with_rules(store: TraceStore, trace_id: str, files: GuardrailSet) -> tuple[Trace, GuardrailSet]:
    """Return a trace, and the rules that now apply to its user's exchanges in its dataset."""
    try:
        trace = await store.get(trace_id)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if trace is None:
        raise click.ClickException(f"no trace begins with {trace_id}")
    if trace.dataset is None:
        return trace, files
    stored = DatasetRules(store.database, Revisions(store.database))
    try:
        return trace, await stored.of(trace.owner, trace.dataset, files)
    except ProxyError as error:
        raise click.ClickException(error.message) from None


def _print_tried(rule: Guardrail, flagged: FlaggedTrace | None) -> None:
    console = terminal()
    nothing = "" if flagged is not None else "  nothing"
    console.print(Text.assemble((f"{rule.action:5}  ", "bold"), line(rule.name), (nothing, "dim")), soft_wrap=True)
    if flagged is not None:
        print_flagged(console, flagged)


@traces.command()
@click.argument("trace_id", metavar="ID")
@click.argument("placeholder")
@click.option("--by", help="The name of the reader, for the audit log. Default: the user of this shell.")
@click.pass_obj
def reveal(settings: Settings, trace_id: str, placeholder: str, by: str | None) -> None:
    """Print the value behind a PLACEHOLDER of a trace. The audit log records this.

    It needs guardrails.value_keys, which systemd gives to the service alone: set CREDENTIALS_DIRECTORY to the folder.
    """
    guardrails = settings.config.guardrails
    keys = value_keys(guardrails)
    if keys is None:
        raise click.ClickException(f"no value can be read: {guardrails.kept_values}")

    async def read(store: TraceStore) -> Revealed:
        trace = await store.get(trace_id)
        if trace is None:
            raise click.ClickException(f"no trace begins with {trace_id}")
        values = MaskedValues(store.database, keys, guardrails.value_days, Counter())
        return await values.reveal(trace, placeholder, by or shell_user())

    try:
        found = with_store(settings.traces.database, read, opened=TraceStore.open)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if found.state != "read":
        why = "encrypted with a key that is not configured, or altered" if found.state == "unreadable" else "not kept"
        raise click.ClickException(f"the value of {line(placeholder).plain} is {why}")
    click.echo(found.value)


@traces.command()
@_filtered
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="jsonl", show_default=True)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file instead of standard output."
)
@click.pass_obj
def export(settings: Settings, dataset: str | None, query: TraceQuery, form: str, output: Path | None) -> None:
    """Write traces, one a line: whole as JSON, or what a list shows of them as CSV.

    All traces are written the oldest first; with filters besides --dataset, those that fit, the newest first.
    """
    exporter = FORMATS[form]

    async def write(store: TraceStore) -> None:
        found = store.export(dataset) if query == TraceQuery() else _each(store, dataset, query)
        with _opened(output) as file:
            file.write(exporter.head)
            async for trace in found:
                file.write(exporter.line(trace))
            file.flush()

    try:
        with_store(settings.traces.database, write)
    except OSError as error:
        raise click.ClickException(f"cannot write {output or 'standard output'}: {error.strerror}") from None


async def _each(store: TraceStore, dataset: str | None, query: TraceQuery) -> AsyncIterator[Trace]:
    datasets = await store.datasets(dataset)
    async for summary in Listing(store.database).each(datasets, query, sys.maxsize):
        for trace in await store.numbered([summary.seq]):
            yield trace


class _Size(click.ParamType[int]):
    """A number of bytes, also with a unit."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = TypeAdapter(ByteSize).validate_python(value)
        except ValidationError:
            size = ByteSize(0)
        if size < SMALLEST_DATABASE:
            self.fail('not a size of at least "10 MB"', param, ctx)
        return size


@traces.command()
@click.option(
    "--older-than", type=click.IntRange(1), metavar="DAYS", help="Use this age instead of traces.retention_days."
)
@click.option(
    "--max-size", type=_Size(), metavar="SIZE", help='Use this size instead of traces.max_size, such as "20 GB".'
)
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, without deleting it.")
@click.pass_obj
def prune(settings: Settings, older_than: int | None, max_size: int | None, dry_run: bool) -> None:
    """Delete old traces now, in small steps; a server may be running.

    Without options, the configured age and size apply; with one of --older-than and --max-size, only that one.
    """
    alone = (older_than is None) != (max_size is None)
    days = older_than or (0 if alone else settings.traces.retention_days)
    size = max_size or (0 if alone else settings.traces.max_size)
    if not days and not size:
        raise click.UsageError("traces.retention_days keeps traces forever; use --older-than DAYS or --max-size SIZE")
    if days:
        _prune_by_age(settings.traces.database, days, dry_run)
    if size:
        _prune_by_size(settings.traces.database, size, dry_run)


def _prune_by_age(database: str, days: int, dry_run: bool) -> None:
    before = time.time() - days * DAY
    why = f"began more than {days} days ago, before {_time(before)}"
    if dry_run:
        due = with_store(database, lambda store: store.due_before(before))
        oldest = f", the oldest on {_time(due.oldest)}" if due.oldest is not None else ""
        click.echo(f"{due.count} traces would be deleted: they {why}{oldest}")
        return
    deleted = with_store(database, lambda store: store.delete_before(before), opened=TraceStore.open)
    click.echo(f"{deleted} traces were deleted: they {why}")


def _prune_by_size(database: str, size: int, dry_run: bool) -> None:
    before = with_store(database, lambda store: store.excess(size))
    if dry_run:
        uses = f"the database uses {_megabytes(before.size)}, the limit is {_megabytes(size)}"
        click.echo(f"about {before.traces} traces would be deleted, the oldest first: {uses}")
        return
    deleted = with_store(database, lambda store: store.shrink(size), opened=TraceStore.open)
    after = with_store(database, lambda store: store.excess(size))
    uses = f"the database uses {_megabytes(after.size)}, {_megabytes(before.size)} before"
    click.echo(f"{deleted} traces were deleted, the oldest first: {uses}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _opened(output: Path | None) -> AbstractContextManager[BinaryIO]:
    if output is None:
        return nullcontext(sys.stdout.buffer)
    return output.open("wb")


# Images and similar data: --json prints them whole.
_SHOWN = 8_000
_BLOCK_STYLE, _LOG_STYLE = "bold white on red", "black on yellow"
_LIST_WIDTH = 120
# The other end of a traced value, its source or its destination, printed below each end.
_ENDS = 5
_CHUNK = re.compile(r"content\.\d+\.(type|text)")


def print_list(summaries: Sequence[TraceSummary]) -> None:
    """Print one line per trace: time, id, dataset, model, outcome, milliseconds and first rule."""
    table = Table(box=None, pad_edge=False)
    for name in ("time", "id", "dataset", "model", "outcome"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("rule", no_wrap=True, overflow="ellipsis")
    for summary in summaries:
        words = (summary.id[:8], summary.dataset or "", summary.model or "", summary.outcome.value)
        spent = f"{summary.duration_ms:.0f}"
        table.add_row(local_time(summary.created), *(line(word) for word in words), spent, line(summary.rule or ""))
    console = terminal()
    # A narrow terminal breaks the line itself; fitted columns would be one letter wide.
    console.width = max(console.width, _LIST_WIDTH)
    console.print(table)


def print_trace(trace: Trace) -> None:
    """Print a conversation with every annotated range highlighted and its rule below, then how the exchange went."""
    console = terminal()
    for name, value in _facts(trace):
        console.print(Text.assemble((f"{name:<10}", "dim"), value))
    marks = AnnotationRanges(trace.annotations)

    def print_rules(some: Sequence[AnnotationRange]) -> None:
        for mark in some:
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
    if trace.tenant:
        yield "key", Text(trace.tenant[:KEY_LENGTH])
    for name, value in trace.metadata.items():
        if name not in _SAID and value is not None:
            yield f"{line(name).plain} ", _members(value)


_SAID = frozenset({"model", "asked", "request_messages", "via_gateway"})
"""Metadata that is shown elsewhere, or says nothing to a reader."""


def _members(value: object) -> Text:
    """Write an object of plain values by its members, anything else as one line of JSON."""
    if isinstance(value, dict) and value and not any(isinstance(one, dict | list) for one in value.values()):
        return line(", ".join(f"{name} {one if isinstance(one, str) else as_json(one)}" for name, one in value.items()))
    return line(value)


def _print_leaf(console: Console, name: str, text: str, marks: Sequence[AnnotationRange]) -> None:
    body = Text()
    for segment in segments(text[:_SHOWN], marks):
        body.append(segment.text.translate(VISIBLE), _style(segment.marks))
    if len(text) > _SHOWN:
        body.append(f" ... {len(text) - _SHOWN} more characters", "dim")
    label = Text("") if name in ("", "content") else Text.assemble((f"{line(name).plain}: ", "dim"))
    console.print(label + body)


def _print_rule(console: Console, mark: AnnotationRange) -> None:
    annotation = mark.annotation
    action = line(annotation.guardrail.get("action", "block")).plain
    name = line(annotation.guardrail.get("name") or "").plain
    console.print(
        Text.assemble("  ^ ", (f" {action} ", _style([mark])), " ", line(annotation.content), (f"  {name}", "dim")),
        Text.assemble((f"    {line(annotation.address).plain}", "dim")),
        sep="\n",
    )


def _print_end(console: Console, end: AnnotationRange, trace: Trace) -> None:
    """Print where a value goes, or where it came from, with the text there."""
    [excerpt] = excerpts(trace.messages, [end.annotation.address])
    words = "goes to" if end.value_end == "call" else "came from"
    console.print(Text.assemble((f"    {words} {line(excerpt.address).plain}", "dim"), "  ", excerpt_line(excerpt)))


def _style(marks: Sequence[AnnotationRange]) -> str:
    """Return the style of a range: blocked, if one rule blocks it and another logs it."""
    if not marks:
        return ""
    return _LOG_STYLE if all(mark.logged for mark in marks) else _BLOCK_STYLE


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def backup(settings: Settings, file: Path) -> None:
    """Copy the SQLite database into the new file FILE, while the server runs. For PostgreSQL use pg_dump."""
    try:
        back_up(settings.traces.database, file)
    except StoreError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{file} holds the traces, keys and policies as of now")
