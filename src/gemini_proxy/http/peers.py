"""Find where a request comes from: the peer of its connection, or the client that a trusted proxy names."""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from aiohttp import HttpVersion11, web
from multidict import CIMultiDictProxy

from gemini_proxy.errors import ProxyError
from gemini_proxy.http.browser_guard import BrowserGuard, WrongHost
from gemini_proxy.http.listen_addresses import UNIX

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_ADDED: Final = ("x-forwarded-for", "x-real-ip", "forwarded", "via")
"""Headers that proxies add and that clients which connect directly do not send."""
_FORWARDED_FOR: Final = "x-forwarded-for"
_MAPPED: Final = "::ffff:"
"""Prefix of an IPv4 address if the socket listens for both kinds."""
_MOST_HOPS: Final = 32
"""Addresses of ``X-Forwarded-For`` that are read, from the right."""


class ThroughProxy(ProxyError):
    """Access is open, and the request came through a proxy that the configuration does not name."""

    status: ClassVar[int] = 403
    code: ClassVar[str] = "PERMISSION_DENIED"


class Proxies:
    """The proxies of ``access.trusted_proxies``: addresses, networks, and ``"unix"`` for every unix socket."""

    def __init__(self, names: Iterable[str]) -> None:
        names = set(names)
        self._unix = UNIX in names
        self._networks = tuple(ipaddress.ip_network(name) for name in names - {UNIX})

    def trusts(self, peer: str) -> bool:
        """Return whether ``peer`` is one of them: an address, ``"unix"``, or "" for a peer that is not known."""
        if peer == UNIX:
            return self._unix
        address = _address(peer) if self._networks else None
        return address is not None and self._names(address)

    def client(self, peer: str, forwarded: Sequence[str]) -> str:
        """Return the address of the client that ``peer`` sends a request for.

        ``forwarded`` are the values of ``X-Forwarded-For``. Each proxy appends the address that connected to it, so the
        rightmost address that is not a trusted proxy's is the client's; the client itself may have written those before
        it. Return ``peer`` itself if it is not trusted, or names no client.
        """
        if not self.trusts(peer):
            return peer
        client = peer
        for hop in reversed(",".join(forwarded).rsplit(",", _MOST_HOPS)):
            address = _address(hop.strip())
            if address is None:
                break
            client = str(address)
            if not self._names(address):
                break
        return client

    def _names(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


class Peers:
    """Find a request's client, and, if access is open, refuse a request through a proxy."""

    def __init__(self, guard: BrowserGuard, trusted_proxies: Iterable[str], *, open_access: bool) -> None:
        self._guard = guard
        self._proxies = Proxies(trusted_proxies)
        self._open = open_access

    def untrusted(self, transport: asyncio.BaseTransport) -> str | None:
        """Return the address of a client that has connected, or None for a trusted proxy."""
        peer = _peer_of(transport)
        return None if self._proxies.trusts(peer) else peer

    def trusts(self, request: web.BaseRequest) -> bool:
        """Return whether a request comes from a trusted proxy, whose word on the client's connection is taken."""
        return self._proxies.trusts(_peer_of(request.transport))

    def client(self, request: web.BaseRequest) -> str:
        """Return the client's address, ``"unix"`` for one that came by a unix socket, or "" if it is not known."""
        return self._proxies.client(_peer_of(request.transport), request.headers.getall(_FORWARDED_FOR, ()))

    def check(self, request: web.Request) -> None:
        """Raise ThroughProxy or WrongHost if access is open and the request comes from elsewhere.

        A proxy on this machine makes every stranger look like a local client. It is recognized by a header that proxies
        add, by a Host header with the public site, or, if it sends neither, by HTTP/1.0, which nginx speaks unless
        configured otherwise, and hardly any client does.
        """
        if not self._open or self._proxies.trusts(_peer_of(request.transport)):
            return
        if request.version < HttpVersion11 or _is_passed_on(request.headers):
            raise ThroughProxy(
                'This request came through a proxy, and access.mode = "open" is for this machine only: set access.mode '
                '= "keys", or name the proxy in access.trusted_proxies if everyone who reaches it may use this server'
            )
        if not self._guard.is_own_host(request):
            raise WrongHost(
                'This server does not answer to that host name. Behind a proxy set access.mode = "keys", or name the '
                "proxy in access.trusted_proxies; names of this machine belong in explorer.hosts"
            )


PEERS = web.AppKey("PEERS", Peers)


def _is_passed_on(headers: CIMultiDictProxy[str]) -> bool:
    """Return whether a proxy has added a header."""
    for name in _ADDED:
        if name in headers:
            return True
    return False


def _peer_of(transport: asyncio.BaseTransport | None) -> str:
    """Return the address that a connection comes from, ``"unix"`` for a unix socket, "" if it is closed."""
    if transport is None:
        return ""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        return str(name[0]).removeprefix(_MAPPED)
    connection = transport.get_extra_info("socket")
    return UNIX if connection is not None and connection.family == socket.AF_UNIX else ""


def _address(text: str) -> _Address | None:
    """Read an address, with or without a port and brackets; an IPv4 address within IPv6 is the IPv4 address."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
