"""Give all pages the same identification of visitors, reading of forms, and form of errors."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Final
from urllib.parse import parse_qsl, quote

import aiohttp_jinja2
from aiohttp import web

from gemini_proxy.errors import (
    BadRequest,
    LimitExceeded,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ProxyError,
    Unavailable,
    UnsupportedMediaType,
)
from gemini_proxy.explorer.api.approval_api import visible_owner
from gemini_proxy.explorer.api.endpoints import require_operator
from gemini_proxy.explorer.api.request_bodies import is_dataset_name, read_uuid
from gemini_proxy.explorer.app_keys import ACCESS, APPROVALS, DATASETS, SERVER, SESSION_COOKIE
from gemini_proxy.http.browser_guard import BROWSER_GUARD, PAGE_HEADERS, SAFE, page_headers
from gemini_proxy.http.peers import PEERS
from gemini_proxy.http.request_body import read_bytes
from gemini_proxy.traces.datasets import UNNAMED, Dataset
from gemini_proxy.traces.errors import RowRejected, StoreError, TooMany
from gemini_proxy.traces.keys import Identity

Form = Mapping[str, str]

DATASET_GONE: Final = "The dataset has been deleted"
MAX_FORM: Final = 512_000
"""Bytes of a form: the longest policy with each of its characters escaped, and a little more."""
_FIELDS: Final = 20


async def read_form(request: web.Request) -> Form:
    """Return the fields of a urlencoded form, with line ends as ``\\n``.

    Raise UnsupportedMediaType, PayloadTooLarge, and BadRequest for a form that does not arrive in time, is not UTF-8,
    or has a field twice.
    """
    if request.content_type != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("A form must be sent as application/x-www-form-urlencoded")
    return _fields(await read_bytes(request, MAX_FORM, request.app[SERVER].request_timeout))


def _fields(body: bytes) -> Form:
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS)
    except ValueError:
        raise BadRequest("The form cannot be read") from None
    fields = {name: value.replace("\r\n", "\n").replace("\r", "\n") for name, value in pairs}
    if len(fields) != len(pairs):
        raise BadRequest("The form has a field twice")
    return fields


log = logging.getLogger(__name__)

VISITOR = web.RequestKey("VISITOR", Identity)
"""The visitor, once known."""
_WORDS: Final = {
    400: "Bad request",
    401: "Sign in",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Too late",
    413: "Too large",
    421: "Wrong host name",
    429: "Too many requests",
    503: "Not available",
}


@dataclass(frozen=True, slots=True)
class PageVisit:
    """One request for a page."""

    request: web.Request = field(repr=False)
    identity: Identity

    @property
    def app(self) -> web.Application:
        return self.request.app

    @property
    def user(self) -> str:
        """Return the user whose data the page shows."""
        return self.identity.owner

    def require_operator(self) -> None:
        """Raise Forbidden if the visitor's key may not change what calls are checked with."""
        require_operator(self.identity)

    def query(self, name: str) -> str:
        """Return a parameter of the query, "" if it is absent."""
        return self.request.query.get(name, "").strip()

    def number(self, name: str, default: int | None = None) -> int | None:
        """Return a number in the query. Raise BadRequest for anything else."""
        text = self.query(name)
        if not text:
            return default
        if not re.fullmatch("[0-9]{1,15}", text):
            raise BadRequest(f"{name} must be a number from 0")
        return int(text)

    def id(self, part: str) -> str:
        """Return a part of the path that is a UUID. Raise NotFound for anything else: nothing has that id."""
        return read_uuid(self.request.match_info[part], "Nothing has that id")

    async def dataset(self) -> Dataset:
        """Return the dataset that the path names, or the one without a name. Raise NotFound."""
        name = self.request.match_info.get("dataset", UNNAMED)
        known = not name or is_dataset_name(name)
        dataset = await self.app[DATASETS].get(self.user, name) if known else None
        if dataset is None:
            raise NotFound(f"You have no dataset {name}" if name else "There are no traces without a dataset")
        return dataset

    async def dataset_names(self) -> list[str]:
        """Return the names of the user's datasets, sorted."""
        return sorted(dataset.name for dataset in await self.app[DATASETS].all(self.user) if dataset.name)

    async def form(self) -> Form:
        """Return the fields of the submitted form. Raise as ``read_form``."""
        return await read_form(self.request)

    async def show(self, template: str, status: int = 200, *, nonce: str | None = None, **values: Any) -> web.Response:
        """Render a page in a thread, as a large one takes a while.

        With a ``nonce``, which its template hands on, the page's scripts may add style sheets that carry it.
        """
        waiting = await self.app[APPROVALS].waiting(visible_owner(self.identity))
        context = {**_visitor(self.request), "waiting": waiting, "nonce": nonce, **values}
        body = await asyncio.to_thread(aiohttp_jinja2.render_string, template, self.request, context)
        return page_response(body, status, nonce)


