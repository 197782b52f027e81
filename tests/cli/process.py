"""The program as an operator runs it: a process of its own, with a configuration file."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from tests.support.sqlite import make_database

_INHERITED_NOT = ("GEMINI_PROXY_", "NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_", "CREDENTIALS_DIRECTORY")
_SLOW_START = 30.0
"""Seconds a start may take on a loaded machine."""


def environment(**added: str) -> dict[str, str]:
    """The environment without what would configure the proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_INHERITED_NOT)}
    return {**kept, **added}


def write_config(folder: Path, file_name: str = "config.toml", **sections: Mapping[str, object]) -> Path:
    """Write a configuration file; traces go beside it unless it says otherwise."""
    sections.setdefault("traces", {"database": f"sqlite:///{folder / 'traces.db'}"})
    lines: list[str] = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        # Strings, numbers and lists of them are the same in JSON and TOML.
        lines += [f"{key} = {orjson.dumps(value).decode()}" for key, value in values.items()]
    file = folder / file_name
    file.write_text("\n".join(lines) + "\n")
    return file


# As systemd does before it runs a program: the sockets are the descriptors from 3 on, and meant for this process.
_PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


async def start(
    arguments: Sequence[str],
    added: Mapping[str, str],
    stderr: int | BinaryIO = asyncio.subprocess.PIPE,
    passed: socket.socket | None = None,
) -> asyncio.subprocess.Process:
    """Start ``gemini-proxy ARGUMENTS`` with ``added`` variables, and the socket ``passed`` as systemd passes one."""
    through = ("-c", _PASS, str(passed.fileno())) if passed else ()
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *through, "-m", "gemini_proxy", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        env=environment(**added),
        pass_fds=(passed.fileno(),) if passed else (),
    )


async def run(*arguments: str, **added: str) -> tuple[int | None, str, str]:
    """Run ``gemini-proxy ARGUMENTS`` to its end: exit code, standard output, standard error."""
    process = await start(arguments, added)
    out, err = await asyncio.wait_for(process.communicate(), _SLOW_START)
    return process.returncode, out.decode(), err.decode()


@dataclass(frozen=True)
class Serving:
    """A running server and the addresses it printed."""

    process: asyncio.subprocess.Process
    addresses: tuple[str, ...]
    stderr: Path

    @property
    def url(self) -> str:
        """Its first TCP address."""
        return next(address for address in self.addresses if address.startswith("http://"))


@contextlib.asynccontextmanager
async def serving(
    config: Path,
    addresses: int = 1,
    options: Sequence[str] = (),
    passed: socket.socket | None = None,
    **added: str,
) -> AsyncIterator[Serving]:
    """Run ``serve`` with ``options`` until it has printed that many addresses; kill it in the end.

    The database that ``write_config`` names is there already: to make one takes a start a fifth of a second longer.
    """
    make_database(config.parent / "traces.db")
    errors = config.parent / "stderr.txt"
    # A file, not a pipe: a pipe that nobody reads would stop a server that logs much.
    with errors.open("wb") as file:
        process = await start(["serve", "--config", str(config), *options], added, file, passed)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_SLOW_START):
            lines = [(await process.stdout.readline()).decode() for _ in range(addresses)]
        assert all(lines), errors.read_text()
        told = tuple(line.removeprefix("gemini-proxy listens on ").strip() for line in lines)
        yield Serving(process, told, errors)
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.communicate(), _SLOW_START)
