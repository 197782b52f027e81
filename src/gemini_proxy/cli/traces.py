"""``gemini-proxy traces``: list, show and export what was recorded, and delete what is old."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol

import click
import orjson
from pydantic import ByteSize, TypeAdapter, ValidationError

from gemini_proxy.cli.conversation import print_list, print_trace
from gemini_proxy.cli.with_store import with_store
from gemini_proxy.sections import SMALLEST_DATABASE
from gemini_proxy.traces.retention import DAY
from gemini_proxy.traces.rows import dump
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Outcome, trace_json


class _Traces(Protocol):
    @property
    def database(self) -> str: ...

    @property
    def retention_days(self) -> int: ...

    @property
    def max_size(self) -> int: ...


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


class TracesConfig(Protocol):
    """The part of the configuration that these commands need."""

    @property
    def traces(self) -> _Traces: ...


@click.group()
def traces() -> None:
    """Look at recorded exchanges."""


@traces.command("list")
@click.option("--dataset", help="Only traces of this dataset.")
@click.option("--outcome", type=click.Choice([word.value for word in Outcome]), help="Only exchanges that ended so.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def list_(config: TracesConfig, dataset: str | None, outcome: str | None, limit: int, as_json: bool) -> None:
    """The newest traces first."""
    wanted = Outcome(outcome) if outcome else None
    found = with_store(config.traces.database, lambda store: store.recent(limit, dataset=dataset, outcome=wanted))
    if not as_json:
        print_list(found)
        return
    for summary in found:
        click.echo(orjson.dumps(asdict(summary)))


@traces.command()
@click.argument("trace_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The whole trace as one JSON object.")
@click.pass_obj
def show(config: TracesConfig, trace_id: str, as_json: bool) -> None:
    """One trace as a conversation. ID is the trace's id or its beginning, six characters or more."""

    try:
        found = with_store(config.traces.database, lambda store: store.get(trace_id))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if found is None:
        raise click.ClickException(f"no trace begins with {trace_id}")
    if as_json:
        click.echo(dump(trace_json(found)))
    else:
        print_trace(found)


@traces.command()
@click.option("--dataset", help="Only traces of this dataset.")
@click.option("--format", "_format", type=click.Choice(["jsonl"]), default="jsonl", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of standard output.")
@click.pass_obj
def export(config: TracesConfig, dataset: str | None, _format: str, output: Path | None) -> None:
    """Every trace, oldest first, one JSON object a line."""

    async def write(store: TraceStore) -> None:
        with _opened(output) as file:
            async for trace in store.export(dataset):
                file.write(dump(trace_json(trace)) + b"\n")
            file.flush()

    try:
        with_store(config.traces.database, write)
    except OSError as error:
        raise click.ClickException(f"cannot write {output or 'standard output'}: {error.strerror}") from None


@traces.command()
@click.option("--older-than", type=click.IntRange(1), metavar="DAYS", help="Instead of traces.retention_days.")
@click.option("--max-size", type=_Size(), metavar="SIZE", help='Instead of traces.max_size, such as "20 GB".')
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.pass_obj
def prune(config: TracesConfig, older_than: int | None, max_size: int | None, dry_run: bool) -> None:
    """Delete old traces now, in small steps; a server may be running.

    Without options, the configured age and size count; with one of --older-than and --max-size, only that one.
    """
    alone = (older_than is None) != (max_size is None)
    days = older_than or (0 if alone else config.traces.retention_days)
    size = max_size or (0 if alone else config.traces.max_size)
    if not days and not size:
        raise click.UsageError("traces.retention_days keeps traces for ever; say --older-than DAYS or --max-size SIZE")
    if days:
        _prune_by_age(config.traces.database, days, dry_run)
    if size:
        _prune_by_size(config.traces.database, size, dry_run)


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
