"""The store behind pgbouncer, which gives the connections of a few sessions by the transaction."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.store import TraceStore
from tests.support.pooler import POOLER, running_pooler
from tests.support.postgres import PostgresServer
from tests.traces.samples import trace

PATIENCE = 30.0


@pytest.fixture
async def pooler_url(postgres_url: str, postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The database of this test, through two connections that everybody shares."""
    if POOLER is None:
        pytest.skip("pgbouncer is not installed")
    with running_pooler(POOLER, postgres_server, connections=2) as pooler:
        url = pooler.url(postgres_url)
        async with asyncio.timeout(PATIENCE):
            await _answers(url)
        yield url


async def _answers(url: str) -> None:
    while True:
        try:
            await (await TraceStore.open(url)).close()
        except StoreError:
            # It has not begun to listen.
            continue
        return


async def test_stores_share_two_connections_of_a_pooler(pooler_url: str) -> None:
    """Writing, reading and glancing of four stores at once: nothing of one transaction meets the next."""
    stores = [await TraceStore.open(pooler_url) for _ in range(4)]
    recorded = [[trace(f"{place} {number}") for number in range(20)] for place in range(4)]

    async def work(store: TraceStore, place: int) -> None:
        for one in recorded[place]:
            await store.add([one])
            assert await store.get(one.id) is not None
            assert await store.database.glance("SELECT count(*) FROM traces") > 0

    await asyncio.gather(*(work(store, place) for place, store in enumerate(stores)))
    found = [one.id async for one in stores[0].export()]
    assert sorted(found) == sorted(one.id for some in recorded for one in some)
    for store in stores:
        await store.close()
