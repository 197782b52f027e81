"""``python -m bench.retention sqlite|postgresql``: the bytes that a trace takes, and what deleting a day costs.

Traces of one day, 31 days ago, are written and indexed; then ``delete_before`` removes them while single traces are
written one after the other. In PostgreSQL they are a partition, which is dropped, or with ``--rows`` a part of the
current one. The server is started for it, as the tests start theirs.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from sqlalchemy import Connection
from tests.support.postgres import find_programs, running_server

from bench.million import fill, index
from bench.million_traces import made_up
from gemini_proxy.traces.database import bytes_in_use
from gemini_proxy.traces.rows import encode
from gemini_proxy.traces.store import TraceStore

AGE: Final = 31.0
"""Days."""
_DAY: Final = 86_400.0
_ALONE: Final = 3.0
"""Seconds for which traces are written before the deletion begins."""
_KINDS: Final = ("sqlite", "postgresql")


@dataclass(frozen=True, slots=True)
class Figures:
    """Bytes of each table for a trace; the deletion's seconds and bytes of write-ahead log (PostgreSQL only).

    The longest commits of the writer are in milliseconds, and how many there were in commits a second, before the
    deletion and during it.
    """

    traces: int
    bytes_each: dict[str, float]
    seconds: float
    log_bytes: int | None
    longest_alone: float
    longest_meanwhile: float
    commits_alone: float
    commits_meanwhile: float


@contextlib.contextmanager
def database(kind: str) -> Iterator[str]:
    """The URL of an empty database, gone at the end."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="gemini-proxy-retention-", dir="/tmp") as folder:
            yield f"sqlite:///{Path(folder) / 'traces.db'}"
        return
    programs = find_programs()
    if programs is None:
        raise click.ClickException("PostgreSQL is not installed")
    with running_server(programs) as server:
        asyncio.run(server.execute("CREATE DATABASE bench"))
        yield server.url("bench")


async def measure(url: str, count: int, alone: float = _ALONE, *, rows: bool = False) -> Figures:
    """Fill the empty database at ``url`` with ``count`` traces, and delete them while others are written.

    With ``rows`` they have no partition of their own.
    """
    store = await TraceStore.open(url)
    try:
        empty = await store.database.read(_sizes)
        now = time.time()
        await fill(store, count, now - AGE * _DAY, days=1.0)
        await index(store)
        full = await store.database.read(_sizes)
        if not rows:
            await store.turn_partition(now, None)
        taken: list[float] = []
        ended = asyncio.Event()
        writer = asyncio.create_task(_write(store, taken, ended))
        await asyncio.sleep(alone)
        before, log, started = len(taken), await store.database.read(_log_position), time.perf_counter()
        await store.delete_before(now - (AGE - 1) * _DAY)
        seconds, after = time.perf_counter() - started, len(taken)
        written = await store.database.read(_log_position)
        ended.set()
        await writer
    finally:
        await store.close()
    return Figures(
        count,
        {name: (size - empty.get(name, 0)) / count for name, size in full.items()},
        seconds,
        None if log is None or written is None else written - log,
        max(taken[:before], default=0.0) * 1000,
        max(taken[before:], default=0.0) * 1000,
        before / alone,
        (after - before) / seconds,
    )


async def _write(store: TraceStore, taken: list[float], ended: asyncio.Event) -> None:
    """Write traces until ``ended``, the one under way included, and note the seconds of each commit."""
    for trace in made_up(1_000_000, time.time(), seed=2, days=0.0):
        row = encode(trace)
        started = time.perf_counter()
        await store.write([row])
        taken.append(time.perf_counter() - started)
        if ended.is_set():
            return


def _sizes(connection: Connection) -> dict[str, int]:
    if connection.dialect.name == "sqlite":
        return {"all": bytes_in_use(connection)}
    query = "SELECT regexp_replace(relname, '_[0-9]+$', ''), sum(pg_total_relation_size(relid))"
    tables = connection.exec_driver_sql(f"{query} FROM pg_stat_user_tables GROUP BY 1")
    sizes = {name: int(size) for name, size in tables}
    return {**sizes, "all": sum(sizes.values())}


def _log_position(connection: Connection) -> int | None:
    """Bytes of write-ahead log that PostgreSQL has ever written."""
    if connection.dialect.name == "sqlite":
        return None
    query = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
    return int(connection.exec_driver_sql(query).scalar_one())


def report(figures: Figures) -> str:
    """Every figure, a line each."""
    lines = [f"{figures.traces} traces of one day"]
    lines += [f"bytes a trace, {name}: {size:.0f}" for name, size in figures.bytes_each.items() if size >= 1]
    lines.append(f"deleted in {figures.seconds:.1f} s")
    if figures.log_bytes is not None:
        lines.append(f"write-ahead log meanwhile: {figures.log_bytes / 1e6:.0f} MB")
    lines.append(f"longest commit: {figures.longest_alone:.0f} ms before, {figures.longest_meanwhile:.0f} ms meanwhile")
    lines.append(f"commits a second: {figures.commits_alone:.0f} before, {figures.commits_meanwhile:.0f} meanwhile")
    return "\n".join(lines)


@click.command(help=(__doc__ or "").partition("\n\n")[2])
@click.argument("kind", type=click.Choice(_KINDS))
@click.option("--traces", type=click.IntRange(100), default=100_000, show_default=True)
@click.option("--rows", is_flag=True, help="Delete row by row in PostgreSQL, too.")
def main(kind: str, traces: int, rows: bool) -> None:
    with database(kind) as url:
        click.echo(report(asyncio.run(measure(url, traces, rows=rows))))


if __name__ == "__main__":
    main()
