"""Seal traces once a day: keep their digests apart from them, and the digest of those in the audit log.

A seal covers what does not change after an exchange, and outlives its traces: what is still there is compared with it.
"""

import asyncio
import hashlib
import logging
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, func, insert, select

from gemini_proxy.traces.audit import AuditLog, Change, append
from gemini_proxy.traces.clock import Clock, SystemClock
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import trace_seals, traces

logger = logging.getLogger(__name__)

SEALED: Final = "traces.sealed"
MAX_SEALED: Final = 10_000
"""Traces of one seal: their digests are one value of 240 kB."""
_DAY: Final = 86_400.0
_LOOK: Final = 3_600.0
"""Seconds between two looks at whether a day has ended."""
_SOON: Final = 60.0
_REST: Final = 0.05
"""Seconds between two readings: others read as well."""
_STEP: Final = 100
_STEP_BYTES: Final = 4_194_304
"""Traces, and bytes of their messages, that are read at once; one is always read."""
_LEAF: Final = struct.Struct("!q16s")
_COLUMNS: Final = (
    "seq",
    "id",
    "created",
    "tenant",
    "outcome",
    "model",
    "stream",
    "duration_ms",
    "metadata",
    "messages",
)

Leaves = dict[int, bytes]


class Sealer:
    """Seal the traces of days that have ended, in one task, ``run()``.

    ``believed()`` is the Unix time, None while no clock is believed; ``wanted()`` says whether traces are sealed.
    """

    def __init__(
        self,
        database: Database,
        believed: Callable[[], float | None],
        wanted: Callable[[], bool],
        *,
        clock: Clock | None = None,
    ) -> None:
        self._database = database
        self._believed = believed
        self._wanted = wanted
        self._clock = clock or SystemClock()

    async def run(self) -> None:
        """Seal until cancelled."""
        while True:
            now = self._believed()
            try:
                if now is not None and self._wanted():
                    await self.seal(now)
            except StoreError as error:
                logger.warning("traces were not sealed: %s", error)
            # Shortly after a start no clock is believed yet.
            await self._clock.sleep(_SOON if now is None else _LOOK)

    async def seal(self, now: float) -> int:
        """Seal all traces if one is from a day before that of ``now`` and not sealed; return how many were."""
        after, last = await self._database.read(lambda connection: _unsealed(connection, now - now % _DAY))
        total = 0
        while after < last:
            leaves: Leaves = {}
            while after < last and len(leaves) < MAX_SEALED:
                read = await _read_leaves(self._database, after, last)
                if not read:
                    after = last
                    break
                leaves |= read
                after = max(read)
                await self._clock.sleep(_REST)
            if leaves:
                await self._database.write(partial(_keep, leaves=leaves))
            total += len(leaves)
        return total


@dataclass(slots=True)
class Checked:
    """The numbers of sealed traces that are unchanged, extended by the API since, and deleted."""

    unchanged: int = 0
    grown: int = 0
    gone: int = 0
    faults: list[str] = field(default_factory=list)


async def check_seals(database: Database) -> Checked:
    """Compare the traces that are there with their seals, and these with the audit log. Raises StoreError."""
    checked, log, after, reached = Checked(), AuditLog(database), 0, 0
    # Before the log: a seal is written in one transaction with its entry.
    unstated = await database.read(_kept_seals)
    while entries := await log.of_action(SEALED, after):
        for entry in entries:
            stated = load(entry.details)["after"]
            await _check_seal(database, stated, reached, checked)
            reached = stated["last"]
            unstated.discard((stated["first"], reached))
        after = entries[-1].seq
    checked.faults += [f"the seal of traces {first} to {last} is not in the log" for first, last in sorted(unstated)]
    return checked


async def _read_leaves(database: Database, after: int, last: int) -> Leaves:
    """Return the digests of the next traces after a number, by their numbers; none if there are no more up to ``last``.

    They are made in a thread: the event loop has no time for it.
    """
    rows = await database.read(lambda connection: _rows(connection, after, last))
    return await asyncio.to_thread(lambda: {row["seq"]: _leaf_of(row) for row in rows})


