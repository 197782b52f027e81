"""``python -m bench.strangers``: what strangers can do to a server, and to the clients that were there before them.

``unfinished`` opens 4,150 connections that send the head of a POST and half of its body. ``made-up keys`` sends large
prompts with a new key each, which Gemini refuses. Both come from another address than the honest clients, which ask one
request after the other all the while. Each is measured with ``[limits]`` switched off and at its defaults.
"""

import asyncio
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import click
from tests.cli.process import write_config

from bench.processes import ServerProcess, allow_many_sockets, module, serving
from gemini_proxy.sections import Limits

_HONEST: Final = "127.0.0.1"
_STRANGER: Final = "127.0.0.2"
_CLIENTS: Final = 4
_SECONDS: Final = 10.0
"""How long an attack lasts."""
_UNFINISHED: Final = 4_150
_LIARS: Final = 16
_PROMPT: Final = "x" * 60_000
_UNARY: Final = "/v1beta/models/bench-unary:generateContent"
_REFUSED: Final = "/v1beta/models/bench-refused:generateContent"
_BODY: Final = json.dumps({"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}).encode()
_LOST: Final = (aiohttp.ClientError, OSError, TimeoutError)


@dataclass(slots=True)
class Seen:
    """What the honest clients saw: how long each request took, in seconds, and what failed. ``strangers``: theirs."""

    took: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    strangers: Counter[str] = field(default_factory=Counter)
    stored: int = 0


def _session(port: int, address: str) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, local_addr=(address, 0))
    return aiohttp.ClientSession(
        f"http://127.0.0.1:{port}",
        headers={"content-type": "application/json"},
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=60),
    )


async def ask(session: aiohttp.ClientSession, over: asyncio.Event, seen: Seen) -> None:
    """Ask with a good key until it is over."""
    while not over.is_set():
        begun = time.perf_counter()
        try:
            async with session.post(_UNARY, data=_BODY, headers={"x-goog-api-key": "honest"}) as response:
                await response.read()
            if response.status != 200:
                seen.failures[str(response.status)] += 1
        except _LOST as error:
            seen.failures[type(error).__name__] += 1
        seen.took.append(time.perf_counter() - begun)


@contextlib.asynccontextmanager
async def nobody(port: int, seen: Seen) -> AsyncIterator[None]:
    """No attack."""
    yield


class _Unfinished(asyncio.Protocol):
    """A connection on which half of a request is sent. ``refused``: the server has answered or closed it."""

    def __init__(self) -> None:
        self.refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        lines = (f"POST {_UNARY} HTTP/1.1", "Host: localhost", "x-goog-api-key: x", f"Content-Length: {len(_BODY)}")
        transport.write("\r\n".join((*lines, "", "")).encode() + _BODY[: len(_BODY) // 2])

    def data_received(self, data: bytes) -> None:
        self.refused = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.refused = True


@contextlib.asynccontextmanager
async def unfinished(port: int, seen: Seen) -> AsyncIterator[None]:
    """Hold connections whose requests never end."""
    loop = asyncio.get_running_loop()
    held: list[_Unfinished] = []
    try:
        for _ in range(_UNFINISHED):
            try:
                _, one = await loop.create_connection(_Unfinished, "127.0.0.1", port, local_addr=(_STRANGER, 0))
                held.append(one)
            except OSError as error:
                seen.strangers[f"not let in: {type(error).__name__}"] += 1
        yield
        refused = sum(one.refused for one in held)
        seen.strangers.update({"refused": refused, "held": len(held) - refused})
    finally:
        for one in held:
            one.transport.abort()


@contextlib.asynccontextmanager
async def made_up_keys(port: int, seen: Seen) -> AsyncIterator[None]:
    """Send prompts to be stored, each with a key of its own."""
    body = json.dumps({"contents": [{"role": "user", "parts": [{"text": _PROMPT}]}]}).encode()
    numbers = itertools.count()

    async def lie(session: aiohttp.ClientSession) -> None:
        while True:
            with contextlib.suppress(*_LOST):
                key = f"AIza{next(numbers):035d}"
                async with session.post(_REFUSED, data=body, headers={"x-goog-api-key": key}) as response:
                    await response.read()
                seen.strangers[str(response.status)] += 1

    async with _session(port, _STRANGER) as session:
        lying = [asyncio.ensure_future(lie(session)) for _ in range(_LIARS)]
        yield
        for task in lying:
            task.cancel()
        await asyncio.gather(*lying, return_exceptions=True)


Attack = Callable[[int, Seen], AbstractAsyncContextManager[None]]
_ATTACKS: Final[dict[str, Attack]] = {"nobody": nobody, "unfinished": unfinished, "made-up keys": made_up_keys}


async def measure(server: ServerProcess, database: Path, attack: Attack) -> Seen:
    """Have the honest clients ask while the attack lasts."""
    seen, over = Seen(), asyncio.Event()
    async with _session(server.port, _HONEST) as session:
        # Their key is known to be good before strangers come.
        async with session.post(_UNARY, data=_BODY, headers={"x-goog-api-key": "honest"}) as response:
            assert response.status == 200
        before = _size(database)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_CLIENTS):
                tasks.create_task(ask(session, over, seen))
            async with attack(server.port, seen):
                await asyncio.sleep(_SECONDS)
            over.set()
        seen.stored = _size(database) - before
    return seen


def _size(database: Path) -> int:
    return sum(file.stat().st_size for file in database.parent.glob(f"{database.name}*"))


@click.command()
@click.option("--attack", "names", multiple=True, type=click.Choice([*_ATTACKS]), help="Only this; may be repeated.")
def main(names: Sequence[str]) -> None:
    """Print what honest clients saw."""
    allow_many_sockets()
    columns = "strangers, limits, honest requests, p50 ms, p99 ms, slowest s, failed, stored MB, strangers saw"
    click.echo(f"| {columns.replace(', ', ' | ')} |")
    click.echo("|---|---|--:|--:|--:|--:|---|--:|---|")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(serving(module("bench.upstream"), folder / "upstream.log"))
        for name in names or _ATTACKS:
            for limited in (False, True):
                click.echo(_row(name, limited, _measured(name, limited, folder, upstream.port)))


def _measured(name: str, limited: bool, folder: Path, upstream: int) -> Seen:
    database = folder / f"{name}-{limited}.db"
    config = write_config(
        folder,
        server={"listen": ["127.0.0.1:0"]},
        upstream={"base_url": f"http://127.0.0.1:{upstream}"},
        traces={"database": f"sqlite:///{database}"},
        limits={} if limited else dict.fromkeys(Limits.model_fields, 0),
    )
    with serving(module("gemini_proxy", "--config", str(config), "serve"), folder / "proxy.log") as server:
        return asyncio.run(measure(server, database, _ATTACKS[name]))


def _row(name: str, limited: bool, seen: Seen) -> str:
    took = sorted(seen.took)
    return (
        f"| {name} | {'defaults' if limited else 'off'} | {len(took)} | {statistics.median(took) * 1e3:.1f} "
        f"| {took[len(took) * 99 // 100] * 1e3:.1f} | {took[-1]:.2f} | {dict(seen.failures) or 'none'} "
        f"| {seen.stored / 1e6:.1f} | {dict(seen.strangers) or ''} |"
    )


if __name__ == "__main__":
    main()
