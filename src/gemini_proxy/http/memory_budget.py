"""What the bodies of all requests together may take of memory."""

from typing import Final

from aiohttp import web

from gemini_proxy.errors import Unavailable

BRIEF: Final = 65_536
"""Bytes of a body that are not counted: what is read ahead of a connection anyway, and ``server.max_exchanges`` bounds
those. So a few large bodies keep other large ones out, and nobody's small ones."""


class Holdings:
    """Counts the bytes of large bodies from their arrival until their requests have been answered.

    ``most`` may be exceeded by one body alone: what a single request may bring is another limit's business.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes counted now."""
        return self._held

    def take(self, request: web.Request, size: int) -> None:
        """Count ``size`` bytes more for a request. Raises Unavailable where others leave no room for them."""
        own = request.get(_HELD, 0)
        if self._held > own and self._held + size > self._most:
            raise Unavailable("The server holds as many bytes of large requests as it may.")
        self._held += size
        request[_HELD] = own + size

    def give_back(self, request: web.Request) -> int:
        """The request has been answered. Return how many bytes were counted for it."""
        held: int = request.get(_HELD, 0)
        self._held -= held
        return held


HOLDINGS = web.AppKey("HOLDINGS", Holdings)
_HELD = web.RequestKey("HELD", int)
