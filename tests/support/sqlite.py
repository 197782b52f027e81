"""SQLite trace databases that are copies of one: the migrations run once in a process of the tests."""

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from gemini_proxy.traces.store import TraceStore


def make_database(file: Path) -> str:
    """Make ``file`` a migrated, empty trace database unless it exists. Return its URL."""
    if not file.exists():
        file.write_bytes(_template())
    return f"sqlite:///{file}"


@cache
def _template() -> bytes:
    # In a thread: the caller may have a running loop.
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        file = Path(folder) / "traces.db"
        thread.submit(asyncio.run, _migrate(f"sqlite:///{file}")).result()
        return file.read_bytes()


async def _migrate(url: str) -> None:
    await (await TraceStore.open(url)).close()
