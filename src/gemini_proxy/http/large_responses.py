"""Large answers, sent in pieces between which the loop gets its turn."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

from aiohttp import web

_PIECE: Final = 131_072
"""Bytes written at once: what a socket does not take is copied."""


def bytes_response(body: bytes, headers: Mapping[str, str]) -> web.Response:
    """``body`` as it is, whatever its size."""
    if len(body) <= _PIECE:
        return web.Response(body=body, headers=headers)
    return web.Response(body=_pieces(body), headers={**headers, "content-length": str(len(body))})


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]
        # A client that reads fast is never waited for.
        await asyncio.sleep(0)
