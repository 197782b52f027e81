"""Connections whose clients keep the server waiting: those without a complete request, counted by address."""

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from gemini_proxy.errors import LimitExceeded
from gemini_proxy.http.peers import Peers
from gemini_proxy.server.limiter import Limiter, network
from gemini_proxy.server.limits import AtOnce

_PATIENCE: Final = 2.0
"""Seconds that a connection over the limit may take to send the head of a request, which then gets its refusal."""


class Unfinished:
    """Count a connection until a complete request has come, and again from the head of each later one to its end.

    A connection through a trusted proxy counts for the client that the proxy names, and so only from the head on.
    """

    def __init__(self, peers: Peers, limiter: Limiter, most: Callable[[], int]) -> None:
        self._peers = peers
        self._limiter = limiter
        self._most = most
        self._open = AtOnce()
        self._counted: dict[web.RequestHandler, str] = {}

    def opened(self, connection: web.RequestHandler, transport: asyncio.BaseTransport) -> None:
        """Note that a client has connected."""
        peer = self._peers.untrusted(transport)
        if peer is not None and self._count(connection, peer):
            asyncio.get_running_loop().call_later(_PATIENCE, self._end_silent, connection, transport)

    def head(self, request: web.BaseRequest) -> None:
        """Note a request's head. Raises LimitExceeded for an unfinished one if the client has others unfinished.

        A request that is already complete is always served.
        """
        connection, content = request.protocol, request.content
        self.done(connection)
        if content.is_eof():
            return
        if self._count(connection, self._peers.client(request)):
            name = self._counted[connection]
            self.done(connection)
            self._limiter.count("connections", name)
            raise LimitExceeded(
                f"You have reached the limit limits.unfinished_connections = {self._most()} of this server",
                "connections",
                _PATIENCE,
            )
        content.on_eof(lambda: self.done(connection))

    def done(self, connection: web.RequestHandler) -> None:
        """Note that a whole request has come, or that the connection has ended."""
        if (name := self._counted.pop(connection, None)) is not None:
            self._open.end(name)

    def _count(self, connection: web.RequestHandler, address: str) -> bool:
        """Count it, and return whether it is one too many."""
        name = f"address {network(address)}"
        self._counted[connection] = name
        count = self._open.begin(name)
        return 0 < self._most() < count

    def _end_silent(self, connection: web.RequestHandler, transport: asyncio.BaseTransport) -> None:
        if (name := self._counted.get(connection)) is not None and not transport.is_closing():
            self._limiter.count("connections", name)
            transport.close()


UNFINISHED = web.AppKey("UNFINISHED", Unfinished)
