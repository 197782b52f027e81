"""Tell this server's own pages and host names from others, by the headers that browsers send."""

import re
from collections.abc import Iterable
from typing import ClassVar, Final

from aiohttp import web

from gemini_proxy.errors import ProxyError
from gemini_proxy.http.listen_addresses import is_loopback, listen_address

SAFE: Final = frozenset({"GET", "HEAD"})
"""Methods that change nothing."""
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
BROWSER_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    # Not "no-referrer": with it browsers send "Origin: null" with the forms of our own pages.
    "referrer-policy": "same-origin",
}
"""Headers of every response to a browser."""
PAGE_HEADERS: Final = {
    **BROWSER_HEADERS,
    "content-security-policy": _POLICY.format(styles=""),
    "cache-control": "no-store",
    "x-frame-options": "DENY",
}
"""Headers of every page."""


def page_headers(nonce: str) -> dict[str, str]:
    """Return the headers of a page whose scripts may add style sheets with ``nonce``, which no other response has."""
    return {**PAGE_HEADERS, "content-security-policy": _POLICY.format(styles=f" 'nonce-{nonce}'")}


_HOST: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253}))(?::[0-9]{1,5})?")


class WrongHost(ProxyError):
    """The request was meant for another server, or for a name that leads here but is not this server's."""

    status: ClassVar[int] = 421
    code: ClassVar[str] = "FAILED_PRECONDITION"


class CrossSite(ProxyError):
    """Another site's page sent a request that would change something."""

    status: ClassVar[int] = 403
    code: ClassVar[str] = "PERMISSION_DENIED"


class BrowserGuard:
    """Know the names of this server: those of this machine, the addresses that are listened on, and ``hosts``."""

    def __init__(self, hosts: Iterable[str], listen: Iterable[str]) -> None:
        # Without the brackets of an IPv6 address.
        bare = {host.strip("[]") for host in hosts}
        self._names = bare | {listen_address(address).host.lower() for address in listen}

    def is_own_host(self, request: web.Request) -> bool:
        """Return whether the Host header names this server.

        Only this reveals a foreign site whose name was made to lead to this machine (DNS rebinding).
        """
        values = request.headers.getall("host", ())
        host = _host_name(values[0]) if len(values) == 1 else ""
        return bool(host) and (is_loopback(host) or host in self._names)

    def is_from_foreign_page(self, request: web.Request) -> bool:
        """Return whether a browser sends the request for a page of another site. False if it is not a browser.

        A page of any site can send JSON without declaring it as JSON, and then no browser asks this server first.
        """
        site = request.headers.getall("sec-fetch-site", ())
        if list(site) == ["none"] or not (site or "origin" in request.headers):
            return False
        return not (is_same_origin(request) and self.is_own_host(request))

    def check(self, request: web.Request) -> None:
        """Raise WrongHost, or CrossSite for a request that would change something and is not from our own page."""
        if not self.is_own_host(request):
            raise WrongHost("This server does not answer to that host name: add it to explorer.hosts")
        if request.method not in SAFE and not is_same_origin(request):
            raise CrossSite("This request comes from a page of another site, which may not use this server")


BROWSER_GUARD = web.AppKey("BROWSER_GUARD", BrowserGuard)


def is_same_origin(request: web.Request) -> bool:
    """Return whether a browser says that a page of this server sent the request. False if it is not a browser."""
    site = request.headers.getall("sec-fetch-site", ())
    if site:
        return list(site) == ["same-origin"]
    origin = request.headers.getall("origin", ())
    return len(origin) == 1 and _authority(origin[0]) == request.headers.get("host", "").lower()


def is_encrypted(request: web.Request) -> bool:
    """Return whether the browser came by https: to this server, or to a proxy on this machine that says so."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    # A unix socket has no peer address.
    near = not peer or (isinstance(peer, tuple) and is_loopback(str(peer[0])))
    forwarded = request.headers.getall("x-forwarded-proto", ())
    return request.secure or (near and list(forwarded) == ["https"])


def _authority(origin: str) -> str:
    scheme, separator, rest = origin.lower().partition("://")
    return rest if scheme in ("http", "https") and separator else ""


def _host_name(host: str) -> str:
    """Return the host in lower case without its port and brackets; "" if it cannot be read."""
    match = _HOST.fullmatch(host)
    return (match["v6"] or match["name"]).lower() if match else ""
