"""``python -m bench.restarts``: restarts under load, and what clients notice of them.

The listening socket is passed to one server after the other, as systemd does with ``gemini-proxy.socket``. Half of the
clients connect anew for each request, half keep their connection. A failure is a refused, reset or broken connection,
or a status of 500 and more.
"""

import asyncio
import contextlib
import json
import signal
import socket
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
from tests.cli.process import start, write_config

from bench.processes import module, serving

_PATH: Final = "/v1beta/models/bench-unary:generateContent"
_BODY: Final = json.dumps({"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}).encode()
_HEADERS: Final = {"x-goog-api-key": "bench", "content-type": "application/json"}


class Restarts:
    """Servers of one configuration on one socket, each started when the one before has ended."""

    def __init__(self, config: Path, listening: socket.socket) -> None:
        self._config = config
        self._listening = listening
        self._running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Return when the server accepts."""
        arguments = ("--config", str(self._config), "serve")
        self._running = await start(arguments, {}, asyncio.subprocess.DEVNULL, self._listening)
        assert self._running.stdout is not None
        await self._running.stdout.readline()

    async def stop(self) -> None:
        """Ask the server to stop, and wait for its end."""
        assert self._running is not None
        self._running.send_signal(signal.SIGTERM)
        await self._running.wait()

    async def kill(self) -> None:
        """End it however it stands."""
        if self._running is not None and self._running.returncode is None:
            self._running.kill()
            await self._running.wait()


async def ask(session: aiohttp.ClientSession, url: str, over: asyncio.Event, seen: Counter[str]) -> None:
    """Ask until it is over, and count what comes of it."""
    while not over.is_set():
        try:
            async with session.post(url, data=_BODY, headers=_HEADERS) as response:
                await response.read()
                seen["failed" if response.status >= 500 else "answered"] += 1
        except (aiohttp.ClientError, TimeoutError):
            seen["failed"] += 1


async def measure(config: Path, listening: socket.socket, restarts: int, clients: int) -> dict[str, Any]:
    """Restart so often beside so many clients: what they saw, and how long each server took to make way."""
    url = f"http://127.0.0.1:{listening.getsockname()[1]}{_PATH}"
    servers, over, seen, took = Restarts(config, listening), asyncio.Event(), Counter[str](), list[float]()
    timeout = aiohttp.ClientTimeout(total=60)
    try:
        await servers.start()
        async with contextlib.AsyncExitStack() as stack:
            sessions = [
                await stack.enter_async_context(
                    aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=anew, limit=0))
                )
                for anew in (True, False)
            ]
            async with asyncio.TaskGroup() as tasks:
                for number in range(clients):
                    tasks.create_task(ask(sessions[number % 2], url, over, seen))
                for _ in range(restarts):
                    await asyncio.sleep(1)
                    begun = time.perf_counter()
                    await servers.stop()
                    await servers.start()
                    took.append(time.perf_counter() - begun)
                over.set()
    finally:
        await servers.kill()
    return {"answered": seen["answered"], "failed": seen["failed"], "slowest restart": max(took)}


@click.command()
@click.option("--restarts", default=10, show_default=True)
@click.option("--clients", default=16, show_default=True)
def main(restarts: int, clients: int) -> None:
    """Print what the clients saw."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(serving(module("bench.upstream"), folder / "upstream.log"))
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        config = write_config(
            folder,
            server={"listen": [f"127.0.0.1:{listening.getsockname()[1]}"]},
            upstream={"base_url": f"http://127.0.0.1:{upstream.port}"},
        )
        found = asyncio.run(measure(config, listening, restarts, clients))
        click.echo(f"{restarts} restarts: {found['answered']} answered, {found['failed']} failed")
        click.echo(f"slowest restart {found['slowest restart']:.1f} s")


if __name__ == "__main__":
    main()
