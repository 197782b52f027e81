"""Read addresses to listen on, and tell which of them only this machine can reach."""

import functools
import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

UNIX: Final = "unix"
"""The name of every unix socket in ``access.trusted_proxies``."""
_ANY: Final = ("0.0.0.0", "::")
"""Addresses that stand for all of a machine's."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """One address to listen on: a TCP host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def local(self) -> bool:
        """Return True if only this machine can connect."""
        return bool(self.path) or is_loopback(self.host)

    def serves(self, url: str) -> bool:
        """Return whether ``url`` leads to this address, as far as both say so without resolving a name."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if self.path or port != self.port:
            return False
        host = (parts.hostname or "").lower()
        if self.host in _ANY or "localhost" in (host, self.host.lower()):
            return is_loopback(host) and (self.host in _ANY or self.local)
        return host == self.host.lower()

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.path}" if self.path else f"{host}:{self.port}"


def listen_address(text: str) -> ListenAddress:
    """Read ``host:port``, ``[v6]:port`` or ``unix:/path``. Raise ValueError with what was expected."""
    if text.startswith("unix:") and text.removeprefix("unix:").startswith("/"):
        return ListenAddress(path=text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError('"host:port" or "unix:/path"')
    return ListenAddress(host=host.strip("[]"), port=int(port))


@functools.lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
