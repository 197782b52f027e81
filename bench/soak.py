"""``python -m bench.soak``: half an hour of everything at once, on PostgreSQL, and what it leaves behind.

Unary calls, streams, refused requests and responses, clients that leave, pages that are looked at and a feed that is
watched; meanwhile the policy file changes and is reloaded, a dataset's rules change, keys come and go, and PostgreSQL
is restarted every few minutes, in turn with a word to its clients and as by a crash. Each kind has its rate, so the
load stays the same however fast the machine is.

Prints what failed, which answered exchanges have no trace or two, memory and descriptors over time, and what was
logged. Exit code 1 if something failed or was lost.
"""

import asyncio
import contextlib
import itertools
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
from tests.cli.process import run, write_config
from tests.support.postgres import PostgresServer, find_programs, running_server

from bench.outages import stored
from bench.processes import ProcessError, ServerProcess, module, serving
from bench.workload import KEY

_DATASET: Final = "soak"
_POLICY: Final = """\
raise "this request" if:
    (message: Message)
    message.role == "user"
    "refuse this request" in message.content

raise "this response" if:
    (asked: Message) -> (answer: Message)
    asked.role == "user"
    answer.role == "assistant"
    "refuse the response" in asked.content
"""
_HEADERS: Final = {
    "x-goog-api-key": "bench",
    "invariant-authorization": f"Bearer {KEY}",
    "authorization": f"Bearer {KEY}",
    "content-type": "application/json",
}
_PATH: Final = f"/api/v1/gateway/{_DATASET}/gemini/v1beta/models"
_UNARY: Final = f"{_PATH}/bench-unary:generateContent"
_STREAM: Final = f"{_PATH}/bench-20x50:streamGenerateContent?alt=sse"
_PAGES: Final = ("/explorer", "/explorer/dashboard", "/api/v1/dataset/list", "/metrics")
_LOST: Final = (aiohttp.ClientError, OSError, TimeoutError)
_AWAY: Final = 503
"""What a page says while the database is away."""
_REFUSED: Final = 400
_SETTLED: Final = 5.0
"""Seconds after the last request in which logging, indexing and the writing of traces come to rest."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server's processes together use at a moment, in seconds from the start."""

    at: float
    rss_mib: float
    descriptors: int
    cpu: float


@dataclass(slots=True)
class Soak:
    """What came of it. ``answered`` are the prompts whose exchange the client saw end as it should."""

    done: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    answered: list[str] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)
    told: int = 0
    samples: list[Sample] = field(default_factory=list)

    def took(self, kind: str, seconds: float) -> None:
        self.slowest[kind] = max(self.slowest.get(kind, 0.0), seconds)


class Client:
    """Does each kind of thing once when it is told to."""

    def __init__(self, session: aiohttp.ClientSession, soak: Soak) -> None:
        self._session = session
        self._soak = soak
        self._numbers = itertools.count()
        self._pages = itertools.cycle(_PAGES)

    def _prompt(self, words: str) -> tuple[str, dict[str, Any]]:
        text = f"{words} {next(self._numbers)}"
        return text, {"contents": [{"role": "user", "parts": [{"text": text}]}]}

    async def unary(self) -> None:
        await self._exchange("unary", _UNARY, "hello", 200)

    async def refused_request(self) -> None:
        await self._exchange("refused request", _UNARY, "refuse this request", _REFUSED)

    async def refused_response(self) -> None:
        await self._exchange("refused response", _UNARY, "refuse the response", _REFUSED)

    async def stream(self) -> None:
        await self._exchange("stream", _STREAM, "hello", 200, b'"finishReason": "STOP"')

    async def refused_stream(self) -> None:
        await self._exchange("refused stream", _STREAM, "refuse the response", 200, b'"finishReason":"SAFETY"')

    async def _exchange(self, kind: str, path: str, words: str, status: int, ends: bytes = b"") -> None:
        prompt, body = self._prompt(words)
        async with self._session.post(path, json=body) as response:
            content = await response.read()
        if response.status != status or ends not in content:
            raise Unexpected(f"{kind}: {response.status}")
        self._soak.answered.append(prompt)

    async def leave(self) -> None:
        """Read one event of a stream, and go."""
        _, body = self._prompt("leaving")
        async with self._session.post(_STREAM, json=body) as response:
            await response.content.readany()

    async def page(self) -> None:
        path = next(self._pages)
        async with self._session.get(path) as response:
            await response.read()
        if response.status == _AWAY:
            self._soak.done["page while the database was away"] += 1
        elif response.status != 200:
            raise Unexpected(f"page {path}: {response.status}")

    async def live(self) -> None:
        """Ask for a sign of life: how long it takes says how long the event loop stood still."""
        async with self._session.get("/healthz") as response:
            await response.read()
        if response.status != 200:
            raise Unexpected(f"healthz: {response.status}")


