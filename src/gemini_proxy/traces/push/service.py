"""Post traces to an Explorer: ``POST /api/v1/push/trace``. aiohttp's errors end here."""

import asyncio
import time
from typing import Final

import aiohttp
from yarl import URL

from gemini_proxy.guardrails.service_client import in_pieces, service_headers, service_session
from gemini_proxy.traces.push.answers import Answer, Failed, Failure, read_answer

TIMEOUT: Final = 60.0
"""Seconds for one push, connecting included: time for the largest trace on a slow line, less than a job's lease."""
MAX_ANSWER: Final = 65_536
"""Bytes of an answer that are read; one that names a trace has about a hundred."""
_KEEPALIVE: Final = 4.0
"""Seconds a connection is kept. Less than servers do (five, the shortest): of a push sent into a closing connection
nobody knows whether it was taken."""


class ExplorerService:
    """The Explorer at ``url``, which knows ``key``. An asynchronous context manager: sending is possible inside it."""

    def __init__(self, url: str, key: str, *, timeout: float = TIMEOUT) -> None:
        self._url = URL(f"{url}/api/v1/push/trace")
        self._key = key
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "ExplorerService":
        self._session = service_session(keepalive=_KEEPALIVE)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, document: bytes) -> Answer:
        """Send the body of one push, once: an answer that is lost is a failure, whatever became of the trace."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._post(document)
        except TimeoutError:
            return Failed(Failure.TIMEOUT)
        # ValueError: a host name or a key that cannot be sent.
        except (aiohttp.ClientError, OSError, ValueError):
            return Failed(Failure.UNREACHABLE)

    async def _post(self, document: bytes) -> Answer:
        assert self._session is not None
        headers, data = service_headers(self._key), in_pieces(document)
        async with self._session.post(self._url, headers=headers, data=data, allow_redirects=False) as response:
            body = await _beginning(response.content)
            return read_answer(response.status, response.headers.get("retry-after"), body, time.time())


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    """Return the start of the body that is read; a cut body is not valid JSON."""
    pieces: list[bytes] = []
    size = 0
    async for piece in content.iter_any():
        pieces.append(piece[: MAX_ANSWER - size])
        size += len(piece)
        if size > MAX_ANSWER:
            break
    return b"".join(pieces)
