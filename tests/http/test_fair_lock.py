"""Who goes first where there is little: clocks that the tests set, no processes."""

import asyncio

import pytest

from gemini_proxy.errors import Unavailable
from gemini_proxy.http.fair_lock import HALF_LIFE, Turns


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def use(turns: Turns, user: str, seconds: float, clock: Clock) -> None:
    async with turns.of(user):
        clock.now += seconds


async def test_who_had_least_time_of_late_goes_first() -> None:
    clock = Clock()
    turns = Turns(clock=clock)
    await use(turns, "ann", 5.0, clock)
    await use(turns, "bob", 1.0, clock)
    order: list[str] = []

    async def wait(user: str) -> None:
        async with turns.of(user):
            order.append(user)

    give_back = await turns.take("cid")
    async with asyncio.TaskGroup() as tasks:
        for user in ("ann", "bob", "dan"):
            tasks.create_task(wait(user))
        await asyncio.sleep(0)
        give_back()
    assert order == ["dan", "bob", "ann"]


async def test_nobody_has_more_places_than_their_own() -> None:
    turns = Turns(2)
    give_back = await turns.take("ann")
    second = asyncio.ensure_future(turns.take("ann"))
    await asyncio.sleep(0)
    (await asyncio.wait_for(turns.take("bob"), 5))()
    assert not second.done()
    give_back()
    (await asyncio.wait_for(second, 5))()


async def test_an_allowance_that_is_used_up_comes_back() -> None:
    clock = Clock()
    turns = Turns(allowance=10.0, clock=clock)
    await use(turns, "ann", 12.0, clock)
    with pytest.raises(Unavailable, match="processor time"):
        await turns.take("ann")
    await use(turns, "bob", 0.1, clock)
    clock.now += HALF_LIFE
    await use(turns, "ann", 0.1, clock)


async def test_a_place_granted_to_one_who_leaves_goes_to_the_next() -> None:
    turns = Turns()
    give_back = await turns.take("ann")
    leaving = asyncio.ensure_future(turns.take("bob"))
    await asyncio.sleep(0)
    give_back()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    (await asyncio.wait_for(turns.take("cid"), 5))()
