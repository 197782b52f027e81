"""Run programs that read untrusted input: each by itself, without our secrets, within limits."""

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_KEPT: Final = ("PATH", "LANG")
"""Variables that a program inherits: none of the server's secrets."""


class TooMuch(Exception):
    """Raised when a program prints more than it may."""


@dataclass(frozen=True, slots=True)
class IsolatedProgram:
    """A program with its arguments. It has ``memory`` bytes of address space and may print ``most`` bytes."""

    command: Sequence[str]
    environment: Mapping[str, str]
    memory: int
    most: int

    async def run(self, given: bytes, folder: str = "/") -> tuple[bytes, int]:
        """Run the program in ``folder`` with ``given`` as its input. Return its output and its exit status.

        Raises OSError and TooMuch. Cancelling the call kills the program and its children.
        """
        kept = {name: value for name, value in os.environ.items() if name in _KEPT}
        process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**kept, **self.environment},
            cwd=folder,
            start_new_session=True,
        )
        try:
            # It has read nothing yet. If it has ended already, its status tells how.
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_AS, (self.memory, self.memory))
            return await self._exchange(process, given), await process.wait()
        finally:
            if process.returncode is None:
                # It may have ended without a notification.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def _exchange(self, process: asyncio.subprocess.Process, given: bytes) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        # If it ends before it has read everything, its status tells how.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(given)
            await process.stdin.drain()
        process.stdin.close()
        printed = b""
        while piece := await process.stdout.read(65_536):
            printed += piece
            if len(printed) > self.most:
                raise TooMuch
        return printed
