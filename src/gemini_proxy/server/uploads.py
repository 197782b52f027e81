"""Take uploads of files by the resumable protocol, and send a file on once all of it has been checked."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

from gemini_proxy.errors import BadRequest, NotFound, ProxyError, UpstreamError
from gemini_proxy.gemini.kept import read_kept
from gemini_proxy.gemini.uploads import (
    GRANULARITY,
    SEEN_BY_DIGEST,
    STATUS,
    UPLOAD_URL,
    Chunk,
    UploadedFile,
    chunk_headers,
    read_chunk,
    read_start,
    require_as_declared,
    start_headers,
)
from gemini_proxy.gemini.upstream_fault import fault_in
from gemini_proxy.http.peers import PEERS
from gemini_proxy.http.request_body import MEMORY_BUDGET, check_type, read_body
from gemini_proxy.proxy.credentials import client_of, own_key
from gemini_proxy.proxy.exchange import Exchange, Made
from gemini_proxy.proxy.response import ClientResponse
from gemini_proxy.proxy.uploads import Examined, Upload
from gemini_proxy.proxy.upstream import UpstreamResponse, upstream_headers
from gemini_proxy.server.app_keys import (
    ADDRESS,
    CALL,
    CONFIG,
    CREDENTIALS,
    GROUP,
    KEY_TAKEN,
    OWNER,
    PIPELINE,
    SETUPS,
    UPLOAD,
    UPLOADS,
    UPSTREAM,
)
from gemini_proxy.server.exchanges import configured_key, run_exchange
from gemini_proxy.server.siblings import SiblingGone
from gemini_proxy.traces.handles import Kind

_MOST_START: Final = 65_536
"""Bytes of a body that begins an upload."""
_LARGE: Final = 8_388_608
"""Bytes of a file for which the client's key is tried first: one chunk of Google's SDKs."""
_FEW: Final = 16
"""Uploads under way from one address, from which on a client's key is tried first: keys can be made up."""
_SLOWEST: Final = 16_384
"""Bytes a second that a chunk comes with at least, beyond ``server.request_timeout``."""
_CANCELLED: Final = {STATUS: "cancelled"}
"""The header that ends an upload for its client, which would otherwise send the chunk again."""
_TARGET: Final = re.compile(r"https?://[^/]+(?:/[^?#]*)?(/upload/[^#\s]+)")


async def pass_on(request: web.Request, token: str) -> web.StreamResponse:
    """Let another process of this server continue an upload. Raises NotFound if none has it."""
    number, siblings = request.app[UPLOADS].process_of(token), request.app[GROUP].siblings
    if number is not None and siblings is not None:
        with contextlib.suppress(SiblingGone):
            return await siblings.ask(request, number)
    error = NotFound(
        "This upload is not known here: it has ended, or it began on another machine. Send all of its bytes to the "
        "machine on which it began, or start again"
    )
    error.headers = _CANCELLED
    raise error


async def take_upload(request: web.Request) -> web.StreamResponse:
    """Begin an upload, or continue one. An error ends it."""
    if UPLOAD not in request:
        return await _begin(request)
    upload, uploads = request[UPLOAD], request.app[UPLOADS]
    try:
        with uploads.at_work(upload):
            return await _go_on(request, upload)
    except ProxyError as error:
        uploads.drop(upload)
        error.headers = _CANCELLED
        raise


async def _begin(request: web.Request) -> web.Response:
    server = request.app[SETUPS].current.config.server
    if request.can_read_body:
        check_type(request)
    body = await read_body(request, _MOST_START, server.request_timeout)
    configured = configured_key(request.app[CONFIG])
    client = client_of(request[CREDENTIALS], configured, request[ADDRESS])
    announced = read_start(request.headers, body)
    begun = request.app[UPLOADS].of(request[ADDRESS])
    if (announced.size > _LARGE or begun >= _FEW) and own_key(request[CREDENTIALS], configured):
        refused = await _try_key(request)
        if refused is not None:
            return refused
    upload = await request.app[UPLOADS].begin(
        request[CALL],
        request[CREDENTIALS],
        request[OWNER],
        client,
        request[ADDRESS],
        CIMultiDict(request.headers),
        body,
        announced,
    )
    headers = {
        STATUS: "active",
        UPLOAD_URL: f"{_address(request)}/{upload.token}",
        "x-goog-upload-chunk-granularity": str(GRANULARITY),
    }
    return web.Response(headers=headers)


async def _try_key(request: web.Request) -> web.Response | None:
    """Ask the upstream whether it accepts the client's key. Return its response if it does not.

    An unproven key may send only few bytes, and the file's own call is made only once all of them have come.
    """
    config, key = request.app[CONFIG], request[CREDENTIALS].gemini or ""
    headers = upstream_headers(CIMultiDict(), key)
    target = f"/{request[CALL].version}/models?pageSize=1"
    upstream = await request.app[UPSTREAM].open("GET", target, headers, None)
    try:
        body = await upstream.read(config.upstream.max_answer_bytes)
    finally:
        upstream.close()
    if upstream.status >= 400:
        return web.Response(status=upstream.status, headers=upstream.headers, body=body)
    request[KEY_TAKEN] = True
    return None


def _address(request: web.Request) -> str:
    """Return the address that the upload was begun at, as the client knows it, without its query."""
    scheme = request.scheme
    if request.app[PEERS].trusts(request) and request.headers.get("x-forwarded-proto", "").strip() == "https":
        scheme = "https"
    return f"{scheme}://{request.host}{request.raw_path.partition('?')[0].rstrip('/')}"


