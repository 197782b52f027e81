"""Keep the settings in force for exchanges, and replace all at once on a reload if all can be used."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gemini_proxy.config import Config, ConfigError, reloaded
from gemini_proxy.gemini.doors import Duty
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.proxy.handle_keeper import HandleKeeper
from gemini_proxy.proxy.pipeline import Pipeline
from gemini_proxy.proxy.request_reader import RequestReader
from gemini_proxy.server.logs import change_logs
from gemini_proxy.server.service_manager import Hangups, Notifier
from gemini_proxy.server.sources import Sources
from gemini_proxy.traces.alerts.rules import AlertRule
from gemini_proxy.traces.masked_values import MaskedValues

log = logging.getLogger(__name__)

Load = Callable[[], tuple[Sources, GuardrailSet]]
"""Read configuration and policies, and compile these. Raises ConfigError, whose text may have several lines."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A configuration in force. An exchange keeps until its end the one that it began with."""

    config: Config
    rules: GuardrailSet
    reader: RequestReader
    keeper: HandleKeeper
    pipeline: Pipeline
    duties: Mapping[str, Duty]
    alerts: tuple[AlertRule, ...] = ()
    masked_values: MaskedValues | None = None


class Setups:
    """The setup for exchanges that begin now."""

    def __init__(self, build: Callable[[Config, GuardrailSet], Setup], config: Config, rules: GuardrailSet) -> None:
        self._build = build
        self.current = build(config, rules)

    def replace(self, loaded: Config, rules: GuardrailSet) -> tuple[str, ...]:
        """Let ``loaded`` and ``rules`` hold from now on. Return the changed keys that do not without a restart."""
        config, waiting = reloaded(self.current.config, loaded)
        self.current = self._build(config, rules)
        return waiting


@dataclass(slots=True, eq=False)
class Reloads:
    """Return the counts of this process."""

    succeeded: int = 0
    failed: int = 0
    last_failed: bool = False


class Reloader:
    """Load again and replace, all of it or nothing. Exchanges under way, their streams and the workers continue."""

    def __init__(self, setups: Setups, reloads: Reloads, load: Load) -> None:
        self._setups = setups
        self._reloads = reloads
        self._load = load

    async def reload(self) -> bool:
        """Put the loaded settings into force and return True. On a fault, log one line and change nothing."""
        loaded = await self.load()
        if loaded is not None:
            self.hold(*loaded)
        return loaded is not None

    async def load(self) -> tuple[Sources, GuardrailSet] | None:
        """Return new settings. None if they have a fault, which is logged in one line and counted."""
        try:
            return await asyncio.to_thread(self._load)
        except ConfigError as error:
            self._failed("; ".join(str(error).splitlines()))
        # For example a detector plug-in's error: the next SIGHUP must still be handled.
        except Exception as error:
            self._failed(type(error).__name__)
        return None

    def hold(self, sources: Sources, rules: GuardrailSet) -> None:
        """Let what was loaded hold from now on; log and count it."""
        waiting = self._setups.replace(sources.config, rules)
        change_logs(self._setups.current.config.logs)
        self._reloads.succeeded += 1
        self._reloads.last_failed = False
        log.info(
            "reloaded",
            extra={
                "blocking_policies": len(rules.blocking),
                "asking_policies": len(rules.asking),
                "masking_policies": len(rules.masking),
                "logging_policies": len(rules.logging),
            },
        )
        if waiting:
            log.warning("changed settings that take effect only after a restart: %s", ", ".join(waiting))

    def _failed(self, why: str) -> None:
        self._reloads.failed += 1
        self._reloads.last_failed = True
        log.error("reload failed, the previous configuration stays in force: %s", why)

    async def follow(self, hangups: Hangups, notifier: Notifier, status: str) -> None:
        """Reload at each SIGHUP and tell the service manager, until cancelled. ``status`` is what it knows of us."""
        while True:
            await hangups.next()
            notifier.reloading()
            succeeded = await self.reload()
            notifier.ready(status if succeeded else f"{status}; the last reload failed")
