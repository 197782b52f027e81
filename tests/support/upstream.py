"""A scripted Gemini on a real socket: it answers byte for byte what a test says, and remembers what it was asked."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True)
class Call:
    """One request as it arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    raw_head: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Abort:
    """End the connection here, without the end of the body."""


class Hang:
    """Say nothing more, until the caller closes the connection."""


Step = bytes | asyncio.Event | Abort | Hang


@dataclass(frozen=True)
class Reply:
    """``steps`` are sent one by one as chunks; an Event is waited for. Without ``chunked`` the length is given."""

    steps: Sequence[Step] = ()
    status: int = 200
    content_type: str = "application/json; charset=UTF-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    chunked: bool = True
    before_head: Step | None = None


Script = Reply | Callable[[Call], Reply]


class ScriptedUpstream:
    """Answers calls with the queued replies in order, the last one again and again; one may be made of its call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.replies: list[Script] = []
        self.closed_by_caller = asyncio.Event()
        self.called = asyncio.Event()
        self.sent = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    def reply(self, *replies: Script) -> None:
        self.replies = list(replies)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed_by_caller.set()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        call = Call(method, target, headers, body, head)
        self.calls.append(call)
        self.called.set()
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return await self._answer(reply if isinstance(reply, Reply) else reply(call), reader, writer)

    async def _answer(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if reply.before_head is not None and not await self._step(reply.before_head, reader, writer, False):
            return False
        head = [f"HTTP/1.1 {reply.status} Scripted", f"content-type: {reply.content_type}"]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        if reply.chunked:
            head.append("transfer-encoding: chunked")
        else:
            head.append(f"content-length: {sum(len(step) for step in reply.steps if isinstance(step, bytes))}")
        writer.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
        await writer.drain()
        for step in reply.steps:
            if not await self._step(step, reader, writer, reply.chunked):
                return False
        if reply.chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _step(
        self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chunked: bool
    ) -> bool:
        if isinstance(step, bytes):
            writer.write(b"%x\r\n%b\r\n" % (len(step), step) if chunked else step)
            await writer.drain()
            self.sent += 1
        elif isinstance(step, asyncio.Event):
            await step.wait()
        elif isinstance(step, Abort):
            writer.transport.abort()
            return False
        else:
            await reader.read()
            self.closed_by_caller.set()
            return False
        return True


def candidate(text: str, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    """A response with one candidate that says ``text``."""
    found: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **extra}
    if finish:
        found["finishReason"] = finish
    return {"candidates": [found]}


def call_part(name: str, finish: str | None = None, **args: Any) -> dict[str, Any]:
    """A response with one candidate that calls a function."""
    found: dict[str, Any] = {"content": {"parts": [{"functionCall": {"name": name, "args": args}}], "role": "model"}}
    if finish:
        found["finishReason"] = finish
    return {"candidates": [found]}


def sse(*payloads: Mapping[str, Any]) -> list[bytes]:
    """One SSE event each."""
    return [b"data: " + orjson.dumps(payload) + b"\r\n\r\n" for payload in payloads]


def stream(*steps: Step, **reply: Any) -> Reply:
    """An SSE answer."""
    return Reply(steps, content_type="text/event-stream", **reply)


def unary(payload: Mapping[str, Any], **reply: Any) -> Reply:
    """A whole JSON answer."""
    return Reply([orjson.dumps(payload, option=orjson.OPT_INDENT_2)], chunked=False, **reply)
