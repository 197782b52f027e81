import os
import signal
import subprocess
import sys
from pathlib import Path

from gemini_proxy.traces.store import TraceStore

# Commits without end from sixteen tasks and names each trace that was acknowledged.
PROGRAM = """
import asyncio, os, sys
from gemini_proxy.traces.recorder import Recorder
from gemini_proxy.traces.store import TraceStore
from tests.traces.samples import ANNOTATION, trace

async def client(recorder):
    while True:
        written = trace(annotations=(ANNOTATION,), log_rules=({"id": "r"},))
        if await recorder.commit(written):
            os.write(1, written.id.encode() + b"\\n")

async def main():
    recorder = Recorder(await TraceStore.open(sys.argv[1]))
    await asyncio.gather(recorder.run(), *(client(recorder) for _ in range(16)))

asyncio.run(main())
"""


async def test_no_acknowledged_trace_is_lost_to_kill_9(database_url: str) -> None:
    acknowledged: list[str] = []
    for lines in (1, 80, 160):
        acknowledged += _acknowledged_before_kill(database_url, lines)
    store = await TraceStore.open(database_url)
    stored = {trace.id: trace async for trace in store.export()}
    await store.close()
    assert len(acknowledged) >= 241
    assert set(acknowledged) <= stored.keys()
    assert all(len(stored[identity].annotations) == 1 for identity in acknowledged)


def _acknowledged_before_kill(database_url: str, lines: int) -> list[str]:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, database_url],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    read = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().splitlines(keepends=True)
    process.stdout.close()
    process.wait()
    return [line.decode().strip() for line in (*read, *rest) if line.endswith(b"\n")]
