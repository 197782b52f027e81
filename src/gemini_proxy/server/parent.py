"""Run several processes that serve on the same sockets: start them, give them sources, and replace those that end.

Each child is a program of its own and not a copy of this process: detectors may have started threads, which do not
survive a fork. This process serves no requests and imports neither the server nor the store, so it takes little memory
and little in it can break.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from gemini_proxy.config import child_environment
from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.server.channel import Channel, Held, Hold, Inherited, Load, Loaded, Ready, Start
from gemini_proxy.server.listening import Balance, Listener, listening_status
from gemini_proxy.server.service_manager import Hangups, Notifier
from gemini_proxy.server.shared_metrics import Page, counted, process_families
from gemini_proxy.traces.clock import is_set_within

log = logging.getLogger(__name__)

_START_PATIENCE: Final = 120.0
"""Seconds until a child has to serve that takes the place of another."""
_ANSWER_PATIENCE: Final = 60.0
"""Seconds in which a child has to load, or to hold what was loaded."""
_CLOSING_TIME: Final = 15.0
"""Seconds that a child may take, beyond the grace of its exchanges, to write the last traces."""
_FAILED: Final = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The processes to run: their number and the file of their configuration. Times are in seconds.

    ``command`` starts a child; the descriptor of its channel is appended. ``watchdog`` is how long a child's event loop
    may stand still; None means forever.
    """

    command: tuple[str, ...]
    processes: int
    config_file: Path | None
    first_key: Path | None
    shutdown_grace: float
    watchdog: float | None


class ChildEnded(Exception):
    """A process has ended that should serve."""


