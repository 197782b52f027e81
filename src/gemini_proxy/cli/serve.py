"""``gemini-proxy serve``: serve in this process, or as the parent of several that do."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemini_proxy.cli.settings import Settings, fail

# A parent imports neither the server nor the store, and "--help" not even this.
if TYPE_CHECKING:
    from gemini_proxy.config import Config, ServiceManager
    from gemini_proxy.server.listening import Listener
    from gemini_proxy.server.service_manager import Hangups

log = logging.getLogger(__name__)

CHILD = (sys.executable, "-P", "-m", "gemini_proxy.cli.child_process")
"""-P: modules in the working directory are not ours."""


@click.command()
@click.option(
    "--first-key",
    "first_key_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help='If access.mode is "keys" and there is no key yet, create one and write it to FILE.',
)
@click.pass_obj
def serve(settings: Settings, first_key_file: Path | None) -> None:
    """Serve until SIGTERM. SIGHUP reloads the configuration and policies."""
    from gemini_proxy.server.process import usable_processors
    from gemini_proxy.server.service_manager import Hangups

    hangups = Hangups()
    wanted = settings.serving.server.processes
    processes = usable_processors() if wanted == "auto" else wanted
    if processes > 1:
        _serve_together(settings, first_key_file, hangups, processes)
    else:
        from gemini_proxy.cli.server_process import serve_alone

        serve_alone(settings, first_key_file, hangups)


def _serve_together(settings: Settings, first_key_file: Path | None, hangups: "Hangups", processes: int) -> None:
    from gemini_proxy.config import service_manager
    from gemini_proxy.server.logs import configure_logs
    from gemini_proxy.server.parent import Parent, Plan
    from gemini_proxy.server.service_manager import Notifier

    config = settings.serving
    configure_logs(config.logs)
    manager = service_manager()
    plan = Plan(
        command=CHILD,
        processes=processes,
        config_file=settings.file,
        first_key=first_key_file,
        shutdown_grace=config.server.shutdown_grace,
        watchdog=manager.watchdog_seconds,
    )

    async def run(listeners: "Sequence[Listener]") -> int:
        parent = Parent(plan, listeners, Notifier(manager.notify_socket, manager.watchdog_seconds), hangups)
        return await parent.run(partial(announce, config, listeners))

    with opened(config, manager) as listeners:
        sys.exit(asyncio.run(run(listeners)))


@contextlib.contextmanager
def opened(config: "Config", manager: "ServiceManager") -> "Iterator[list[Listener]]":
    """Listen as ``config`` says, on the sockets of the service manager if it passed some.

    End the program with a reason if that is not possible.
    """
    from gemini_proxy.http.listen_addresses import listen_address
    from gemini_proxy.server.listening import NotAsked, listening, passed_listeners

    addresses = [listen_address(text) for text in config.server.listen]
    try:
        with listening(addresses, passed_listeners(manager.descriptors)) as listeners:
            yield listeners
    except NotAsked as passed:
        fail(
            f"server.listen: {', '.join(config.server.listen)}: the socket {passed} that was passed is not one of these"
        )
    except OSError as error:
        fail(f"server.listen: {', '.join(config.server.listen)}: {error.strerror or error}")


def announce(config: "Config", listeners: "Sequence[Listener]") -> None:
    """Say where the server listens, now that it does."""
    log.info("%s", config.access.meaning)
    for sentence in config.doors.unchecked:
        log.warning("%s", sentence)
    guardrails = config.guardrails
    if guardrails.mask_policies:
        log.info("%s", guardrails.kept_values)
    if guardrails.engine == "off":
        log.warning('Nothing is checked: guardrails.engine is "off"')
    elif not (guardrails.policies or guardrails.ask_policies or guardrails.mask_policies or guardrails.log_policies):
        log.warning("No policy file is configured: only rules of datasets and of clients check exchanges")
    addresses = [listener.address for listener in listeners]
    for address in addresses:
        click.echo(f"gemini-proxy listens on {address if address.path else f'http://{address}'}")
    for address in addresses:
        if config.explorer.enabled and not address.path:
            click.echo(f"the Explorer is at http://{address}/explorer")
