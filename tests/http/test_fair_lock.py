"""Who goes first where there is little: clocks that the tests set, no processes."""

import asyncio

import pytest

from gemini_proxy.errors import Unavailable
from gemini_proxy.http.fair_lock import HALF_LIFE, FairLock, PerUserSemaphore


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def use(lock: FairLock, user: str, seconds: float, clock: Clock) -> None:
    async with lock.hold(user):
        clock.now += seconds


async def test_who_had_least_time_of_late_goes_first() -> None:
    clock = Clock()
    lock = FairLock(clock=clock)
    await use(lock, "ann", 5.0, clock)
    await use(lock, "bob", 1.0, clock)
    order: list[str] = []

    async def wait(user: str) -> None:
        async with lock.hold(user):
            order.append(user)

    release = await lock.acquire("cid")
    async with asyncio.TaskGroup() as tasks:
        for user in ("ann", "bob", "dan"):
            tasks.create_task(wait(user))
        await asyncio.sleep(0)
        release()
    assert order == ["dan", "bob", "ann"]


async def test_nobody_has_more_places_than_their_own() -> None:
    lock = FairLock(2)
    release = await lock.acquire("ann")
    second = asyncio.ensure_future(lock.acquire("ann"))
    await asyncio.sleep(0)
    (await asyncio.wait_for(lock.acquire("bob"), 5))()
    assert not second.done()
    release()
    (await asyncio.wait_for(second, 5))()


async def test_an_allowance_that_is_used_up_comes_back() -> None:
    clock = Clock()
    lock = FairLock(allowance=10.0, clock=clock)
    await use(lock, "ann", 12.0, clock)
    with pytest.raises(Unavailable, match="processor time"):
        await lock.acquire("ann")
    await use(lock, "bob", 0.1, clock)
    clock.now += HALF_LIFE
    await use(lock, "ann", 0.1, clock)


async def test_a_place_granted_to_one_who_leaves_goes_to_the_next() -> None:
    lock = FairLock()
    release = await lock.acquire("ann")
    leaving = asyncio.ensure_future(lock.acquire("bob"))
    await asyncio.sleep(0)
    release()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    (await asyncio.wait_for(lock.acquire("cid"), 5))()


async def test_places_are_given_in_turn_and_users_forgotten() -> None:
    semaphore = PerUserSemaphore(1)
    order: list[str] = []

    async def use(name: str) -> None:
        release = await semaphore.acquire("user")
        order.append(name)
        await asyncio.sleep(0)
        release()

    tasks = [asyncio.create_task(use(name)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["a", "c"]
    assert not semaphore._entries
