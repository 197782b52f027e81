"""Bound the memory that the bodies of all requests take together."""

from typing import Final

from aiohttp import web

from gemini_proxy.errors import Unavailable

SMALL: Final = 65_536
"""Bytes of a body that are not counted: they are read ahead of a connection anyway, and ``server.max_exchanges`` bounds
the connections. So a few large bodies keep other large ones out, and no small ones."""


class MemoryBudget:
    """Count the bytes of large bodies from their arrival until their requests have been answered.

    A single body may exceed ``limit``: another limit bounds what one request may bring.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    @property
    def used(self) -> int:
        """Return the bytes counted now."""
        return self._used

    def reserve(self, request: web.Request, size: int) -> None:
        """Count ``size`` more bytes for a request. Raise Unavailable if other requests leave no room for them."""
        own = request.get(_RESERVED, 0)
        if self._used > own and self._used + size > self._limit:
            raise Unavailable(
                "The server holds as many bytes of large requests as server.max_held_bytes allows; try again later"
            )
        self._used += size
        request[_RESERVED] = own + size

    def release(self, request: web.Request) -> int:
        """Uncount a request's bytes, once it has been answered. Return how many there were."""
        if not self._used:
            return 0
        reserved: int = request.get(_RESERVED, 0)
        self._used -= reserved
        return reserved


MEMORY_BUDGET = web.AppKey("MEMORY_BUDGET", MemoryBudget)
_RESERVED = web.RequestKey("RESERVED", int)
