"""Run one of several serving processes: report to the parent, and follow its instructions."""

import asyncio
import contextlib
import pickle
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from aiohttp import web

from gemini_proxy.config import reloaded
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.server.app_keys import RELOADS, SETUPS, TASKS, Group
from gemini_proxy.server.channel import Alive, Channel, Held, Hold, Load, Loaded, Ready, Start
from gemini_proxy.server.listening import Balance, Listener, Share, inherited
from gemini_proxy.server.logs import change_logs
from gemini_proxy.server.reload import Load as LoadAgain
from gemini_proxy.server.reload import Reloader
from gemini_proxy.server.shared_metrics import Page, SharedMetrics
from gemini_proxy.server.siblings import Siblings
from gemini_proxy.server.sources import Sources, compile_sources


def group_of(start: Start) -> Group:
    """Return a child's position among the processes of its server."""
    pages = [Page(descriptor) for descriptor in start.pages]
    metrics = SharedMetrics(pages, start.number)
    share = Share(Balance(start.balance), start.number)
    siblings = Siblings(start.folder, start.number) if start.folder is not None else None
    return Group(start.number, start.processes, metrics, share, siblings)


def listeners_of(start: Start) -> list[Listener]:
    """Return the sockets that a child inherits."""
    return [inherited(one.descriptor, lasting=one.lasting, shared=True, name=one.name) for one in start.listeners]


@contextlib.asynccontextmanager
async def led(
    app: web.Application,
    listeners: Sequence[Listener],
    stop: asyncio.Event,
    *,
    end: socket.socket,
    start: Start,
    sources: Sources,
    load: LoadAgain,
) -> AsyncIterator[None]:
    """Follow the parent at the other end of a socket, and end with the parent. For ``serve``.

    ``sources`` are those that the app was made from; ``load`` reads them again if the parent chooses this process for
    it.
    """
    app[RELOADS].last_failed = start.reload_failed
    channel = await Channel.over(end)
    following = app[TASKS].spawn(_Following(app, channel, load).run(stop), "parent")
    if start.alive_every is not None:
        app[TASKS].spawn(_show_life(channel, start.alive_every), "watchdog")
    channel.send(Ready(start.sources or pickle.dumps(sources)))
    yield
    following.cancel()


async def _show_life(channel: Channel, period: float) -> None:
    while True:
        channel.send(Alive())
        await asyncio.sleep(period)


class _Following:
    """Load when this process is asked to, and put into force what the parent gives to all."""

    def __init__(self, app: web.Application, channel: Channel, load: LoadAgain) -> None:
        self._setups = app[SETUPS]
        self._reloads = app[RELOADS]
        self._reloader = Reloader(self._setups, self._reloads, load)
        self._channel = channel
        self._loaded: tuple[Sources, GuardrailSet] | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Do as the parent says until it has gone. A process that cannot hold what the others do stops as well."""
        try:
            while (message := await self._channel.receive()) is not None:
                match message:
                    case Load():
                        self._channel.send(Loaded(message.turn, await self._load()))
                    case Hold():
                        await self._hold(message.sources)
                        self._channel.send(Held(message.turn))
        finally:
            stop.set()

    async def _load(self) -> bytes | None:
        """Return settings for now: without changes that need a restart, which a later process must not have."""
        self._loaded = await self._reloader.load()
        if self._loaded is None:
            return None
        sources, _ = self._loaded
        config, _ = reloaded(self._setups.current.config, sources.config)
        return pickle.dumps(replace(sources, config=config))

    async def _hold(self, packed: bytes | None) -> None:
        loaded, self._loaded = self._loaded, None
        if packed is None:
            self._reloads.last_failed = True
        elif loaded is not None:
            self._reloader.hold(*loaded)
        else:
            sources: Sources = pickle.loads(packed)
            rules = await asyncio.to_thread(compile_sources, sources)
            self._setups.replace(sources.config, rules)
            change_logs(sources.config.logs)
            self._reloads.last_failed = False
