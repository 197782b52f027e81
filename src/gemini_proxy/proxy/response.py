"""The answer to one client: its head is sent with its first byte; until then it can still become another one."""

from collections.abc import Mapping

import orjson
from aiohttp import web
from multidict import CIMultiDict

from gemini_proxy.gemini.refusal import JSON_TYPE


class ClientAnswer:
    """Builds the response of one exchange. Streams leave chunk by chunk; anything else is sent whole at the end.

    The request carries it, so it does not hold the request: only the garbage collector would part the two.
    """

    def __init__(self) -> None:
        self._response: web.StreamResponse | None = None
        self._event_open = False

    @property
    def begun(self) -> bool:
        """True once the head has been sent."""
        return self._response is not None and self._response.prepared

    @property
    def response(self) -> web.StreamResponse:
        """What the answer is by now. There is none before its head is known."""
        assert self._response is not None
        return self._response

    def head(self, status: int, headers: CIMultiDict[str], *, streams: bool) -> None:
        """Say what the head will be. Streams tell nginx and caches to pass them on as they come."""
        if streams:
            headers["x-accel-buffering"] = "no"
            headers.setdefault("cache-control", "no-cache")
        self._response = (web.StreamResponse if streams else web.Response)(status=status, headers=headers)

    def stream_head(self, content_type: str) -> None:
        """The head of a stream that has no upstream answer behind it."""
        self.head(200, CIMultiDict({"content-type": content_type}), streams=True)

    def whole(self, status: int, headers: CIMultiDict[str], body: bytes) -> None:
        """Answer with ``body``, all at once."""
        self._response = web.Response(status=status, headers=headers, body=body)

    def error(self, status: int, body: Mapping[str, object]) -> None:
        """Answer with Google error JSON."""
        self.whole(status, CIMultiDict({"content-type": JSON_TYPE}), orjson.dumps(body, default=str))

    def note(self, name: str, value: str) -> None:
        """Add a header, where the head has not been sent yet."""
        if not self.begun:
            self.response.headers[name] = value

    async def write(self, request: web.Request, data: bytes) -> None:
        """Send ``data`` to the client of ``request``."""
        if not self.begun:
            await self.response.prepare(request)
        if self._event_open:
            self._event_open = False
            data = data.removeprefix(b"data:").removeprefix(b" ")
        await self.response.write(data)

    async def keep_alive(self, request: web.Request, following: bytes) -> None:
        """Show a waiting SSE client that the connection lives: begin the event that will come, then add a space to it.

        White space before an event's JSON is the one thing that every client takes for nothing; comments break several.
        Where what will come is no event, nothing is sent.
        """
        if self._event_open:
            await self.response.write(b" ")
        elif following.startswith(b"data:"):
            await self.write(request, b"data: ")
            self._event_open = True

    async def finish(self, request: web.Request, tail: bytes) -> web.StreamResponse:
        """The response with its last bytes; aiohttp sends its end after the middlewares have returned."""
        response = self.response
        if isinstance(response, web.Response):
            if tail:
                response.body = tail
        elif tail:
            await self.write(request, tail)
        return response


def break_off(request: web.Request) -> None:
    """End the connection so that the client sees a broken body: no last chunk; without chunks (HTTP/1.0), a reset."""
    transport = request.transport
    if transport is None:
        return
    if request.version >= (1, 1):
        transport.close()
    else:
        transport.abort()
