"""Run the application on its addresses until it must stop, and let exchanges in progress finish."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import orjson
from aiohttp import HttpVersion10, HttpVersion11, web

from gemini_proxy.errors import BadRequest, LimitExceeded, ProxyError, VersionNotSupported
from gemini_proxy.gemini.refusal import JSON_TYPE, error_body
from gemini_proxy.http.listen_addresses import ListenAddress
from gemini_proxy.server.app_keys import GROUP, RELOADS, SETUPS, STATE, TASKS
from gemini_proxy.server.error_responses import error_response
from gemini_proxy.server.listening import Acceptor, Listener, Share, listening, listening_status
from gemini_proxy.server.reload import Load, Reloader
from gemini_proxy.server.service_manager import Hangups, Notifier
from gemini_proxy.server.unfinished_connections import UNFINISHED, Unfinished

log = logging.getLogger(__name__)

_KEEPALIVE = 75.0
"""Seconds an idle connection is kept: longer than nginx keeps its own, so that nginx closes first."""
_LINGER: Final = 1.0
"""Seconds for which a stopping server still serves requests on idle connections."""
_LOOK: Final = 0.02
"""Seconds between two looks for connections that have ended."""
_UNWIND: Final = 0.1
"""Seconds for a connection that outlasts the grace to end by itself once asked."""


_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _ClientConnection(web.RequestHandler):
    """aiohttp's own error pages repeat the bytes that were wrong, and those may be a key."""

    __slots__ = ("_unfinished",)

    def __init__(self, manager: web.Server, unfinished: Unfinished, **arguments: Any) -> None:
        super().__init__(manager, **arguments)
        self._unfinished = unfinished

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._unfinished.opened(self, transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._unfinished.done(self)
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Return whether it waits for a request."""
        return not self._request_in_progress and not self._messages

    @property
    def requests(self) -> int:
        """Return the number of requests so far."""
        return self._request_count

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun")
        log.info("unreadable HTTP request: %s", type(exc).__name__)
        text, code = ("The HTTP request cannot be read", "INVALID_ARGUMENT")
        if status >= 500:
            text, code = ("The proxy failed on this request", "INTERNAL")
        body = orjson.dumps(error_body(status, text, code))
        response = web.Response(status=status, body=body, headers={"content-type": JSON_TYPE})
        response.force_close()
        return response


class _ConnectionServer(web.Server):
    def __init__(self, handler: _Handler, unfinished: Unfinished, share: Share | None, **arguments: Any) -> None:
        super().__init__(handler, **arguments)
        self._unfinished = unfinished
        self._share = share

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if self._share is not None:
            self._share.add(1)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if self._share is not None:
            self._share.add(-1)

    @property
    def opened(self) -> list[_ClientConnection]:
        """Return the connections that are open."""
        return [connection for connection in self.connections if isinstance(connection, _ClientConnection)]

    def pre_shutdown(self) -> None:
        """Leave idle connections open, which aiohttp would close here."""

    def __call__(self) -> web.RequestHandler:
        return _ClientConnection(self, self._unfinished, loop=self._loop, **self._kwargs)


def _checking(handler: _Handler, unfinished: Unfinished) -> _Handler:
    """Refuse what aiohttp lets pass, or answers in plain text with the words of the client in it."""

    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        try:
            unfinished.head(request)
        except LimitExceeded as exceeded:
            return _respond(error_response(exceeded))
        error = _fault(request)
        if error is None:
            return handler(request)
        # The response takes its request's version, which aiohttp reads once.
        request._version = min(max(request._version, HttpVersion10), HttpVersion11)
        response = error_response(error)
        response.force_close()
        return _respond(response)

    return handle


async def _respond(response: web.StreamResponse) -> web.StreamResponse:
    """Return ``response``, as a handler does that waits for nothing."""
    return response


def _fault(request: web.BaseRequest) -> ProxyError | None:
    version = request._version.major
    if version > 1:
        return VersionNotSupported("This server speaks HTTP/1.1")
    if version < 1:
        return BadRequest("The HTTP request cannot be read")
    expected = request.headers.get("expect", "")
    if expected and expected.lower() != "100-continue":
        return BadRequest("The header Expect takes 100-continue only")
    return None


class Runner(web.AppRunner):
    """An AppRunner whose connections answer in Google's form whatever comes over them."""

    def __init__(self, app: web.Application, shutdown_grace: float) -> None:
        super().__init__(
            app,
            access_log=None,
            # A client that leaves ends its upstream call; aiohttp tells the handler only when asked to.
            handler_cancellation=True,
            # The proxy inflates bodies itself, in bounded steps.
            auto_decompress=False,
            keepalive_timeout=_KEEPALIVE,
            lingering_time=2.0,
            read_bufsize=65_536,
            # The time for each of aiohttp's two steps, after our own wait: for a handler, and then for a cancelled
            # handler.
            shutdown_timeout=_UNWIND,
        )
        self._grace = shutdown_grace
        app.on_response_prepare.append(_say_close)

    async def shutdown(self) -> None:
        """Let the application know, and wait for its exchanges."""
        await super().shutdown()
        assert isinstance(self.server, _ConnectionServer)
        await _drained(self.server, self._grace)

    async def _make_server(self) -> web.Server:
        stock = await super()._make_server()
        return _ConnectionServer(
            _checking(stock.request_handler, self.app[UNFINISHED]),
            self.app[UNFINISHED],
            self.app[GROUP].share,
            request_factory=stock.request_factory,
            handler_cancellation=stock.handler_cancellation,
            **stock._kwargs,
        )


async def _say_close(request: web.Request, response: web.StreamResponse) -> None:
    """Once the server drains, let each client know that its next request goes over another connection."""
    if request.app[STATE].draining:
        response.force_close()
        response.headers["Connection"] = "close"


async def _drained(server: _ConnectionServer, grace: float) -> None:
    """Wait until no connection is open, ``grace`` seconds at most. Idle ones are closed ``_LINGER`` seconds later.

    A request that a client sends on one before that is served: it may already be on its way.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + grace
    idle: dict[_ClientConnection, tuple[int, float]] = {}
    while (opened := server.opened) and (now := loop.time()) < ends:
        for connection in opened:
            if not connection.idle:
                idle.pop(connection, None)
                continue
            count, since = idle.get(connection, (-1, now))
            if count != connection.requests:
                idle[connection] = (connection.requests, now)
            elif now - since >= _LINGER:
                connection.force_close()
        await asyncio.sleep(_LOOK)


@contextlib.asynccontextmanager
async def running(
    app: web.Application, addresses: Sequence[ListenAddress], shutdown_grace: float
) -> AsyncIterator[list[str]]:
    """Serve ``app`` on sockets of its own; yields the addresses as they really are (port 0 becomes a real one).

    Leaving ends it as ``accepting`` does.
    """
    with listening(addresses) as listeners:
        async with accepting(app, listeners, shutdown_grace):
            yield [str(listener.address) for listener in listeners]


@contextlib.asynccontextmanager
async def accepting(app: web.Application, listeners: Sequence[Listener], shutdown_grace: float) -> AsyncIterator[None]:
    """Serve ``app`` on ``listeners``.

    On exit it accepts no more connections, lets exchanges under way finish for ``shutdown_grace`` seconds, and writes
    all traces.
    """
    runner = Runner(app, shutdown_grace)
    share = app[GROUP].share
    acceptors: list[Acceptor] = []
    siblings = app[GROUP].siblings
    stack = contextlib.AsyncExitStack()
    try:
        await runner.setup()
        server = runner.server
        assert server is not None
        if share is not None:
            share.begin()
        if siblings is not None:
            await stack.enter_async_context(siblings.listening(server))
        acceptors += [Acceptor(listener, server, app[TASKS], share) for listener in listeners]
        for acceptor in acceptors:
            acceptor.start()
        yield
    finally:
        app[STATE].draining = True
        if share is not None:
            share.end()
        for acceptor in acceptors:
            await acceptor.stop()
        await stack.aclose()
        await runner.cleanup()


Oversight = Callable[[web.Application, Sequence[Listener], asyncio.Event], contextlib.AbstractAsyncContextManager[None]]
"""The server's supervisor, informed from when it accepts until it stops. It may set the event to stop it."""


async def serve(
    app: web.Application, listeners: Sequence[Listener], shutdown_grace: float, oversight: Oversight
) -> None:
    """Serve until SIGTERM or SIGINT, or until ``oversight`` says so."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with accepting(app, listeners, shutdown_grace), oversight(app, listeners, stop):
        await stop.wait()


@contextlib.asynccontextmanager
async def managed(
    app: web.Application,
    listeners: Sequence[Listener],
    stop: asyncio.Event,
    *,
    notifier: Notifier,
    announce: Callable[[Sequence[Listener]], None],
    hangups: Hangups,
    load: Load,
) -> AsyncIterator[None]:
    """Tell the service manager how the server is doing. At each SIGHUP put the result of ``load`` into force.

    For ``serve``, if this is the only process of the server.
    """
    status = listening_status(listeners)
    notifier.ready(status)
    app[TASKS].spawn(notifier.watch(), "watchdog")
    reloader = Reloader(app[SETUPS], app[RELOADS], load)
    following = app[TASKS].spawn(reloader.follow(hangups, notifier, status), "reload")
    announce(listeners)
    yield
    following.cancel()
    notifier.stopping()
