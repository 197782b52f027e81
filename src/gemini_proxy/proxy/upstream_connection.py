"""Speak HTTP/1.1 to one origin: responses are read by llhttp, strictly, and connections are kept for the next call."""

import asyncio
import math
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, cast

from aiohappyeyeballs import AddrInfoType, start_connection
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from yarl import URL

from gemini_proxy.errors import UpstreamCut, UpstreamError, UpstreamTimeout

_READ_AHEAD: Final = 65_536
"""Bytes held for a slow reader before the socket is read no more: what bounds memory when a thousand readers stall."""
_WRITE_STEP: Final = 262_144
"""Bytes of a request written at once; neighbors get their turn between them."""
_MAX_HEAD: Final = 65_536
"""Bytes of header names and values in a response, interim responses and trailers included."""
_MAX_INTERIM: Final = 32
"""The most interim responses (1xx) before the final one; no server needs more, and they must not go on forever."""
_KEPT: Final = 60.0
"""Seconds an idle connection is kept."""
_RESOLVED: Final = 60.0
"""Seconds the addresses of the origin's name hold."""
_NEXT_ADDRESS: Final = 0.25
"""Seconds after which the next address is tried beside one that does not answer (RFC 8305, section 5)."""

Headers = list[tuple[str, str]]
NO_FIELDS: Final[Mapping[str, str]] = MappingProxyType({})
Sink = Callable[[bytes], bytes | None]
"""Takes in bytes of a body. Returns those over which it has to wait for something, None where it has not."""


class Stale(Exception):
    """A kept connection was closed before a byte of the response came: the call may be made again on a new one."""


class _Unread(Exception):
    """The response has more of something than it may have, or a body in a coding that nothing here reads."""


