"""Processes for long work: they answer, they fail in words, and none outlives the server."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemini_proxy.errors import BadRequest, EngineUnavailable
from gemini_proxy.guardrails.workers import Workers

_SERVER = """
import asyncio, os, signal
from gemini_proxy.guardrails.workers import Workers

if __name__ == "__main__":
    print(asyncio.run(Workers(1).run(os.getpid)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def workers() -> Workers:
    return Workers(1)


def refuse() -> None:
    raise BadRequest("no")


async def test_work_is_done_elsewhere(workers: Workers) -> None:
    assert await workers.run(os.getpid) != os.getpid()
    workers.close()


async def test_exceptions_are_the_callers(workers: Workers) -> None:
    with pytest.raises(BadRequest, match="no"):
        await workers.run(refuse)
    workers.close()


async def test_a_process_that_dies_is_no_verdict_and_is_replaced(workers: Workers) -> None:
    with pytest.raises(EngineUnavailable, match="died"):
        await workers.run(os._exit, 1)
    assert await workers.run(abs, -1) == 1
    workers.close()


async def test_a_process_that_is_stuck_is_ended(workers: Workers) -> None:
    """Nothing waits for a process longer than its time, and the next work does not wait behind it."""
    assert await workers.run(abs, -1) == 1
    with pytest.raises(EngineUnavailable, match="longer"):
        await workers.run_within(0.2, time.sleep, 600)
    assert await workers.run(abs, -2) == 2
    workers.close()


async def test_processes_end_with_a_killed_server(tmp_path: Path) -> None:
    """``kill -9`` of the server leaves none of its processes behind."""
    script = tmp_path / "server.py"
    script.write_text(_SERVER)
    worker = await asyncio.to_thread(_killed, script)
    async with asyncio.timeout(10):
        await asyncio.to_thread(_wait_for_end, worker)


def _killed(script: Path) -> int:
    """Run the script, which kills itself, and give the process number that it printed."""
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30)
    return int(done.stdout)


def _wait_for_end(process: int) -> None:
    """Not a child of ours: all that can be done is to look."""
    while os.path.exists(f"/proc/{process}") and _state(process) != "Z":
        os.sched_yield()


def _state(process: int) -> str:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