async def _go_on(request: web.Request, upload: Upload) -> web.StreamResponse:
    uploads, chunk = request.app[UPLOADS], read_chunk(request.headers)
    if chunk.command == "cancel":
        uploads.drop(upload)
        return web.Response(headers=_CANCELLED)
    if chunk.takes_bytes:
        await uploads.take(upload, chunk.offset, _pieces(request, chunk, upload))
    if not chunk.finalizes:
        return web.Response(headers={STATUS: "active", "x-goog-upload-size-received": str(upload.received)})
    try:
        return await _finish(request, upload)
    finally:
        uploads.drop(upload)


async def _pieces(request: web.Request, chunk: Chunk, upload: Upload) -> AsyncIterator[bytes]:
    """Yield the bytes of a chunk as they come. Raises BadRequest for one without a length, and one that stalls."""
    size = request.content_length
    if size is None or "content-encoding" in request.headers:
        raise BadRequest("A chunk of a file needs a Content-Length and no Content-Encoding")
    if chunk.offset + size > upload.announced.size:
        raise BadRequest(f"The file is larger than the {upload.announced.size} bytes that were declared")
    patience = request.app[SETUPS].current.config.server.request_timeout
    ends = time.monotonic() + patience + size / _SLOWEST
    async for piece in _until(request, ends):
        yield piece


async def _until(request: web.Request, ends: float) -> AsyncIterator[bytes]:
    """Yield the rest of a body as it arrives. Raises BadRequest if it has not come by then, or breaks off."""
    while True:
        try:
            async with asyncio.timeout(ends - time.monotonic()):
                piece = await request.content.readany()
        except TimeoutError:
            raise BadRequest("The chunk of the file did not arrive in time") from None
        except (web.HTTPException, web.RequestPayloadError):
            raise BadRequest("The chunk of the file cannot be read") from None
        if not piece:
            return
        yield piece


async def _finish(request: web.Request, upload: Upload) -> web.StreamResponse:
    """Check a file that has come whole, send it on, and remember what Google calls it."""
    uploads, setup = request.app[UPLOADS], request.app[SETUPS].current
    examined = await uploads.examine(upload)
    require_as_declared(upload.announced, examined.encoding)
    data = None
    if examined.encoding:
        request.app[MEMORY_BUDGET].reserve(request, upload.received)
        data = await uploads.text(upload)
    exchange = Exchange(upload.call, upload.credentials, ClientResponse(request), upload.owner, upload.client)
    exchange.size = request.content_length or 0
    file = UploadedFile(upload.announced, upload.body, data)

    async def send() -> None:
        assert exchange.file is not None
        kept = examined if exchange.file is file else await uploads.replace(upload, exchange.file)
        await _send(request, exchange, upload, kept)

    read = partial(setup.reader.read_file, exchange, upload.headers, file)
    response = await run_exchange(request, exchange, setup, read, send)
    if not response.prepared:
        response.headers.setdefault(STATUS, "cancelled")
    return response


async def _send(request: web.Request, exchange: Exchange, upload: Upload, examined: Examined) -> None:
    """Send a checked file upstream and take the answer; the names that stand beside it were checked as well."""
    begun = {**exchange.headers, **start_headers(upload.announced)}
    upstream = await request.app[UPSTREAM].open("POST", upload.call.upstream_target, begun, upload.body)
    try:
        exchange.head_at = time.perf_counter()
        if upstream.status >= 400:
            await _answer(request, exchange, upstream)
            return
        target = _target(upstream)
        await _drain(upstream)
    finally:
        upstream.close()
    async for offset, data, final in request.app[UPLOADS].pieces(upload):
        headers = {**chunk_headers(offset, final=final), "accept-encoding": "identity"}
        upstream = await request.app[UPSTREAM].open("POST", target, headers, data)
        try:
            if final or upstream.status >= 400 or upstream.headers.get(STATUS) != "active":
                body = await _answer(request, exchange, upstream)
                if final and upstream.status < 400:
                    exchange.made += _made(upload, examined, exchange, body)
                return
            await _drain(upstream)
        finally:
            upstream.close()


async def _answer(request: web.Request, exchange: Exchange, upstream: UpstreamResponse) -> bytes:
    """Send the client the upstream's response about the file, and return its body."""
    exchange.upstream_status = upstream.status
    body = await upstream.read(request.app[CONFIG].upstream.max_answer_bytes)
    if upstream.status >= 400:
        exchange.upstream_error = fault_in(body)
    exchange.response.whole(upstream.status, upstream.headers, request[PIPELINE].restored(exchange, body))
    return body


def _target(upstream: UpstreamResponse) -> str:
    """Return the path and query that a file's bytes go to, at the upstream's own host whatever the answer names."""
    match = _TARGET.fullmatch(upstream.header(UPLOAD_URL))
    if match is None:
        raise UpstreamError("The upstream did not say where the file's bytes are to go")
    return match[1]


async def _drain(upstream: UpstreamResponse) -> None:
    while await upstream.receive():
        pass


def _made(upload: Upload, examined: Examined, exchange: Exchange, body: bytes) -> list[Made]:
    kept = read_kept(body)
    if kept is None:
        return []
    unread = any(one.reason == SEEN_BY_DIGEST for one in exchange.checked_request.unchecked)
    details = {"uri": kept.uri, "mime_type": upload.announced.mime_type, "batch": upload.announced.is_batch}
    return [
        Made(
            Kind.FILE,
            kept.name,
            kept.expires,
            unchecked=SEEN_BY_DIGEST if unread else "",
            digest=examined.digest,
            details=details,
        )
    ]
