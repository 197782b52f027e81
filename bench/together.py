"""``python -m bench.together``: several processes on one address (``server.processes``) beside one process.

How connections spread over the processes, requests a second and CPU per request at 32 connections, and memory. Clients
and upstream run on this machine as well: what they take of its processors the server lacks.
"""

import asyncio
import re
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final

import click
from tests.cli.process import write_config
from tests.support.postgres import find_programs, running_server

from bench.peers import TWO_RULES, load
from bench.processes import ServerProcess, module, serving
from bench.workload import Workload

_OPEN: Final = re.compile(r"^process_open_fds(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)
_FRESH: Final = 1.2
"""Seconds after which every process has written how many descriptors it has open."""


@contextmanager
def proxies(
    database: str, upstream: ServerProcess, counts: Sequence[int], folder: Path
) -> Iterator[list[ServerProcess]]:
    """A server of each number of processes, on one database."""
    with ExitStack() as stack:
        servers = []
        for count in counts:
            config = write_config(
                folder,
                f"{count}.toml",
                server={"listen": ["127.0.0.1:0"], "processes": count},
                upstream={"base_url": f"http://127.0.0.1:{upstream.port}"},
                guardrails={"policies": [str(TWO_RULES)]},
                traces={"database": database},
            )
            argv = module("gemini_proxy", "--config", str(config), "serve")
            servers.append(stack.enter_context(serving(argv, folder / f"{count}.log")))
        yield servers


def opened(server: ServerProcess) -> list[int]:
    """Descriptors that each process has open."""
    time.sleep(_FRESH)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
        return [int(float(value)) for value in _OPEN.findall(response.read().decode())]


def spread_over(server: ServerProcess, connections: int, *, at_once: bool) -> list[int]:
    """How many of so many new connections each process has taken."""
    before = opened(server)

    async def connect() -> list[socket.socket]:
        sockets = [socket.socket() for _ in range(connections)]
        for one in sockets:
            one.setblocking(False)
        loop = asyncio.get_running_loop()
        steps = [loop.sock_connect(one, ("127.0.0.1", server.port)) for one in sockets]
        if at_once:
            await asyncio.gather(*steps)
        else:
            for step in steps:
                await step
        return sockets

    sockets = asyncio.run(connect())
    after = opened(server)
    for one in sockets:
        one.close()
    return [now - then for now, then in zip(after, before, strict=True)]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one load gave: requests a second, and milliseconds of CPU and of waiting for a request."""

    rate: float
    cpu: float
    p50: float
    p99: float
    failed: int


def throughput(server: ServerProcess, requests: int) -> Measured:
    """Put a load of 32 connections on a server that has served before."""
    workload = Workload("unary", server.port, 32, requests)
    load(replace(workload, total=max(32, requests // 5)))
    before = server.cpu_seconds
    result = load(workload)
    time.sleep(0.2)
    cpu = (server.cpu_seconds - before) * 1e3 / max(1, result.done)
    first = result.first
    return Measured(
        result.done / result.seconds, cpu, first.p50 if first else 0.0, first.p99 if first else 0.0, result.failed
    )


@click.command()
@click.option("--requests", default=6000, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--processes", "counts", default=(1, 2), multiple=True, show_default=True, help="May be repeated.")
def main(requests: int, repeats: int, counts: Sequence[int]) -> None:
    """Print what was measured, for SQLite and, where it is installed, for PostgreSQL."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(serving(module("bench.upstream"), folder / "upstream.log"))
        databases = {"SQLite": f"sqlite:///{folder / 'traces.db'}"}
        if (programs := find_programs()) is not None:
            server = stack.enter_context(running_server(programs))
            asyncio.run(server.execute("CREATE DATABASE traces"))
            databases["PostgreSQL"] = server.url("traces")
        for name, database in databases.items():
            with proxies(database, upstream, counts, folder) as servers:
                compare(name, servers, counts, requests, repeats)


def compare(name: str, servers: Sequence[ServerProcess], counts: Sequence[int], requests: int, repeats: int) -> None:
    """Measure servers of so many processes in turn, and print a line for each."""
    found: list[list[Measured]] = [[] for _ in servers]
    for _ in range(repeats):
        for server, measured in zip(servers, found, strict=True):
            measured.append(throughput(server, requests))
    for server, measured, count in zip(servers, found, counts, strict=True):
        rate, cpu, p50, p99 = (_middle(measured, name) for name in ("rate", "cpu", "p50", "p99"))
        click.echo(
            f"{name}, {count} processes: {rate} requests/s, {cpu} ms of CPU a request, latency {p50} ms, p99 {p99} ms, "
            f"{sum(one.failed for one in measured)} failed, {server.rss_kib / 1024:.0f} MiB"
        )
    for server, count in zip(servers, counts, strict=True):
        for connections, at_once in product((32, 256), (False, True)):
            taken = ", ".join(map(str, spread_over(server, connections, at_once=at_once)))
            how = "at once" if at_once else "in turn"
            click.echo(f"{name}, {count} processes: {connections} connections {how}: {taken}")


def _middle(measured: Sequence[Measured], name: str) -> str:
    values = [getattr(one, name) for one in measured]
    form = ".0f" if name == "rate" else ".2f"
    return f"{statistics.median(values):{form}} ({min(values):{form}}..{max(values):{form}})"


if __name__ == "__main__":
    main()
