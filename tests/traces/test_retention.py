"""Old traces go by a clock that can be believed, and by no other."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from gemini_proxy.traces.retention import DAY, PLAUSIBLE_AFTER, BelievedClock, ClockMark, Kept, Retention, next_mark
from gemini_proxy.traces.store import LOOK, TraceStore
from tests.traces.samples import trace

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

NOW = 1_790_000_000.0
HOUR = 3_600.0
THIRTY_DAYS = Kept(30)


class TwoClocks:
    """A wall clock and a monotonic one, moved by sleep alone; ``ahead``: the former's error at a moment."""

    def __init__(self, ahead: Callable[[float], float], begins: float, ends: float) -> None:
        self.passed = begins
        self.ended = asyncio.Event()
        self._ahead = ahead
        self._ends = ends

    def time(self) -> float:
        return NOW + self.passed + self._ahead(self.passed)

    def monotonic(self) -> float:
        return self.passed

    async def sleep(self, seconds: float) -> None:
        self.passed += seconds
        if self.passed > self._ends:
            self.ended.set()
            await asyncio.Event().wait()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        await self.sleep(seconds)


async def retain(
    store: TraceStore,
    ahead: Callable[[float], float],
    hours: float,
    *,
    begins: float = 0.0,
    boot: str = "first",
    kept: Kept = THIRTY_DAYS,
) -> None:
    """Run retention in a process of its own between two hours, ``begins`` and ``hours``."""
    clock = TwoClocks(ahead, begins * HOUR, hours * HOUR)
    believed = BelievedClock(store.database, clock=clock, monotonic=clock.monotonic, boot=boot)
    retention = Retention(store, lambda: kept, believed, clock=clock, monotonic=clock.monotonic)
    running = asyncio.create_task(retention.run())
    ended = asyncio.create_task(clock.ended.wait())
    await asyncio.wait([running, ended], return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def right(_: float) -> float:
    """A clock without an error."""
    return 0.0


async def aged(store: TraceStore, *days: float) -> list[str]:
    """Write a trace of each age; their ids."""
    written = [trace(created=NOW - age * DAY) for age in days]
    await store.add(written)
    return [one.id for one in written]


async def ids(store: TraceStore) -> list[str]:
    return [found.id async for found in store.export()]


@pytest.mark.parametrize("begins", [0.0, 0.5 * HOUR, 2 * HOUR])
async def test_a_clock_that_jumps_ahead_for_three_seconds_deletes_nothing(store: TraceStore, begins: float) -> None:
    old, *young = await aged(store, 31, 29, 1)
    await retain(store, lambda at: 40 * DAY if begins <= at < begins + 3 else 0.0, hours=begins / HOUR + 2)
    assert await ids(store) == young and old not in young


async def test_a_clock_that_stays_ahead_is_waited_for(store: TraceStore) -> None:
    _, *young = await aged(store, 31, 29, 1)
    await retain(store, lambda at: 40 * DAY if at >= 2 * HOUR else 0.0, hours=2.9)
    assert await ids(store) == young


async def test_nothing_is_deleted_in_the_first_hour(store: TraceStore) -> None:
    everything = await aged(store, 31, 29)
    await retain(store, lambda at: 0.0, hours=0.9)
    assert await ids(store) == everything


async def test_old_traces_behind_younger_ones_go_as_well(store: TraceStore) -> None:
    """A clock that was ahead wrote the first ones, more than are looked at at once."""
    await store.add([trace(created=NOW + 40 * DAY) for _ in range(LOOK + 1)])
    old, young = await aged(store, 31, 1)
    assert await store.delete_before(NOW - 30 * DAY, thorough=False) == 0
    await retain(store, lambda at: 0.0, hours=1.5)
    assert old not in await ids(store) and young in await ids(store)


async def test_a_server_that_is_restarted_every_twenty_minutes_deletes_as_well(store: TraceStore) -> None:
    _, young = await aged(store, 31, 29)
    for begins in (0.0, 0.3, 0.6):
        await retain(store, right, hours=begins + 0.3, begins=begins)
    assert len(await ids(store)) == 2
    await retain(store, right, hours=1.3, begins=0.95)
    assert await ids(store) == [young]


@pytest.mark.parametrize("boot", ["first", "second"])
async def test_a_clock_that_jumps_ahead_while_the_server_restarts_deletes_nothing(store: TraceStore, boot: str) -> None:
    await retain(store, right, hours=2)
    everything = await aged(store, 29, 1)
    await retain(store, lambda at: 40 * DAY if at < 2 * HOUR + 3 else 0.0, hours=5, begins=2.0, boot=boot)
    assert await ids(store) == everything


async def test_a_clock_that_is_ahead_after_the_machine_restarted_is_waited_for(store: TraceStore) -> None:
    await retain(store, right, hours=2)
    everything = await aged(store, 29, 1)
    await retain(store, lambda at: 40 * DAY, hours=2.9, begins=2.0, boot="second")
    assert await ids(store) == everything


async def test_a_machine_that_restarts_every_forty_minutes_deletes_as_well(store: TraceStore) -> None:
    _, young = await aged(store, 31, 29)
    await retain(store, right, hours=0.6)
    await retain(store, right, hours=1.3, begins=0.7, boot="second")
    assert await ids(store) == [young]


def test_a_clock_is_believed_again_when_it_has_gone_right_for_an_hour() -> None:
    believed: list[int] = []
    mark: ClockMark | None = None
    for at in range(0, 20_000, 60):
        mark = next_mark(mark, "first", NOW + at * 1.0004 + (900 if at >= 9_000 else 0), at)
        if mark.believed:
            believed.append(at)
    assert believed[0] == PLAUSIBLE_AFTER
    assert [at for at in believed if at >= 9_000][0] == 9_000 + PLAUSIBLE_AFTER


@sqlite_only
async def test_a_database_that_is_too_large_loses_its_oldest_traces(store: TraceStore) -> None:
    """At once, since no clock is needed for it; and one of them at a time is enough here."""
    written = [trace("x" * 200_000, created=NOW - age) for age in range(40, 0, -1)]
    await store.add(written)
    used = (await store.excess(0)).size
    await retain(store, right, hours=0.1, kept=Kept(0, used))
    assert len(await ids(store)) == 40
    await retain(store, right, hours=0.1, kept=Kept(0, used - 2_000_000))
    left = await ids(store)
    assert left == [one.id for one in written[-len(left) :]] and 28 <= len(left) <= 30
    assert (await store.excess(0)).size <= used - 2_000_000


@sqlite_only
async def test_a_limit_below_an_empty_database_ends(store: TraceStore) -> None:
    await aged(store, 2, 1)
    assert await store.shrink(1) == 2 and await store.shrink(1) == 0
