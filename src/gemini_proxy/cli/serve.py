"""``serve``, and ``check-config``, which does what comes before serving."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import click

from gemini_proxy.cli.first_key import FIRST_USER, make_first_key
from gemini_proxy.cli.settings import Settings, fail
from gemini_proxy.config import Config, service_manager
from gemini_proxy.guardrails.rules import HEADER_NAME, RuleSet, echo_warnings
from gemini_proxy.sections import listen_address
from gemini_proxy.server.app import create_app
from gemini_proxy.server.listening import NotAsked, listening, passed_sockets
from gemini_proxy.server.logs import configure_logs
from gemini_proxy.server.process import raise_descriptor_limit
from gemini_proxy.server.reload import Hangups, Load
from gemini_proxy.server.runner import serve as serve_app
from gemini_proxy.server.systemd import Notifier
from gemini_proxy.traces.database import shown_url
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.store import TraceStore

log = logging.getLogger(__name__)


@click.command()
@click.option(
    "--first-key",
    "first_key_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help='Where access.mode is "keys" and there is no key yet: make one, and write it to FILE.',
)
@click.pass_obj
def serve(settings: Settings, first_key_file: Path | None) -> None:
    """Serve until SIGTERM. SIGHUP loads configuration and policies again."""
    hangups = Hangups()
    config, rules = settings.serving, settings.rules
    configure_logs(config.logs)
    raise_descriptor_limit()
    if first_key_file and config.access.mode == "keys":
        _make_first_key(config, first_key_file)
    run_server(config, rules, hangups, settings.load_again)


def _make_first_key(config: Config, file: Path) -> None:
    try:
        made = make_first_key(config.traces.database, file)
    except StoreError as error:
        _fail_for_database(config, error)
    if made:
        log.warning("the first key, for the user %s, is in %s: keep it elsewhere and delete the file", FIRST_USER, file)


def run_server(config: Config, rules: RuleSet, hangups: Hangups, load: Load) -> None:
    """Serve ``config`` on the event loop it names; ends the program with a reason where it cannot."""
    addresses = [listen_address(text) for text in config.server.listen]
    manager = service_manager()
    notifier = Notifier(manager.notify_socket, manager.watchdog_seconds)
    try:
        with (
            listening(addresses, passed_sockets(manager.descriptors)) as listeners,
            asyncio.Runner(loop_factory=_loop_factory(config)) as runner,
        ):
            runner.run(
                serve_app(
                    create_app(config, rules),
                    listeners,
                    config.server.shutdown_grace,
                    notifier,
                    partial(_announce, config),
                    hangups,
                    load,
                )
            )
    except StoreError as error:
        _fail_for_database(config, error)
    except NotAsked as passed:
        fail(f"server.listen: {', '.join(config.server.listen)}: the socket {passed} that was passed is none of these")
    except OSError as error:
        fail(f"server.listen: {', '.join(config.server.listen)}: {error.strerror or error}")


def _fail_for_database(config: Config, error: StoreError) -> NoReturn:
    fail(f"traces.database: {shown_url(config.traces.database)}: {error}")


def _loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop]:
    if config.server.loop == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        fail('server.loop: "uvloop": not installed: pip install uvloop, or use "asyncio"')
    return uvloop.new_event_loop


def _announce(config: Config, bound: list[str]) -> None:
    log.info("%s", config.access.meaning)
    for address in bound:
        click.echo(f"gemini-proxy listens on {address if address.startswith('unix:') else f'http://{address}'}")
    for address in bound:
        if config.explorer.enabled and not address.startswith("unix:"):
            click.echo(f"what was said is shown at http://{address}/explorer")


@click.command("check-config")
@click.pass_obj
def check_config(settings: Settings) -> None:
    """Load the configuration and every policy, open the database, and say what is wrong with them.

    The database is opened as by "serve", but nothing is made or upgraded in it.
    """
    config, rules = settings.serving, settings.rules
    try:
        with asyncio.Runner(loop_factory=_loop_factory(config)) as runner:
            runner.run(TraceStore.try_open(config.traces.database))
    except StoreError as error:
        _fail_for_database(config, error)
    for rule in (*rules.blocking, *rules.logging):
        echoes = echo_warnings(rule.policy, config.refusals.prefix, config.guardrails.parameters)
        for warning in (*rule.policy.warnings, *(echoes if rule.action == "block" else ())):
            click.echo(f"{rule.name}:{warning}", err=True)
    click.echo(
        f"configuration ok: upstream {config.upstream.base_url}, "
        f"{len(rules.blocking)} blocking and {len(rules.logging)} logging policies, "
        f"traces in {shown_url(config.traces.database)}"
    )
    for rule in (*rules.blocking, *rules.logging):
        click.echo(f"{rule.action:5}  {rule.name}")
    click.echo(config.access.meaning)
    click.echo(f"{HEADER_NAME} of clients: {config.guardrails.header_policies}")
    click.echo("a dataset's own rules of an action take the place of these")
