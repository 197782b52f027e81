"""``gemini-proxy approvals``: list, allow and deny what guardrails ask a person for, while the server may run."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
from rich.text import Text

from gemini_proxy.cli.settings import Settings
from gemini_proxy.cli.terminal import line, local_time, terminal
from gemini_proxy.cli.with_store import shell_user, with_store
from gemini_proxy.traces.approvals import Approval, Approvals
from gemini_proxy.traces.store import TraceStore

T = TypeVar("T")


@click.group()
def approvals() -> None:
    """List, allow and deny what guardrails ask a person to approve."""


@approvals.command("list")
@click.option("--all", "every", is_flag=True, help="Include approvals that were decided or have expired.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="List at most this many.")
@click.pass_obj
def list_(settings: Settings, every: bool, limit: int) -> None:
    """List the approvals that wait, the newest first: the rule's words, and exactly what is asked for."""
    found = _with_approvals(
        settings, lambda approvals: approvals.latest(limit, waiting=None if every else True), TraceStore.open_read_only
    )
    console = terminal()
    for approval in found:
        console.print(_heading(approval))
        for asked in approval.request.shown.get("asked", ()):
            console.print(Text.assemble("    ", line(asked)))
    if not found:
        click.echo("nothing waits" if not every else "there are no approvals", err=True)


@approvals.command()
@click.argument("approval_id", metavar="ID")
@click.option(
    "--for",
    "seconds",
    type=click.IntRange(1),
    help="Allow exactly this for this many seconds instead of for one exchange.",
)
@click.option("--conversation", is_flag=True, help="Allow exactly this whenever the same conversation asks for it.")
@click.option("--by", help="The name of the person who decides. Default: the user of this shell.")
@click.pass_obj
def allow(settings: Settings, approval_id: str, seconds: int | None, conversation: bool, by: str | None) -> None:
    """Allow what ID asks for: the exchange that waits, or the next one that asks for exactly the same."""
    if seconds and conversation:
        raise click.UsageError("--for and --conversation cannot be combined")
    _decide(settings, approval_id, allowed=True, by=by, seconds=seconds or 0, for_conversation=conversation)


@approvals.command()
@click.argument("approval_id", metavar="ID")
@click.option("--reason", default="", help="The reason that the refusal gives to the client, and so to the model.")
@click.option("--by", help="The name of the person who decides. Default: the user of this shell.")
@click.pass_obj
def deny(settings: Settings, approval_id: str, reason: str, by: str | None) -> None:
    """Deny what ID asks for: the exchange is refused."""
    _decide(settings, approval_id, allowed=False, by=by, reason=reason)


def _decide(
    settings: Settings,
    approval_id: str,
    *,
    allowed: bool,
    by: str | None,
    reason: str = "",
    seconds: float = 0.0,
    for_conversation: bool = False,
) -> None:
    who = by or shell_user()

    async def work(approvals: Approvals) -> Approval:
        decided = await approvals.decide(
            approval_id, allow=allowed, by=who, reason=reason, seconds=seconds, for_conversation=for_conversation
        )
        if decided is not None:
            return decided
        found = await approvals.get(approval_id)
        if found is None:
            raise click.ClickException(f"there is no approval {line(approval_id).plain}")
        raise click.ClickException(f"the approval {found.id} is no longer pending: it is {found.state}")

    decided = _with_approvals(settings, work)
    click.echo(f"{decided.state} {decided.id}")
    if for_conversation and not decided.for_conversation:
        click.echo("for one exchange only, because its conversation is not known", err=True)


def _heading(approval: Approval) -> Text:
    request = approval.request
    until = f"until {local_time(approval.expires)}" if approval.state == "waiting" else f"by {approval.decided_by}"
    return Text.assemble(
        (approval.id, "bold"),
        f"  {approval.state} {until}  " if approval.state != "expired" else "  expired  ",
        line(request.message, "bold"),
        "  ",
        line(f"{request.guardrail}, dataset {request.dataset}" if request.dataset else request.guardrail, "dim"),
    )


def _with_approvals(
    settings: Settings,
    work: Callable[[Approvals], Awaitable[T]],
    opened: Callable[[str], Awaitable[TraceStore]] = TraceStore.open,
) -> T:
    """Run ``work`` on the configured database. What it raises ends the command with 1."""
    return with_store(settings.traces.database, lambda store: work(Approvals(store.database)), opened=opened)
