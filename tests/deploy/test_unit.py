"""The systemd unit: hardened, without a fault, and in step with the program it starts."""

import asyncio
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gemini_proxy.cli import main
from gemini_proxy.config import load_config
from gemini_proxy.http.listen_addresses import listen_address

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "gemini-proxy.service"
SOCKET = DEPLOY / "gemini-proxy.socket"
ANALYZE = shutil.which("systemd-analyze")
PATIENCE = 20.0

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def settings(name: str, unit: Path = UNIT) -> list[str]:
    """Every value that the unit gives to ``name``."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def setting(name: str, unit: Path = UNIT) -> str:
    (value,) = settings(name, unit)
    return str(value)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists on every machine, for systemd looks whether it does."""
    program = shlex.split(setting("ExecStart"))[0]
    copy = tmp_path / UNIT.name
    shutil.copy(SOCKET, tmp_path)
    copy.write_text(UNIT.read_text().replace(f"ExecStart={program} ", "ExecStart=/bin/true "))
    return copy


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *arguments], capture_output=True, text=True)


@needs_systemd
def test_systemd_finds_no_fault(unit: Path) -> None:
    """Not even an unknown key, of which systemd says a word and then ignores it."""
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_exposure(unit: Path) -> None:
    """systemd's own measure of what the service could still do: 1.1 of 10 at most."""
    done = analyze("security", "--offline=true", "--no-pager", "--threshold=11", str(unit))
    assert done.returncode == 0, done.stdout
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= 1.1


def test_the_unit_starts_a_command_that_exists() -> None:
    """ExecStart's arguments are ones that the command line takes."""
    program, *arguments = shlex.split(setting("ExecStart"))
    assert Path(program).name == "gemini-proxy"
    done = CliRunner().invoke(main, [*arguments, "--help"])
    assert (done.exit_code, "Serve until SIGTERM" in done.output) == (0, True)


def test_the_configuration_is_accepted(tmp_path: Path) -> None:
    """deploy/config.toml loads as it is; only the folder of its database is made by systemd."""
    database = {"GEMINI_PROXY_TRACES__DATABASE": f"sqlite:///{tmp_path}/traces.db"}
    done = CliRunner(env=database).invoke(main, ["--config", str(DEPLOY / "config.toml"), "check-config"])
    assert (done.exit_code, done.output.startswith("configuration ok")) == (0, True), done.output


def test_unit_configuration_and_nginx_agree() -> None:
    """One socket, which systemd opens; the traces in the only folder that the service may write to."""
    config = load_config(DEPLOY / "config.toml")
    address = listen_address(config.server.listen[0])
    assert settings("ListenStream", SOCKET) == [address.path]
    assert setting("Requires") == SOCKET.name
    assert f"server unix:{address.path} max_fails=0;" in (DEPLOY / "nginx.conf").read_text()
    database = Path(config.traces.database.removeprefix("sqlite:///"))
    assert database.parent == Path("/var/lib") / setting("StateDirectory")
    arguments = shlex.split(setting("ExecStart"))
    file = Path(arguments[arguments.index("--config") + 1])
    assert file.parent == Path("/etc") / setting("ConfigurationDirectory")


def test_systemd_waits_longer_than_the_server() -> None:
    """A stop is never cut short by a kill: exchanges have shutdown_grace, and then traces are written."""
    config = load_config(DEPLOY / "config.toml")
    assert float(setting("TimeoutStopSec")) >= config.server.shutdown_grace + 15


def test_descriptors_suffice() -> None:
    """The exchanges that the server admits fit under the unit's limit of open files, two sockets each."""
    config = load_config(DEPLOY / "config.toml")
    assert int(setting("LimitNOFILE")) > 2 * config.server.max_exchanges + 100


def test_a_reload_is_a_hangup() -> None:
    """SIGHUP to the main process, by a program that exists where systemd does."""
    program, *arguments = shlex.split(setting("ExecReload"))
    assert os.access(program, os.X_OK)
    assert arguments == ["-HUP", "$MAINPID"]


async def test_the_server_talks_to_systemd(tmp_path: Path) -> None:
    """As Type=notify and WatchdogSec need it: ready once it listens, then a sign of life, and a word when it stops."""
    assert setting("Type") == "notify"
    (tmp_path / "config.toml").write_text(
        f'server.listen = ["127.0.0.1:0"]\ntraces.database = "sqlite:///{tmp_path}/traces.db"\n'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{tmp_path}/notify")
        manager.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gemini_proxy", "--config", f"{tmp_path}/config.toml", "serve"),
            env={**os.environ, "NOTIFY_SOCKET": f"{tmp_path}/notify", "WATCHDOG_USEC": "100000"},
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                assert (await _message(manager)).startswith("READY=1\nSTATUS=listening on 127.0.0.1:")
                # Two of them: it goes on beyond the first.
                assert [await _message(manager), await _message(manager)] == ["WATCHDOG=1", "WATCHDOG=1"]
                process.send_signal(signal.SIGTERM)
                while (message := await _message(manager)) == "WATCHDOG=1":
                    pass
                assert message == "STOPPING=1"
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _message(manager: socket.socket) -> str:
    return (await asyncio.get_running_loop().sock_recv(manager, 4096)).decode()
