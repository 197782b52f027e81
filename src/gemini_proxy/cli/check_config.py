"""``gemini-proxy check-config``: report every fault that would keep ``serve`` from serving."""

import asyncio

import click

from gemini_proxy.cli.server_process import fail_for_database, loop_factory
from gemini_proxy.cli.settings import Settings
from gemini_proxy.guardrails.rules import HEADER_NAME, echo_warnings, nothing_checked
from gemini_proxy.traces.database import shown_url
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.store import TraceStore


@click.command("check-config")
@click.pass_obj
def check_config(settings: Settings) -> None:
    """Load the configuration and every policy, open the database, and report every problem found.

    The database is opened as by "serve", but nothing is created or upgraded in it.
    """
    config, rules = settings.serving, settings.rules
    try:
        with asyncio.Runner(loop_factory=loop_factory(config)) as runner:
            runner.run(TraceStore.try_open(config.traces.database))
    except StoreError as error:
        fail_for_database(config, error)
    for rule in rules.all:
        echoes = echo_warnings(rule.policy, config.refusals.prefix, config.guardrails.parameters)
        for warning in (*rule.policy.warnings, *(echoes if rule.action == "block" else ())):
            click.echo(f"{rule.name}:{warning}", err=True)
    click.echo(
        f"configuration ok: upstream {config.upstream.base_url}, "
        f"{len(rules.blocking)} blocking, {len(rules.asking)} asking, {len(rules.masking)} masking "
        f"and {len(rules.logging)} logging policies, "
        f"traces in {shown_url(config.traces.database)}"
    )
    for rule in rules.all:
        click.echo(f"{rule.action:5}  {rule.name}")
    if nothing := nothing_checked(rules, config.guardrails.engine):
        click.echo(nothing, err=True)
    if rules.masking:
        click.echo(config.guardrails.kept_values)
    click.echo(config.access.meaning)
    for sentence in config.doors.unchecked:
        click.echo(sentence)
    click.echo(f"{HEADER_NAME} of clients: {config.guardrails.header_policies}")
    click.echo("a dataset's own rules replace those of the same action")
