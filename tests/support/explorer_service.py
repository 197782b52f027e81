"""An Explorer on a real socket: it stores what is pushed, or fails in the way a test says."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer

KEY = "inv-" + "e" * 64


class Fault(Enum):
    """Ways not to answer as the contract says."""

    HANG = auto()
    RESET = auto()
    LOST_ANSWER = auto()
    """It stores the trace, and the connection ends before its answer."""
    CUT_ANSWER = auto()
    """It stores the trace, and the connection ends within its answer."""
    GARBAGE = auto()
    PAGE = auto()
    """An HTML page with status 200, as a foreign server shows for any address."""
    ENDLESS = auto()
    REDIRECT = auto()


@dataclass(frozen=True)
class Status:
    """An answer of that status."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


Behaviour = Fault | Status | None


@dataclass
class ExplorerDouble:
    """``script`` are its next behaviors, one a call; then it does as ``behaviour`` says, None being well.

    It answers 500 for traces that begin with ``heavy``. ``lost`` counts the answers that it gave and nobody got; with
    ``gate`` it answers when that is set.
    """

    url: str = ""
    behaviour: Behaviour = None
    script: list[Behaviour] = field(default_factory=list)
    heavy: str = ""
    stored: list[Any] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    calls: int = 0
    lost: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event | None = None

    @property
    def received(self) -> Counter[str]:
        """How often each trace was stored, by the sender's id."""
        return Counter(body["metadata"][0]["gemini_proxy"]["id"] for body in self.stored)

    async def push(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        self.headers.append(dict(request.headers))
        body = orjson.loads(await request.read())
        self.arrived.set()
        if self.gate is not None:
            await self.gate.wait()
        does = self.script.pop(0) if self.script else self.behaviour
        text = body["messages"][0][0]["content"]
        if does is None and self.heavy and self.heavy in text:
            does = Status(500)
        if does in (None, Fault.LOST_ANSWER, Fault.CUT_ANSWER):
            self.stored.append(body)
            self.lost += does is not None
        return await self._answer(request, does)

    async def _answer(self, request: web.Request, does: Behaviour) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        match does:
            case None:
                return web.json_response({"id": [f"here-{len(self.stored)}"], "dataset": "d", "username": "u"})
            case Status(code, headers):
                return web.json_response({"detail": f"no {KEY}"}, status=code, headers=headers)
            case Fault.HANG:
                await asyncio.Event().wait()
            case Fault.RESET | Fault.LOST_ANSWER:
                transport.abort()
            case Fault.CUT_ANSWER:
                transport.write(b'HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n{"id": ["')
                transport.close()
            case Fault.GARBAGE:
                transport.write(b"\x00\xff not HTTP \r\n\r\n")
                transport.close()
            case Fault.PAGE:
                return web.Response(text="<html>Welcome</html>", content_type="text/html")
            case Fault.REDIRECT:
                return web.Response(status=307, headers={"location": self.url + "/elsewhere"})
            case Fault.ENDLESS:
                return await _endless(request)
        raise ConnectionResetError


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)


@contextlib.asynccontextmanager
async def explorer_double() -> AsyncIterator[ExplorerDouble]:
    double = ExplorerDouble()
    app = web.Application(client_max_size=1 << 28)
    app.router.add_post("/api/v1/push/trace", double.push)
    app.router.add_post("/elsewhere", double.push)
    async with TestServer(app) as server:
        double.url = str(server.make_url("")).rstrip("/")
        yield double


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """A URL at which connections are refused."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"
