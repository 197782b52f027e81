"""Watching: who is told what, when the database, the other watchers or the watcher itself are slow, and at the end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gemini_proxy.errors import Unavailable
from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.feed import MAX_LOOKED_THROUGH, MAX_REPLAYED, MAX_WATCHERS, MAX_WATCHERS_OF_ONE, PAGE, Feed
from gemini_proxy.traces.feed_events import MAX_QUEUED, Interest
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Outcome, TraceSummary
from tests.support.feed import SOON, Traces, following, watching
from tests.traces.samples import ANNOTATION, trace

ANN = Interest("ann")
LONG = 3600.0


@pytest.fixture
async def opened(database_url: str) -> AsyncIterator[TraceStore]:
    store = await TraceStore.open(database_url)
    yield store
    await store.close()


def quick(source: Traces | TraceStore, *, period: float = LONG, keep_alive: float = LONG) -> Feed:
    """A feed that does not rest, and looks by itself only where told to."""
    return Feed(source, period=period, spacing=0.0, keep_alive=keep_alive)


async def test_what_is_recorded_is_told_at_once(opened: TraceStore) -> None:
    """The recorder's word is enough: nobody waits for the next look."""
    async with following(quick(opened)) as feed, watching(feed.watch(ANN)) as watch:
        written = trace(owner="ann", outcome=Outcome.REFUSED_RESPONSE, annotations=(ANNOTATION,), stream=True)
        await opened.add([written])
        feed.committed()
        [event] = await watch.until(1)
    assert event.data["id"] == written.id
    assert (event.data["rule"], event.data["outcome"], event.data["dataset"]) == (
        "no secrets",
        "refused_response",
        "demo",
    )


async def test_what_another_process_records_is_told_as_well(opened: TraceStore, database_url: str) -> None:
    """Nobody says anything: the feed looks by itself."""
    async with following(quick(opened, period=0.01)) as feed, watching(feed.watch(ANN)) as watch:
        other = await TraceStore.open(database_url)
        written = trace(owner="ann")
        await other.add([written])
        await other.close()
        [event] = await watch.until(1)
    assert event.data["id"] == written.id


async def test_everyone_is_told_their_own(opened: TraceStore) -> None:
    """By user, dataset and outcome; what is in a deleted dataset is nobody's."""
    datasets = Datasets(opened.database)
    gone = await datasets.create("ann", "gone")
    kinds: dict[str, dict[str, Any]] = {
        "a": {"owner": "ann", "dataset": "a"},
        "b": {"owner": "bob", "dataset": "a"},
        "r": {"owner": "ann", "dataset": "b", "outcome": Outcome.REFUSED_REQUEST},
        "g": {"owner": "ann", "dataset": "gone"},
        "n": {"owner": "", "dataset": None},
        "A": {"owner": "ann", "dataset": "a", "outcome": Outcome.REFUSED_RESPONSE},
        "B": {"owner": "bob", "dataset": "gone"},
    }
    expected = {
        ANN: "arA",
        Interest("bob"): "bB",
        Interest("ann", "a"): "aA",
        Interest("ann", refused=True): "rA",
        Interest("bob", "gone"): "B",
        Interest(""): "n",
    }
    async with following(quick(opened)) as feed, contextlib.AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(watching(feed.watch(interest))) for interest in expected]
        written = {trace(**fields).id: kind for kind, fields in kinds.items()}
        await opened.add([trace(id=name, **kinds[kind]) for name, kind in written.items()])
        await datasets.delete("ann", gone.id)
        feed.committed()
        for watch, told in zip(watches, expected.values(), strict=True):
            heard = await watch.until(len(told))
            assert "".join(written[event.data["id"]] for event in heard) == told


async def test_who_comes_back_hears_what_was_missed_and_nothing_twice(opened: TraceStore) -> None:
    """However often the connection breaks, and whatever is written meanwhile."""
    ids: list[str] = []
    heard: list[str] = []
    after: int | None = None
    async with following(quick(opened)) as feed:
        async with watching(feed.watch(ANN)) as watch:
            after = watch.reached
        for _ in range(5):
            batch = [trace(owner="ann"), trace(owner="bob"), trace(owner="ann")]
            await opened.add(batch)
            live = trace(owner="ann")
            ids += [batch[0].id, batch[2].id, live.id]
            async with watching(feed.watch(ANN, after=after)) as watch:
                await opened.add([live])
                feed.committed()
                heard += [event.data["id"] for event in await watch.until(3)]
                after = watch.reached
    assert heard == ids


