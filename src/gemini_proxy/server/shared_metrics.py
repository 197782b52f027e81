"""Combine the metrics of several processes: each writes its own where all can read them, and any process can sum them.

A process writes its counts before it shows them, and they outlive it: its successor continues from them. So no counter
ever decreases, whichever process is asked and whatever happened to the others.
"""

import asyncio
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

PERIOD: Final = 1.0
"""Seconds between two writes: so old are the figures of other processes at most, and so much is lost with a kill."""
_HALF: Final = 1 << 24
"""Bytes for one version of a page, of which memory is taken as far as they are used."""
_HEAD: Final = 16
_ATTEMPTS: Final = 5

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]
"""Values by the name and the labels of a sample, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Family:
    """The samples of one metric. ``type`` is ``counter``, ``gauge`` or ``histogram``."""

    name: str
    says: str
    type: str
    samples: Samples


Families = dict[str, Family]
Merge = Callable[[float, float], float]


def merged(parts: Iterable[Families], merges: Mapping[str, Merge]) -> Families:
    """Add families up, sample by sample. ``merges`` has, by name, those of which a sum would say nothing."""
    whole: Families = {}
    for part in parts:
        for family in part.values():
            into = whole.get(family.name)
            if into is None:
                into = whole[family.name] = Family(family.name, family.says, family.type, {})
            merge = merges.get(family.name, _sum)
            for key, value in family.samples.items():
                into.samples[key] = merge(into.samples[key], value) if key in into.samples else value
    return whole


def counted(families: Families) -> Families:
    """Return the families without gauges, as they count for a process that has ended."""
    return {name: family for name, family in families.items() if family.type != "gauge"}


def process_families(serving: int, restarts: int) -> Families:
    """Return metrics of the processes themselves, from their parent or from the only process."""
    name = "gemini_proxy_processes"
    processes = Family(name, "Processes that serve.", "gauge", {(name, ()): serving})
    name = "gemini_proxy_process_restarts"
    says = "Processes started to replace an ended one."
    started = Family(name, says, "counter", {(f"{name}_total", ()): restarts})
    return {family.name: family for family in (processes, started)}


def _sum(one: float, other: float) -> float:
    return one + other


class Page:
    """The file to which one process writes its families for the others to read.

    It has two versions, and the older one is overwritten: a process that is killed during a write leaves the newer one
    intact.
    """

    def __init__(self, descriptor: int) -> None:
        """``descriptor`` is that of a file in memory."""
        self._descriptor = descriptor
        self._count, _ = self._newest()

    def write(self, families: Families) -> None:
        """For one process at a time."""
        self._count += 1
        content = orjson.dumps([_dumped(family) for family in families.values()])
        assert len(content) <= _HALF - _HEAD, "labels are bounded: some kilobytes"
        head = self._count.to_bytes(8) + len(content).to_bytes(4)
        check = zlib.crc32(head + content).to_bytes(4)
        os.pwrite(self._descriptor, head + check + content, self._count % 2 * _HALF)

    def read(self) -> Families:
        """Return what was written last; nothing if nothing was."""
        _, content = self._newest()
        found = (_loaded(dumped) for dumped in orjson.loads(content or b"[]"))
        return {family.name: family for family in found}

    def _newest(self) -> tuple[int, bytes]:
        # The checksum reveals a version that is overwritten while it is read; the other one is newer then.
        for _ in range(_ATTEMPTS):
            heads = [os.pread(self._descriptor, _HEAD, half * _HALF) for half in (0, 1)]
            for half in sorted((0, 1), key=lambda half: heads[half][:8], reverse=True):
                head = heads[half]
                content = os.pread(self._descriptor, int.from_bytes(head[8:12]), half * _HALF + _HEAD)
                if head and zlib.crc32(head[:12] + content) == int.from_bytes(head[12:]):
                    return int.from_bytes(head[:8]), content
        return 0, b""


def _dumped(family: Family) -> Any:
    samples = [[name, labels, value] for (name, labels), value in family.samples.items()]
    return [family.name, family.says, family.type, samples]


def _loaded(dumped: Any) -> Family:
    name, says, kind, samples = dumped
    return Family(
        name, says, kind, {(of, tuple((key, value) for key, value in labels)): value for of, labels, value in samples}
    )


class SharedMetrics:
    """One process's part of what all processes of a server count.

    Families are passed in as counted since the start of this process; the counts of its predecessors are added.
    """

    def __init__(self, pages: Sequence[Page], number: int) -> None:
        """``pages`` are those of all processes, of which that of this process is ``pages[number]``."""
        self._pages = pages
        self._own = pages[number]
        self._before = counted(self._own.read())

    def write(self, families: Families) -> None:
        """Show this process's counts to the others."""
        self._own.write(merged((self._before, families), {}))

    def all(self, families: Families, merges: Mapping[str, Merge]) -> Families:
        """Return ``families`` of this process with those of the others: see ``merged``."""
        self.write(families)
        return merged((page.read() for page in self._pages), merges)

    async def follow(self, collect: Callable[[], Families]) -> None:
        """Write again and again, until cancelled."""
        while True:
            self.write(collect())
            await asyncio.sleep(PERIOD)
