"""The one HTTP client of the process: opens a call upstream and yields its body. aiohttp's errors end here."""

import asyncio
import io
import math
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from gemini_proxy.errors import DecodeError, UpstreamCut, UpstreamError, UpstreamTimeout
from gemini_proxy.sections import Upstream as UpstreamConfig

_HOP_BY_HOP: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-connection te trailer transfer-encoding upgrade".split()
)
_NOT_FOR_CLIENTS: Final = _HOP_BY_HOP | {"set-cookie", "alt-svc", "content-length", "content-encoding"}
_READ_BUFFER: Final = 32_768
"""Bytes read ahead of a slow client, a stream: what bounds memory when a thousand readers stall."""
_INFLATE_STEP: Final = 262_144
"""Bytes inflated before the loop gets its turn: well under a millisecond."""
_WITHOUT_BODY: Final = frozenset({204, 205})
_LARGE_BODY: Final = 1_048_576
"""Bytes of a request above which aiohttp warns that writing them at once holds up the loop."""


class _Silence:
    """Ends the wait for a body with TimeoutError after ``seconds`` in which nothing came.

    aiohttp's ``sock_read`` is a new timer for every piece, a tenth of what a streamed event costs; this one looks again
    when it has run down. ``since`` is when the wait began, in the loop's time; infinite while nobody waits.
    """

    __slots__ = ("_content", "_loop", "_seconds", "_timer", "since")

    def __init__(self, response: aiohttp.ClientResponse, seconds: float) -> None:
        self.since = math.inf
        self._content = response.content
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        # Of most whole answers the end has come with the head.
        self._timer = None if self._content.is_eof() else self._loop.call_later(seconds, self._look)
        if response.connection is not None and response.connection.protocol is not None:
            response.connection.protocol.read_timeout = None

    def begin(self) -> None:
        self.since = self._loop.time()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        rest = self._seconds + min(self.since - self._loop.time(), 0.0)
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._look)
        else:
            self._content.set_exception(TimeoutError())


class Answer:
    """An upstream response whose head has come; ``patience`` is in seconds, for each next piece of its body.

    ``received`` counts the bytes of it that have come.
    """

    def __init__(self, response: aiohttp.ClientResponse, patience: float) -> None:
        self._response = response
        self._silence = _Silence(response, patience)
        self.status = response.status
        self.reason = response.reason or ""
        self.content_type = response.content_type
        self.received = 0

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers that go on to the client: not those of this connection, no cookies, no length or encoding."""
        headers = self._response.headers
        named = headers.get("connection", "").lower()
        hidden = _NOT_FOR_CLIENTS | {token.strip() for token in named.split(",")} if named else _NOT_FOR_CLIENTS
        return CIMultiDict([(name, value) for name, value in headers.items() if name.lower() not in hidden])

    def close(self) -> None:
        """End the call: close the connection, unless the body was read to its end and it went back to the pool."""
        self._silence.close()
        self._response.close()

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises as ``chunks`` does, and DecodeError for a body over ``limit`` bytes.

        Raises UpstreamError for one of no bytes, unless the status says what is wrong.
        """
        pieces: list[bytes] = []
        size = 0
        async for data in self.chunks():
            pieces.append(data)
            size += len(data)
            if size > limit:
                raise DecodeError("The upstream's answer is larger than the proxy may hold.")
        if not size and self.status < 400:
            raise UpstreamError("The upstream's answer has no content.")
        return b"".join(pieces)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, without content encoding.

        Raises UpstreamCut when it breaks off, UpstreamTimeout when it falls silent, DecodeError when it is compressed
        in a way that was not asked for and cannot be read.
        """
        inflate = _inflater(self._response.headers.get("content-encoding", ""))
        content, silence = self._response.content, self._silence
        while True:
            silence.begin()
            try:
                data = await content.readany()
            except TimeoutError:
                raise UpstreamTimeout("The upstream fell silent.") from None
            except (aiohttp.ClientError, ConnectionError):
                raise UpstreamCut("The upstream's answer broke off.") from None
            silence.since = math.inf
            self.received += len(data)
            if not data:
                break
            if inflate is None:
                yield data
            else:
                for piece in _inflate(inflate, data):
                    yield piece
                    await asyncio.sleep(0)
        if inflate is not None and not inflate.eof:
            raise UpstreamCut("The upstream's compressed answer broke off.")


def _inflater(encoding: str) -> "zlib._Decompress | None":
    folded = encoding.strip().lower()
    if folded in ("", "identity"):
        return None
    if folded == "gzip":
        return zlib.decompressobj(wbits=31)
    raise DecodeError("The upstream's answer is compressed in a way the proxy does not read.")


def _inflate(inflate: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
    """What ``data`` inflates to, in steps: a thousandth of it may be on the wire."""
    while data:
        try:
            piece = inflate.decompress(data, _INFLATE_STEP)
        except zlib.error:
            raise DecodeError("The upstream's compressed answer cannot be read.") from None
        if piece:
            yield piece
        data = inflate.unconsumed_tail
    if inflate.unused_data:
        raise DecodeError("The upstream's compressed answer goes on after its end.")


class Upstream:
    """Calls the Gemini API. One session for the process; every call's connection is its own until it ends."""

    def __init__(self, config: UpstreamConfig) -> None:
        self._base = config.base_url
        self._patience = config.read_timeout
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=60),
            # A proxy must not share cookies between callers.
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
            skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=config.connect_timeout,
                sock_connect=config.connect_timeout,
                sock_read=config.read_timeout,
            ),
            trust_env=False,
        )

    async def open(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """Send the call and wait for the head of its answer, which the caller has to close.

        Raises UpstreamError when there is no head or one of a status without an answer (a redirect, 101, 204),
        UpstreamTimeout when it took too long.
        """
        url = URL(self._base + target, encoded=True)
        for attempt in (1, 2):
            try:
                # From a file object a large body is sent in pieces, and neighbours get their turn between them.
                data = io.BytesIO(body) if body is not None and len(body) > _LARGE_BODY else body
                response = await self._session.request(method, url, headers=headers, data=data, allow_redirects=False)
            except TimeoutError:
                raise UpstreamTimeout("The upstream did not answer in time.") from None
            except aiohttp.ServerDisconnectedError:
                # A kept connection that the upstream closed as we reused it: not a byte of an answer came.
                if attempt == 2:
                    raise UpstreamError("The upstream closed the connection without an answer.") from None
                continue
            except (aiohttp.ClientError, OSError) as error:
                raise UpstreamError(f"The upstream cannot be reached ({type(error).__name__}).") from None
            if response.status < 200 or 300 <= response.status < 400 or response.status in _WITHOUT_BODY:
                response.close()
                raise UpstreamError(f"The upstream answered with status {response.status}, which has no content.")
            return Answer(response, self._patience)
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await self._session.close()
