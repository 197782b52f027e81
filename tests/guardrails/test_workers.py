"""Processes for long work: they answer, they fail in words, and none outlives the server."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from gemini_proxy.errors import BadRequest, EngineUnavailable
from gemini_proxy.guardrails.workers import Workers

_SERVER = """
import asyncio, os, signal
from gemini_proxy.guardrails.workers import Workers

if __name__ == "__main__":
    print(asyncio.run(Workers(1).run_within('a', 30, os.getpid)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def workers() -> Workers:
    return Workers(1)


def refuse() -> None:
    raise BadRequest("no")


async def test_work_is_done_elsewhere(workers: Workers) -> None:
    assert await workers.run_within("a", 30, os.getpid) != os.getpid()
    workers.close()


async def test_exceptions_are_the_callers(workers: Workers) -> None:
    with pytest.raises(BadRequest, match="no"):
        await workers.run_within("a", 30, refuse)
    workers.close()


async def test_a_process_that_dies_is_no_verdict_and_is_replaced(workers: Workers) -> None:
    with pytest.raises(EngineUnavailable, match="died"):
        await workers.run_within("a", 30, os._exit, 1)
    assert await workers.run_within("a", 30, abs, -1) == 1
    workers.close()


async def test_a_process_that_is_stuck_is_ended(workers: Workers) -> None:
    """Nothing waits for a process longer than its time, and the next work does not wait behind it."""
    assert await workers.run_within("a", 30, abs, -1) == 1
    with pytest.raises(EngineUnavailable, match="timed out"):
        await workers.run_within("a", 0.2, time.sleep, 600)
    assert await workers.run_within("a", 30, abs, -2) == 2
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


async def test_work_that_waits_is_not_lost_with_work_that_is_stuck(workers: Workers) -> None:
    """Only what is stuck ends with its process: work that waited goes to a new one."""
    assert await workers.run_within("a", 30, abs, -1) == 1
    async with asyncio.TaskGroup() as tasks:
        stuck = tasks.create_task(_refused(workers.run_within("a", 0.3, time.sleep, 600)))
        waiting = [tasks.create_task(workers.run_within("a", 30, abs, -number)) for number in range(5)]
    assert "timed out" in stuck.result()
    assert [task.result() for task in waiting] == [0, 1, 2, 3, 4]
    workers.close()


async def test_work_that_finds_no_process_ends_nobody_elses(workers: Workers) -> None:
    """Its time is over while it waits: the process goes on with what it does."""
    assert await workers.run_within("a", 30, abs, -1) == 1
    async with asyncio.TaskGroup() as tasks:
        long = tasks.create_task(workers.run_within("a", 10, time.sleep, 0.5))
        impatient = tasks.create_task(_refused(workers.run_within("a", 0.05, abs, -1)))
    assert "free" in impatient.result()
    assert long.done()
    workers.close()


async def test_a_process_is_taken_until_its_work_has_ended(workers: Workers, tmp_path: Path) -> None:
    """A caller who leaves does not make the next one pay for the rest of its work."""
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    for pipe in (begun, ended):
        os.mkfifo(pipe)
    leaving = asyncio.ensure_future(workers.run_within("a", 60, _meet, begun, ended))
    await asyncio.to_thread(begun.read_bytes)
    leaving.cancel()
    assert "free" in await _refused(workers.run_within("a", 0.1, abs, -1))
    await asyncio.to_thread(ended.write_bytes, b"")
    assert await workers.run_within("a", 30, abs, -1) == 1
    workers.close()


def _meet(begun: Path, ended: Path) -> None:
    """Say that work has begun, and wait for its end: a pipe waits for who reads it and who writes to it."""
    begun.write_bytes(b"")
    ended.read_bytes()


async def _refused(work: Awaitable[object]) -> str:
    with pytest.raises(EngineUnavailable) as caught:
        await work
    return caught.value.message


async def test_work_over_its_time_ends_no_other() -> None:
    """A neighbor's work goes on in its own process, and what took the place of the ended one works."""
    two = Workers(2)
    async with asyncio.TaskGroup() as tasks:
        neighbour = tasks.create_task(two.run_within("b", 60, _until_killed_or, 1.0))
        stuck = tasks.create_task(_refused(two.run_within("a", 60, os.abort)))
        late = tasks.create_task(_refused(two.run_within("c", 60, os._exit, 1)))
    assert "died" in stuck.result()
    assert "died" in late.result()
    assert neighbour.result() != os.getpid()
    assert await two.run_within("a", 30, abs, -1) == 1
    two.close()


def _until_killed_or(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


async def test_what_runs_too_long_is_its_clients_alone() -> None:
    """Clients of whom one sends work that never ends: each of the others has its turn within its time."""
    two = Workers(2)
    assert await two.run_within("z", 30, abs, -1) == 1
    async with asyncio.TaskGroup() as tasks:
        stuck = [tasks.create_task(_refused(two.run_within("a", 3, time.sleep, 600))) for _ in range(6)]
        others = [tasks.create_task(two.run_within(f"b{number}", 3, abs, -number)) for number in range(8)]
    assert [task.result() for task in others] == list(range(8))
    assert {"timed out" in task.result() for task in stuck} == {True, False}
    two.close()