async def test_what_is_recorded_while_the_past_is_read_is_told_once() -> None:
    """It is seen by that reading, and by the next look."""

    class Busy(Traces):
        async def since(self, seq: int, limit: int) -> list[TraceSummary]:
            if len(self.found) == 3:
                self.add(1)
            return await super().since(seq, limit)

    traces = Busy()
    traces.add(3)
    async with following(quick(traces)) as feed, watching(feed.watch(ANN, after=1)) as watch:
        assert len(traces.found) == 4
        feed.committed()
        traces.add(1)
        await watch.until(4)
        assert watch.numbers == [2, 3, 4, 5]


@pytest.mark.parametrize("after", [5, 6, 10**17])
async def test_an_id_that_is_not_there_yet_begins_now(after: int) -> None:
    """As after a database has been made anew: nothing old is told, and nothing new is held back."""
    traces = Traces()
    traces.add(5)
    async with following(quick(traces)) as feed, watching(feed.watch(ANN, after=after)) as watch:
        assert (watch.reached, watch.heard) == (5, [])
        traces.add(1)
        feed.committed()
        await watch.until(1)
        assert watch.numbers == [6]


async def test_a_long_absence_is_replayed_in_part_and_the_rest_is_counted() -> None:
    """The newest are told, and before them the exact number of one's own that are not."""
    traces = Traces()
    for _ in range(MAX_REPLAYED + 3):
        traces.add(1)
        traces.add(1, owner="bob")
    async with following(quick(traces)) as feed, watching(feed.watch(ANN, after=2)) as watch:
        missed, *rest = watch.heard
        assert (missed.kind, missed.data) == ("missed", {"count": 2, "exact": True})
        assert missed.seq == 5
        assert [event.seq for event in rest] == list(range(7, 7 + 2 * MAX_REPLAYED, 2))
        assert watch.reached == traces.found[-1].seq


