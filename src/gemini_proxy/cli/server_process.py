"""Run a process that serves, alone or as one of several, and create the first key of a new server."""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from gemini_proxy.cli.serve import announce, opened
from gemini_proxy.cli.settings import Settings, fail
from gemini_proxy.config import Config, service_manager
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.server.app import create_app
from gemini_proxy.server.app_keys import Group
from gemini_proxy.server.listening import Listener
from gemini_proxy.server.logs import configure_logs
from gemini_proxy.server.process import raise_descriptor_limit
from gemini_proxy.server.runner import Oversight, managed
from gemini_proxy.server.runner import serve as serve_app
from gemini_proxy.server.service_manager import Hangups, Notifier
from gemini_proxy.traces.database import shown_url
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.store import TraceStore

log = logging.getLogger(__name__)


def serve_alone(settings: Settings, first_key_file: Path | None, hangups: Hangups) -> None:
    """Serve in this process. End the program with a reason if it cannot."""
    config, rules = settings.serving, settings.rules
    prepare(config, first_key_file)
    manager = service_manager()
    notifier = Notifier(manager.notify_socket, manager.watchdog_seconds)
    with opened(config, manager) as listeners:
        oversight = partial(
            managed,
            notifier=notifier,
            announce=partial(announce, config),
            hangups=hangups,
            load=settings.load_again,
        )
        run_server(config, rules, listeners, oversight)


def prepare(config: Config, first_key_file: Path | None) -> None:
    """Configure logs, raise the limit of descriptors, and create the first key if it is wanted and missing."""
    configure_logs(config.logs)
    raise_descriptor_limit()
    if first_key_file and config.access.mode == "keys":
        _make_first_key(config, first_key_file)


def _make_first_key(config: Config, file: Path) -> None:
    try:
        created = make_first_key(config.traces.database, file)
    except StoreError as error:
        fail_for_database(config, error)
    if created:
        log.warning(
            "the first key, for the user %s, is in %s: store it elsewhere and delete the file", FIRST_USER, file
        )


def run_server(
    config: Config, rules: GuardrailSet, listeners: Sequence[Listener], oversight: Oversight, group: Group | None = None
) -> None:
    """Serve ``config`` on the event loop it names. End the program with a reason if the database cannot be used."""
    try:
        with asyncio.Runner(loop_factory=loop_factory(config)) as runner:
            app = create_app(config, rules, group=group)
            runner.run(serve_app(app, listeners, config.server.shutdown_grace, oversight))
    except StoreError as error:
        fail_for_database(config, error)


def fail_for_database(config: Config, error: StoreError) -> NoReturn:
    """End the program: its database cannot be used."""
    fail(f"traces.database: {shown_url(config.traces.database)}: {error}")


def loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of the configured event loop. End the program if it is not installed."""
    if config.server.loop == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        fail('server.loop: "uvloop": not installed: pip install uvloop, or use "asyncio"')
    return uvloop.new_event_loop


FIRST_USER: Final = "admin"


def make_first_key(database: str, file: Path) -> bool:
    """Write a key for FIRST_USER to ``file``, readable only by its owner, if ``database`` has no key, not even a
    revoked one.

    Return whether it did. Raise StoreError; end the program with 78 if the file cannot be written. A file, because a
    log is read by others.
    """

    try:
        return asyncio.run(_make(database, file))
    except OSError as error:
        fail(f"--first-key: {file}: {error.strerror}")


async def _make(database: str, file: Path) -> bool:
    store = await TraceStore.open(database)
    try:
        keys = Keys(store.database)
        if await keys.all():
            return False
        # Opened before the key is created: a key that cannot be written to the file is useless.
        with os.fdopen(_private(file), "wb", buffering=0) as opened:
            record, key = await keys.add(FIRST_USER, by="the server, at its first start")
            try:
                opened.write(key.encode() + b"\n")
                os.fsync(opened.fileno())
            except OSError:
                await keys.revoke(record.id, by="the server, at its first start")
                raise
        return True
    finally:
        await store.close()


def _private(file: Path) -> int:
    """Open ``file`` for writing from its beginning, mode 0600. Return the descriptor."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    # The file may have existed with another mode.
    os.fchmod(descriptor, 0o600)
    return descriptor
