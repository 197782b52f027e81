"""A scripted Live server on a real socket, and a plain client of one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from aiohttp import WSMsgType, web

GEMINI_PATH = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
SETUP: dict[str, Any] = {"setup": {"model": "models/gemini-live-2.5-flash"}}
SETUP_COMPLETE: dict[str, Any] = {"setupComplete": {"sessionId": "session-1"}}
Frame = dict[str, Any]


@dataclass
class Close:
    """End the session here."""

    code: int = 1000
    reason: str = ""


Answer = Frame | bytes | Close
Script = Callable[[Frame], Sequence[Answer]]


def says(text: str = "", *, complete: bool = False, **content: Any) -> Frame:
    """A piece of a model's turn."""
    if text:
        content["modelTurn"] = {"role": "model", "parts": [{"text": text}]}
    return {"serverContent": {**content, **({"turnComplete": True} if complete else {})}}


def calls(name: str, call_id: str = "call-1", **args: Any) -> Frame:
    """A function call of the model."""
    return {"toolCall": {"functionCalls": [{"id": call_id, "name": name, "args": args}]}}


def asks(text: str) -> Frame:
    """A turn of the user."""
    return {"clientContent": {"turns": [{"role": "user", "parts": [{"text": text}]}], "turnComplete": True}}


def answers(name: str, call_id: str = "call-1", **response: Any) -> Frame:
    """The output of a function."""
    return {"toolResponse": {"functionResponses": [{"id": call_id, "name": name, "response": response}]}}


@dataclass
class LiveServer:
    """Answers each frame with what ``script`` makes of it; the setup with ``SETUP_COMPLETE``. Remembers what it got."""

    script: Script = lambda frame: ()
    raw: list[bytes] = field(default_factory=list)
    kinds: list[WSMsgType] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _got: asyncio.Event = field(default_factory=asyncio.Event)
    _sockets: list[Any] = field(default_factory=list)
    url: str = ""

    @property
    def frames(self) -> list[Frame]:
        """What came after the setup."""
        return [orjson.loads(frame) for frame in self.raw[1:]]

    async def got(self, number: int) -> list[Frame]:
        """Return the frames behind the setup once there are so many."""
        async with asyncio.timeout(10):
            while len(self.raw) <= number:
                self._got.clear()
                await self._got.wait()
        return self.frames

    async def push(self, *frames: Answer) -> None:
        """Send frames that nothing asked for."""
        await self._send(self._sockets[-1], frames)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.targets.append(request.raw_path)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.status is not None:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        self._sockets.append(socket)
        async for message in socket:
            data = message.data if message.type is WSMsgType.BINARY else message.data.encode()
            self.kinds.append(message.type)
            self.raw.append(data)
            self._got.set()
            frame = orjson.loads(data)
            await self._send(socket, [SETUP_COMPLETE] if "setup" in frame else self.script(frame))
        self.ended.set()
        return socket

    async def _send(self, socket: Any, answers: Sequence[Answer]) -> None:
        for answer in answers:
            if isinstance(answer, Close):
                await socket.close(code=answer.code, message=answer.reason.encode())
            else:
                await socket.send_bytes(answer if isinstance(answer, bytes) else orjson.dumps(answer))


@contextlib.asynccontextmanager
async def running_live(**options: Any) -> AsyncIterator[LiveServer]:
    server = LiveServer(**options)
    app = web.Application()
    app.router.add_get("/{path:.*}", server.serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


class LiveClient:
    """A client's side of a session, which reads and writes JSON."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse[Any]") -> None:
        self.socket = socket

    async def send(self, *frames: Frame | bytes) -> None:
        for frame in frames:
            await self.socket.send_bytes(frame if isinstance(frame, bytes) else orjson.dumps(frame))

    async def receive(self) -> Frame:
        frame: Frame = orjson.loads(await self.raw())
        return frame

    async def raw(self) -> bytes:
        message = await self.socket.receive(timeout=10)
        assert message.type in (WSMsgType.BINARY, WSMsgType.TEXT), (message, self.socket.close_code)
        data: bytes = message.data if message.type is WSMsgType.BINARY else message.data.encode()
        return data

    async def turn(self) -> list[Frame]:
        """Return the frames up to the one that completes a turn, or calls a function."""
        frames = []
        while True:
            frames.append(await self.receive())
            if frames[-1].get("serverContent", {}).get("turnComplete") or "toolCall" in frames[-1]:
                return frames

    async def closed(self) -> tuple[int | None, str]:
        """Return how the other side ends the session."""
        message = await self.socket.receive(timeout=10)
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED), message
        return self.socket.close_code, message.extra or ""


@contextlib.asynccontextmanager
async def session(
    url: str, path: str = GEMINI_PATH, *, setup: Frame | None = SETUP, headers: dict[str, str] | None = None
) -> AsyncIterator[LiveClient]:
    """Open a session through the proxy at ``url``, past its setup."""
    headers = headers if headers is not None else {"x-goog-api-key": "AIzaTestKey"}
    async with aiohttp.ClientSession() as http, http.ws_connect(url + path, headers=headers, max_msg_size=0) as socket:
        client = LiveClient(socket)
        if setup is not None:
            await client.send(setup)
            assert await client.receive() == SETUP_COMPLETE
        yield client


def texts(frames: Sequence[Frame]) -> str:
    """What the model says in these frames."""
    parts = [part for frame in frames for part in frame.get("serverContent", {}).get("modelTurn", {}).get("parts", ())]
    return "".join(part.get("text", "") for part in parts)
