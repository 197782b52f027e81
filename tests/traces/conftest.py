from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gemini_proxy.traces.store import TraceStore
from tests.traces.samples import url


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "traces.db"


@pytest.fixture
async def store(database: Path) -> AsyncIterator[TraceStore]:
    opened = await TraceStore.open(url(database))
    yield opened
    await opened.close()
