"""What a request says of the browser that sent it, and what an answer tells the browser to keep to."""

import re
from typing import ClassVar, Final

from aiohttp import web

from gemini_proxy.errors import ProxyError
from gemini_proxy.explorer.keys import EXPLORER, SERVER
from gemini_proxy.sections import is_loopback, listen_address

SAFE: Final = frozenset({"GET", "HEAD"})
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
GUARDED: Final = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    # Not "no-referrer": with it browsers send "Origin: null" with the forms of our own pages.
    "referrer-policy": "same-origin",
}
"""Headers of everything that a browser gets from us."""
PAGE: Final = {**GUARDED, "content-security-policy": _POLICY, "cache-control": "no-store", "x-frame-options": "DENY"}
"""Headers of every page."""
_HOST: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253}))(?::[0-9]{1,5})?")
_LOCAL_PATH: Final = re.compile(r"/explorer(?:[/?](?!/)[\x21\x23-\x5b\x5d-\x7e]{0,2000})?")


class WrongHost(ProxyError):
    """The request was meant for another server, or for a name that leads here and is not ours."""

    status: ClassVar[int] = 421
    code: ClassVar[str] = "FAILED_PRECONDITION"


class CrossSite(ProxyError):
    """Another site's page sent a request that would change something."""

    status: ClassVar[int] = 403
    code: ClassVar[str] = "PERMISSION_DENIED"


def check_browser(request: web.Request) -> None:
    """Raise WrongHost or CrossSite."""
    if not known_host(request):
        raise WrongHost(
            "This server does not answer to that host name. Names beside this machine's own belong in explorer.hosts."
        )
    if request.method not in SAFE and not same_origin(request):
        raise CrossSite("This was not sent by a page of this server.")


def known_host(request: web.Request) -> bool:
    """Whether the Host header names this server.

    A foreign site whose name leads to this machine (DNS rebinding) is told apart by nothing else.
    """
    return is_ours(request, request.app[EXPLORER].hosts, request.app[SERVER].listen)


def from_foreign_page(request: web.Request, hosts: tuple[str, ...], listen: tuple[str, ...]) -> bool:
    """Whether a browser sends the request for a page that is none of this server's; False for what is no browser.

    A page of any site can send JSON without saying that it is JSON, and with it no browser asks us first.
    """
    site = request.headers.getall("sec-fetch-site", ())
    if list(site) == ["none"] or not (site or "origin" in request.headers):
        return False
    return not (same_origin(request) and is_ours(request, hosts, listen))


def is_ours(request: web.Request, hosts: tuple[str, ...], listen: tuple[str, ...]) -> bool:
    """Whether the Host header names this machine, an address that is listened on, or one of ``hosts``."""
    given = request.headers.getall("host", ())
    host = _host_name(given[0]) if len(given) == 1 else ""
    listened = {listen_address(address).host.lower() for address in listen}
    return bool(host) and (is_loopback(host) or host in _bare(hosts) or host in listened)


def same_origin(request: web.Request) -> bool:
    """Whether a browser says that a page of this server sent the request; False for what is no browser."""
    site = request.headers.getall("sec-fetch-site", ())
    if site:
        return list(site) == ["same-origin"]
    origin = request.headers.getall("origin", ())
    return len(origin) == 1 and _authority(origin[0]) == request.headers.get("host", "").lower()


def encrypted(request: web.Request) -> bool:
    """Whether the browser came by https: to us, or to a proxy on this machine that says so."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    # A unix socket has no peer's address.
    near = not peer or (isinstance(peer, tuple) and is_loopback(str(peer[0])))
    said = request.headers.getall("x-forwarded-proto", ())
    return request.secure or (near and list(said) == ["https"])


def local_path(path: str) -> str:
    """``path`` if it is one of our pages, else the first page: nobody is sent elsewhere."""
    return path if _LOCAL_PATH.fullmatch(path) else "/explorer"


def _authority(origin: str) -> str:
    scheme, separator, rest = origin.lower().partition("://")
    return rest if scheme in ("http", "https") and separator else ""


def _host_name(host: str) -> str:
    """The host without its port and brackets, in lower case; "" for what is none."""
    found = _HOST.fullmatch(host)
    return (found["v6"] or found["name"]).lower() if found else ""


def _bare(hosts: tuple[str, ...]) -> set[str]:
    """Without the brackets of an IPv6 address."""
    return {host.strip("[]") for host in hosts}
