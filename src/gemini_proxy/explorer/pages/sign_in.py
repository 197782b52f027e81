"""Sign in with a key, and out."""

import re
from typing import Final

import aiohttp_jinja2
from aiohttp import web

from gemini_proxy.explorer.app_keys import ACCESS, DATABASE, SESSION_COOKIE
from gemini_proxy.explorer.pages.site import guarded, keys_needed, page_response, read_form, see
from gemini_proxy.http.browser_guard import is_encrypted
from gemini_proxy.traces.keys import Sessions

SESSION_SECONDS: Final = 14 * 86_400
_LOCAL_PATH: Final = re.compile(r"/explorer(?:[/?](?!/)[\x21\x23-\x5b\x5d-\x7e]{0,2000})?")


@guarded
async def sign_in_form(request: web.Request) -> web.StreamResponse:
    """Ask for a key, if one is needed."""
    wanted = local_path(request.query.get("next", ""))
    return _form(request, wanted) if keys_needed(request) else see(wanted)


@guarded
async def sign_in(request: web.Request) -> web.StreamResponse:
    """Take a key and continue to the requested page."""
    form = await read_form(request)
    wanted = local_path(form.get("next", ""))
    if not keys_needed(request):
        return see(wanted)
    key = form.get("key", "").strip()
    # AccessControl takes the same time for every wrong key; only a right one continues to the session.
    valid = await request.app[ACCESS].identity(key) is not None
    token = await Sessions(request.app[DATABASE]).open(key, SESSION_SECONDS) if valid else None
    if token is None:
        return _form(request, wanted, failed=True)
    response = see(wanted)
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=SESSION_SECONDS,
        path="/",
        secure=is_encrypted(request),
        httponly=True,
        samesite="Lax",
    )
    return response


@guarded
async def sign_out(request: web.Request) -> web.StreamResponse:
    """End the session, in the browser and in the store."""
    token = request.cookies.get(SESSION_COOKIE)
    if token:
        await Sessions(request.app[DATABASE]).close(token)
    response = see("/explorer/sign-in")
    response.del_cookie(SESSION_COOKIE, path="/")
    return response


def _form(request: web.Request, wanted: str, *, failed: bool = False) -> web.Response:
    context = {"user": None, "next": wanted, "failed": failed}
    return page_response(aiohttp_jinja2.render_string("sign_in.html", request, context), 401 if failed else 200)


def local_path(path: str) -> str:
    """Return ``path`` if it is one of our pages, else the first page: nobody is redirected elsewhere."""
    return path if _LOCAL_PATH.fullmatch(path) else "/explorer"
