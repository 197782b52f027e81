"""Call the upstream and read its responses: which calls are repeated, which headers come back, inflated bodies."""

import asyncio
import re
import ssl
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gemini_proxy.errors import BadRequest, DecodeError, UpstreamCut, UpstreamError
from gemini_proxy.proxy.upstream_connection import NO_FIELDS, Connection, Pool, Sink, Stale, tls_context
from gemini_proxy.sections import Upstream as UpstreamConfig

_HOP_BY_HOP: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-connection te trailer transfer-encoding upgrade".split()
)
_UPLOADS_ADDRESS: Final = frozenset({"x-goog-upload-url", "x-goog-upload-control-url", "x-guploader-uploadid"})
"""Headers that are each enough to send Google a file without a key, bypassing the proxy."""
_NOT_FOR_CLIENTS: Final = (
    _HOP_BY_HOP | _UPLOADS_ADDRESS | {"set-cookie", "alt-svc", "content-length", "content-encoding"}
)
_INFLATE_STEP: Final = 262_144
"""Bytes inflated before the loop gets its turn: well under a millisecond."""
_INVARIANT: Final = re.compile("invariant", re.IGNORECASE)
_WITHOUT_BODY: Final = frozenset({204, 205})


FORWARDED: Final = frozenset({"content-type", "user-agent", "x-server-timeout", "accept", "traceparent", "tracestate"})
"""Request headers that go upstream, beside ``x-goog-*`` and what the configuration adds."""


_CARRIERS: Final = frozenset({"authorization", "x-goog-api-key"})


class UpstreamResponse:
    """An upstream response whose head has come. ``received`` counts the bytes of its body that have been read."""

    __slots__ = (
        "_connection",
        "_encoding",
        "_fields",
        "_headers",
        "_inflate",
        "_inflated",
        "_received",
        "content_type",
        "status",
    )

    def __init__(self, connection: Connection) -> None:
        # None after the whole body was read: the connection then serves other calls.
        self._connection: Connection | None = connection
        self._headers = connection.headers
        self._fields, connection.fields = connection.fields, NO_FIELDS
        self.status = connection.status
        self.content_type = self.header("content-type").partition(";")[0].strip().lower()
        self._encoding = self.header("content-encoding").strip().lower()
        self._inflate: zlib._Decompress | None = None
        self._inflated: Iterator[bytes]
        self._received = 0

    @property
    def headers(self) -> CIMultiDict[str]:
        """Return the headers for the client: none of this connection, no cookies, no length or encoding.

        Nor is the address of an upload among them.
        """
        hidden = _NOT_FOR_CLIENTS
        if named := self.header("connection"):
            hidden |= {token.strip().lower() for token in named.split(",")}
        return CIMultiDict([(name, value) for name, value in self._headers if name.lower() not in hidden])

    def header(self, wanted: str) -> str:
        """Return the first header of that name in lower case, empty where there is none."""
        return self._fields.get(wanted, "")

    @property
    def received(self) -> int:
        return self._received if self._connection is None else self._connection.received

    def close(self) -> None:
        """End the call: close the connection, unless the body was read to its end and it went back to the pool."""
        if self._connection is not None:
            self._connection.abandon()

    async def read(self, limit: int) -> bytes:
        """Return the whole body. Raises as ``receive`` does, and DecodeError for a body over ``limit`` bytes.

        Raises UpstreamError for an empty one, unless the status says what is wrong.
        """
        pieces: list[bytes] = []
        size = 0
        while data := await self.receive():
            pieces.append(data)
            size += len(data)
            if size > limit:
                raise DecodeError("The upstream's response is larger than upstream.max_answer_bytes allows")
        if not size and self.status < 400:
            raise UpstreamError("The upstream's response has no content")
        return b"".join(pieces)

    async def receive(self) -> bytes:
        """Return the next bytes of the body without content encoding, ``b""`` at its end.

        Raises UpstreamCut when it breaks off, UpstreamTimeout when it falls silent, and DecodeError when it has a
        content encoding that was not requested and cannot be read.
        """
        if self._encoding in ("", "identity"):
            return await self._receive()
        if self._inflate is None:
            self._inflate, self._inflated = _inflater(self._encoding), iter(())
        while not (piece := next(self._inflated, b"")):
            data = await self._receive()
            if not data:
                if not self._inflate.eof:
                    raise UpstreamCut("The upstream's compressed response broke off")
                return b""
            self._inflated = _inflate(self._inflate, data)
        await asyncio.sleep(0)
        return piece

    async def flow(self, sink: Sink) -> bytes | None:
        """Pass the body to ``sink`` as it comes. Return the bytes that it does not take, and None at the body's end.

        Earlier bytes are returned too, and so is a body that must be inflated. Raises as ``receive`` does, and what
        ``sink`` raises. Headers are not kept meanwhile: a stream may stay open for a long time.
        """
        self._headers.clear()
        self._fields = NO_FIELDS
        if self._encoding not in ("", "identity"):
            return await self.receive() or None
        if self._connection is None:
            return None
        left = await self._connection.flow(sink)
        if left is None:
            self._end()
        return left

    async def _receive(self) -> bytes:
        if self._connection is None:
            return b""
        data = await self._connection.receive()
        if not data:
            self._end()
        return data

    def _end(self) -> None:
        """Let go of the connection, which another call may be using by now."""
        self._received, self._connection = self.received, None


def _inflater(encoding: str) -> "zlib._Decompress":
    if encoding == "gzip":
        return zlib.decompressobj(wbits=31)
    raise DecodeError("The upstream's response is compressed in a way that the proxy does not read")


