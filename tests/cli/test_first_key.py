"""``serve --first-key``: a server that asks for keys makes the first itself, in a file that its owner alone reads."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from gemini_proxy.cli.server_process import make_first_key
from tests.cli.process import serving, write_config

KEYS = {"mode": "keys"}
ANYWHERE = {"listen": ["127.0.0.1:0"]}


async def admitted(client: aiohttp.ClientSession, url: str, key: str) -> bool:
    """Whether the server takes the key for its figures."""
    async with client.get(f"{url}/metrics", headers={"authorization": f"Bearer {key}"}) as response:
        return response.status == 200


async def test_the_first_key_is_written_once(tmp_path: Path) -> None:
    """It is valid and in no output. A second start finds it in the database and makes no other."""
    config = write_config(tmp_path, server=ANYWHERE, access=KEYS)
    file = tmp_path / "first-key"
    # As an earlier start may have left it, before its database was lost.
    file.write_text("an older and longer line than a key, which is of no use any more, and readable by everyone")
    file.chmod(0o644)
    async with serving(config, options=["--first-key", str(file)]) as server, aiohttp.ClientSession() as client:
        key = file.read_text().removesuffix("\n")
        assert file.stat().st_mode & 0o777 == 0o600
        assert await admitted(client, server.url, key) and not await admitted(client, server.url, key[:-1])
        server.process.terminate()
        printed, _ = await server.process.communicate()
        log = server.stderr.read_text()
        assert str(file) in log and key not in log + printed.decode()
    file.unlink()
    assert not await asyncio.to_thread(make_first_key, f"sqlite:///{tmp_path / 'traces.db'}", file)
    assert not file.exists()


def test_a_key_that_cannot_be_written_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program ends, and says why. A link is not followed: where it leads others may read."""
    database, link = f"sqlite:///{tmp_path / 'traces.db'}", tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    for file, reason in ((tmp_path / "nowhere" / "key", "No such file or directory"), (link, "Too many levels")):
        with pytest.raises(SystemExit) as ended:
            make_first_key(database, file)
        assert ended.value.code == 78
        assert capsys.readouterr().err.startswith(f"--first-key: {file}: {reason}")
    assert make_first_key(database, tmp_path / "key")
