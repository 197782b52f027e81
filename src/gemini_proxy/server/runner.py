"""Runs the application on its addresses until it is told to stop, and lets exchanges under way finish."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import orjson
from aiohttp import HttpVersion10, HttpVersion11, web

from gemini_proxy.errors import BadRequest, LimitExceeded, ProxyError, VersionNotSupported
from gemini_proxy.gemini.refusal import JSON_TYPE, error_body
from gemini_proxy.sections import ListenAddress
from gemini_proxy.server.connections import UNFINISHED, Unfinished
from gemini_proxy.server.errors import error_response
from gemini_proxy.server.keys import RELOADS, SETUPS, STATE, TASKS
from gemini_proxy.server.reload import Hangups, Load, Reloader
from gemini_proxy.server.systemd import Notifier

log = logging.getLogger(__name__)

_KEEPALIVE = 75.0
"""Seconds an idle connection is kept: longer than nginx keeps its own, so that nginx closes first."""


_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Connection(web.RequestHandler):
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

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        log.info("unreadable HTTP request: %s", type(exc).__name__)
        text, code = ("The HTTP request cannot be read.", "INVALID_ARGUMENT")
        if status >= 500:
            text, code = ("The proxy failed on this request.", "INTERNAL")
        body = orjson.dumps(error_body(status, text, code))
        response = web.Response(status=status, body=body, headers={"content-type": JSON_TYPE})
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(self, handler: _Handler, unfinished: Unfinished, **arguments: Any) -> None:
        super().__init__(handler, **arguments)
        self._unfinished = unfinished

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._unfinished, loop=self._loop, **self._kwargs)


def _checking(handler: _Handler, unfinished: Unfinished) -> _Handler:
    """Refuse what aiohttp lets pass, or answers in plain text with the words of the client in it."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            unfinished.head(request)
        except LimitExceeded as exceeded:
            return error_response(exceeded)
        error = _fault(request)
        if error is None:
            return await handler(request)
        # The response takes over the version of its request, which aiohttp reads once.
        request._version = min(max(request._version, HttpVersion10), HttpVersion11)
        response = error_response(error)
        response.force_close()
        return response

    return handle


def _fault(request: web.BaseRequest) -> ProxyError | None:
    if request._version.major > 1:
        return VersionNotSupported("This server speaks HTTP/1.1.")
    if request._version.major < 1:
        return BadRequest("The HTTP request cannot be read.")
    expected = request.headers.get("expect", "")
    if expected and expected.lower() != "100-continue":
        return BadRequest("The header Expect takes 100-continue only.")
    return None


class Runner(web.AppRunner):
    """An AppRunner whose connections answer in Google's form whatever comes over them."""

    def __init__(self, app: web.Application, shutdown_grace: float) -> None:
        super().__init__(
            app,
            access_log=None,
            # A client that leaves ends its upstream call; aiohttp tells the handler only when asked to.
            handler_cancellation=True,
            # Bodies are inflated by ourselves, in bounded steps.
            auto_decompress=False,
            keepalive_timeout=_KEEPALIVE,
            lingering_time=2.0,
            read_bufsize=65_536,
            shutdown_timeout=shutdown_grace,
        )

    async def _make_server(self) -> web.Server:
        stock = await super()._make_server()
        return _Server(
            _checking(stock.request_handler, self.app[UNFINISHED]),
            self.app[UNFINISHED],
            request_factory=stock.request_factory,
            handler_cancellation=stock.handler_cancellation,
            **stock._kwargs,
        )


@contextlib.asynccontextmanager
async def running(
    app: web.Application, addresses: Sequence[ListenAddress], shutdown_grace: float
) -> AsyncIterator[list[str]]:
    """Serve ``app``; yields the addresses as they really are (port 0 becomes a real one).

    Leaving lets exchanges under way finish for ``shutdown_grace`` seconds, refuses new ones, and writes all traces.
    """
    runner = Runner(app, shutdown_grace)
    await runner.setup()
    try:
        bound = [await _listen(runner, address) for address in addresses]
        yield bound
    finally:
        app[STATE].draining = True
        await runner.cleanup()


async def _listen(runner: Runner, address: ListenAddress) -> str:
    if address.path:
        _remove_stale(address.path)
        await web.UnixSite(runner, address.path).start()
        # nginx runs as another user; who may reach the socket is decided by its folder.
        os.chmod(address.path, 0o666)
        return str(address)
    site = web.TCPSite(runner, address.host, address.port, backlog=1024)
    await site.start()
    name: Sequence[object] = runner.addresses[-1]
    return str(ListenAddress(host=str(name[0]), port=int(str(name[1]))))


def _remove_stale(path: str) -> None:
    """Remove the socket that a killed server left; one that answers is another server's."""
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != 0:
            os.unlink(path)


async def serve(
    app: web.Application,
    addresses: Sequence[ListenAddress],
    shutdown_grace: float,
    notifier: Notifier,
    announce: Callable[[list[str]], None],
    hangups: Hangups,
    load: Load,
) -> None:
    """Serve until SIGTERM or SIGINT. At each SIGHUP what ``load`` gives takes the place of what holds."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(app, addresses, shutdown_grace) as bound:
        status = f"listening on {', '.join(bound)}"
        notifier.ready(status)
        app[TASKS].spawn(notifier.watch(), "watchdog")
        reloader = Reloader(app[SETUPS], app[RELOADS], load)
        following = app[TASKS].spawn(reloader.follow(hangups, notifier, status), "reload")
        announce(bound)
        await stop.wait()
        following.cancel()
        notifier.stopping()
