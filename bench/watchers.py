"""Readers of the feed in a process of their own, as browsers that watch: each reads everything, and counts it.

``python -m bench.watchers PORT COUNT`` prints a line when all of them have been let in. For each line it then reads,
``[EXCHANGES, SECONDS]``, it prints of how many exchanges each was told since the last such line: once all were told of
so many, or when so many seconds have passed.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Final

from bench.http_read import AnswerError, AnswerReader
from bench.workload import KEY

_ADDRESS: Final = "127.0.0.1"
_EVENT_END: Final = b"\n\n"
_EXCHANGE: Final = b"\nevent: exchange\n"
_POSITION: Final = b"\nevent: position\n"
_ADMISSION: Final = 10.0
"""Seconds in which the feed has to begin."""


class Watcher(asyncio.Protocol):
    """One watch of the whole feed. ``told``: exchanges so far; ``admitted``: no later exchange is left out.

    ``lost``: the feed has ended, or was none.
    """

    def __init__(self, port: int, changed: asyncio.Event) -> None:
        self.told = 0
        self.admitted = False
        self.lost = False
        self._changed = changed
        self._reader = AnswerReader()
        self._text = b""
        self._request = (
            f"GET /api/v1/feed HTTP/1.1\r\nHost: {_ADDRESS}:{port}\r\nAuthorization: Bearer {KEY}\r\n"
            "Accept: text/event-stream\r\nUser-Agent: bench/1\r\n\r\n"
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request.encode())

    def data_received(self, data: bytes) -> None:
        try:
            text = self._text + self._reader.feed(data)
        except (AnswerError, ValueError):
            self._transport.abort()
            return
        whole = text.rfind(_EVENT_END) + len(_EVENT_END)
        if self._reader.status not in (0, 200):
            self._transport.abort()
            return
        if whole < len(_EVENT_END):
            self._text = text
            return
        self._text = text[whole:]
        self.told += text.count(_EXCHANGE, 0, whole)
        self.admitted = self.admitted or _POSITION in text[:whole]
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._changed.set()


async def _until(changed: asyncio.Event, condition: Callable[[], bool], seconds: float) -> None:
    """Wait for ``condition``, but not longer than ``seconds``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():
                changed.clear()
                await changed.wait()


async def watch(port: int, count: int) -> None:
    """Watch, and answer until the input ends. Raises OSError where nobody listens."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    watchers = [(await loop.create_connection(lambda: Watcher(port, changed), _ADDRESS, port))[1] for _ in range(count)]
    await _until(changed, lambda: all(each.admitted or each.lost for each in watchers), _ADMISSION)
    if not all(each.admitted for each in watchers):
        sys.exit("the feed does not begin")
    print(json.dumps(count), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        await _answer(watchers, changed, *json.loads(line))


async def _answer(watchers: Sequence[Watcher], changed: asyncio.Event, exchanges: int, seconds: float) -> None:
    await _until(changed, lambda: all(each.told >= exchanges for each in watchers), seconds)
    print(json.dumps([each.told for each in watchers]), flush=True)
    for each in watchers:
        each.told = 0


if __name__ == "__main__":
    asyncio.run(watch(*map(int, sys.argv[1:3])))
