from collections.abc import AsyncIterator

import pytest

from gemini_proxy.traces.store import TraceStore
from tests.support.explorer_service import ExplorerDouble, explorer_double


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[TraceStore]:
    """An open, empty store; a test that asks for it runs once on each kind of database."""
    opened = await TraceStore.open(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def explorer() -> AsyncIterator[ExplorerDouble]:
    async with explorer_double() as double:
        yield double
