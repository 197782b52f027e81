"""What one user asks for takes nothing from another, nor from the exchanges."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from gemini_proxy.errors import Unavailable
from gemini_proxy.http import fair_lock
from gemini_proxy.http.fair_lock import FairLock
from tests.explorer.api import Api
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary

Log = list[str]
ENDLESS = (
    'raise "x" if:\n    (a: Message)\n    (b: Message)\n    (c: Message)\n    (d: Message)\n'
    "    a.content == b.content + c.content + d.content\n"
)


class Tasks:
    """Tasks that end with their test, however that ends."""

    def __init__(self) -> None:
        self._made: list[asyncio.Task[None]] = []

    def create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._made.append(asyncio.create_task(work))
        return self._made[-1]

    async def end(self) -> None:
        for task in self._made:
            task.cancel()
        await asyncio.gather(*self._made, return_exceptions=True)


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    made = Tasks()
    yield made
    await made.end()


async def take(shared: FairLock, user: str, log: Log, go: asyncio.Event) -> None:
    async with shared.hold(user):
        log.append(user)
        await go.wait()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_users_take_turns(tasks: Tasks) -> None:
    """Who came last waits for one of each other user's calls, not for all of them."""
    shared, log, go = FairLock(), Log(), asyncio.Event()
    for user in ("ann", "ann", "ann", "ann", "bob"):
        tasks.create_task(take(shared, user, log, go))
    await settled()
    assert log == ["ann"]
    go.set()
    await settled()
    assert log.index("bob") == 1
    assert len(log) == 5


async def test_what_waits_is_bounded(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call too many of a user is refused; another user's is not, and neither is the user's own a little later."""
    monkeypatch.setattr(fair_lock, "MAX_WAITING", 2)
    shared, log, go = FairLock(), Log(), asyncio.Event()
    for _ in range(2):
        tasks.create_task(take(shared, "ann", log, go))
    await settled()
    with pytest.raises(Unavailable):
        await take(shared, "ann", log, go)
    tasks.create_task(take(shared, "bob", log, go))
    go.set()
    await settled()
    await take(shared, "ann", log, go)
    assert sorted(log) == ["ann", "ann", "ann", "bob"]


async def test_a_caller_that_leaves_gives_its_turn_away(tasks: Tasks) -> None:
    """Waiting or at it, a cancelled call holds up nobody."""
    shared, log, never, go = FairLock(), Log(), asyncio.Event(), asyncio.Event()
    leaving = [tasks.create_task(take(shared, "ann", log, never)) for _ in range(3)]
    await settled()
    for task in leaving:
        task.cancel()
    await settled()
    go.set()
    await take(shared, "bob", log, go)
    assert log == ["ann", "bob"]


async def test_checks_that_users_ask_for_leave_exchanges_alone(
    closed: Proxy, alice: Api, bob: Api, upstream: ScriptedUpstream
) -> None:
    """While long checks of one user fill their process, another's large request is answered at once."""
    upstream.reply(unary(candidate("hello", "STOP")))
    asked = {"policy": ENDLESS, "messages": [{"role": "user", "content": f"{number}"} for number in range(120)]}
    headers = {"x-goog-api-key": f"K;invariant-auth={bob.key}"}
    async with asyncio.TaskGroup() as tasks:
        checks = [tasks.create_task(alice.call("POST", "/policy/check", asked)) for _ in range(6)]
        started = time.perf_counter()
        for _ in range(3):
            async with bob.session.post(closed.method(), json=prompt("x" * 600_000), headers=headers) as answer:
                assert answer.status == 200
        assert time.perf_counter() - started < 4
        assert (await bob.call("POST", "/policy/load", {"policy": ENDLESS}))[0] == 200
        assert not any(check.done() for check in checks)
        for check in checks:
            check.cancel()