class Unexpected(Exception):
    """An answer that is not the right one."""


async def once(kind: str, act: Callable[[], Awaitable[None]], soak: Soak) -> None:
    """Do one thing, and count what came of it."""
    begun = time.perf_counter()
    try:
        await act()
        soak.done[kind] += 1
    except Unexpected as error:
        soak.failures[str(error)] += 1
    except _LOST as error:
        soak.failures[f"{kind}: {type(error).__name__}"] += 1
    soak.took(kind, time.perf_counter() - begun)


async def every(seconds: float, kind: str, act: Callable[[], Awaitable[None]], soak: Soak, ends: float) -> None:
    """Do something that often, without waiting for the one before, until the loop's time is ``ends``."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        at = loop.time()
        while (at := at + seconds) < ends:
            await asyncio.sleep(at - loop.time())
            tasks.create_task(once(kind, act, soak))


async def watch(session: aiohttp.ClientSession, soak: Soak) -> None:
    """Watch the feed, again when it ends. Ends by being cancelled."""
    while True:
        with contextlib.suppress(*_LOST):
            async with session.get("/api/v1/feed", headers={"accept": "text/event-stream"}) as response:
                async for line in response.content:
                    soak.told += line.startswith(b"event: exchange")
        await asyncio.sleep(1)


class Operator:
    """Changes what there is to change while the server runs."""

    def __init__(self, session: aiohttp.ClientSession, folder: Path, server: ServerProcess) -> None:
        self._session = session
        self._folder = folder
        self._server = server
        self._times = itertools.count(1)
        self._dataset = ""
        self._rule = ""

    async def make_dataset(self) -> None:
        """Make the dataset and a logging rule of it."""
        self._dataset = (await self._api("POST", "/api/v1/dataset/create", {"name": _DATASET}))["id"]
        rule = {"name": "soak", "policy": self._rules(), "action": "log"}
        changed = await self._api("POST", f"/api/v1/dataset/{self._dataset}/policy", rule)
        self._rule = changed["extra_metadata"]["policies"][0]["id"]

    async def reload(self) -> None:
        """Change the policy file, and have it read."""
        (self._folder / "soak.gr").write_text(f"{_POLICY}# {next(self._times)}\n")
        self._server.send_signal(signal.SIGHUP)

    async def change_rule(self) -> None:
        with contextlib.suppress(_Away):
            await self._api("PUT", f"/api/v1/dataset/{self._dataset}/policy/{self._rule}", {"policy": self._rules()})

    async def change_keys(self) -> None:
        """Make a key and revoke it, by the command line."""
        config = ("--config", str(self._folder / "config.toml"))
        code, out, _ = await run(*config, "keys", "add", "soak")
        if code == 0:
            code, _, _ = await run(*config, "keys", "revoke", out.split()[0])

    def _rules(self) -> str:
        return f'raise "a ferry" if:\n    (message: Message)\n    "ferry {next(self._times)}" in message.content\n'

    async def _api(self, method: str, path: str, body: object) -> Any:
        async with self._session.request(method, path, json=body) as response:
            content = await response.json()
        if response.status == _AWAY:
            raise _Away
        if response.status != 200:
            raise Unexpected(f"{method} {path.rpartition('/')[0]}: {response.status}")
        return content


class _Away(Exception):
    """The database is away."""


async def restart_database(database: PostgresServer, numbers: Iterator[int]) -> None:
    await asyncio.to_thread(database.stop, ("fast", "immediate")[next(numbers) % 2])
    await asyncio.to_thread(database.start)


async def soaked(server: ServerProcess, folder: Path, database: PostgresServer, seconds: float) -> Soak:
    """Put the whole mix on the server for so long."""
    soak, loop, numbers = Soak(), asyncio.get_running_loop(), itertools.count()
    timeout = aiohttp.ClientTimeout(total=60)
    begun, ends = loop.time(), loop.time() + seconds

    async def sample() -> None:
        used = Sample(loop.time() - begun, server.rss_kib / 1024, server.descriptors, server.cpu_seconds)
        soak.samples.append(used)

    async def restart() -> None:
        await restart_database(database, numbers)

    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{server.port}", headers=_HEADERS, connector=aiohttp.TCPConnector(limit=0), timeout=timeout
    ) as session:
        client, operator = Client(session, soak), Operator(session, folder, server)
        await operator.make_dataset()
        await sample()
        # Seconds between two of a kind.
        mix: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "unary": (0.1, client.unary),
            "stream": (0.4, client.stream),
            "refused request": (1.1, client.refused_request),
            "refused response": (1.3, client.refused_response),
            "refused stream": (1.7, client.refused_stream),
            "client that leaves": (0.9, client.leave),
            "page": (0.7, client.page),
            "sign of life": (0.25, client.live),
            "reload": (20.0, operator.reload),
            "changed rule": (7.0, operator.change_rule),
            "key made and revoked": (60.0, operator.change_keys),
            "restart of PostgreSQL": (min(150.0, seconds / 2.5), restart),
            "sample": (min(60.0, seconds / 4), sample),
        }
        watching = asyncio.ensure_future(watch(session, soak))
        async with asyncio.TaskGroup() as tasks:
            for kind, (between, act) in mix.items():
                tasks.create_task(every(between, kind, act, soak, ends))
        watching.cancel()
        await asyncio.sleep(_SETTLED)
        await sample()
    return soak


def logged(log: Path) -> Counter[str]:
    """Count the lines at warning and above by what they say."""
    found: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("level") in ("warning", "error", "critical"):
                found[f"{entry['level']}: {entry.get('event')}"] += 1
    return found


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--processes", default=1, show_default=True, help="Processes of the server.")
def main(minutes: float, processes: int) -> None:
    """Run the mix and print what it left behind."""
    programs = find_programs()
    if programs is None:
        raise click.ClickException("PostgreSQL is not installed")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(running_server(programs))
        asyncio.run(database.execute("CREATE DATABASE traces"))
        upstream = stack.enter_context(serving(module("bench.upstream"), folder / "upstream.log"))
        (folder / "soak.gr").write_text(_POLICY)
        config = write_config(
            folder,
            server={"listen": ["127.0.0.1:0"], "processes": processes},
            upstream={"base_url": f"http://127.0.0.1:{upstream.port}"},
            guardrails={"policies": [str(folder / "soak.gr")]},
            traces={"database": database.url("traces")},
        )
        command = module("gemini_proxy", "--config", str(config), "serve")
        server = stack.enter_context(serving(command, folder / "proxy.log"))
        try:
            soak = asyncio.run(soaked(server, folder, database, minutes * 60))
        except ProcessError as error:
            raise click.ClickException(str(error)) from None
        found = asyncio.run(stored(database.url("traces")))
        warnings = logged(folder / "proxy.log")
    lost = sum(prompt not in found for prompt in soak.answered)
    twice = sum(number > 1 for number in found.values())
    report(soak, warnings)
    click.echo(f"answered exchanges {len(soak.answered)}: {lost} without a trace, {twice} traces there twice")
    sys.exit(1 if lost or twice or soak.failures else 0)


def report(soak: Soak, warnings: Counter[str]) -> None:
    for kind, count in soak.done.items():
        click.echo(f"{kind}: {count}" + (f", slowest {soak.slowest[kind]:.2f} s" if kind in soak.slowest else ""))
    click.echo(f"exchanges that the feed told of: {soak.told}")
    click.echo(f"failed: {dict(soak.failures) or 'none'}")
    for sample in soak.samples:
        click.echo(
            f"after {sample.at / 60:4.1f} min: {sample.rss_mib:6.1f} MiB resident, {sample.descriptors} descriptors, "
            f"{sample.cpu:.0f} s of CPU"
        )
    for kind, count in warnings.most_common():
        click.echo(f"{count} x {kind}")


if __name__ == "__main__":
    main()
