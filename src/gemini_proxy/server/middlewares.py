"""Around every model call: who it is from, and the guardrail lifecycle from its first byte to its trace."""

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from gemini_proxy.errors import DecodeError, LimitExceeded, Unauthenticated, UpstreamCut, UpstreamError, UpstreamTimeout
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.refusal import error_body, error_refusal
from gemini_proxy.guardrails.coverage import HEADER
from gemini_proxy.http.bearer_key import bearer_key
from gemini_proxy.http.browser_guard import BROWSER_GUARD, CrossSite
from gemini_proxy.http.peers import PEERS
from gemini_proxy.proxy.credentials import client_of, own_key, read_credentials
from gemini_proxy.proxy.exchange import Exchange, Refused
from gemini_proxy.proxy.refuse import refusal_tail, refuses_by_event
from gemini_proxy.proxy.response import ClientAnswer, break_off
from gemini_proxy.server.app_keys import (
    ADDRESS,
    ADMISSION,
    ANSWER,
    CALL,
    CONFIG,
    CREDENTIALS,
    EXCHANGE,
    EXPLORER_SITE,
    LIMITER,
    OWNER,
    SETUP,
    SETUPS,
    STATE,
)
from gemini_proxy.server.limits import Client
from gemini_proxy.traces.datasets import UNNAMED
from gemini_proxy.traces.trace import Outcome

_UNLIMITED: Final = frozenset({"/healthz", "/readyz", "/metrics", "/api/v1/gateway/health"})
"""What watches a server asks it whatever else it is asked."""


@web.middleware
async def auth_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find the call, the keys, and who they are from. Raises what makes any of them unusable.

    Where no key is asked for, a page of any site could spend the operator's, and so could everyone who reaches a proxy
    on this machine: both are refused.
    """
    if "target" not in request.match_info:
        return await handler(request)
    if request.app[CONFIG].access.mode == "open" and request.app[BROWSER_GUARD].is_from_foreign_page(request):
        raise CrossSite("Pages of other sites may not use this server.")
    request.app[PEERS].check(request)
    call = read_call(request.method, request.raw_path)
    request[CALL] = call
    request[ADDRESS] = request.app[PEERS].client(request)
    request[CREDENTIALS] = credentials = read_credentials(
        request.headers, call.query.key, _configured_key(request), call.dataset
    )
    request[OWNER] = await request.app[ADMISSION].owner(credentials)
    return await handler(request)


@web.middleware
async def limit_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Hold the client to its limits, before anything of the body is read. Raises LimitExceeded for a model call."""
    if "target" not in request.match_info:
        return await (handler(request) if request.path in _UNLIMITED else _explore(request, handler))
    limiter, size = request.app[LIMITER], _declared(request)
    visit = await limiter.enter(_client(request), size)
    accepted, stored, dataset = None, True, request[CALL].dataset or UNNAMED
    try:
        if request[CALL].http_method != "GET":
            await limiter.afford(visit.client, dataset)
        response = await handler(request)
        accepted = _key_accepted(request, response)
        return response
    finally:
        if EXCHANGE in request:
            size, stored = request[EXCHANGE].size, request[EXCHANGE].recorded
            limiter.spend(visit.client, dataset, request[EXCHANGE].merger.usage or {})
        limiter.leave(visit, size, accepted=accepted, stored=stored)


