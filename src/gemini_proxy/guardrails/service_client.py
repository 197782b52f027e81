"""Call services over HTTP: the parts that the clients of Guardrails, Explorer and asked detectors share."""

import io
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import orjson

from gemini_proxy.errors import EngineUnavailable

_LARGE_BODY: Final = 1_048_576
"""Bytes of a request above which aiohttp warns that writing them at once holds up the loop."""
_KEEPALIVE: Final = 15.0
"""Seconds, aiohttp's default."""


def service_session(*, keepalive: float = _KEEPALIVE) -> aiohttp.ClientSession:
    """Open connections to one service, idle for up to ``keepalive`` seconds. Callers limit the time of their calls."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        # The limit on the size applies to the bytes on the wire.
        auto_decompress=False,
        trust_env=False,
    )


def service_headers(key: str) -> dict[str, str]:
    """Return the headers of a call with JSON that authenticates with ``key``."""
    return {
        "authorization": f"Bearer {key}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
    }


async def bounded(content: aiohttp.StreamReader, most: int, who: str) -> bytes:
    """Read a whole body. Raises EngineUnavailable if it has more than ``most`` bytes."""
    pieces: list[bytes] = []
    size = 0
    async for piece in content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise EngineUnavailable(f"The response of {who} is larger than the proxy's limit")
    return b"".join(pieces)


def encoded(asked: object, who: str) -> bytes:
    """Encode JSON for a service. Raises EngineUnavailable for text that JSON cannot hold, such as a lone surrogate."""
    try:
        return orjson.dumps(asked)
    except TypeError:
        raise EngineUnavailable(f"The messages cannot be sent to {who} as JSON") from None


class ServiceClient:
    """Post JSON to a service; ``who`` names it in errors. An asynchronous context manager.

    The body of a response with another status than 200 is not passed on: it may quote the request.
    """

    _MOST: Final = 1_048_576

    def __init__(self, who: str) -> None:
        self._who = who
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "ServiceClient":
        self._session = service_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, url: str, headers: Mapping[str, str], document: object) -> dict[str, Any]:
        """Return the response's JSON object. The caller limits its time. Raises EngineUnavailable."""
        sent = {**headers, "content-type": "application/json"}
        return await self._request("POST", url, sent, encoded(document, self._who))

    async def get(self, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
        """Return the response's JSON object, as ``post`` does."""
        return await self._request("GET", url, headers, None)

    async def _request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> dict[str, Any]:
        assert self._session is not None
        sent = {**headers, "accept": "application/json", "accept-encoding": "identity"}
        data = None if body is None else in_pieces(body)
        try:
            async with self._session.request(method, url, headers=sent, data=data, allow_redirects=False) as response:
                status, received = response.status, await bounded(response.content, self._MOST, self._who)
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(f"{_capital(self._who)} cannot be reached ({type(error).__name__})") from None
        if status != 200:
            raise EngineUnavailable(f"{_capital(self._who)} answered with HTTP {status}")
        try:
            document = orjson.loads(received)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise EngineUnavailable(f"The response of {self._who} is not a JSON object")
        return document


def in_pieces(document: bytes) -> bytes | io.BytesIO:
    """Return a request's body for aiohttp: a large one as a file, so that other tasks run between its pieces."""
    return io.BytesIO(document) if len(document) > _LARGE_BODY else document


def _capital(who: str) -> str:
    return who[:1].upper() + who[1:]
