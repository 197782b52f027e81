"""``python -m bench.writes``: what writing a trace to SQLite costs, one that comes alone and one of a batch of 32.

The processor's time of the whole process, loop and writer's thread, and the time from the store's call to its return;
medians over the rounds. With the ``src`` folder of another checkout in PYTHONPATH that one is measured.
"""

import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from gemini_proxy.traces.rows import TraceRow, encode
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Outcome, Trace

ROUNDS: Final = 30
WRITES: Final = 200
"""Of each round."""
_MESSAGES: Final = [
    {"role": "user", "content": "How do I get from Oban to Barra in March, and what should I pack?"},
    {"role": "assistant", "content": "The ferry leaves at seven and takes an hour and a half, so bring a coat. " * 15},
]


def _row() -> TraceRow:
    return encode(
        Trace(
            id=str(uuid.uuid4()),
            created=time.time(),
            outcome=Outcome.COMPLETED,
            messages=_MESSAGES,
            dataset="bench",
            model="bench-1",
            metadata={"usage": {"promptTokenCount": 104, "candidatesTokenCount": 187}, "latencies_ms": {"first": 1.2}},
        )
    )


async def measure(folder: Path, size: int) -> tuple[float, float]:
    """Microseconds of the processor, and of the clock, that each trace of a batch of ``size`` takes."""
    store = await TraceStore.open(f"sqlite:///{folder}/traces-{size}.db")
    try:
        await store.write([_row()])
        rounds = [await _round(store, [[_row() for _ in range(size)] for _ in range(WRITES)]) for _ in range(ROUNDS)]
    finally:
        await store.close()
    cpu, clock = (statistics.median(each) / WRITES / size * 1e6 for each in zip(*rounds, strict=True))
    return cpu, clock


async def _round(store: TraceStore, batches: Sequence[Sequence[TraceRow]]) -> tuple[float, float]:
    cpu, clock = time.process_time(), time.perf_counter()
    for batch in batches:
        await store.write(batch)
    return time.process_time() - cpu, time.perf_counter() - clock


@click.command()
def main() -> None:
    """Measure both."""
    with tempfile.TemporaryDirectory() as folder:
        for title, size in (("a lone trace", 1), ("each of a batch of 32", 32)):
            cpu, clock = asyncio.run(measure(Path(folder), size))
            click.echo(f"{title}: {cpu:.0f} \N{MICRO SIGN}s of CPU, {clock:.0f} \N{MICRO SIGN}s until it is durable")


if __name__ == "__main__":
    main()
