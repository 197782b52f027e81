"""SIGHUP, by which an operator asks for a reload."""

import asyncio
import contextlib
import signal


class Hangups:
    """SIGHUP noted from here on, before there is an event loop and after its end too: it no longer ends the process."""

    def __init__(self) -> None:
        self._noted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        signal.signal(signal.SIGHUP, lambda *_: self._note())

    async def next(self) -> None:
        """Return when there was one since the last time; several at once are one."""
        self._loop = asyncio.get_running_loop()
        await self._noted.wait()
        self._noted.clear()

    def _note(self) -> None:
        if self._loop is None:
            self._noted.set()
        else:
            # A signal handler may run between any two steps of the loop, or after its end.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._noted.set)
