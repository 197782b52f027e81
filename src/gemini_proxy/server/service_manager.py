"""Listen to the service manager and tell it how the server is doing: SIGHUP to here, and systemd's notifications back.

Of systemd's protocol this is the part that Type=notify needs: one datagram a message (sd_notify(3)).
"""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable


class Notifier:
    """Tell the service manager how the server is doing. Without an address, do nothing."""

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        """``address`` is $NOTIFY_SOCKET, ``watchdog_seconds`` what $WATCHDOG_USEC says in seconds."""
        # A leading @ stands for the zero byte of Linux's abstract namespace.
        self._address = "\0" + address[1:] if address and address.startswith("@") else address or None
        self._watchdog = watchdog_seconds

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Say that a reload begins; call ``ready`` however it ends. Managers with Type=notify-reload need the time."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    async def watch(self, alive: Callable[[], bool] = lambda: True) -> None:
        """Ping the watchdog twice per period while ``alive()``: the pings also stop when the event loop does."""
        if self._address is None or not self._watchdog:
            return
        while True:
            if alive():
                self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 2)

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(message.encode(), self._address)


class Hangups:
    """Note each SIGHUP from here on, by which an operator asks for a reload: it no longer ends the process.

    That holds before there is an event loop, and after its end too.
    """

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
