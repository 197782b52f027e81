import asyncio
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli.main import main
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Trace
from tests.traces.samples import trace, url


def run(database: str, file: Path) -> Result:
    runner = CliRunner(env={"GEMINI_PROXY_CONFIG": None, "GEMINI_PROXY_TRACES__DATABASE": database})
    return runner.invoke(main, ["backup", str(file)])


async def test_a_backup_is_one_state_of_a_database_that_is_written_to(tmp_path: Path) -> None:
    store = await TraceStore.open(url(tmp_path / "traces.db"))
    before = [trace("x" * 5_000) for _ in range(200)]
    await store.add(before)
    written: list[Trace] = []

    async def write() -> None:
        while True:
            written.append(trace())
            await store.add(written[-1:])

    writing = asyncio.create_task(write())
    result = await asyncio.to_thread(run, url(tmp_path / "traces.db"), tmp_path / "copy.db")
    writing.cancel()
    await asyncio.wait([writing])
    await store.close()
    assert result.exit_code == 0, result.output
    assert [name for name in os.listdir(tmp_path) if name.startswith("copy")] == ["copy.db"]
    copy = await TraceStore.open(url(tmp_path / "copy.db"))
    found = [one.id async for one in copy.export()]
    await copy.close()
    assert found == [one.id for one in (*before, *written)][: len(found)] and len(found) >= len(before)
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


async def test_a_backup_overwrites_nothing(tmp_path: Path) -> None:
    await (await TraceStore.open(url(tmp_path / "traces.db"))).close()
    (tmp_path / "copy.db").write_text("precious")
    result = run(url(tmp_path / "traces.db"), tmp_path / "copy.db")
    assert result.exit_code == 1 and "does not overwrite files" in result.output
    assert (tmp_path / "copy.db").read_text() == "precious"


@pytest.mark.parametrize(
    ("database", "says"),
    [("postgresql+asyncpg://user:canary@host/db", "pg_dump"), ("sqlite:////nowhere/traces.db", "no trace database")],
)
def test_what_cannot_be_backed_up_is_said(tmp_path: Path, database: str, says: str) -> None:
    result = run(database, tmp_path / "copy.db")
    assert result.exit_code == 1 and says in result.output and "canary" not in result.output
    assert not (tmp_path / "copy.db").exists()
