"""``python -m bench.restarts``: restarts under load, and what clients notice of them.

Three ways in: ``direct``, where the listening socket is passed from one server to the next as systemd does with
``gemini-proxy.socket``; ``nginx``, the same behind the shipped nginx.conf; ``rolling``, two servers behind it that are
restarted in turn, each with a socket of its own. Half of the clients connect anew for each request, half keep their
connection; four more read streams of two seconds. Each way is measured again with a stream that has fallen silent, for
which a server that stops waits its whole grace.

A failure is a refused, reset or broken connection, a status of 500 and more, or a stream that breaks off.
"""

import asyncio
import contextlib
import json
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import click
from tests.cli.process import start, write_config
from tests.deploy.nginx import NGINX, running_nginx, several, shipped_site

from bench.processes import module, serving

WAYS: Final = ("direct", "nginx", "rolling")
_UNARY: Final = "/v1beta/models/bench-unary:generateContent"
_STREAM: Final = "/v1beta/models/bench-20x100:streamGenerateContent?alt=sse"
_SILENT: Final = "/v1beta/models/bench-silent:streamGenerateContent?alt=sse"
_BODY: Final = json.dumps({"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}).encode()
_HEADERS: Final = {"x-goog-api-key": "bench", "content-type": "application/json"}
_GRACE: Final = 5.0
"""Seconds that streams may take to end: more than the two that ours last."""
_BETWEEN: Final = 1.0
"""Seconds between two restarts."""
_STREAMS: Final = 4
_LOST: Final = (aiohttp.ClientError, OSError, TimeoutError)


class Server:
    """A server that is started again each time it was stopped."""

    def __init__(self, config: Path, passed: socket.socket | None) -> None:
        self._config = config
        self._passed = passed
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Return when it accepts."""
        arguments = ("--config", str(self._config), "serve")
        self._process = await start(arguments, {}, asyncio.subprocess.DEVNULL, self._passed)
        assert self._process.stdout is not None
        assert await self._process.stdout.readline(), "the server did not start"

    async def stop(self) -> None:
        """Ask it to stop, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        await self._process.wait()

    async def kill(self) -> None:
        """End it however it stands."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where clients come in: the path of a unix socket, or a TCP address."""

    servers: Sequence[Server]
    unix: Path | None = None
    url: str = "http://localhost"

    def session(self, *, anew: bool) -> aiohttp.ClientSession:
        """Return a client that connects ``anew`` for each request, or keeps its connections."""
        connector: aiohttp.BaseConnector
        if self.unix is None:
            connector = aiohttp.TCPConnector(force_close=anew, limit=0)
        else:
            connector = aiohttp.UnixConnector(str(self.unix), force_close=anew, limit=0)
        timeout = aiohttp.ClientTimeout(total=120)
        return aiohttp.ClientSession(self.url, headers=_HEADERS, connector=connector, timeout=timeout)


@dataclass(slots=True)
class Seen:
    """What clients saw. ``failures`` counts by status or error, ``took`` has the seconds of each restart."""

    answered: int = 0
    slowest: float = 0.0
    streams: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)


async def ask(session: aiohttp.ClientSession, over: asyncio.Event, seen: Seen) -> None:
    """Ask until it is over, and count what comes of it."""
    while not over.is_set():
        begun = time.perf_counter()
        try:
            async with session.post(_UNARY, data=_BODY) as response:
                await response.read()
        except _LOST as error:
            seen.failures[type(error).__name__] += 1
            continue
        if response.status >= 500:
            seen.failures[str(response.status)] += 1
        else:
            seen.answered += 1
            seen.slowest = max(seen.slowest, time.perf_counter() - begun)


async def read_streams(session: aiohttp.ClientSession, over: asyncio.Event, seen: Seen) -> None:
    """Read streams to their end, one after the other, until it is over."""
    while not over.is_set():
        try:
            async with session.post(_STREAM, data=_BODY) as response:
                whole = (await response.read()).count(b"data: ") == 20
        except _LOST as error:
            seen.failures[f"stream: {type(error).__name__}"] += 1
            continue
        if response.status == 200 and whole:
            seen.streams += 1
        else:
            seen.failures[f"stream: {response.status}"] += 1


async def wait_silently(session: aiohttp.ClientSession) -> None:
    """Hold a stream that has fallen silent; open another one when a server gives it up. Ends by being cancelled."""
    while True:
        with contextlib.suppress(*_LOST):
            async with session.post(_SILENT, data=_BODY) as response:
                await response.read()


async def measure(entrance: Entrance, restarts: int, clients: int, *, silent: bool) -> Seen:
    """Restart each server so often beside so many clients."""
    over, seen = asyncio.Event(), Seen()
    try:
        for server in entrance.servers:
            await server.start()
        async with contextlib.AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(entrance.session(anew=anew)) for anew in (True, False)]
            async with asyncio.TaskGroup() as tasks:
                for number in range(clients):
                    tasks.create_task(ask(sessions[number % 2], over, seen))
                for number in range(_STREAMS):
                    tasks.create_task(read_streams(sessions[number % 2], over, seen))
                silence = tasks.create_task(wait_silently(sessions[0])) if silent else None
                for number in range(restarts):
                    await asyncio.sleep(_BETWEEN)
                    server = entrance.servers[number % len(entrance.servers)]
                    begun = time.perf_counter()
                    await server.stop()
                    await server.start()
                    seen.took.append(time.perf_counter() - begun)
                over.set()
                if silence is not None:
                    silence.cancel()
    finally:
        for server in entrance.servers:
            await server.kill()
    return seen


