"""A store of a million traces: how long its pages take, how fast it is written, and both at once.

    python -m bench.million [--traces 1000000] [--database URL] [--repeats 20] [--json FILE]

Without ``--database`` the store is made in a folder under /tmp (eight gigabytes for a million) and removed at the end;
one that holds traces already is measured as it is. Times are those of the store's methods, from call to result. A
PostgreSQL server's work is not in the processor's time.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from sqlalchemy import select

from bench.million_questions import Question, questions
from bench.million_traces import DAYS, made_up
from gemini_proxy.traces.rows import TraceRow, encode
from gemini_proxy.traces.schema import progress
from gemini_proxy.traces.search.indexer import Indexer
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.usage import INDEXER

BATCH: Final = 256
# Milliseconds, for every question's median.
GOAL: Final = 100
WRITING_SECONDS: Final = 5.0
# A second, for which new ones are made beforehand.
MOST_WRITTEN: Final = 6_000
READERS: Final = 4


@dataclass(frozen=True, slots=True)
class Times:
    """What a question took, in milliseconds, and how many traces or figures it found.

    ``cpu`` is the median of the processor's time, which says the same on a machine that is busy with something else.
    """

    title: str
    found: int
    median: float
    worst: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Something done again and again: how often a second, and how long the longest took in milliseconds."""

    title: str
    per_second: float
    worst: float


async def fill(store: TraceStore, count: int, until: float, days: float = DAYS) -> Rate:
    """Write ``count`` traces of the ``days`` before ``until``, in batches as the recorder does under load."""
    traces = made_up(count, until, days=days)
    seconds, worst = 0.0, 0.0
    while batch := [encode(trace) for trace in islice(traces, BATCH)]:
        started = time.perf_counter()
        await store.write(batch)
        took = time.perf_counter() - started
        seconds, worst = seconds + took, max(worst, took)
    return Rate("traces written, alone", count / seconds, worst * 1000)


async def index(store: TraceStore) -> Rate:
    """Take every trace into the search index and the figures, without the rests that a server makes."""
    indexer = Indexer(store.database, asyncio.Event())
    done = select(progress.c.seq).where(progress.c.name == INDEXER)
    before = await store.database.read(lambda connection: connection.execute(done).scalar()) or 0
    began, worst = time.perf_counter(), 0.0
    while True:
        started = time.perf_counter()
        if not await indexer.step():
            break
        worst = max(worst, time.perf_counter() - started)
    count = await store.newest_seq() - before
    return Rate("traces indexed, alone", count / (time.perf_counter() - began), worst * 1000)


async def ask(question: Question, repeats: int) -> Times:
    """A question's times, the first one's included: pages of the file may have to be read for it."""
    taken: list[float] = []
    worked: list[float] = []
    found = 0
    for _ in range(repeats):
        started, began = time.perf_counter(), time.process_time()
        found = await question.ask()
        taken.append((time.perf_counter() - started) * 1000)
        worked.append((time.process_time() - began) * 1000)
    return Times(question.title, found, statistics.median(taken), max(taken), statistics.median(worked))


async def write_for(store: TraceStore, rows: Sequence[TraceRow], title: str, seconds: float) -> Rate:
    """Write batches, one after the other, for a time."""
    began = time.perf_counter()
    worst, done = 0.0, 0
    while time.perf_counter() - began < seconds and done + BATCH <= len(rows):
        started = time.perf_counter()
        await store.write(rows[done : done + BATCH])
        worst = max(worst, time.perf_counter() - started)
        done += BATCH
    return Rate(title, done / (time.perf_counter() - began), worst * 1000)


async def write_while_read(
    store: TraceStore, indexer: Indexer, asked: Sequence[Question], rows: Sequence[TraceRow], seconds: float
) -> tuple[Rate, Rate]:
    """The rate of writing with READERS that ask every question in turn, and a indexer that follows; and of asking."""
    taken: list[float] = []

    async def read(first: int) -> None:
        turn = first
        while True:
            started = time.perf_counter()
            await asked[turn % len(asked)].ask()
            taken.append((time.perf_counter() - started) * 1000)
            turn += 1

    beside = [asyncio.create_task(read(number * 5)) for number in range(READERS)]
    beside.append(asyncio.create_task(indexer.run()))
    title, began = f"traces written, with {READERS} readers and the indexer", time.perf_counter()
    try:
        written = await write_for(store, rows, title, seconds)
        took = time.perf_counter() - began
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    return written, Rate("questions answered meanwhile", len(taken) / took, max(taken, default=0.0))


async def measure(url: str, count: int, repeats: int, seconds: float) -> tuple[list[Times], list[Rate]]:
    """Everything, on the store at ``url``, which is made if it is empty; each writing goes on for ``seconds``."""
    store = await TraceStore.open(url)
    database = store.database
    rates: list[Rate] = []
    try:
        now = time.time()
        if not await store.newest_seq():
            rates.append(await fill(store, count, now))
        rates.append(await index(store))
        asked = await questions(database)
        times = [await ask(question, repeats) for question in asked]
        half = BATCH + int(seconds * MOST_WRITTEN)
        new = [encode(trace) for trace in made_up(2 * half, now, seed=int(now), days=0.0)]
        rates.append(await write_for(store, new[:half], "traces written, to the full store", seconds))
        indexer = Indexer(database, asyncio.Event())
        rates.extend(await write_while_read(store, indexer, asked, new[half:], seconds))
        return times, rates
    finally:
        await store.close()


def report(times: Sequence[Times], rates: Sequence[Rate]) -> str:
    """Both tables, as plain text and Markdown at once."""
    width = max(len(title) for title in [*(row.title for row in times), *(row.title for row in rates)])
    line = "-" * (width + 2)
    lines = [
        f"| {'milliseconds':<{width}} | found | median |  worst | median of CPU |",
        f"|{line}|------:|-------:|-------:|--------------:|",
    ]
    lines += [
        f"| {row.title:<{width}} | {row.found:>5} | {row.median:6.1f} | {row.worst:6.1f} | {row.cpu:13.1f} |"
        for row in times
    ]
    lines += ["", f"| {'':<{width}} | a second | longest, ms |", f"|{line}|---------:|------------:|"]
    lines += [f"| {row.title:<{width}} | {row.per_second:8.0f} | {row.worst:11.0f} |" for row in rates]
    over = [row.title for row in times if row.median > GOAL]
    lines += ["", f"Over {GOAL} ms: {', '.join(over)}" if over else f"Every median is under {GOAL} ms."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.million", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--traces", type=int, default=1_000_000)
    parser.add_argument("--database", help="URL of a store to make, or to measure as it is")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args()
    folder = None if options.database else Path(tempfile.mkdtemp(prefix="gemini-proxy-million-", dir="/tmp"))
    try:
        url = options.database or f"sqlite:///{folder}/traces.db"
        times, rates = asyncio.run(measure(url, options.traces, options.repeats, WRITING_SECONDS))
    finally:
        if folder is not None:
            shutil.rmtree(folder)
    print(report(times, rates))
    if options.json:
        figures = {"times": [asdict(row) for row in times], "rates": [asdict(row) for row in rates]}
        options.json.write_text(json.dumps(figures, indent=1))
    sys.exit(any(row.median > GOAL for row in times))


if __name__ == "__main__":
    main()
