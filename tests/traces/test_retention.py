"""Old traces go by a clock that can be believed, and by no other."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from gemini_proxy.traces.clock import PLAUSIBLE_AFTER, Agreement
from gemini_proxy.traces.retention import DAY, Retention
from gemini_proxy.traces.store import LOOK, TraceStore
from tests.traces.samples import trace

NOW = 1_790_000_000.0
HOUR = 3_600.0


class TwoClocks:
    """A wall clock and a monotonic one, moved by sleep alone; ``ahead``: the former's error at a moment."""

    def __init__(self, ahead: Callable[[float], float], ends: float) -> None:
        self.passed = 0.0
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


async def retain(store: TraceStore, ahead: Callable[[float], float], hours: float) -> None:
    clock = TwoClocks(ahead, hours * HOUR)
    running = asyncio.create_task(Retention(store, lambda: 30, clock=clock, monotonic=clock.monotonic).run())
    ended = asyncio.create_task(clock.ended.wait())
    await asyncio.wait([running, ended], return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


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
    await retain(store, lambda at: 40 * DAY if begins <= at < begins + 3 else 0.0, hours=5)
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


def test_a_clock_is_believed_again_when_it_has_gone_right_for_an_hour() -> None:
    agreement = Agreement()
    believed = [
        at for at in range(0, 20_000, 60) if agreement.plausible(NOW + at * 1.0004 + (900 if at >= 9_000 else 0), at)
    ]
    assert believed[0] == PLAUSIBLE_AFTER
    assert [at for at in believed if at >= 9_000][0] == 9_000 + PLAUSIBLE_AFTER
