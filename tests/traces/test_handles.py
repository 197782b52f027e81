"""What Gemini keeps under a name, remembered on both databases."""

import time
from dataclasses import replace

import pytest

from gemini_proxy.traces import handles as handles_module
from gemini_proxy.traces.handles import MAX_NAME, ForeignHandle, Handle, Handles, Holder, Kind
from gemini_proxy.traces.store import TraceStore
from tests.traces.samples import MESSAGES, execute, query, trace

ANN, BOB = Holder("", "ann"), Holder("", "bob")
LATER = time.time() + 3600


def cache(name: str = "cachedContents/a", holder: Holder = ANN, **fields: object) -> Handle:
    return replace(Handle(Kind.CACHE, name, holder, LATER), **fields)  # type: ignore[arg-type]


async def test_a_handle_is_found_by_its_holder_alone(store: TraceStore) -> None:
    handles = Handles(store.database)
    made = cache(trace="t", guardrails="g", digest="d", details={"mime": "text/plain"}, dataset="demo")
    await handles.remember(made)
    assert await handles.find(ANN, Kind.CACHE, made.name) == made
    assert await handles.find(ANN, Kind.FILE, made.name) is None
    assert await handles.find(ANN, Kind.CACHE, "cachedContents/b") is None
    with pytest.raises(ForeignHandle):
        await handles.find(BOB, Kind.CACHE, made.name)
    # Another Gemini key may lead to another project, in which the name is another thing.
    assert await handles.find(Holder("other", "bob"), Kind.CACHE, made.name) is None


async def test_a_listing_tells_the_holders_names_from_others_and_unknown_ones(store: TraceStore) -> None:
    handles = Handles(store.database)
    for made in (cache("cachedContents/a"), cache("cachedContents/b", BOB)):
        await handles.remember(made)
    names = ["cachedContents/a", "cachedContents/b", "cachedContents/c"]
    assert await handles.whose(ANN, Kind.CACHE, names) == {"cachedContents/a": True, "cachedContents/b": False}
    assert await handles.whose(ANN, Kind.CACHE, []) == {}


async def test_a_name_given_again_is_the_newer_ones(store: TraceStore) -> None:
    handles = Handles(store.database)
    await handles.remember(cache(refused=True))
    await handles.remember(cache(holder=BOB))
    found = await handles.find(BOB, Kind.CACHE, "cachedContents/a")
    assert found is not None
    assert not found.refused


async def test_only_the_holder_refuses_and_forgets(store: TraceStore) -> None:
    handles = Handles(store.database)
    await handles.remember(cache())
    await handles.refuse(BOB, Kind.CACHE, "cachedContents/a")
    await handles.forget(BOB, Kind.CACHE, "cachedContents/a")
    found = await handles.find(ANN, Kind.CACHE, "cachedContents/a")
    assert found is not None
    assert not found.refused
    await handles.refuse(ANN, Kind.CACHE, "cachedContents/a")
    found = await handles.find(ANN, Kind.CACHE, "cachedContents/a")
    assert found is not None
    assert found.refused
    await handles.forget(ANN, Kind.CACHE, "cachedContents/a")
    assert await handles.find(ANN, Kind.CACHE, "cachedContents/a") is None


async def test_a_handle_brings_back_its_trace_until_that_is_gone(store: TraceStore) -> None:
    handles = Handles(store.database)
    coverage = {"not_checked": [{"address": "messages.0.content.1", "reason": "inline image/png"}]}
    written = trace(owner="ann", metadata={"coverage": coverage | {"not_checked_in_all": 30}})
    others = trace(owner="bob")
    await store.add([written, others])
    made = [cache(trace=written.id), cache("cachedContents/b", trace=others.id), cache("cachedContents/c")]
    recalled = await handles.recall(made)
    assert recalled.keys() == {written.id}
    assert list(recalled[written.id].messages) == [dict(message) for message in written.messages]
    assert recalled[written.id].unread[0] == ("messages.0.content.1", "inline image/png")
    assert len(recalled[written.id].unread) == 2
    await store.delete_before(2_000_000_000.0)
    assert await handles.recall(made) == {}
    assert await handles.recall([]) == {}


async def test_what_is_brought_back_is_bounded(store: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = trace(), trace("x" * 500)
    await store.add([first, second])
    monkeypatch.setattr(handles_module, "MAX_RECALLED", 400)
    holder = Holder("", "")
    made = [cache(holder=holder, trace=second.id), cache("cachedContents/b", holder, trace=first.id)]
    recalled = await Handles(store.database).recall(made)
    assert recalled.keys() == {first.id}
    assert len(recalled[first.id].messages) == len(MESSAGES)


async def test_handles_go_a_day_after_their_time_and_long_names_are_not_kept(
    store: TraceStore, database_url: str
) -> None:
    handles = Handles(store.database)
    await handles.remember(cache("cachedContents/" + "a" * MAX_NAME))
    for name, expires in (("old", LATER - 200_000), ("new", LATER)):
        await handles.remember(cache(name, expires=expires))
    await handles.forget_old(LATER)
    assert await query(database_url, "SELECT name FROM handles") == [("new",)]
    await execute(database_url, "DELETE FROM handles")
