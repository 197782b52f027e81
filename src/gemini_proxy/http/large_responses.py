"""Send large responses in pieces, so that the event loop serves others in between."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

from aiohttp import web

_PIECE: Final = 131_072
"""Bytes written at once: what a socket does not take is copied."""


def bytes_response(body: bytes, headers: Mapping[str, str]) -> web.Response:
    """Return a response with ``body`` as it is, of any size."""
    if len(body) <= _PIECE:
        return web.Response(body=body, headers=headers)
    return web.Response(body=_pieces(body), headers={**headers, "content-length": str(len(body))})


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]
        # Writing to a client that reads fast never waits, and so never lets other tasks run.
        await asyncio.sleep(0)