class Connection(asyncio.Protocol):
    """A connection that carries one call at a time: ``call()``, then ``receive()`` until it returns ``b""``.

    ``flow()`` may be called in place of ``receive()``, and ends with None. After that the connection belongs to the
    pool again; ``abandon()`` ends a call early. ``received`` counts the bytes of the body that were read.
    ``headers`` are the response's, and ``fields`` the first value of each by its name in lower case.
    """

    __slots__ = (
        "_busy",
        "_calls",
        "_complete",
        "_fault",
        "_has_head",
        "_head_bytes",
        "_heard",
        "_held",
        "_idle_since",
        "_interim",
        "_keep",
        "_look_again",
        "_loop",
        "_lost",
        "_open",
        "_parser",
        "_patience",
        "_pieces",
        "_reading",
        "_release",
        "_sink",
        "_transport",
        "_until_close",
        "_waiter",
        "_waiting_since",
        "_writable",
        "fields",
        "headers",
        "received",
        "status",
    )

    def __init__(self, patience: float, release: Callable[["Connection"], None], lost: Callable[["Connection"], None]):
        self.status = 0
        self.headers: Headers = []
        self._patience = patience
        self._release = release
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        # The parser and this object refer to each other until the connection is lost.
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._look_again: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_since = math.inf
        self._sink: Sink | None = None
        self._idle_since = self._loop.time()
        self._calls = 0
        self._open = True
        self._writable = True
        self._reading = True
        self._start_call()
        self._busy = False

    def _start_call(self) -> None:
        self.status = 0
        self.headers = []
        self.fields: Mapping[str, str] = NO_FIELDS
        self._busy = True
        self._heard = False
        self._head_bytes = 0
        self._interim = 0
        self._has_head = False
        self._until_close = False
        self._pieces: list[bytes] = []
        self._held = 0
        self.received = 0
        self._complete = False
        self._keep = True
        # The error's class and message: a stored error would keep alive the frames that raised it.
        self._fault: tuple[type[UpstreamError], str] | None = None

    @property
    def usable(self) -> bool:
        """Return whether the connection can carry another call, as far as this side knows."""
        return self._open and not self._busy and not self._transport.is_closing()

    @property
    def _readable(self) -> bool:
        return self._complete or bool(self._pieces)

    async def call(self, head: bytes, body: bytes) -> None:
        """Send a request and wait for the head of its response: ``status``, ``headers`` and ``fields`` are then set.

        Raises UpstreamError if none comes, UpstreamTimeout if it does not come in time, and Stale.
        """
        self._start_call()
        self._calls += 1
        if len(body) <= _WRITE_STEP:
            self._transport.write(head + body)
        else:
            await self._send_in_steps(head, body)
        while not self._has_head:
            if self._fault is not None:
                self._raise_early()
            await self._progress()

    async def receive(self) -> bytes:
        """Return the next bytes of the body, ``b""`` at its end.

        Raises UpstreamCut when it breaks off, UpstreamTimeout when it falls silent.
        """
        while not self._pieces and not self._complete and self._fault is None:
            await self._progress()
        return self._next()

    async def flow(self, sink: Sink) -> bytes | None:
        """Pass the body from the socket to ``sink``. Return the bytes that it leaves, and None at the body's end.

        Earlier bytes are returned too. No task wakes for the bytes that ``sink`` takes: waking one would be a large
        part of the cost of a stream's event. Raises as ``receive`` does, and what ``sink`` raises.
        """
        while not self._pieces and not self._complete and self._fault is None:
            self._sink = sink
            try:
                await self._progress()
            finally:
                self._sink = None
        if self._pieces:
            # A sink that has to wait for a verdict may leave no bytes, which is not the end.
            return self._take()
        return self._next() or None

    def abandon(self) -> None:
        """End the call, if it has not ended by itself, and the connection with it."""
        if self._busy:
            self._keep = False
            self._finish()

    def close(self) -> None:
        self._transport.abort()

    async def _send_in_steps(self, head: bytes, body: bytes) -> None:
        """Write a long request, as far as the upstream wants it: it may respond before it has everything."""
        self._transport.write(head)
        for begin in range(0, len(body), _WRITE_STEP):
            while not self._writable and not self._has_head and self._fault is None:
                await self._progress()
            if self._has_head or self._fault is not None:
                self._keep = False
                return
            self._transport.write(memoryview(body)[begin : begin + _WRITE_STEP])
            # Even if the socket takes everything at once, other tasks get their turn.
            await asyncio.sleep(0)

    def _raise_early(self) -> None:
        assert self._fault is not None
        if not self._open and not self._heard and self._calls > 1:
            raise Stale
        error, message = self._fault
        raise error(message)

    async def _progress(self) -> None:
        """Wait until something has happened: bytes came or may be written, time ran out, the connection was lost."""
        self._waiter = self._loop.create_future()
        self._waiting_since = self._loop.time()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._waiting_since = math.inf

    def _next(self) -> bytes:
        """Return the received bytes of the body, or ``b""`` and end the call; raise the fault if there is neither."""
        if self._pieces:
            return self._take()
        if self._complete:
            self._finish()
            return b""
        assert self._fault is not None
        error, message = self._fault
        raise error(message)

    def _take(self) -> bytes:
        pieces = self._pieces
        self._pieces = []
        self.received += self._held
        self._held = 0
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _pass(self, sink: Sink) -> None:
        """Hand what has come to ``sink``. What it returns waits to be read; ``flow`` raises what it raises."""
        assert self._waiter is not None
        try:
            left = sink(self._take())
        except Exception as error:
            self._waiter.set_exception(error)
            return
        if left is not None:
            self._pieces.append(left)
        else:
            self._waiting_since = self._loop.time()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _finish(self) -> None:
        keep = self._keep and self._complete and self._open and not self._transport.is_closing()
        self._busy = False
        self._idle_since = self._loop.time()
        self._pieces = []
        if not keep:
            self._transport.abort()
            return
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        self._release(self)

    def _fail(self, error: type[UpstreamError], message: str) -> None:
        if self._fault is None:
            self._fault = (error, message)
        self._wake()

    def _look(self) -> None:
        """End a wait for the upstream, or an idle connection, that has lasted too long.

        There is one timer per connection, which is set again when it expires: a timer for each piece of a response
        would be a tenth of the cost of a streamed event.
        """
        now = self._loop.time()
        if not self._busy:
            rest = self._idle_since + _KEPT - now
            if rest <= 0:
                self._transport.abort()
                return
        else:
            rest = self._patience + min(self._waiting_since - now, 0.0)
            if rest <= 0:
                silent = "The upstream fell silent" if self._has_head else "The upstream did not answer in time"
                self._fail(UpstreamTimeout, silent)
                rest = self._patience
        self._look_again = self._loop.call_later(min(rest, self._patience), self._look)

    # Callbacks of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from this class.
        self._transport = cast(asyncio.Transport, transport)
        self._look_again = self._loop.call_later(self._patience, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open = False
        self._parser = None
        if self._look_again is not None:
            self._look_again.cancel()
        if self._busy and not self._complete:
            if not self._has_head:
                self._fail(UpstreamError, "The upstream closed the connection without a response")
            elif self._until_close and exc is None:
                self._complete = True
            else:
                self._fail(UpstreamCut, "The upstream's response broke off")
        self._wake()
        self._lost(self)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    def data_received(self, data: bytes) -> None:
        if not self._busy or self._complete or self._fault is not None:
            # These are bytes without a request. The requested response has come, or will not be read.
            self._keep = False
            if not self._busy:
                self._transport.abort()
            return
        self._heard = True
        had_head = self._has_head
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._keep = False
        except HttpParserError:
            self._keep = False
            if not self._has_head:
                self._fail(UpstreamError, "The upstream's response cannot be read as HTTP")
            elif not self._complete:
                self._fail(UpstreamCut, "The upstream's response broke off")
        if self._sink is not None and self._pieces and self._waiter is not None and not self._waiter.done():
            self._pass(self._sink)
        if self._held > _READ_AHEAD and self._reading and not self._complete:
            self._reading = False
            self._transport.pause_reading()
        # Bytes without content (of a head, a chunk's extension) do not extend the time limit.
        if self._readable or self._has_head is not had_head:
            self._wake()

    # Callbacks of llhttp

    def on_message_begin(self) -> None:
        if self._complete:
            raise _Unread

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MAX_HEAD:
            raise _Unread
        if not self._has_head:
            self.headers.append((name.decode("ascii"), value.decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise _Unread
            return
        fields: dict[str, str] = {}
        for name, value in self.headers:
            folded = name.lower()
            if folded == "transfer-encoding" and value.lower() != "chunked":
                raise _Unread
            fields.setdefault(folded, value)
        self._until_close = "transfer-encoding" not in fields and "content-length" not in fields
        self.status = status
        self.fields = fields
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._held += len(body)

    def on_message_complete(self) -> None:
        if not self._has_head:
            # An interim response is not passed on: the upstream is still at work.
            self.headers = []
            if self._waiter is not None:
                self._waiting_since = self._loop.time()
            return
        assert self._parser is not None
        self._complete = True
        if not self._parser.should_keep_alive():
            self._keep = False


class Pool:
    """The connections to the origin of a URL; of those that are idle the one used last is taken first."""

    def __init__(self, origin: URL, connect_timeout: float, patience: float, tls: ssl.SSLContext | None = None) -> None:
        self._host = origin.raw_host or ""
        self._port = origin.port or 443
        self._tls = (tls or tls_context()) if origin.scheme == "https" else None
        self._connect_timeout = connect_timeout
        self._patience = patience
        self._idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._resolving = asyncio.Lock()
        self._addresses: Sequence[AddrInfoType] = ()
        self._resolved_until = -math.inf

    def idle(self) -> Connection | None:
        """Return an idle connection, None if there is none."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def connect(self) -> Connection:
        """Open a connection. Raises UpstreamError when it cannot be had, UpstreamTimeout when that takes too long."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await self._connect()
        except TimeoutError:
            raise UpstreamTimeout("The upstream did not answer in time") from None
        except OSError as error:
            raise UpstreamError(f"The upstream cannot be reached ({type(error).__name__})") from None

    async def close(self) -> None:
        for connection in self._connections:
            connection.close()
        # The transports notify their connections in the loop's next turn.
        await asyncio.sleep(0)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        sock = await start_connection(await self._resolved(), happy_eyeballs_delay=_NEXT_ADDRESS)
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self._patience, self._idle.append, self._connections.discard),
                sock=sock,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
        except BaseException:
            sock.close()
            raise
        self._connections.add(connection)
        return connection

    async def _resolved(self) -> Sequence[AddrInfoType]:
        loop = asyncio.get_running_loop()
        async with self._resolving:
            if loop.time() >= self._resolved_until:
                self._addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                self._resolved_until = loop.time() + _RESOLVED
            return self._addresses


def tls_context() -> ssl.SSLContext:
    """Return what verifies the other side. Reading the authorities takes tens of milliseconds."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
