"""Relay calls about objects that Gemini keeps, each to its holder only, and the results of batches.

Results, in their batch or in a file, are checked like the response of any other call.
"""

import time
from typing import Final

from aiohttp import web

from gemini_proxy.gemini.batches import has_output, results_file, results_request, without_output
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.kept import names_in, page_of, read_change, read_kept
from gemini_proxy.gemini.uploads import TextTest
from gemini_proxy.http.request_body import check_type, read_body
from gemini_proxy.proxy.credentials import goes_as_bearer
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.handle_keeper import HandleKeeper
from gemini_proxy.proxy.made_objects import made_results
from gemini_proxy.proxy.upstream import UpstreamResponse, upstream_headers
from gemini_proxy.server.app_keys import CALL, CONFIG, CREDENTIALS, MEMORY, OWNER, SETUPS, UPSTREAM
from gemini_proxy.server.exchanges import new_exchange, run_exchange, upstream_of
from gemini_proxy.server.reload import Setup
from gemini_proxy.traces.handles import Handle, Holder, Kind

_MOST_CHANGE: Final = 65_536
"""Bytes of a body that changes a cache."""
_TOLD_BY: Final = 1_024
"""First bytes that identify a file of pictures or sound."""
_COLLECTIONS: Final = {
    Kind.CACHE: "cachedContents",
    Kind.FILE: "files",
    Kind.INTERACTION: "interactions",
    Kind.BATCH: "batches",
}
_PAGES: Final = {**_COLLECTIONS, Kind.BATCH: "operations"}
"""The field of a listing that holds the objects."""


async def relay_kept(request: web.Request) -> web.StreamResponse:
    """Relay a call about an object that Gemini keeps, or a page of them. Raises NotFound for another user's object."""
    call, config, keeper = request[CALL], request.app[CONFIG], request.app[SETUPS].current.keeper
    kind = Kind(call.row.kept)
    holder = keeper.holder(call, request[CREDENTIALS], request[OWNER])
    name = call.names.get("id")
    handle = await keeper.admit(holder, kind, f"{_COLLECTIONS[kind]}/{name}") if name else None
    body = await _change(request) if call.http_method == "PATCH" else b"{}" if call.http_method == "POST" else None
    given, extra = request[CREDENTIALS], config.upstream.forward_headers
    headers = upstream_headers(request.headers, given.gemini or "", extra, bearer=goes_as_bearer(given, call))
    upstream = await upstream_of(request, call).open(call.http_method, call.upstream_target, headers, body)
    try:
        if call.row.media and upstream.status < 400:
            return await _download(request, upstream, handle)
        answer = await upstream.read(config.upstream.max_answer_bytes)
    finally:
        upstream.close()
    if upstream.status < 400 and not name:
        answer = await _page(keeper, holder, kind, answer)
    if handle is not None:
        await _follow(keeper, call, handle, upstream.status, answer)
    return web.Response(status=upstream.status, headers=upstream.headers, body=answer)


async def _change(request: web.Request) -> bytes:
    check_type(request)
    return read_change(await read_body(request, _MOST_CHANGE, request.app[CONFIG].server.request_timeout))


async def _page(keeper: HandleKeeper, holder: Holder, kind: Kind, answer: bytes) -> bytes:
    """Return a page of a listing without the objects of other users."""
    collection = _PAGES[kind]
    if kind is Kind.BATCH:
        answer = without_output(answer)
    visible = await keeper.visible(holder, kind, names_in(answer, collection))
    return page_of(answer, collection, visible)


async def _follow(keeper: HandleKeeper, call: ModelCall, handle: Handle, status: int, answer: bytes) -> None:
    """Remember the effect of a call: a deleted object, or a changed end."""
    if call.http_method == "DELETE" and (status < 300 or status == 404):
        await keeper.forget(handle)
    elif call.http_method == "PATCH" and status < 300 and (kept := read_kept(answer)) is not None:
        await keeper.lasts(handle, kept.expires)


async def _download(request: web.Request, upstream: UpstreamResponse, handle: Handle | None) -> web.StreamResponse:
    """Relay the bytes of a file as they come. Text is what a model wrote, and checked as the results of a batch."""
    first, test = b"", TextTest()
    while len(first) < _TOLD_BY and (piece := await upstream.receive()):
        test.feed(piece)
        first += piece
    if test.encoding or (handle is not None and "results_of" in handle.details):
        return await _relay_result_file(request, upstream, first, handle)
    response = web.StreamResponse(status=upstream.status, headers=upstream.headers)
    await response.prepare(request)
    await response.write(first)
    while piece := await upstream.receive():
        await response.write(piece)
    return response


async def relay_results(request: web.Request) -> web.StreamResponse:
    """Relay the state of a batch. With results it is an exchange, of the batch's requests and responses."""
    call, config, setup = request[CALL], request.app[CONFIG], request.app[SETUPS].current
    name = f"batches/{call.names['id']}"
    await setup.keeper.admit(setup.keeper.holder(call, request[CREDENTIALS], request[OWNER]), Kind.BATCH, name)
    headers = upstream_headers(request.headers, request[CREDENTIALS].gemini or "", config.upstream.forward_headers)
    upstream = await request.app[UPSTREAM].open(call.http_method, call.upstream_target, headers, None)
    try:
        answer = await upstream.read(config.upstream.max_answer_bytes)
    finally:
        upstream.close()
        request.app[MEMORY].freed(upstream.received)
    if upstream.status >= 400 or not has_output(answer):
        return web.Response(status=upstream.status, headers=upstream.headers, body=answer)
    exchange = new_exchange(request)

    async def read() -> None:
        await _read_results(request, exchange, setup, name)

    async def check() -> None:
        exchange.upstream_status = upstream.status
        exchange.head_at = time.perf_counter()
        setup.pipeline.open(exchange, upstream)
        await setup.pipeline.feed(exchange, answer)
        if (file := results_file(answer)) is not None:
            exchange.made.append(made_results(exchange, file, name))

    return await run_exchange(request, exchange, setup, read, check)


async def _relay_result_file(
    request: web.Request, upstream: UpstreamResponse, first: bytes, handle: Handle | None
) -> web.StreamResponse:
    """Relay a file with the responses of a batch, one a line: all of it is checked before any of it leaves.

    ``first`` is the part of it that was read already. The handle names the batch.
    """
    setup, exchange = request.app[SETUPS].current, new_exchange(request)

    async def read() -> None:
        await _read_results(request, exchange, setup, handle.details.get("results_of") if handle else None)

    async def check() -> None:
        exchange.upstream_status = upstream.status
        exchange.head_at = time.perf_counter()
        setup.pipeline.open(exchange, upstream)
        data = first
        while data:
            if leaving := await setup.pipeline.feed(exchange, data):
                await setup.pipeline.send(exchange, leaving)
            data = await upstream.receive()

    try:
        return await run_exchange(request, exchange, setup, read, check)
    finally:
        request.app[MEMORY].freed(upstream.received)


async def _read_results(request: web.Request, exchange: Exchange, setup: Setup, batch: str | None) -> None:
    """Read the rules for the responses of a batch, and the batch's requests."""
    exchange.rules = await setup.reader.read_rules(exchange, request.headers)
    exchange.request = results_request(batch)
    await setup.reader.follow_references(exchange)