async def _explore(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Serve the Explorer within its client's limits.

    A call of the API counts by its key, once that has been accepted; a page, and whatever brings no key, by address.
    """
    site = request.app[EXPLORER_SITE]
    keyed = site.is_api(request) and request.app[CONFIG].access.mode == "keys"
    limiter, size = request.app[LIMITER], _declared(request)
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


def _declared(request: web.Request) -> int:
    """The bytes of the body as declared; 0 for one that is refused unread, whatever length somebody claims."""
    size = request.content_length or 0
    return size if size <= request.app[CONFIG].server.max_request_bytes else 0


def _client(request: web.Request) -> Client:
    """Whom to charge: where access is open an Invariant key is anyone's to make up, and names nobody."""
    given = request[CREDENTIALS]
    invariant = given.invariant if request.app[CONFIG].access.mode == "keys" else None
    return request.app[LIMITER].client(invariant, own_key(given, _configured_key(request)), request[ADDRESS])


def _configured_key(request: web.Request) -> str | None:
    """Return the operator's own Gemini key."""
    key = request.app[CONFIG].upstream.api_key
    return key.get_secret_value() if key else None


def _key_accepted(request: web.Request, response: web.StreamResponse) -> bool | None:
    """Whether the upstream took the client's key; None where its response does not say."""
    status = response.status
    if EXCHANGE in request:
        exchange = request[EXCHANGE]
        if exchange.merger.error is not None:
            return None
        status = exchange.upstream_status or 0
    if 200 <= status < 300:
        return True
    body = response.body if isinstance(response, web.Response) else None
    refused = status in (401, 403) or (status == 400 and isinstance(body, bytes) and b"API_KEY_INVALID" in body)
    return False if refused else None


@web.middleware
async def guardrail_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Own the exchange: start, the handler's chunks, end, record. A listing of models carries nothing to check."""
    if CALL not in request or request[CALL].http_method == "GET":
        return await handler(request)
    client = client_of(request[CREDENTIALS], _configured_key(request), request[ADDRESS])
    exchange = request[EXCHANGE] = Exchange(request[CALL], request[CREDENTIALS], request[OWNER], client)
    answer = request[ANSWER] = ClientAnswer()
    request[SETUP] = setup = request.app[SETUPS].current
    await setup.intake.take(exchange, request)
    try:
        tail, whole = await _run(request, exchange, answer, handler)
        await _record(request, exchange, answer)
        response = await answer.finish(request, tail)
    except (asyncio.CancelledError, ConnectionError):
        _give_up(request, exchange, Outcome.FAILED if request.app[STATE].draining else Outcome.CLIENT_GONE)
        raise
    except Exception:
        _give_up(request, exchange, Outcome.FAILED)
        raise
    finally:
        if exchange.checking is not None:
            exchange.checking.cancel()
        # It holds the request, which holds the exchange: only the garbage collector would part them.
        exchange.keep_alive = None
    if not whole:
        break_off(request)
    return response


async def _run(request: web.Request, exchange: Exchange, answer: ClientAnswer, handler: Handler) -> tuple[bytes, bool]:
    """Bring the exchange to its outcome: the bytes still to be sent, and whether the answer then is whole."""
    lifecycle = request[SETUP].lifecycle
    try:
        try:
            exchange.checking = await lifecycle.start(exchange)
            await handler(request)
            tail = await lifecycle.end(exchange)
            exchange.end(lifecycle.outcome(exchange))
            return tail, True
        except DecodeError:
            raise
        except UpstreamError as error:
            return await _cut(request, exchange, answer, error)
    except Refused:
        return _refuse(request, exchange, answer), True
    except DecodeError as error:
        lifecycle.unreadable(exchange, error)
        return _refuse(request, exchange, answer), True


def _refuse(request: web.Request, exchange: Exchange, answer: ClientAnswer) -> bytes:
    """Turn the answer into a refusal: in band where the client expects a stream, else by HTTP 400.

    A key that the guardrails service did not accept is HTTP 401, as long as no byte has left.
    """
    refusal = exchange.refusal
    assert refusal is not None
    exchange.end(Outcome.REFUSED_REQUEST if refusal.phase == "request" else Outcome.REFUSED_RESPONSE)
    if refusal.reason == "GUARDRAIL_UNAUTHENTICATED" and not answer.begun:
        answer.error(401, error_body(401, " ".join(refusal.messages), Unauthenticated.code))
        return b""
    refusals = request[SETUP].config.refusals
    in_band = answer.begun or (exchange.call.streams and refuses_by_event(exchange, refusals.before_stream))
    if not in_band:
        answer.error(400, error_refusal(refusal, refusals.error_status))
        return b""
    return refusal_tail(exchange, answer, refusal, refusals.feedback)


async def _cut(
    request: web.Request, exchange: Exchange, answer: ClientAnswer, error: UpstreamError
) -> tuple[bytes, bool]:
    """The upstream failed. What passes the check still goes out, and then the body breaks off as the upstream's did.

    Raises Refused for what does not pass, DecodeError for what cannot be read.
    """
    lifecycle = request[SETUP].lifecycle
    await lifecycle.admit(exchange)
    exchange.error = error.message
    begun = isinstance(error, UpstreamCut | UpstreamTimeout) and exchange.gate is not None
    exchange.end(Outcome.UPSTREAM_CUT if begun else Outcome.UPSTREAM_ERROR)
    if answer.begun:
        return await lifecycle.remains(exchange), False
    lifecycle.remember(exchange)
    answer.error(error.status, error_body(error.status, error.message, error.code))
    return b"", True


async def _record(request: web.Request, exchange: Exchange, answer: ClientAnswer) -> None:
    scribe = request[SETUP].scribe
    coverage = scribe.coverage(exchange)
    answer.note(HEADER, coverage.header)
    await scribe.record(exchange, coverage)


def _give_up(request: web.Request, exchange: Exchange, outcome: Outcome) -> None:
    """Record an exchange that nobody waits for any more, unless its trace was written before."""
    if exchange.recorded:
        return
    exchange.end(outcome)
    request[SETUP].lifecycle.remember(exchange)
    request[SETUP].scribe.record_later(exchange)
