"""What is kept in memory of a database, and never older than the question."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gemini_proxy.traces import revision
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.errors import StoreError, StoreUnavailable
from gemini_proxy.traces.revision import Revisions, Snapshots
from gemini_proxy.traces.store import TraceStore


@pytest.fixture
async def beside(store: TraceStore, database_url: str) -> AsyncIterator[TraceStore]:
    """Another process on the same database."""
    opened = await TraceStore.open(database_url)
    yield opened
    await opened.close()


async def advance(database: Database) -> None:
    await database.write(revision.advance)


class Loads:
    """Reads the revision and tells how often it was asked to, by key."""

    def __init__(self, database: Database) -> None:
        self.counts: Counter[str] = Counter()
        self._database = database

    async def __call__(self, key: str) -> tuple[int, str]:
        self.counts[key] += 1
        seen, number = await self._database.read(revision.stamped(revision.current))
        return seen, f"{key} at {number}"


async def test_a_revision_is_never_older_than_the_question(store: TraceStore, beside: TraceStore) -> None:
    """What another process has committed counts, also where many ask at once."""
    revisions = Revisions(store.database)
    for _ in range(5):
        before = await revisions.now()
        asked_before = asyncio.gather(*(revisions.now() for _ in range(5)))
        await advance(beside.database)
        assert set(await asyncio.gather(*(revisions.now() for _ in range(5)))) == {before + 1}
        assert set(await asked_before) <= {before, before + 1}


async def test_a_value_is_read_again_only_when_something_changed(store: TraceStore, beside: TraceStore) -> None:
    """Each key's on its own."""
    loads = Loads(store.database)
    kept = Snapshots(Revisions(store.database), loads, most=2)
    first = await kept.now("a")
    assert [await kept.now("a") for _ in range(3)] == [first] * 3
    await kept.now("b")
    assert loads.counts == {"a": 1, "b": 1}
    await advance(beside.database)
    assert await kept.now("a") != first
    assert loads.counts == {"a": 2, "b": 1}


async def test_the_values_asked_for_last_are_kept(store: TraceStore) -> None:
    """The one that nobody asked for longest goes."""
    loads = Loads(store.database)
    kept = Snapshots(Revisions(store.database), loads, most=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        await kept.now(key)
    assert loads.counts == {"a": 1, "b": 2, "c": 1}


async def test_a_value_that_cannot_be_read_is_asked_for_again(store: TraceStore) -> None:
    """Whoever asked gets the error; nothing is kept of it."""
    loads = Loads(store.database)
    down = True

    async def load(key: str) -> tuple[int, str]:
        if down:
            raise LookupError(key)
        return await loads(key)

    kept = Snapshots(Revisions(store.database), load)
    with pytest.raises(LookupError):
        await kept.now("a")
    down = False
    assert (await kept.now("a")).startswith("a at")


class Failing:
    """A database that takes a while to say that it cannot be used."""

    def __init__(self) -> None:
        self.looks = 0

    async def glance(self, query: str) -> int:
        self.looks += 1
        await asyncio.sleep(0)
        raise StoreError(f"look {self.looks}")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not asked for")


async def test_a_failure_is_shared_by_all_who_wait(store: TraceStore) -> None:
    """With a database that hangs, each look takes seconds: nobody waits for one after the other."""
    failing = Failing()
    revisions = Revisions(failing)
    answers = await asyncio.gather(*(revisions.now() for _ in range(20)), return_exceptions=True)
    assert all(isinstance(answer, StoreError) for answer in answers)
    assert failing.looks == 2
    with pytest.raises(StoreError, match="look 3"):
        await revisions.now()


class Away:
    """A database that is away for the first ``looks``."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    async def glance(self, query: str) -> int:
        self.looks -= 1
        if self.looks >= 0:
            raise StoreUnavailable("it is away")
        return 1

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not asked for")


async def test_a_database_that_is_away_for_a_moment_costs_no_answer() -> None:
    """As for a restart of PostgreSQL; what is read once something has changed is asked for again as well."""
    away = Away(2)
    revisions = Revisions(away)
    assert await asyncio.gather(*(revisions.now() for _ in range(5))) == [1] * 5

    async def load(key: str) -> tuple[int, str]:
        return await away.glance(key), key

    kept = Snapshots(revisions, load)
    away.looks = 2
    assert await kept.now("a") == "a"


async def test_nobody_waits_for_a_database_that_stays_away() -> None:
    """Those who ask when it has been away for longer than the patience learn it at once."""
    away = Away(1_000_000)
    revisions = Revisions(away, patience=0.2)
    began = time.monotonic()
    with pytest.raises(StoreError):
        await revisions.now()
    assert time.monotonic() - began > 0.1
    before = away.looks
    for _ in range(5):
        with pytest.raises(StoreError):
            await revisions.now()
    assert before - away.looks == 5
    away.looks = 0
    assert await revisions.now() == 1


async def test_who_leaves_while_they_look_takes_nobody_along(store: TraceStore) -> None:
    """Another one looks in their place."""
    revisions = Revisions(store.database)
    looking, waiting = (asyncio.create_task(revisions.now()) for _ in range(2))
    looking.cancel()
    assert await waiting == await revisions.now()