Shows = Callable[[PageVisit], Awaitable[web.StreamResponse]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def page(shows: Shows) -> Handler:
    """Return a handler for a page: only for our own host names, our own forms, and users who have signed in."""

    @guarded
    @wraps(shows)
    async def handle(request: web.Request) -> web.StreamResponse:
        identity = await request.app[ACCESS].session_identity(request.cookies.get(SESSION_COOKIE))
        if identity is None:
            return _sign_in_first(request)
        request[VISITOR] = identity
        return await shows(PageVisit(request, identity))

    return handle


def guarded(handler: Handler) -> Handler:
    """Return a handler behind the checks of peers and browsers. Errors become pages."""

    @wraps(handler)
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            request.app[PEERS].check(request)
            request.app[BROWSER_GUARD].check(request)
            return await handler(request)
        except ProxyError as error:
            return error_page(request, error)
        except TooMany as error:
            return error_page(request, BadRequest(f"{error}."))
        except RowRejected:
            return error_page(request, BadRequest("The form holds a value that cannot be stored"))
        except StoreError as error:
            log.warning("the store did not answer a page: %s", error)
            return error_page(request, Unavailable("The trace database cannot be reached now: try again in a moment"))

    return handle


def error_page(request: web.Request, error: ProxyError) -> web.Response:
    """Write an error as a page."""
    title = _WORDS.get(error.status, "Error")
    response = _error(request, error.status, title, error.message)
    if isinstance(error, PayloadTooLarge | LimitExceeded):
        # Reading the rest of its body would be useless.
        response.force_close()
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    return response


def page_response(body: str, status: int = 200, nonce: str | None = None) -> web.Response:
    """Return a page, with the headers that confine it; ``nonce`` allows the style sheets that carry it."""
    headers = PAGE_HEADERS if nonce is None else page_headers(nonce)
    return web.Response(text=body, status=status, content_type="text/html", headers=headers)


def see(path: str) -> web.Response:
    """Redirect the browser to another page of ours."""
    return web.Response(status=303, headers={**PAGE_HEADERS, "location": path})


def dataset_path(dataset: Dataset | str) -> str:
    """Return the path of a dataset's traces."""
    name = dataset if isinstance(dataset, str) else dataset.name
    return f"/explorer/datasets/{quote(name, safe='')}" if name else "/explorer/traces"


def _sign_in_first(request: web.Request) -> web.Response:
    """Ask to sign in. Show the requested page afterwards; say that a submitted form is lost."""
    if request.method in SAFE:
        return see(f"/explorer/sign-in?next={quote(request.path_qs, safe='')}")
    return _error(request, 401, _WORDS[401], "You are no longer signed in")


def _error(request: web.Request, status: int, title: str, message: str) -> web.Response:
    context = {**_visitor(request), "status": status, "title": title, "message": message}
    return page_response(aiohttp_jinja2.render_string("error.html", request, context), status)


def _visitor(request: web.Request) -> dict[str, Any]:
    """Return the values about the visitor that every template gets."""
    identity = request.get(VISITOR)
    return {
        "user": None if identity is None else identity.owner,
        "signed_in": keys_needed(request),
        "waiting": 0,
        "may_change": identity is not None and identity.role == "operator",
    }


@page
async def missing(visit: PageVisit) -> web.StreamResponse:
    """Refuse any other path below ours, and any other method."""
    if visit.request.method not in SAFE | {"POST"}:
        raise MethodNotAllowed("Pages do not take that method")
    raise NotFound("There is no such page")


def keys_needed(request: web.Request) -> bool:
    """Return whether visitors sign in with a key; not if access is open."""
    return request.app[ACCESS].mode == "keys"
