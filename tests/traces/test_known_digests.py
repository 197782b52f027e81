"""Digests are known in their own table and for their time, in both databases."""

from gemini_proxy.traces.known_digests import KnownDigests
from gemini_proxy.traces.schema import allowed_turns, refused_texts
from gemini_proxy.traces.store import TraceStore


async def test_digests_are_known_where_they_were_remembered(database_url: str) -> None:
    store = await TraceStore.open(database_url)
    try:
        allowed, refused = KnownDigests(store.database, allowed_turns), KnownDigests(store.database, refused_texts)
        await allowed.remember(["a", "b"])
        await allowed.remember(["b", "c"])
        assert await allowed.known(["a", "b", "c", "d"]) == {"a", "b", "c"}
        assert await refused.known(["a"]) == frozenset()
    finally:
        await store.close()