async def test_an_absence_too_long_to_be_looked_through_is_estimated() -> None:
    """Then the number is an upper figure, and says so; a bounded part of the database is read."""
    traces = Traces()
    traces.add(MAX_LOOKED_THROUGH + 500, owner="bob")
    async with following(quick(traces)) as feed:
        async with watching(feed.watch(ANN, after=100)) as watch:
            [missed] = watch.heard
        assert missed.data == {"count": 400, "exact": False}
        assert traces.asked <= MAX_LOOKED_THROUGH // PAGE + 3


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_an_absence_over_the_end_of_a_partition_counts_traces_not_numbers(
    opened: TraceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two partitions of PostgreSQL there are a million times as many numbers as traces."""
    monkeypatch.setattr("gemini_proxy.traces.feed.MAX_LOOKED_THROUGH", 5)
    for count in (10, 3):
        await opened.add([trace(owner="ann") for _ in range(count)])
        await opened.turn_partition(float("inf"), None)
    await opened.add([trace(owner="ann")])
    async with following(quick(opened)) as feed:
        async with watching(feed.watch(ANN, after=4)) as watch:
            missed, *rest = watch.heard
        assert missed.data == {"count": 5, "exact": False} and missed.seq == 9
        assert len(rest) == 5
        async with watching(feed.watch(ANN, last=3)) as watch:
            assert len(watch.heard) == 3
        async with watching(feed.watch(ANN, after=rest[-2].seq)) as watch:
            assert watch.numbers == [rest[-1].seq]


async def test_it_begins_with_the_last_ones_where_asked() -> None:
    """Of one's own, in order, and without a word on those before."""
    traces = Traces()
    for owner in ("ann", "bob") * 5:
        traces.add(1, owner=owner)
    async with following(quick(traces)) as feed, watching(feed.watch(ANN, last=3)) as watch:
        assert watch.numbers == [5, 7, 9]
        assert watch.reached == 10
        traces.add(1)
        feed.committed()
        await watch.until(4)
        assert watch.numbers == [5, 7, 9, 11]


async def test_a_slow_watcher_holds_nobody_up_and_is_told_what_it_missed() -> None:
    """The other hears everything; the slow one the newest, and how many were before them."""
    traces = Traces()
    total = 0
    async with following(quick(traces)) as feed, watching(feed.watch(ANN)) as slow, watching(feed.watch(ANN)) as fast:
        while total * 200 < 2 * MAX_QUEUED:
            traces.add(50)
            total += 50
            feed.committed()
            await fast.until(total)
        await slow.read()
    assert fast.numbers == list(range(1, total + 1))
    missed, *rest = slow.heard
    assert missed.kind == "missed" and missed.data["exact"] and missed.data["count"] > 0
    assert [event.seq for event in rest] == list(range(missed.data["count"] + 1, total + 1))


async def test_a_silent_feed_says_that_it_lives_and_how_far_it_is() -> None:
    """So that who comes back after hours of others' exchanges need not be told of them."""
    traces = Traces()
    async with following(quick(traces, period=0.001, keep_alive=0.01)) as feed:
        async with watching(feed.watch(ANN)) as watch:
            traces.add(40, owner="bob")
            async with asyncio.timeout(SOON):
                while watch.reached < 40:
                    await watch.read()
    assert watch.heard == []


async def test_nobody_watching_costs_the_database_nothing() -> None:
    """Neither before the first watcher nor after the last."""
    traces = Traces()
    async with following(quick(traces, period=0.001)) as feed:
        feed.committed()
        async with watching(feed.watch(ANN)):
            pass
        assert feed.watchers == 0
        # What runs already may end.
        for _ in range(100):
            await asyncio.sleep(0)
        traces.asked = 0
        for _ in range(100):
            feed.committed()
            await asyncio.sleep(0)
        assert traces.asked == 0


async def test_who_leaves_before_joining_is_forgotten() -> None:
    """A browser that is closed while the database is busy takes nobody's place."""
    feed = quick(Traces())
    watch = asyncio.create_task(anext(feed.watch(ANN)))
    await asyncio.sleep(0)
    assert feed.watchers == 1
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    assert feed.watchers == 0


async def test_the_end_ends_every_watch_and_lets_nobody_in() -> None:
    """The server's stop waits for no watcher, and what was recorded last is told before."""
    traces = Traces()
    feed = quick(traces)
    running = asyncio.create_task(feed.run())
    async with watching(feed.watch(ANN)) as watch:
        traces.add(1)
        feed.committed()
        await watch.until(1)
        late = asyncio.create_task(anext(feed.watch(ANN)))
        await asyncio.sleep(0)
        feed.close()
        with pytest.raises(StopAsyncIteration):
            await watch.read()
        with contextlib.suppress(Unavailable):
            await late
        with pytest.raises(Unavailable):
            await anext(feed.watch(ANN))
    await asyncio.wait_for(running, SOON)


async def test_a_feed_that_is_killed_leaves_nobody_waiting() -> None:
    """Its end, however it comes, is the end of its watches."""
    feed = quick(Traces())
    running = asyncio.create_task(feed.run())
    async with watching(feed.watch(ANN)) as watch:
        running.cancel()
        with pytest.raises(StopAsyncIteration):
            await watch.read()


async def test_while_the_database_fails_nobody_joins_and_nothing_is_lost() -> None:
    """Who wants to join is told; who watches hears afterwards what was recorded meanwhile."""
    traces = Traces()
    async with following(quick(traces, period=0.001)) as feed, watching(feed.watch(ANN)) as watch:
        traces.broken = True
        traces.add(2)
        with pytest.raises(StoreError):
            await asyncio.wait_for(anext(feed.watch(ANN)), SOON)
        assert watch.heard == []
        traces.broken = False
        await watch.until(2)
        assert watch.numbers == [1, 2]


async def test_the_number_of_watchers_is_bounded() -> None:
    """One user's watchers leave room for others', and who leaves makes room."""
    async with following(quick(Traces())) as feed, contextlib.AsyncExitStack() as stack:
        for number in range(MAX_WATCHERS):
            owner = f"user-{number // MAX_WATCHERS_OF_ONE}"
            if number == MAX_WATCHERS_OF_ONE:
                with pytest.raises(Unavailable):
                    await anext(feed.watch(Interest("user-0")))
            await stack.enter_async_context(watching(feed.watch(Interest(owner))))
        with pytest.raises(Unavailable):
            await anext(feed.watch(Interest("new")))
        await stack.aclose()
        async with watching(feed.watch(Interest("new"))):
            assert feed.watchers == 1
