"""``gemini-proxy audit``: show who changed what, and verify that the log and the traces are unaltered."""

import json
import re
from collections.abc import Sequence

import click
from rich.text import Text

from gemini_proxy.cli.settings import Settings
from gemini_proxy.cli.terminal import line, local_time, terminal
from gemini_proxy.cli.with_store import with_store
from gemini_proxy.traces.audit import BEFORE_ALL, AuditEntry, AuditLog, Head, Verifier
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.seals import Checked, check_seals
from gemini_proxy.traces.store import TraceStore

_HEAD = re.compile(r"([0-9]{1,15}):([0-9a-f]{64})")
_SHOWN = 160
"""Characters of before and after in the list."""


@click.group()
def audit() -> None:
    """Show who changed rules, keys, approvals and settings, and verify that the log is unaltered."""


@audit.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="List at most this many.")
@click.pass_obj
def list_(settings: Settings, limit: int) -> None:
    """List the last changes, the newest first."""
    entries = with_store(settings.traces.database, lambda store: AuditLog(store.database).latest(limit))
    console = terminal()
    for entry in entries:
        console.print(
            Text.assemble(
                f"{entry.seq:>6}  {local_time(entry.at)}  ",
                (entry.action, "bold"),
                "  ",
                line(entry.subject),
                f"{f', user {entry.owner}' if entry.owner else ''}  by ",
                line(entry.by),
            ),
            soft_wrap=True,
        )
        if (said := _said(entry)) is not None:
            console.print(Text.assemble("        ", line(said, "dim")), soft_wrap=True)
    if not entries:
        click.echo("no changes are recorded yet", err=True)


@audit.command()
@click.pass_obj
def export(settings: Settings) -> None:
    """Print all entries as JSON lines, the oldest first."""

    async def work(store: TraceStore) -> None:
        log, after = AuditLog(store.database), 0
        while entries := await log.page(after):
            for entry in entries:
                click.echo(dump(entry.described))
            after = entries[-1].seq

    with_store(settings.traces.database, work)


@audit.command()
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="N:DIGEST",
    help="A head that verify printed earlier: entry N must exist with that digest. May be given several times.",
)
@click.option("--traces/--no-traces", default=True, help="Compare sealed traces as well, which reads all of them.")
@click.pass_obj
def verify(settings: Settings, heads: Sequence[str], traces: bool) -> None:
    """Verify that no entry was changed, removed or put elsewhere, and that traces are as they were sealed.

    Exit code 1 if something is not. Keep the head that it prints in another place: with it a later verify finds out
    even if the whole log was written again.
    """
    kept = [_head(text) for text in heads]

    async def work(store: TraceStore) -> tuple[Verifier, Checked]:
        log, verifier = AuditLog(store.database), Verifier()
        # The head before and after: entries that are appended meanwhile come between the two.
        stated, after = await log.head(), BEFORE_ALL
        while entries := await log.page(after):
            verifier.follow(entries)
            after = entries[-1].seq
        verifier.end([stated, *kept], await log.head())
        return verifier, await check_seals(store.database) if traces else Checked()

    verifier, checked = with_store(settings.traces.database, work)
    faults = [*verifier.faults, *checked.faults]
    for fault in faults:
        click.echo(fault, err=True)
    if traces:
        click.echo(
            f"sealed traces: {checked.unchanged} unchanged, {checked.grown} extended by the API since, "
            f"{checked.gone} no longer there"
        )
    click.echo(f"head {verifier.head}")
    if faults:
        raise SystemExit(1)


def _head(text: str) -> Head:
    found = _HEAD.fullmatch(text)
    if found is None:
        raise click.BadParameter("a number, a colon and 64 hexadecimal digits, as verify prints", param_hint="--head")
    return Head(int(found[1]), found[2])


def _said(entry: AuditEntry) -> str | None:
    details = load(entry.details)
    before, after = (json.dumps(details[side], ensure_ascii=False) for side in ("before", "after"))
    if details["before"] is None and details["after"] is None:
        return None
    said = after if details["before"] is None else f"{before} -> {after}"
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
