"""``python -m bench.outages``: what is lost of exchanges while the trace database goes away and comes back.

Clients ask one after the other while PostgreSQL is restarted, in turn with a word to its clients and as by a crash, or
while another program keeps SQLite's lock for up to four seconds. Then each answer with status 200 is looked for in the
database. ``--source`` measures the proxy of another checkout.
"""

import asyncio
import contextlib
import json
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import aiohttp
import click
from tests.support.postgres import PostgresServer, find_programs, running_server

from bench.processes import module, serving
from gemini_proxy.traces.store import TraceStore

_PATH: Final = "/v1beta/models/bench-unary:generateContent"
_DATABASE: Final = "traces"
_HEADERS: Final = {"x-goog-api-key": "bench", "content-type": "application/json"}


@dataclass(slots=True)
class Answers:
    """The prompts that were answered with 200, how many answers had which status (0 for none), and the slowest."""

    answered: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0


Outage = Callable[[int], Awaitable[None]]


def restarts(server: PostgresServer) -> Outage:
    """Each outage is a restart, every second one as after a crash."""

    async def restart(number: int) -> None:
        await asyncio.to_thread(server.stop, ("fast", "immediate")[number % 2])
        await asyncio.to_thread(server.start)

    return restart


def locks(file: Path, outages: int) -> Outage:
    """Each outage is a lock, longer than the one before, the last of four seconds."""

    async def lock(number: int) -> None:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(4.0 * (number + 1) / outages)

    return lock


async def ask(port: int, requests: int, clients: int, outage: Outage, outages: int) -> Answers:
    """Send ``requests``, with the outages spread over them."""
    answers, numbers = Answers(), count()
    due = {requests * (number + 1) // (outages + 1): asyncio.Event() for number in range(outages)}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=_HEADERS) as session:

        async def client() -> None:
            while (number := next(numbers)) < requests:
                if number in due:
                    due[number].set()
                await _ask(session, f"http://127.0.0.1:{port}{_PATH}", f"prompt {number}", answers)

        asking = asyncio.gather(*(client() for _ in range(clients)))
        for number, event in enumerate(due.values()):
            await event.wait()
            await outage(number)
        await asking
    return answers


async def _ask(session: aiohttp.ClientSession, url: str, prompt: str, answers: Answers) -> None:
    body = json.dumps({"contents": [{"role": "user", "parts": [{"text": prompt}]}]})
    started = time.perf_counter()
    try:
        async with session.post(url, data=body) as response:
            await response.read()
            status = response.status
    except aiohttp.ClientError:
        status = 0
    answers.statuses[status] += 1
    answers.slowest = max(answers.slowest, time.perf_counter() - started)
    if status == 200:
        answers.answered.append(prompt)


async def stored(url: str) -> Counter[str]:
    """How often each prompt is in the database."""
    store = await TraceStore.open(url)
    try:
        return Counter([str(trace.messages[0]["content"][0]["text"]) async for trace in store.export()])
    finally:
        await store.close()


@contextlib.contextmanager
def database(kind: str, folder: Path, outages: int) -> Iterator[tuple[str, Outage]]:
    """A new database: its URL, and what makes it go away."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/traces.db", locks(folder / "traces.db", outages)
        return
    programs = find_programs()
    if programs is None:
        raise click.ClickException("PostgreSQL is not installed")
    with running_server(programs) as server:
        asyncio.run(server.execute(f"CREATE DATABASE {_DATABASE}"))
        yield server.url(_DATABASE), restarts(server)


@click.command()
@click.argument("kind", type=click.Choice(["sqlite", "postgresql"]))
@click.option("--requests", default=10_000, show_default=True)
@click.option("--clients", default=32, show_default=True)
@click.option("--outages", default=10, show_default=True)
@click.option("--source", type=click.Path(exists=True, path_type=Path), help="The src folder of another checkout.")
def main(kind: str, requests: int, clients: int, outages: int, source: Path | None) -> None:
    """Count what is lost. Exit code 1 if something is."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(serving(module("bench.upstream"), folder / "upstream.log"))
        url, outage = stack.enter_context(database(kind, folder, outages))
        (folder / "config.toml").write_text(
            '[server]\nlisten = ["127.0.0.1:0"]\n'
            f'[upstream]\nbase_url = "http://127.0.0.1:{upstream.port}"\n'
            f'[traces]\ndatabase = "{url}"\n'
        )
        command = [sys.executable, "-m", "gemini_proxy", "--config", str(folder / "config.toml"), "serve"]
        proxy = stack.enter_context(serving(command, folder / "proxy.log", source=source))
        answers = asyncio.run(ask(proxy.port, requests, clients, outage, outages))
        found = asyncio.run(stored(url))
    lost = [prompt for prompt in answers.answered if prompt not in found]
    twice = sum(number > 1 for number in found.values())
    click.echo(
        f"{kind}, {outages} outages: {requests} requests, statuses {dict(answers.statuses)}, {len(lost)} traces lost, "
        f"{twice} there twice, slowest {answers.slowest:.1f} s"
    )
    sys.exit(1 if lost or twice else 0)


if __name__ == "__main__":
    main()
