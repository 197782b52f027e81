"""A SQLite file that is deleted or replaced while it is open: what is written afterwards is in the file at the path."""

import logging
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from gemini_proxy.traces import revision
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.store import TraceStore
from tests.traces.samples import query, trace, url


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "traces.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[TraceStore]:
    opened = await TraceStore.open(url(path))
    yield opened
    await opened.close()


def delete(path: Path) -> None:
    for file in path.parent.glob("traces.db*"):
        file.unlink()


async def test_a_deleted_file_is_made_anew_and_what_it_held_is_counted(
    store: TraceStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await store.add([trace(), trace(), trace()])
    before = await store.newest_seq()
    delete(path)
    written = trace()
    await store.add([written])
    assert await query(url(path), "SELECT id FROM traces") == [(written.id,)]
    assert [found.id for found in await store.recent(5)] == [written.id]
    assert await store.newest_seq() > before, "who follows the traces sees the new ones"
    assert store.database.lost == 3
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "the database file was deleted or replaced: another one is used, without 3 traces")
    ]


async def test_a_file_from_a_backup_is_gone_on_with(store: TraceStore, path: Path) -> None:
    kept = [trace(), trace()]
    await store.add(kept)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(path.with_name("copy"))) as copy:
        source.backup(copy)
    await store.add([trace()])
    number = await store.database.glance(revision.CURRENT)
    os.replace(path.with_name("copy"), path)
    written = trace()
    await store.add([written])
    assert [found.id async for found in store.export()] == [*(one.id for one in kept), written.id]
    assert store.database.lost == 1
    assert await store.database.glance(revision.CURRENT) > number, "keys and rules are read anew"


async def test_a_log_that_is_deleted_alone_costs_nothing(store: TraceStore, path: Path) -> None:
    first, second = trace(), trace()
    await store.add([first])
    path.with_name("traces.db-wal").unlink()
    await store.add([second])
    assert await query(url(path), "SELECT id FROM traces ORDER BY seq") == [(first.id,), (second.id,)]
    assert store.database.lost == 0


async def test_what_was_written_into_a_file_that_has_gone_meanwhile_is_an_error(store: TraceStore, path: Path) -> None:
    with pytest.raises(StoreError, match="deleted or replaced"):
        await store.database.write(lambda _: delete(path))
    await store.ping()


async def test_without_its_folder_nothing_is_written_until_it_is_there_again(store: TraceStore, path: Path) -> None:
    await store.add([trace()])
    shutil.rmtree(path.parent)
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be opened"):
            await store.ping()
    path.parent.mkdir()
    written = trace()
    await store.add([written])
    assert await query(url(path), "SELECT id FROM traces") == [(written.id,)]
    assert store.database.lost == 1
