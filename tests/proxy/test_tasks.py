"""Tasks that must live: started again after a failure, and seen while they are down."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from gemini_proxy.proxy.tasks import LONGEST_PAUSE, Tasks
from gemini_proxy.server.app_keys import TASKS
from tests.conftest import StartProxy
from tests.server.test_metrics import scrape

SECRET = "sk-a-secret-that-nobody-may-read"


class _Clock:
    """A clock on which a pause is over at once, and noted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        await self.sleep(seconds)


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
async def tasks(clock: _Clock) -> AsyncIterator[Tasks]:
    tasks = Tasks(clock)
    yield tasks
    await tasks.close(0.0)


class _Failing:
    """Work that fails ``times`` times, each after a look at the clock, and then returns."""

    def __init__(self, times: int, fail: Callable[[int], BaseException | None]) -> None:
        self._times = times
        self._fail = fail
        self.starts = 0

    async def run(self) -> None:
        self.starts += 1
        if self.starts <= self._times and (error := self._fail(self.starts)) is not None:
            raise error


async def test_a_task_that_must_live_is_started_again_after_pauses_that_grow(tasks: Tasks, clock: _Clock) -> None:
    work = _Failing(12, lambda _: LookupError())
    await tasks.keep(work.run, "digest")
    assert tasks.restarts == {"digest": 12}
    assert clock.slept[:4] == [0.1, 0.2, 0.4, 0.8]
    assert clock.slept[-1] == LONGEST_PAUSE
    assert tasks.down == ()


async def test_its_pauses_are_as_short_as_asked_for(tasks: Tasks, clock: _Clock) -> None:
    await tasks.keep(_Failing(9, lambda _: LookupError()).run, "recorder", longest=0.5)
    assert max(clock.slept) == 0.5


async def test_it_is_logged_once_with_its_traceback_and_without_what_the_error_says(
    tasks: Tasks, clock: _Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(start: int) -> BaseException:
        # The second failure comes after an hour of work.
        clock.now += 3_600.0 if start == 4 else 0.0
        return ExceptionGroup(SECRET, [LookupError(SECRET)])

    await tasks.keep(_Failing(5, fail).run, "push")
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == 2
    assert logged[0].startswith("push failed and is started again: ExceptionGroup")
    assert "LookupError" in logged[0] and "in run" in logged[0] and __file__ in logged[0]
    assert SECRET not in "".join(logged)


async def test_a_future_that_is_cancelled_beneath_it_does_not_end_it(tasks: Tasks) -> None:
    await tasks.keep(_Failing(1, lambda _: asyncio.CancelledError()).run, "retention")
    assert tasks.restarts == {"retention": 1}


async def test_it_ends_when_it_is_cancelled(tasks: Tasks) -> None:
    kept = tasks.keep(asyncio.Event().wait, "feed")  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await tasks.close(0.0)
    assert kept.cancelled()
    assert tasks.restarts == {"feed": 0}


async def test_a_task_that_is_down_takes_the_server_out_of_service_by_its_name(
    start_proxy: StartProxy, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy()
    mended = asyncio.Event()

    async def work() -> None:
        if not mended.is_set():
            raise LookupError

    kept = proxy.app[TASKS].keep(work, "some work", longest=1.0)
    async with asyncio.timeout(30):
        while (answer := await _ready(client, proxy.url))[0] != 503:
            pass
        assert answer[1] == {"status": "a background task has failed", "down": ["some work"]}
        while (figures := await scrape(client, proxy))["gemini_proxy_task_up{task=some work}"]:
            pass
        mended.set()
        await kept
        assert (await _ready(client, proxy.url))[0] == 200
    assert figures["gemini_proxy_task_up{task=recorder}"] == 1
    assert figures["gemini_proxy_task_restarts_total{task=recorder}"] == 0
    assert (await scrape(client, proxy))["gemini_proxy_task_restarts_total{task=some work}"] >= 1


async def _ready(client: aiohttp.ClientSession, url: str) -> tuple[int, dict[str, object]]:
    async with client.get(f"{url}/readyz") as response:
        return response.status, await response.json()
