"""The processes of a run: started, found ready, measured from /proc, and gone at the end whatever happened."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

_READY = re.compile(r"(?:listen\w*|running) on (?:http://)?127\.0\.0\.1:(\d+)")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_ROOT: Final = Path(__file__).parents[1]


class ProcessError(Exception):
    """A process of the run did not start, or did not do its work."""


class ServerProcess:
    """A server under measurement: where it listens and what it has used."""

    def __init__(self, popen: "subprocess.Popen[bytes]", port: int) -> None:
        self._popen = popen
        self.port = port

    @property
    def pid(self) -> int:
        """The process that was started, which may be another program that runs the server."""
        return self._popen.pid

    @property
    def cpu_seconds(self) -> float:
        """CPU time, user and system, of the process and its descendants so far. Resolution: a clock tick (10 ms)."""
        return cpu_seconds(self._popen.pid)

    @property
    def children(self) -> list[int]:
        """The processes that the process has started and that still run."""
        return _children(self._popen.pid)

    @property
    def own_rss_kib(self) -> float:
        """Resident memory of the process alone."""
        return _resident_pages(self._popen.pid) * _PAGE / 1024

    @property
    def descriptors(self) -> int:
        """Open descriptors of the process and its descendants."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in _tree(self._popen.pid))

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self._popen.send_signal(number)

    @property
    def rss_kib(self) -> float:
        """Resident memory of the process and its descendants."""
        return sum(_resident_pages(pid) for pid in _tree(self._popen.pid)) * _PAGE / 1024


@contextlib.contextmanager
def serving(
    argv: Sequence[str], log: Path, *, source: Path | None = None, timeout: float = 20.0
) -> Iterator[ServerProcess]:
    """Run a server that prints the port it listens on; its output goes to ``log``. Raises ProcessError.

    Its modules are looked for in the folder ``source`` first.
    """
    with log.open("wb") as output:
        popen = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=_ROOT, env=_environment(source),
            start_new_session=True,
        )  # fmt: skip
    with _ended(popen):
        yield ServerProcess(popen, _await_port(popen, log, timeout))


@contextlib.contextmanager
def piped(argv: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program with pipes for its standard input and output."""
    popen = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT, env=_environment(), start_new_session=True
    )
    with popen, _ended(popen):
        yield popen


def module(name: str, *arguments: str) -> list[str]:
    """The command line that runs module ``name`` with this interpreter."""
    return [sys.executable, "-m", name, *arguments]


def cpu_seconds(pid: int) -> float:
    """CPU time, user and system, of a process and its descendants, those that have ended included."""
    return sum(_cpu_ticks(found) for found in _tree(pid)) / _TICKS


def allow_many_sockets() -> None:
    """Raise this process's limit of open files, which its children inherit, as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _environment(source: Path | None = None) -> Mapping[str, str]:
    """Ours, without settings of the proxy that would change what is measured."""
    ours = {name: value for name, value in os.environ.items() if not name.upper().startswith("GEMINI_PROXY_")}
    return {**ours, "PYTHONPATH": str(source)} if source else ours


def _await_port(popen: "subprocess.Popen[bytes]", log: Path, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if ready := _READY.search(log.read_text()):
            return int(ready[1])
        if popen.poll() is not None:
            break
        time.sleep(0.02)
    raise ProcessError(f"{popen.args!r} did not start:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def _ended(popen: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End the process and its group on the way out: asked first, then killed."""
    try:
        yield
    finally:
        _signal_group(popen, signal.SIGTERM)
        try:
            popen.wait(3)
        except subprocess.TimeoutExpired:
            _signal_group(popen, signal.SIGKILL)
            popen.wait()


def _signal_group(popen: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    if popen.poll() is None:
        os.killpg(popen.pid, number)


def _tree(pid: int) -> list[int]:
    """``pid`` and its descendants."""
    found = [pid]
    for parent in found:
        found.extend(_children(parent))
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):
            found.extend(map(int, listed.read_text().split()))
    return found


def _cpu_ticks(pid: int) -> int:
    """Fields 14 to 17 of proc(5)'s stat, counted after the command's closing parenthesis; 0 where it has ended.

    The latter two are those of children that have ended and were waited for.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(map(int, fields[11:15]))


def _resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
