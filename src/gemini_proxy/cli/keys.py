"""``gemini-proxy keys``: add, list and revoke the keys of ``access.mode = "keys"``, while the server may run."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, get_args

import click
from rich.table import Table

from gemini_proxy.cli.settings import Settings
from gemini_proxy.cli.terminal import line, local_time, terminal
from gemini_proxy.cli.with_store import shell_user, with_store
from gemini_proxy.traces.keys import KeyRecord, Keys, Role
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.visible import counted

T = TypeVar("T")

# As for the names of datasets: both are parts of the API's paths.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,100}")
_TABLE_WIDTH = 120


@click.group()
def keys() -> None:
    """Add, list and revoke keys of the server's users."""


@keys.command()
@click.argument("name")
@click.option("--another", is_flag=True, help="Add a key even if NAME has a valid one; both are then valid.")
@click.option(
    "--role",
    type=click.Choice(get_args(Role)),
    default="operator",
    show_default=True,
    help="What the key may do: client makes model calls and changes no rules, operator does both, "
    "approver decides approvals and makes no calls.",
)
@click.pass_obj
def add(settings: Settings, name: str, another: bool, role: Role) -> None:
    """Print a new key for the user NAME. It is shown only this once: the database keeps its hash."""
    if not _NAME.fullmatch(name):
        raise click.BadParameter("up to 100 letters, digits, - and _", param_hint="NAME")

    async def work(keys: Keys) -> tuple[KeyRecord, str]:
        valid = _of(name, await keys.all())
        if valid and not another:
            raise click.ClickException(
                f"{name} already has a valid key ({_named(valid)}); use --another to add one, or keys revoke to revoke "
                "one"
            )
        return await keys.add(name, role, by=shell_user())

    record, key = _with_keys(settings, work)
    click.echo(key)
    click.echo(_advice(record, open_access=settings.config.access.mode == "open"), err=True)


@keys.command("list")
@click.pass_obj
def list_(settings: Settings) -> None:
    """List all keys, the oldest first, revoked ones too."""
    records = _with_keys(settings, lambda keys: keys.all(), TraceStore.open_read_only)
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "name", "role", "ends with", "created", "last used", "revoked"):
        table.add_column(heading, no_wrap=True)
    for record in records:
        revoked = "" if record.revoked is None else local_time(record.revoked)
        used = "" if record.used is None else local_time(record.used)
        created = local_time(record.created)
        table.add_row(record.id, line(record.owner), record.role, record.hint, created, used, revoked)
    console = terminal()
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(table)


@keys.command()
@click.argument("key", metavar="ID|NAME")
@click.option("--all", "every", is_flag=True, help="Revoke every valid key of NAME.")
@click.pass_obj
def revoke(settings: Settings, key: str, every: bool) -> None:
    """Make a key invalid from the next request on. Name it by its id, or by its user if that has only one."""

    async def work(keys: Keys) -> Sequence[KeyRecord]:
        chosen = _wanted(key, await keys.all(), every)
        return [record for record in chosen if await keys.revoke(record.id, by=shell_user())]

    for record in _with_keys(settings, work):
        click.echo(f"revoked {record.id} of {record.owner}, ending with {record.hint}")


def _wanted(key: str, records: Sequence[KeyRecord], every: bool) -> Sequence[KeyRecord]:
    """Return the valid keys that ID|NAME means. An id wins over a name that looks like one."""
    by_id = [record for record in records if record.id == key]
    if by_id and by_id[0].revoked is not None:
        raise click.ClickException(f"the key {key} of {by_id[0].owner} is already revoked")
    chosen = by_id or _of(key, records)
    if not chosen:
        raise click.ClickException(f"there is no valid key with the id or name {line(key).plain}")
    if len(chosen) > 1 and not every:
        raise click.ClickException(
            f"{key} has {counted(len(chosen), 'valid key')}: {_named(chosen)}; name one by its id, or use --all"
        )
    return chosen


def _of(name: str, records: Sequence[KeyRecord]) -> Sequence[KeyRecord]:
    """Return a user's valid keys."""
    return [record for record in records if record.owner == name and record.revoked is None]


def _named(records: Sequence[KeyRecord]) -> str:
    return ", ".join(f"{record.id} ending with {record.hint}" for record in records)


def _advice(record: KeyRecord, *, open_access: bool) -> str:
    lines = [f"The key of {record.owner} (id {record.id}). It is not shown again: store it with your other secrets."]
    if record.role == "approver":
        lines.append("It decides approvals and makes no model calls: sign in with it at /explorer/approvals.")
    else:
        lines += [
            "Gemini clients send it as the header",
            "    invariant-authorization: Bearer KEY",
            "or behind their Gemini key: GEMINI_KEY;invariant-auth=KEY",
            "or instead of it, if the server has its own Gemini key (upstream.api_key): GEMINI_API_KEY=KEY",
            "Invariant's SDK and gemini-proxy tail read it from $INVARIANT_API_KEY; the Explorer's pages ask for it.",
        ]
    if open_access:
        lines.append('access.mode is "open": keys identify users only when it is "keys".')
    return "\n".join(lines)


def _with_keys(
    settings: Settings,
    work: Callable[[Keys], Awaitable[T]],
    opened: Callable[[str], Awaitable[TraceStore]] = TraceStore.open,
) -> T:
    """Run ``work`` on the configured database, created if it is missing. What it raises ends the command with 1."""
    return with_store(settings.traces.database, lambda store: work(Keys(store.database)), opened=opened)