def _leaf_of(row: RowMapping) -> bytes:
    """Return the digest of what does not change of a trace: all but its dataset, which may be deleted."""
    digest = hashlib.sha256(dump([row[name] for name in _COLUMNS[:-2]]))
    for name in _COLUMNS[-2:]:
        digest.update(hashlib.sha256(row[name]).digest())
    return digest.digest()[:16]


async def _check_seal(database: Database, stated: Mapping[str, Any], reached: int, checked: Checked) -> None:
    """Check a seal, and the traces behind ``reached``, where the one before it ends."""
    first, last = stated["first"], stated["last"]
    blob = await database.read(
        lambda connection: connection.scalar(select(trace_seals.c.leaves).where(trace_seals.c.first == first))
    )
    if blob is None or hashlib.sha256(blob).hexdigest() != stated["digest"]:
        what = "is missing" if blob is None else "was changed"
        checked.faults.append(f"the seal of traces {first} to {last} {what}")
        return
    sealed = dict(_LEAF.iter_unpack(blob))
    grown = await database.read(lambda connection: _grown(connection, first, last))
    there, after = 0, min(reached, first - 1)
    while found := await _read_leaves(database, after, last):
        there += sum(seq in sealed for seq in found)
        checked.faults += _faults(sealed, found, grown)
        checked.unchanged += sum(sealed.get(seq) == leaf for seq, leaf in found.items())
        after = max(found)
    checked.grown += len(grown & sealed.keys())
    checked.gone += len(sealed) - there


def _faults(sealed: Leaves, found: Leaves, grown: set[int]) -> Iterator[str]:
    for seq, leaf in found.items():
        if seq not in sealed:
            yield f"trace number {seq} was added after its seal"
        elif leaf != sealed[seq] and seq not in grown:
            yield f"trace number {seq} was changed after its seal"


def _unsealed(connection: Connection, midnight: float) -> tuple[int, int]:
    """Return the numbers between which traces are to be sealed: none while the first of them is of today."""
    sealed = connection.scalar(select(func.max(trace_seals.c.last))) or 0
    first = select(traces.c.created).where(traces.c.seq > sealed).order_by(traces.c.seq).limit(1)
    created = connection.scalar(first)
    if created is None or created >= midnight:
        return sealed, sealed
    return sealed, connection.scalar(select(func.max(traces.c.seq))) or 0


def _rows(connection: Connection, after: int, last: int) -> Sequence[RowMapping]:
    wanted = (traces.c.seq > after, traces.c.seq <= last)
    sizes = select(traces.c.seq, func.length(traces.c.messages)).where(*wanted).order_by(traces.c.seq).limit(_STEP)
    numbers: list[int] = []
    total = 0
    for seq, size in connection.execute(sizes):
        total += size
        if numbers and total > _STEP_BYTES:
            break
        numbers.append(seq)
    if not numbers:
        return []
    query: Any = select(*(traces.c[name] for name in _COLUMNS)).where(
        traces.c.seq >= numbers[0], traces.c.seq <= numbers[-1]
    )
    return connection.execute(query.order_by(traces.c.seq)).mappings().all()


def _kept_seals(connection: Connection) -> set[tuple[int, int]]:
    return {(first, last) for first, last in connection.execute(select(trace_seals.c.first, trace_seals.c.last))}


def _grown(connection: Connection, first: int, last: int) -> set[int]:
    query = select(traces.c.seq).where(traces.c.seq.between(first, last), traces.c.updated.is_not(None))
    return set(connection.scalars(query))


def _keep(connection: Connection, leaves: Leaves) -> None:
    first, last = min(leaves), max(leaves)
    blob = b"".join(_LEAF.pack(seq, leaf) for seq, leaf in leaves.items())
    connection.execute(insert(trace_seals).values(first=first, last=last, leaves=blob))
    stated = {"first": first, "last": last, "count": len(leaves), "digest": hashlib.sha256(blob).hexdigest()}
    append(connection, Change(SEALED, f"traces {first} to {last}", "gemini-proxy", after=stated))
