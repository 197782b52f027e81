"""A client's driver as a process: tasks go in, what the client showed comes out."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import orjson

from tests.clients.matrix.clients import Client
from tests.clients.matrix.environments import command, environment

TASK_SECONDS: Final = 120.0
"""For the slowest: a chat of gemini-cli's, which starts anew with each prompt."""
_LONGEST_LINE: Final = 1_048_576


class DriverFailed(Exception):
    """There is no result: the driver ended, or took too long."""


class Driven:
    """Starts when the first task comes, and anew after one that failed. ``log`` gets what the driver has to say."""

    def __init__(self, client: Client, log: Path) -> None:
        self._client = client
        self._log_path = log
        self._log: BinaryIO | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._log = self._log_path.open("wb")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()
        if self._log is not None:
            self._log.close()

    async def do(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """The turns of a task. Raises DriverFailed."""
        process = await self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(orjson.dumps(task) + b"\n")
            await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), TASK_SECONDS)
        except (TimeoutError, ConnectionError) as error:
            await self._end()
            raise DriverFailed(f"no result: {type(error).__name__}") from None
        if not line:
            await self._end()
            raise DriverFailed(f"the driver ended with exit code {process.returncode}; see {self._log_path}")
        turns: list[dict[str, Any]] = orjson.loads(line)["turns"]
        return turns

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            arguments, folder = command(self._client)
            self._process = await asyncio.create_subprocess_exec(
                *arguments,
                cwd=folder,
                env=environment(self._client),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._log,
                limit=_LONGEST_LINE,
            )
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
