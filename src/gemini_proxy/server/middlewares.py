"""Surround every model call: find its user, apply the limits, and guard it from its first byte to its trace."""

from functools import partial
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from gemini_proxy.errors import LimitExceeded
from gemini_proxy.gemini.calls import ModelCall, read_call
from gemini_proxy.gemini.doors import Method
from gemini_proxy.http.bearer_key import bearer_key
from gemini_proxy.http.browser_guard import BROWSER_GUARD, CrossSite
from gemini_proxy.http.peers import PEERS
from gemini_proxy.proxy.credentials import goes_as_token, own_key, read_credentials
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.server.app_keys import (
    ADDRESS,
    AUTHENTICATION,
    CALL,
    CONFIG,
    CREDENTIALS,
    EXCHANGE,
    EXPLORER_SITE,
    KEY_TAKEN,
    LIMITER,
    OWNER,
    SETUPS,
    UPLOAD,
    UPLOADS,
)
from gemini_proxy.server.exchanges import configured_key, new_exchange, operators_key, run_exchange
from gemini_proxy.server.limits import Client
from gemini_proxy.server.uploads import pass_on
from gemini_proxy.traces.datasets import UNNAMED

_UNLIMITED: Final = frozenset({"/healthz", "/readyz", "/metrics", "/api/v1/gateway/health"})
"""Paths for monitoring, to which no limits apply."""


@web.middleware
async def auth_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find the call, the keys and their user. Raises an error if any of them is unusable.

    If no key is required, a page of any site could spend the operator's key, and so could anyone who reaches a proxy on
    this machine: both are refused.
    """
    if "target" not in request.match_info:
        return await handler(request)
    app = request.app
    config, peers = app[CONFIG], app[PEERS]
    if config.access.mode == "open" and app[BROWSER_GUARD].is_from_foreign_page(request):
        raise CrossSite("Pages of other sites may not use this server")
    peers.check(request)
    call = read_call(request.method, request.raw_path, app[SETUPS].current.duties)
    request[CALL] = call
    request[ADDRESS] = peers.client(request)
    if call.method is Method.UPLOAD_CHUNK:
        # Clients send no key with the bytes: the address of the upload is as secret as one.
        upload = app[UPLOADS].find(call.names["id"])
        if upload is None:
            return await pass_on(request, call.names["id"])
        request[UPLOAD] = upload
        request[CREDENTIALS], request[OWNER] = upload.credentials, upload.owner
        return await handler(request)
    request[CREDENTIALS] = credentials = read_credentials(
        request.headers, call.query.key, operators_key(config, call), call.dataset
    )
    request[OWNER] = await app[AUTHENTICATION].owner(credentials)
    return await handler(request)


@web.middleware
async def limit_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Hold the client to its limits, before anything of the body is read. Raises LimitExceeded for a model call."""
    if "target" not in request.match_info:
        return await (handler(request) if request.path in _UNLIMITED else _explore(request, handler))
    app, call = request.app, request[CALL]
    limiter, size = app[LIMITER], _declared(request, app, call)
    visit = await limiter.enter(charged_client(request), size)
    accepted, stored, dataset = None, True, call.dataset or UNNAMED
    try:
        if not call.row.bare:
            await limiter.afford(visit.client, dataset)
        response = await handler(request)
        accepted = _key_accepted(request, response)
        return response
    finally:
        exchange: Exchange | None = request.get(EXCHANGE)
        if exchange is not None:
            size, stored = exchange.size, exchange.recorded
            limiter.spend(visit.client, dataset, exchange.merger.usage or {})
        limiter.leave(visit, size, accepted=accepted, stored=stored)


async def _explore(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Serve the Explorer within its client's limits.

    A call of the API counts by its key, once that was accepted; a page, and any request without a key, counts by
    address.
    """
    site = request.app[EXPLORER_SITE]
    keyed = site.is_api(request) and request.app[CONFIG].access.mode == "keys"
    limiter, size = request.app[LIMITER], _declared(request, request.app)
    address = request.app[PEERS].client(request)
    try:
        visit = await limiter.charge(limiter.client(None, bearer_key(request) if keyed else None, address), size)
    except LimitExceeded as error:
        return site.error_response(request, error)
    accepted = None
    try:
        response = await handler(request)
        if keyed and (response.status == 401 or response.status < 300):
            accepted = response.status != 401
        return response
    finally:
        limiter.settle(visit, max(size, request.content.total_bytes), accepted=accepted)


def _declared(request: web.Request, app: web.Application, call: ModelCall | None = None) -> int:
    """Return the bytes of the body as declared; 0 for one that is refused unread, whatever its declared length."""
    size = request.content_length or 0
    if call is not None and call.row.transport == "upload":
        return size if size <= app[SETUPS].current.config.files.max_bytes else 0
    return size if size <= app[CONFIG].server.max_request_bytes else 0


def charged_client(request: web.Request) -> Client:
    """Return whom to charge: where access is open an Invariant key is anyone's to make up, and names nobody."""
    app, given, call = request.app, request[CREDENTIALS], request[CALL]
    config = app[CONFIG]
    invariant = given.invariant if config.access.mode == "keys" else None
    project = call.names.get("project", "") if goes_as_token(given, call) else None
    return app[LIMITER].client(invariant, own_key(given, configured_key(config)), request[ADDRESS], project)


def _key_accepted(request: web.Request, response: web.StreamResponse) -> bool | None:
    """Return whether the upstream accepted the client's key; None if its response does not tell."""
    status = response.status
    exchange: Exchange | None = request.get(EXCHANGE)
    if exchange is not None:
        if exchange.merger.error is not None:
            return None
        status = exchange.upstream_status or 0
    elif request[CALL].row.transport == "upload" and status < 400:
        return True if KEY_TAKEN in request else None
    if 200 <= status < 300:
        return True
    body = response.body if isinstance(response, web.Response) else None
    refused = status in (401, 403) or (status == 400 and isinstance(body, bytes) and b"API_KEY_INVALID" in body)
    return False if refused else None


@web.middleware
async def guardrail_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Own the exchange: start, the handler's chunks, end, record. A bare call carries nothing to check.

    An upload is an exchange once its whole file has come, a batch once it has results, reading a file if that is text,
    and every turn of a live session is one.
    """
    call: ModelCall | None = request.get(CALL)
    if call is None:
        return await handler(request)
    row = call.row
    if row.bare or row.kept or row.transport in ("upload", "websocket"):
        return await handler(request)
    exchange = new_exchange(request)
    setup = request.app[SETUPS].current
    return await run_exchange(
        request, exchange, setup, partial(setup.reader.read, exchange, request), partial(handler, request)
    )
