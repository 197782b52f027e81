"""SIGHUP: load configuration and policies again, and let them hold if all of them can be used."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass

from gemini_proxy.config import Config, ConfigError
from gemini_proxy.guardrails.rules import RuleSet
from gemini_proxy.server.logs import change_logs
from gemini_proxy.server.setup import Setups
from gemini_proxy.server.systemd import Notifier

log = logging.getLogger(__name__)

Load = Callable[[], tuple[Config, RuleSet]]
"""Read the configuration and compile its policies. Raises ConfigError, whose text may have several lines."""


@dataclass(slots=True, eq=False)
class Reloads:
    """What this process has counted."""

    succeeded: int = 0
    failed: int = 0
    last_failed: bool = False


class Hangups:
    """SIGHUP noted from here on, before there is an event loop and after its end too: it ends nothing any more."""

    def __init__(self) -> None:
        self._noted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        signal.signal(signal.SIGHUP, lambda *_: self._note())

    async def next(self) -> None:
        """Return when there was one since the last time; several at once are one."""
        self._loop = asyncio.get_running_loop()
        await self._noted.wait()
        self._noted.clear()

    def _note(self) -> None:
        if self._loop is None:
            self._noted.set()
        else:
            # A signal handler runs between any two steps of the loop, or after its end.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._noted.set)


class Reloader:
    """Loads again and replaces, all of it or nothing. Exchanges under way, their streams and the workers go on."""

    def __init__(self, setups: Setups, reloads: Reloads, load: Load) -> None:
        self._setups = setups
        self._reloads = reloads
        self._load = load

    async def reload(self) -> bool:
        """Whether what was loaded holds now. What is wrong with it is logged in one line, and nothing changes."""
        try:
            config, rules = await asyncio.to_thread(self._load)
        except ConfigError as error:
            return self._failed("; ".join(str(error).splitlines()))
        # Such as a detector plug-in's: the next SIGHUP must find somebody who listens.
        except Exception as error:
            return self._failed(type(error).__name__)
        waiting = self._setups.replace(config, rules)
        change_logs(self._setups.current.config.logs)
        self._reloads.succeeded += 1
        self._reloads.last_failed = False
        log.info("reloaded", extra={"blocking_policies": len(rules.blocking), "logging_policies": len(rules.logging)})
        if waiting:
            log.warning("changed, but only a restart makes them hold: %s", ", ".join(waiting))
        return True

    def _failed(self, why: str) -> bool:
        self._reloads.failed += 1
        self._reloads.last_failed = True
        log.error("reload failed, what held before holds: %s", why)
        return False

    async def follow(self, hangups: Hangups, notifier: Notifier, status: str) -> None:
        """Reload at each SIGHUP and tell the service manager, until cancelled. ``status`` is what it knows of us."""
        while True:
            await hangups.next()
            notifier.reloading()
            succeeded = await self.reload()
            notifier.ready(status if succeeded else f"{status}; the last reload failed")
