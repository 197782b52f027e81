"""Those who watch a server under measurement, seen from the process that measures."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench.processes import ProcessError, module, piped

WATCHERS: Final = 10
_PATIENCE: Final = 10.0
"""Seconds after a load in which its last exchange has to be told: by far more than the feed takes."""


@dataclass(frozen=True, slots=True)
class Told:
    """``least``: exchanges that each watcher was told of. ``failed``: watchers that were not told of all, and once."""

    least: int
    failed: int


class Audience:
    """Watchers that count what they are told of."""

    def __init__(self, watchers: "subprocess.Popen[bytes]", patience: float) -> None:
        self._watchers = watchers
        self._patience = patience

    def told(self, least: int, most: int) -> Told:
        """What the watchers were told since the last time: of ``least`` exchanges to ``most``, or they failed.

        Waits until they were told of ``least``, as long as its patience lasts. Raises ProcessError.
        """
        assert self._watchers.stdin
        self._watchers.stdin.write(json.dumps([least, self._patience]).encode() + b"\n")
        self._watchers.stdin.flush()
        counts = json.loads(_line(self._watchers))
        return Told(min(counts), sum(not least <= count <= most for count in counts))


@contextlib.contextmanager
def watching(port: int, count: int = WATCHERS, patience: float = _PATIENCE) -> Iterator[Audience]:
    """``count`` watchers of the server at ``port``, which miss nothing from now on. Raises ProcessError.

    ``patience``: seconds that they wait for what they have not been told of.
    """
    with piped(module("bench.watchers", str(port), str(count))) as watchers:
        _line(watchers)
        yield Audience(watchers, patience)


def _line(watchers: "subprocess.Popen[bytes]") -> bytes:
    """The watchers bound their own time, so the line comes or the pipe closes."""
    assert watchers.stdout
    line = watchers.stdout.readline()
    if not line:
        raise ProcessError(f"the watchers failed: {watchers.args!r}")
    return line