@contextlib.asynccontextmanager
async def entered(way: str, folder: Path, upstream: int, processes: int) -> AsyncIterator[Entrance]:
    """Prepare a way in; its servers are not started yet."""

    def config(name: str, address: str) -> Path:
        return write_config(
            folder,
            f"{name}.toml",
            server={"listen": [address], "shutdown_grace": _GRACE, "processes": processes},
            upstream={"base_url": f"http://127.0.0.1:{upstream}"},
            access={"trusted_proxies": ["unix"]},
        )

    if way == "direct":
        with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
            address = f"127.0.0.1:{listening.getsockname()[1]}"
            yield Entrance([Server(config("direct", address), listening)], url=f"http://{address}")
    elif way == "nginx":
        path = folder / "gemini-proxy.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(4096)
            async with running_nginx(folder, shipped_site(folder)) as nginx:
                yield Entrance([Server(config("nginx", f"unix:{path}"), listening)], nginx.socket)
    else:
        names = ("first", "second")
        servers = [Server(config(name, f"unix:{folder}/{name}.sock"), None) for name in names]
        async with running_nginx(folder, several(folder, names)) as nginx:
            yield Entrance(servers, nginx.socket)


async def measured(way: str, upstream: int, processes: int, restarts: int, clients: int, *, silent: bool) -> Seen:
    with tempfile.TemporaryDirectory() as folder:
        async with entered(way, Path(folder), upstream, processes) as entrance:
            return await measure(entrance, restarts, clients, silent=silent)


@click.command()
@click.option("--restarts", default=10, show_default=True)
@click.option("--clients", default=16, show_default=True)
@click.option("--processes", default=1, show_default=True, help="Of each server.")
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), help="Only this way in; may be repeated.")
def main(restarts: int, clients: int, processes: int, ways: Sequence[str]) -> None:
    """Print what the clients saw. Exit code 1 if anything failed."""
    if NGINX is None and ways != ("direct",):
        raise click.ClickException("nginx is not installed: --way direct does without")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        with serving(module("bench.upstream"), Path(folder) / "upstream.log") as upstream:
            for way in ways or WAYS:
                for silent in (False, True):
                    seen = asyncio.run(measured(way, upstream.port, processes, restarts, clients, silent=silent))
                    failed += seen.failures.total()
                    click.echo(_line(way, seen, silent=silent))
    raise SystemExit(1 if failed else 0)


def _line(way: str, seen: Seen, *, silent: bool) -> str:
    failures = ", ".join(f"{count} x {kind}" for kind, count in seen.failures.most_common()) or "none"
    return (
        f"{way}{', a silent stream' if silent else ''}: {len(seen.took)} restarts of at most {max(seen.took):.1f} s, "
        f"{seen.answered} answered (slowest {seen.slowest:.1f} s), {seen.streams} streams whole, failed: {failures}"
    )


if __name__ == "__main__":
    main()
