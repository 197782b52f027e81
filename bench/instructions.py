"""``python -m bench.instructions``: counts the instructions of an exchange and of an event, beside the pass-through.

Valgrind counts them, so that a quiet machine gives the same figures again within a percent, where the clock gives a
tenth more or less: for comparing two versions. Servers run fifty times slower under it, and work that timers begin
counts with the time that passes: run it alone. CPU time is what ``bench`` measures.
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click

from bench.peers import Peer, Setting, Stage, load, staged
from bench.processes import ProcessError
from bench.workload import LoadResult, Workload

_CALLGRIND: Final = ("valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file={folder}/callgrind.%p")
_TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)
_PATIENCE: Final = 300.0
"""Seconds that a load may take."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a load cost: instructions for each of what it did."""

    exchange: float
    event: float


@click.command()
@click.option("--before", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Also that checkout.")
@click.option("--stream-check", type=click.Choice(["final", "window", "hold"]), default="final", show_default=True)
@click.option("--exchanges", default=400, show_default=True, help="Unary exchanges that are counted.")
@click.option("--streams", default=8, show_default=True, help="Streams of 100 events that are counted, 0 for none.")
def main(before: Path | None, stream_check: str, exchanges: int, streams: int) -> None:
    """Print thousands of instructions for a unary exchange and for an event of a stream, and their ratios.

    What the kernel does is not counted.
    """
    for tool in ("valgrind", "callgrind_control"):
        if shutil.which(tool) is None:
            raise click.ClickException(f"{tool} was not found: install valgrind")
    try:
        with tempfile.TemporaryDirectory(prefix="gemini-proxy-bench-") as name:
            folder = Path(name)
            under = tuple(word.format(folder=folder) for word in _CALLGRIND)
            setting = Setting(stream_check, before=before, under=under)
            with staged(folder, setting) as stage:
                peers = (Peer.PASS_THROUGH, *setting.extra, Peer.PROXY)
                _print({peer: _count(stage, peer, folder, exchanges, streams) for peer in peers})
    except ProcessError as error:
        raise click.ClickException(str(error)) from None


def _count(stage: Stage, peer: Peer, folder: Path, exchanges: int, streams: int) -> _Counted:
    """Count a warmed server's instructions. Raises ProcessError if anything failed."""
    server = stage.servers[peer]
    unary = Workload("unary", server.process.port, 8, 100, timeout=_PATIENCE)
    paced = replace(unary, kind="stream", total=streams, events=100, interval_ms=100, spread_ms=100)
    _load(unary)
    counter = _Counter(server.process.pid, folder)
    exchange = counter.count(replace(unary, total=exchanges)) / exchanges
    if not streams:
        return _Counted(exchange, 0.0)
    counter.count(replace(paced, events=10))
    return _Counted(exchange, counter.count(paced) / (streams * paced.events))


class _Counter:
    """Callgrind in one process: counts while a load runs."""

    def __init__(self, pid: int, folder: Path) -> None:
        self._pid = pid
        self._folder = folder
        self._dumps = 0

    def count(self, workload: Workload) -> int:
        """Return the instructions of ``workload``, and of the work after its last answer. Raises ProcessError."""
        self._control("--instr=on")
        self._control("--zero")
        _load(workload)
        self._control("--dump")
        self._control("--instr=off")
        self._dumps += 1
        file = self._folder / f"callgrind.{self._pid}.{self._dumps}"
        if not (totals := _TOTALS.search(file.read_text())):
            raise ProcessError(f"{file.name} has no totals")
        return int(totals[1])

    def _control(self, command: str) -> None:
        done = subprocess.run(["callgrind_control", command, str(self._pid)], capture_output=True, text=True)
        if done.returncode:
            raise ProcessError(f"callgrind_control {command}: {done.stdout}{done.stderr}")


def _load(workload: Workload) -> LoadResult:
    result = load(workload)
    if result.failed:
        raise ProcessError(f"{result.failed} of {workload.total} failed")
    return result


def _print(counted: dict[Peer, _Counted]) -> None:
    base = counted[Peer.PASS_THROUGH]
    for peer, one in counted.items():
        line = f"{peer:13} exchange {one.exchange / 1e3:8.1f}k {one.exchange / base.exchange:5.2f}"
        if base.event:
            line += f"   event {one.event / 1e3:7.1f}k {one.event / base.event:5.2f}"
        click.echo(line)


if __name__ == "__main__":
    main()
