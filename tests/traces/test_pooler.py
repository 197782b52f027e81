"""The store behind pgbouncer, which gives the connections of a few sessions by the transaction."""

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.store import TraceStore
from tests.support.postgres import SUPERUSER, PostgresServer
from tests.traces.samples import trace

PATIENCE = 30.0
PORT = 6432


@contextmanager
def pooler(program: str, server: PostgresServer) -> Iterator[Path]:
    """The folder of its socket, of which it listens as port 6432."""
    folder = Path(server.socket_folder)
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={folder} port={server.port} user={SUPERUSER}\n"
        f"[pgbouncer]\nlisten_port = {PORT}\nunix_socket_dir = {folder}\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 2\n"
    )
    user = ["-u", pwd.getpwnam("nobody").pw_name] if os.geteuid() == 0 else []
    command = [program, *user, str(settings)]
    with subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield folder
        process.kill()


@pytest.fixture
async def pooler_url(postgres_url: str, postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The database of this test, through two connections that everybody shares."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with pooler(program, postgres_server) as folder:
        options = {"host": str(folder), "port": str(PORT), "pooler": "transaction"}
        url = make_url(postgres_url).update_query_dict(options).render_as_string(hide_password=False)
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
