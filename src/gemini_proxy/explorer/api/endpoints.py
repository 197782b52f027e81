"""Give all routes of the API the same authentication, response form and errors.

A response is JSON; an error is ``{"detail": ...}`` with the status that Invariant's clients know. An invalid request
gets one of 400, 401, 403, 404, 405, 409, 413, 415 and 421; 429 says that a limit of ``[limits]`` is reached, and 503
that the database or a check is not available.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Final, TypeVar

import orjson
from aiohttp import web

from gemini_proxy.errors import (
    BadRequest,
    Forbidden,
    LimitExceeded,
    NotFound,
    PayloadTooLarge,
    ProxyError,
    Unauthenticated,
    Unavailable,
)
from gemini_proxy.explorer.api.request_bodies import RequestBody, read_uuid
from gemini_proxy.explorer.app_keys import ACCESS, SERVER, SESSION_COOKIE
from gemini_proxy.gemini import strict_json
from gemini_proxy.gemini.strict_json import read_object
from gemini_proxy.http.bearer_key import bearer_key
from gemini_proxy.http.browser_guard import BROWSER_GUARD, SAFE, WrongHost, is_same_origin
from gemini_proxy.http.large_responses import bytes_response
from gemini_proxy.http.peers import PEERS
from gemini_proxy.http.request_body import read_bytes
from gemini_proxy.traces.errors import RowRejected, StoreError, TooMany
from gemini_proxy.traces.keys import Identity
from gemini_proxy.traces.rows import dump

log = logging.getLogger(__name__)

B = TypeVar("B", bound=RequestBody)

BAD_KEY: Final = "You must provide a valid API key."
MAX_DEPTH: Final = strict_json.MAX_DEPTH + 16
"""Levels: as many as the messages of the deepest model call within a call of the API, and some to spare."""
MAX_CONTAINERS: Final = 500_000
"""Objects and lists of a request's JSON: nothing else runs while they are made, for a few hundred milliseconds."""
MAX_VALUES: Final = 3_000_000
"""Members of objects and items of lists, for the same reason. The count includes texts, where millions do not occur."""
_BRIEF: Final = 65_536
"""Bytes of JSON that are read in well under a millisecond, whatever they hold."""
_DIGITS: Final = 18
"""Digits of a number that are looked at: more than any dataset has traces."""
_HEADERS: Final = {
    "content-type": "application/json",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One call of the API. ``key`` is what the caller called with, None for a browser."""

    request: web.Request = field(repr=False)
    identity: Identity
    key: str | None = field(default=None, repr=False)

    @property
    def app(self) -> web.Application:
        return self.request.app

    @property
    def user(self) -> str:
        """Return the user whose data the call is about."""
        return self.identity.owner

    def require_operator(self) -> None:
        """Raise Forbidden if the caller's key may not change what its calls are checked with."""
        require_operator(self.identity)

    async def body(self, model: type[B]) -> B:
        """Return the JSON object of the body, whatever content type it claims to have.

        Raise PayloadTooLarge, UnsupportedMediaType for a content encoding, and BadRequest for a body that does not
        arrive in time, is not one JSON object in UTF-8 that reads the same everywhere, or does not fit ``model``.
        """
        server = self.app[SERVER]
        body = await read_bytes(self.request, server.max_request_bytes, server.request_timeout)
        if not body.strip():
            raise BadRequest("Request should not be empty")
        if body.count(b"{") + body.count(b"[") > MAX_CONTAINERS or body.count(b",") > MAX_VALUES:
            raise BadRequest("The request holds too many values")
        if len(body) <= _BRIEF:
            return model.read(read_object(body, MAX_DEPTH))
        # In a thread, so that the loop gets its turn while a large body is read.
        return await asyncio.to_thread(lambda: model.read(read_object(body, MAX_DEPTH)))

    def name(self, part: str) -> str:
        """Return the part of the path with that name, decoded."""
        return self.request.match_info[part]

    def id(self, part: str, missing: str) -> str:
        """Return a UUID in the path. Raise NotFound with ``missing`` for anything else: nothing has that id."""
        return read_uuid(self.request.match_info[part], missing)

    def only_user(self, part: str, missing: str) -> None:
        """Raise NotFound with ``missing`` if the path names another user, whose data does not exist for the caller."""
        if self.request.match_info[part] != self.user:
            raise NotFound(missing)

    def number(self, name: str, default: int, most: int) -> int:
        """Return a number in the query, ``most`` for a larger one. Raise BadRequest for anything else."""
        text = self.request.query.get(name, "")
        if not text:
            return default
        if not (text.isascii() and text.isdecimal()):
            raise BadRequest(f"{name} must be a number from 0")
        return most if len(text) > _DIGITS else min(int(text), most)


def require_operator(identity: Identity, does: str = "changes this") -> None:
    """Raise Forbidden for a key without the role operator. ``does`` completes the message with what it may not do."""
    if identity.role != "operator":
        raise Forbidden(f"This key has the role {identity.role}: only a key with the role operator {does}")


CallHandler = Callable[[ApiCall], Awaitable[object]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """A parameter of the query, for the OpenAPI document; ``schema`` is its JSON schema."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A handler for a method and path, and what the OpenAPI document adds to the handler's docstring.

    ``response`` is the type of the JSON that the handler returns, and ``body`` that of the JSON that it reads.
    """

    method: str
    path: str
    handler: CallHandler
    response: Any
    body: type[RequestBody] | None = None
    query: tuple[QueryParameter, ...] = ()
    content_type: str = "application/json"


def api(handler: CallHandler) -> Handler:
    """Return a handler of requests that identifies the caller, and responds with the result of ``handler`` as JSON.

    A response that ``handler`` returns is passed on. Errors before the response has begun become the API's.
    """

    @wraps(handler)
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            response = await handler(await identified(request))
            return response if isinstance(response, web.StreamResponse) else json_response(response)
        except ProxyError as error:
            return error_response(error)
        except TooMany as error:
            return error_response(BadRequest(str(error)))
        except RowRejected:
            return error_response(BadRequest("The request holds a value that cannot be stored"))
        except StoreError as error:
            log.warning("the store did not answer a call: %s", error)
            return error_response(Unavailable("The trace database cannot be reached now"))

    return handle


def json_response(value: object, status: int = 200, headers: Mapping[str, str] = _HEADERS) -> web.Response:
    """Return a response with ``value`` as JSON. A value of a type that JSON does not have is written as text."""
    return web.Response(status=status, body=dump(value), headers=headers)


def document_response(document: bytes) -> web.Response:
    """Return a response with ``document``, which is JSON already."""
    return bytes_response(document, _HEADERS)


def error_response(error: ProxyError) -> web.Response:
    """Return an error as Invariant's clients read it. Close the connection if the rest of a body will not be read."""
    response = web.Response(status=error.status, body=orjson.dumps({"detail": error.message}), headers=_HEADERS)
    if isinstance(error, PayloadTooLarge | LimitExceeded):
        # Reading the rest of its body would be useless.
        response.force_close()
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    return response


async def identified(request: web.Request) -> ApiCall:
    """Identify the caller. Raise Unauthenticated without a valid key or session, and WrongHost and ThroughProxy.

    With open access a call needs neither; but it must not come from a page of another site, or of a site whose name was
    made to lead here.
    """
    access = request.app[ACCESS]
    request.app[PEERS].check(request)
    if access.mode == "open" and not request.app[BROWSER_GUARD].is_own_host(request):
        raise WrongHost("This server does not answer to that host name: add it to explorer.hosts")
    if "authorization" in request.headers:
        key = bearer_key(request)
        identity = await access.identity(key)
    else:
        key = None
        session = request.cookies.get(SESSION_COOKIE)
        identity = await access.session_identity(session) if _needs_no_key(request) else None
    if identity is None:
        raise Unauthenticated(BAD_KEY)
    return ApiCall(request, identity, key)


def _needs_no_key(request: web.Request) -> bool:
    """Return whether the session decides: a page of ours sent this or, if access is open, no foreign one."""
    if request.app[ACCESS].mode == "open":
        return not request.app[BROWSER_GUARD].is_from_foreign_page(request)
    if request.method in SAFE and SESSION_COOKIE in request.cookies:
        return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
    return is_same_origin(request)
