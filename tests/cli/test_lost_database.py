"""The database's file is deleted, replaced and comes back under a server that answers only what it records."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import aiohttp

from tests.cli.process import serving, write_config
from tests.support.proxy import MODEL, prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary


async def test_no_200_without_a_trace_in_the_file_at_the_path(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    data = tmp_path / "data"
    data.mkdir()
    database = data / "traces.db"
    config = write_config(
        tmp_path,
        server={"listen": ["127.0.0.1:0"]},
        upstream={"base_url": upstream.url},
        traces={"database": f"sqlite:///{database}", "required": True},
    )
    async with serving(config) as server, aiohttp.ClientSession(headers={"x-goog-api-key": "AIzaTestKey"}) as client:

        async def ask(text: str) -> int:
            upstream.reply(unary(candidate("Cork", "STOP")))
            url = f"{server.url}/v1beta/models/{MODEL}:generateContent"
            async with client.post(url, json=prompt(text)) as response:
                return response.status

        async def ready() -> int:
            async with client.get(f"{server.url}/readyz") as response:
                return response.status

        def recorded() -> list[str]:
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as beside:
                found = beside.execute("SELECT messages FROM traces ORDER BY seq").fetchall()
            return [word for (messages,) in found for word in WORDS if word.encode() in messages]

        assert await ask(WORDS[0]) == 200 and recorded() == [WORDS[0]]
        shutil.copy(database, tmp_path / "backup.db")
        for file in data.iterdir():
            file.unlink()
        assert await ask(WORDS[1]) == 200 and recorded() == [WORDS[1]]
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(data / "copy.db")) as copy:
            source.backup(copy)
        # As whoever restores a backup has to: beside the journal of another database it is a damaged one.
        for suffix in ("-wal", "-shm"):
            (data / f"traces.db{suffix}").unlink(missing_ok=True)
        (data / "copy.db").replace(database)
        assert await ask(WORDS[2]) == 200 and recorded() == [WORDS[1], WORDS[2]]
        shutil.rmtree(data)
        assert (await ask(WORDS[3]), await ready()) == (503, 503)
        data.mkdir()
        assert (await ask(WORDS[4]), await ready()) == (200, 200) and recorded()[-1] == WORDS[4]
        async with client.get(f"{server.url}/metrics") as response:
            assert "gemini_proxy_traces_lost_with_file_total 3.0" in await response.text()
    assert server.stderr.read_text().count("the database file was deleted or replaced") == 3


WORDS = ("one-word", "two-word", "three-word", "four-word", "five-word")
