"""Write the response to one client. Its head is sent with its first byte; until then it can become another one."""

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Final

import orjson
from aiohttp import web
from multidict import CIMultiDict

from gemini_proxy.gemini.refusal import JSON_TYPE

_JSON_BEGINS: Final = re.compile(rb"^(?:\xef\xbb\xbf)?data: ?|(?<=[\r\n])data: ?")


class ClientResponse:
    """Build the response to ``request``. Streams leave chunk by chunk; anything else is sent whole at the end.

    ``breaks_off`` says that the body breaks off like the upstream's. ``first_byte_at`` is the time of sending the head,
    by ``time.perf_counter``.
    """

    __slots__ = ("_chunked", "_event_open", "_http", "_request", "_transport", "breaks_off", "first_byte_at")

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._http: web.StreamResponse | None = None
        # The writer of the body, and whether it writes chunks; None before the head.
        self._transport: asyncio.Transport | None = None
        self._chunked = False
        self._event_open = False
        self.breaks_off = False
        self.first_byte_at: float | None = None

    @property
    def begun(self) -> bool:
        """True once the head has been sent."""
        return self._http is not None and self._http.prepared

    @property
    def http(self) -> web.StreamResponse:
        """Return the response as it is by now. There is none before its head is known."""
        assert self._http is not None
        return self._http

    @property
    def status(self) -> int | None:
        """Return the status that the client gets; None before it is known."""
        return None if self._http is None else self._http.status

    def head(self, status: int, headers: CIMultiDict[str], *, streams: bool) -> None:
        """Set what the head will be. Streams tell nginx and caches to pass them on as they come."""
        if streams:
            headers["x-accel-buffering"] = "no"
            headers.setdefault("cache-control", "no-cache")
        self._http = (web.StreamResponse if streams else web.Response)(status=status, headers=headers)

    def stream_head(self, content_type: str) -> None:
        """Set the head of a stream that has no upstream response behind it."""
        self.head(200, CIMultiDict({"content-type": content_type}), streams=True)

    def whole(self, status: int, headers: CIMultiDict[str], body: bytes) -> None:
        """Respond with ``body``, all at once."""
        self._http = web.Response(status=status, headers=headers, body=body)

    def error(self, status: int, body: Mapping[str, object]) -> None:
        """Respond with Google error JSON."""
        self.whole(status, CIMultiDict({"content-type": JSON_TYPE}), orjson.dumps(body, default=str))

    def note(self, name: str, value: str) -> None:
        """Add a header, where the head has not been sent yet."""
        if not self.begun:
            self.http.headers[name] = value

    @property
    def flows(self) -> bool:
        """True while ``write_now`` may be called: the head has left, and the client has taken all that followed it."""
        transport = self._transport
        return (
            transport is not None
            and not self._event_open
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    def write_now(self, data: bytes) -> None:
        """Send ``data`` without waiting, while ``flows`` is true.

        It sends the same bytes as aiohttp's ``write``, which takes five coroutines even if it waits for nothing.
        """
        assert self._transport is not None
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def write(self, data: bytes, *, ends: bool = False) -> None:
        """Send ``data``, after the head. With ``ends`` the end of the body goes with it."""
        if not self.begun:
            self.first_byte_at = time.perf_counter()
            await self.http.prepare(self._request)
            self._transport = self._request.transport
            self._chunked = self.http.headers.get("transfer-encoding") == "chunked"
        if self._event_open:
            # Text before the event's JSON, such as comments, may not come within it.
            if (begins := _JSON_BEGINS.search(data)) is None:
                return
            self._event_open = False
            data = data[begins.end() :]
        await (self.http.write_eof(data) if ends else self.http.write(data))

    async def keep_alive(self, following: bytes, *, sse: bool) -> None:
        """Show a waiting client that the connection is alive, by a space before the JSON of the next event.

        Every client ignores white space there, and nothing else; comments in SSE break several clients. In an SSE
        stream nothing is sent unless ``following``, the first bytes that will be sent next, begins an event with JSON.
        Before an event with a name a comment is sent.
        """
        if self._event_open:
            await self.http.write(b" ")
        elif not sse:
            await self.write(b" ")
        elif following.startswith(b"data:") and not following[len(b"data:") :].lstrip().startswith(b"[DONE]"):
            await self.write(b"data: ")
            self._event_open = True
        elif following.startswith(b"event:"):
            # Clients of streams whose events have names read comments.
            await self.write(b":\n")

    async def finish(self, last: bytes) -> web.StreamResponse:
        """Send the last bytes, and the end of the body with them. Return the response.

        Without any bytes, aiohttp sends the end after the middlewares have returned.
        """
        response = self.http
        if isinstance(response, web.Response):
            if last:
                response.body = last
        elif last:
            await self.write(last, ends=not self.breaks_off)
        if self.breaks_off:
            break_off(self._request)
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
