"""The load generator: bare protocols in a process of their own.

``python -m bench.load WORKLOAD`` (JSON, see ``bench.workload``) prints the result as one line of JSON.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bench.http_read import AnswerError, AnswerReader
from bench.workload import KEY, LoadResult, Workload, dump, load_workload, spread

_ADDRESS: Final = "127.0.0.1"
_STAMP = re.compile(rb"@(\d{20})@")
_EVENT_END: Final = b"\r\n\r\n"
QUESTION: Final[dict[str, Any]] = {
    "systemInstruction": {"parts": [{"text": "You plan journeys. Answer in one paragraph and name your sources."}]},
    "contents": [
        {"role": "user", "parts": [{"text": "How do I get from Oban to Barra in March, and what should I pack?"}]},
        {"role": "model", "parts": [{"text": "By ferry, about five hours. Shall I look up the timetable?"}]},
        {"role": "user", "parts": [{"text": "Yes, and tell me whether the crossing is rough at that time of year."}]},
    ],
    "tools": [
        {
            "functionDeclarations": [
                {
                    "name": "timetable",
                    "description": "Departures of a ferry on a day.",
                    "parameters": {"type": "OBJECT", "properties": {"route": {"type": "STRING"}}},
                }
            ]
        }
    ],
    "generationConfig": {"temperature": 0.4, "maxOutputTokens": 2048},
}


def request_bytes(workload: Workload) -> bytes:
    """The whole request as a client would send it."""
    body = (workload.question or json.dumps(QUESTION)).encode()
    invariant = f"Invariant-Authorization: Bearer {KEY}\r\n" if workload.dataset else ""
    head = (
        f"POST {workload.target} HTTP/1.1\r\nHost: {_ADDRESS}:{workload.port}\r\nContent-Type: application/json\r\n"
        f"x-goog-api-key: bench\r\n{invariant}User-Agent: bench/1\r\nAccept: */*\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Run:
    """A workload under way: what is left to begin, and what was measured."""

    workload: Workload
    left: int
    request: bytes
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    ended: int = 0
    errors: int = 0
    events: int = 0
    first: list[int] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)

    def end_one(self, *, right: bool) -> None:
        """One request has come to its end."""
        self.ended += 1
        self.errors += not right
        if self.ended == self.workload.total:
            self.finished.set()


class Client(asyncio.Protocol):
    """One connection that sends request after request, each when the one before has ended."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def start(self) -> None:
        """Send a request, if one is left to be sent."""
        if not self._run.left or self._transport.is_closing():
            return
        self._run.left -= 1
        self._busy = True
        self._reader = AnswerReader()
        self._text = b""
        self._seen = 0
        self._sent = time.monotonic_ns()
        self._transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self._busy:
            self._transport.abort()
            return
        try:
            body = self._reader.feed(data)
        except (AnswerError, ValueError):
            self._end(right=False)
            self._transport.abort()
            return
        self._measure(body, now)
        if self._reader.ended:
            self._end(right=self._reader.status == 200 and self._complete())
            self.start()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            self._end(right=False)

    def _measure(self, body: bytes, now: int) -> None:
        if self._reader.ended:
            self._run.first.append(now - self._sent)

    def _complete(self) -> bool:
        return True

    def _end(self, *, right: bool) -> None:
        self._busy = False
        self._run.end_one(right=right)


class StreamClient(Client):
    """A connection whose answers are streams of stamped events."""

    def _measure(self, body: bytes, now: int) -> None:
        text = self._text + body
        whole = text.rfind(_EVENT_END) + len(_EVENT_END)
        if whole < len(_EVENT_END):
            self._text = text
            return
        self._text = text[whole:]
        run = self._run
        for stamp in _STAMP.findall(text, 0, whole):
            self._seen += 1
            if self._seen == 1:
                run.first.append(now - self._sent)
            (run.last if self._seen == run.workload.events else run.delays).append(now - int(stamp))

    def _complete(self) -> bool:
        self._run.events += self._seen
        return self._seen == self._run.workload.events and not self._text


class HoldClient(StreamClient):
    """A stream that counts as done with its first event and is then left open."""

    def _measure(self, body: bytes, now: int) -> None:
        super()._measure(body, now)
        if self._busy and self._seen:
            self._end(right=self._reader.status == 200 and not self._reader.ended)
            self._busy = True

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._seen:
            super().connection_lost(exc)


_CLIENTS: Final[dict[str, Callable[[Run], Client]]] = {"unary": Client, "stream": StreamClient, "hold": HoldClient}


async def drive(workload: Workload) -> LoadResult:
    """Put ``workload`` on its address and measure. Raises OSError where nobody listens."""
    run = Run(workload, workload.total, request_bytes(workload))
    clients = await _connect(run)
    loop = asyncio.get_running_loop()
    begun = time.monotonic()
    for number, client in enumerate(clients):
        loop.call_later(number * workload.spread_ms / 1000 / len(clients), client.start)
    try:
        await asyncio.wait_for(run.finished.wait(), workload.timeout)
    except TimeoutError:
        pass  # What is not done by now is counted below.
    return _result(run, time.monotonic() - begun)


async def _connect(run: Run) -> list[Client]:
    """The connections, made before the clock starts, a few at a time so that no listen queue overflows."""
    loop = asyncio.get_running_loop()
    workload = run.workload
    clients: list[Client] = []
    for _ in range(workload.connections):
        _, client = await loop.create_connection(lambda: _CLIENTS[workload.kind](run), _ADDRESS, workload.port)
        clients.append(client)
    return clients


def _result(run: Run, seconds: float) -> LoadResult:
    return LoadResult(
        done=run.ended - run.errors,
        errors=run.errors,
        unfinished=run.workload.total - run.ended,
        events=run.events,
        seconds=seconds,
        first=spread(run.first),
        event=spread(run.delays),
        last=spread(run.last),
    )


async def _main(workload: Workload) -> None:
    print(dump(await drive(workload)), flush=True)
    if workload.kind == "hold":
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(load_workload(sys.argv[1])))