class _Child:
    """One process, from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel, start: Start) -> None:
        self._process = process
        self._channel = channel
        self._asking = asyncio.Lock()
        self._turn = 0
        self._answer: asyncio.Future[Loaded | Held] | None = None
        self._heard = asyncio.get_running_loop().time()
        self._ready = asyncio.Event()
        self.start = start
        channel.send(start)

    @property
    def serves(self) -> bool:
        """Return whether it has reported that it serves."""
        return self._ready.is_set()

    async def follow(self, ready: Callable[[Ready], None]) -> int:
        """Take its messages until it ends; return how it ended, as ``subprocess`` says it."""
        try:
            while (message := await self._channel.receive()) is not None:
                self._heard = asyncio.get_running_loop().time()
                match message:
                    case Ready():
                        self._ready.set()
                        ready(message)
                    case Loaded() | Held() if self._answer is not None and message.turn == self._turn:
                        self._answer.set_result(message)
                        self._answer = None
        finally:
            self._ready.clear()
            self._channel.close()
            if self._answer is not None:
                self._answer.cancel()
        return await self._process.wait()

    async def load(self) -> Loaded | None:
        """Have it read its configuration again. None where it does not answer."""
        answer = await self._ask(Load)
        return answer if isinstance(answer, Loaded) else None

    async def hold(self, sources: bytes | None) -> None:
        """Let ``sources`` hold, or what held before; return when they do, or when it does not answer."""
        await self._ask(partial(Hold, sources=sources))

    async def _ask(self, question: Callable[[int], Load | Hold]) -> Loaded | Held | None:
        async with self._asking:
            if not self.serves:
                return None
            self._turn += 1
            self._answer = answer = asyncio.get_running_loop().create_future()
            self._channel.send(question(self._turn))
            await asyncio.wait([answer], timeout=_ANSWER_PATIENCE)
            return answer.result() if answer.done() and not answer.cancelled() else None

    async def serves_within(self, seconds: float | None) -> bool:
        """Return whether it reports that it serves within ``seconds``; None waits for ever."""
        return await is_set_within(self._ready, seconds)

    async def silent_for(self, seconds: float) -> None:
        """Return when nothing has been heard of it for so long."""
        loop = asyncio.get_running_loop()
        left = seconds
        while left > 0:
            await asyncio.sleep(left)
            left = self._heard + seconds - loop.time()

    def tell(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


class Parent:
    """Run the processes of a plan on sockets that outlive each of them."""

    def __init__(self, plan: Plan, listeners: Sequence[Listener], notifier: Notifier, hangups: Hangups) -> None:
        self._plan = plan
        self._listeners = listeners
        self._notifier = notifier
        self._hangups = hangups
        self._tasks = Tasks()
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._serving = False
        self._exit_code = 0
        self._children: dict[int, _Child] = {}
        self._sources: bytes | None = None
        self._reload_failed = False
        # The first one is that of this process.
        self._pages = [os.memfd_create(f"metrics-{number}") for number in range(plan.processes + 1)]
        self._page = Page(self._pages[0])
        self._connections, self._balance = Balance.create(plan.processes)
        self._folder: Path | None = None
        # Without a shared folder the processes do everything except pass requests to each other.
        with contextlib.suppress(OSError):
            self._folder = Path(tempfile.mkdtemp(prefix="gemini-proxy-"))

    async def run(self, announce: Callable[[], None]) -> int:
        """Serve until SIGTERM or SIGINT, and return the exit code.

        ``announce`` is called when all of them serve. If one fails before that, none serves, and its exit code is
        returned.
        """
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._stop)
        for number in range(1, self._plan.processes + 1):
            self._tasks.keep(partial(self._run_child, number), f"process {number}")
        await self._until(lambda: self._stopping.is_set() or len(self._ready) == self._plan.processes)
        if not self._stopping.is_set():
            self._serving = True
            status = listening_status(self._listeners)
            self._notifier.ready(status)
            self._tasks.spawn(self._notifier.watch(lambda: any(self._ready)), "watchdog")
            self._tasks.spawn(self._follow_hangups(status), "reload")
            announce()
            await self._stopping.wait()
            self._notifier.stopping()
        await self._end()
        return self._exit_code

    @property
    def _ready(self) -> list[_Child]:
        return [child for child in self._children.values() if child.serves]

    def _change(self) -> None:
        """Wake the waiting tasks, and publish the counts of this process."""
        self._page.write(process_families(len(self._ready), sum(self._tasks.restarts.values())))
        self._changed.set()

    def _stop(self, exit_code: int = 0) -> None:
        self._stopping.set()
        self._exit_code = exit_code
        self._change()

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed.clear()
            await self._changed.wait()

    async def _run_child(self, number: int) -> None:
        """Start a child and return when it has ended, as it should. Raises ChildEnded where it should not."""
        if self._stopping.is_set():
            return
        child = self._children[number] = await self._started(number)
        if self._stopping.is_set():
            child.tell(signal.SIGTERM)
        watching = self._tasks.spawn(self._watch(number, child), f"watch of process {number}")
        try:
            code = await child.follow(partial(self._is_ready, child))
        finally:
            watching.cancel()
            del self._children[number]
            page = Page(self._pages[number])
            page.write(counted(page.read()))
            self._balance.accepts_no_more(number)
            self._change()
        if not self._stopping.is_set() and not self._serving:
            self._stop(code if code > 0 else _FAILED)
        if not self._stopping.is_set():
            ended = {"number": number, "exit_code": code} if code >= 0 else {"number": number, "signal": -code}
            log.warning("a process has ended and is replaced", extra=ended)
            raise ChildEnded

    async def _started(self, number: int) -> _Child:
        """Start a process, and give it its instructions once the first one serves.

        The first one creates the database and reports errors of the configuration. The others load their modules
        meanwhile, and serve with the sources that it read.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            listeners = tuple(Inherited(one.socket.fileno(), one.lasting, one.name) for one in self._listeners)
            process = await asyncio.create_subprocess_exec(
                *self._plan.command,
                str(theirs.fileno()),
                env=child_environment(),
                pass_fds=(theirs.fileno(), *(one.descriptor for one in listeners), *self._pages, self._connections),
            )
        channel = await Channel.over(ours)
        await self._until(lambda: number == 1 or self._sources is not None or self._stopping.is_set())
        start = Start(
            number=number,
            processes=self._plan.processes,
            config_file=self._plan.config_file,
            first_key=None if self._serving else self._plan.first_key,
            sources=self._sources,
            reload_failed=self._reload_failed,
            listeners=listeners,
            pages=tuple(self._pages),
            balance=self._connections,
            alive_every=self._plan.watchdog / 2 if self._plan.watchdog else None,
            folder=self._folder,
        )
        return _Child(process, channel, start)

    async def _watch(self, number: int, child: _Child) -> None:
        """Kill a child that does not begin to serve, or whose event loop is blocked."""
        why = "it did not start in time"
        # The first ones may have to upgrade a large database: there is no limit here, others know how long that may
        # take.
        if await child.serves_within(_START_PATIENCE if self._serving else None):
            if self._plan.watchdog is None:
                return
            await child.silent_for(self._plan.watchdog)
            why = "its event loop is blocked"
        if not self._stopping.is_set():
            log.error("process %d is killed: %s", number, why)
            child.tell(signal.SIGKILL)

    def _is_ready(self, child: _Child, message: Ready) -> None:
        if self._sources is None:
            self._sources = message.sources
        elif (message.sources, child.start.reload_failed) != (self._sources, self._reload_failed):
            self._tasks.spawn(self._catch_up(child), "reload")
        self._change()

    async def _catch_up(self, child: _Child) -> None:
        """Tell a child of the reload that came while it started."""
        await child.hold(self._sources)
        if self._reload_failed:
            await child.hold(None)

    async def _follow_hangups(self, status: str) -> None:
        while True:
            await self._hangups.next()
            self._notifier.reloading()
            await self._reload()
            self._notifier.ready(f"{status}; the last reload failed" if self._reload_failed else status)

    async def _reload(self) -> None:
        """Have one child load the sources, and put them into force in all; if that fails, the old ones stay."""
        await self._until(lambda: bool(self._ready))
        sources = await self._loaded()
        self._reload_failed = sources is None
        if sources is not None:
            self._sources = sources
        await asyncio.gather(*(child.hold(sources) for child in self._ready))

    async def _loaded(self) -> bytes | None:
        for child in self._ready:
            if (loaded := await child.load()) is not None:
                return loaded.sources
        log.error("reload failed, the previous configuration stays in force: no process has loaded it")
        return None

    async def _end(self) -> None:
        """Accept no more connections, and let the children finish their exchanges."""
        for listener in self._listeners:
            if not listener.lasting:
                listener.remove_path()
            listener.socket.close()
        for child in self._children.values():
            child.tell(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._plan.shutdown_grace + _CLOSING_TIME):
                await self._until(lambda: not self._children)
        except TimeoutError:
            for child in self._children.values():
                child.tell(signal.SIGKILL)
        await self._tasks.close(1.0 if self._children else 0.0)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