def _inflate(inflate: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
    """Yield what ``data`` inflates to, in steps: a thousandth of it may be on the wire."""
    while data:
        try:
            piece = inflate.decompress(data, _INFLATE_STEP)
        except zlib.error:
            raise DecodeError("The upstream's compressed response cannot be read") from None
        if piece:
            yield piece
        data = inflate.unconsumed_tail
    if inflate.unused_data:
        raise DecodeError("The upstream's compressed response goes on after its end")


class UpstreamClient:
    """Call one of Google's APIs, at ``base_url``; every call's connection is its own until it ends."""

    def __init__(self, config: UpstreamConfig, base_url: str, tls: ssl.SSLContext | None = None) -> None:
        base = URL(base_url)
        self._prefix = base.raw_path.rstrip("/")
        port = "" if base.is_default_port() else f":{base.port}"
        host = base.raw_host or ""
        self._host = f"[{host}]{port}" if ":" in host else f"{host}{port}"
        self._pool = Pool(base, config.connect_timeout, config.read_timeout, tls)

    async def open(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> UpstreamResponse:
        """Send the call and wait for the head of its response, which the caller must close.

        Raises UpstreamError if there is no head, or a status without a usable response (a redirect, 101, 204), and
        UpstreamTimeout if it takes too long.
        """
        head = self._head(method, target, headers, body)
        connection = self._pool.idle() or await self._pool.connect()
        try:
            try:
                await connection.call(head, body or b"")
            except Stale:
                # The upstream closed the connection as it was reused, and has read nothing. A call that fails in any
                # other way may have been executed and billed, and is not sent twice.
                connection = await self._pool.connect()
                await connection.call(head, body or b"")
            status = connection.status
            if status < 200 or 300 <= status < 400 or status in _WITHOUT_BODY:
                raise UpstreamError(f"The upstream answered with status {status}, which has no content")
            return UpstreamResponse(connection)
        except BaseException:
            connection.abandon()
            raise

    def _head(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        lines = [f"{method} {self._prefix}{target} HTTP/1.1", f"host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        head = "\r\n".join(lines)
        if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1 or "\0" in head or " " in target:
            raise BadRequest("The request has a header or a path that HTTP cannot carry")
        return f"{head}\r\n\r\n".encode("utf-8", "surrogateescape")

    async def close(self) -> None:
        await self._pool.close()


class VertexUpstreams:
    """Call Vertex AI: an upstream for each location, or the configured one for all."""

    def __init__(self, config: UpstreamConfig) -> None:
        self._config = config
        self._by_url: dict[str, UpstreamClient] = {}

    def at(self, location: str | None) -> UpstreamClient:
        """Return the upstream of a location, which the table of doors has matched.

        Only a bounded number of locations is kept, those used last, since clients name them. Idle connections of the
        others end by themselves.
        """
        configured = self._config.vertex
        url = vertex_url(location) if configured == "google" else configured
        upstream = self._by_url.pop(url, None) or UpstreamClient(self._config, url, self._tls)
        self._by_url[url] = upstream
        if len(self._by_url) > _MOST_LOCATIONS:
            del self._by_url[next(iter(self._by_url))]
        return upstream

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Return the TLS context for all locations, made on first use."""
        return tls_context()

    async def close(self) -> None:
        for upstream in self._by_url.values():
            await upstream.close()


_MOST_LOCATIONS: Final = 64
"""Upstreams of Vertex AI that are kept, more than it has regions."""


def vertex_url(location: str | None) -> str:
    """Return where Vertex AI serves a location, None being the global one. Only the table's alphabet may be in it."""
    if location in (None, "global"):
        return "https://aiplatform.googleapis.com"
    if location in ("us", "eu"):
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"


def upstream_headers(
    headers: CIMultiDictProxy[str] | CIMultiDict[str],
    gemini_key: str,
    extra: tuple[str, ...] = (),
    *,
    bearer: bool = False,
) -> Mapping[str, str]:
    """Return the headers for the upstream, by allow-list; the key goes in one header, however it came.

    That is ``x-goog-api-key``, or ``Authorization`` with ``bearer``: an API refuses a call with both. Headers that
    begin an upload are left out: the door of files writes its own.

    Raises BadRequest for a header that would make part of the response uncheckable.
    """
    if "x-goog-fieldmask" in headers:
        raise BadRequest("The header X-Goog-FieldMask hides parts of the response; send the request without it")
    carrier = {"authorization": f"Bearer {gemini_key}"} if bearer else {"x-goog-api-key": gemini_key}
    outgoing = {**carrier, "accept-encoding": "identity"}
    named = {token.strip().lower() for value in headers.getall("connection", ()) for token in value.split(",")}
    for name, value in headers.items():
        folded = name.lower()
        if not _is_forwarded(folded, extra) or folded in outgoing or folded in named:
            continue
        if not _names_invariant(value):
            outgoing[folded] = value
    return outgoing


def _names_invariant(value: str) -> bool:
    # Nearly all values are ASCII, where this takes a seventh of the pattern's time.
    return "invariant" in value.lower() if value.isascii() else _INVARIANT.search(value) is not None


# Cached, since most requests have the same headers.
@lru_cache(maxsize=256)
def _is_forwarded(name: str, extra: tuple[str, ...]) -> bool:
    """Return whether a header of that name in lower case goes upstream, which those with keys do in another way."""
    if name in _CARRIERS or name.startswith("x-goog-upload-") or _INVARIANT.search(name):
        return False
    return name in FORWARDED or name.startswith("x-goog-") or name in extra
