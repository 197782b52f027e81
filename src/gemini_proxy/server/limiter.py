"""Holds exchanges to the limits of their clients, and counts what it refuses."""

import functools
import hmac
import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from gemini_proxy.errors import LimitExceeded
from gemini_proxy.sections import Limits
from gemini_proxy.server.limits import MINUTE, AtOnce, Budgets, Client, Proven

log = logging.getLogger(__name__)

_SOON: Final = 1.0
"""Seconds after which to ask again for what frees up at any time."""
_NETWORK: Final = 64
"""Bits of an IPv6 address that tell clients apart: whoever has one address has all that share them."""


@dataclass(slots=True)
class Visit:
    """A request under way: ``size`` are the bytes of its request that have been charged."""

    client: Client
    size: int


class Limiter:
    """The limits of ``[limits]``, as ``limits()`` gives them at each request. ``clock`` gives Unix seconds."""

    def __init__(self, limits: Callable[[], Limits], clock: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._clock = clock
        self._under_way = AtOnce()
        self._requests = Budgets("requests", MINUTE)
        self._bytes = Budgets("bytes", MINUTE)
        self._unproven_requests = Budgets("unproven_requests", MINUTE)
        self._unproven_bytes = Budgets("unproven_bytes", MINUTE)
        self._proven = Proven()
        self.refused: Counter[str] = Counter()
        """Requests refused, by limit."""

    def client(self, invariant: str | None, gemini: str | None, address: str) -> Client:
        """Return whom to charge: ``invariant`` is a key that is valid here, ``gemini`` one that the client brought."""
        address = f"address {network(address)}"
        if invariant:
            return Client(key_name(invariant), address)
        if not gemini:
            return Client(address, address)
        key = key_name(gemini)
        return Client(key, address) if key in self._proven else Client(address, address, key)

    async def enter(self, client: Client, size: int) -> Visit:
        """Charge a request of ``size`` bytes and count it until it leaves. Raises LimitExceeded."""
        most = self._limits().exchanges_at_once
        if most and self._under_way[client.name] >= most:
            raise self._exceeded("exchanges", client.name, _SOON, most)
        visit = await self.charge(client, size)
        self._under_way.begin(client.name)
        return visit

    async def charge(self, client: Client, size: int) -> Visit:
        """Charge a request of ``size`` bytes that is no exchange. Raises LimitExceeded."""
        limits, now = self._limits(), self._clock()
        self._take(self._requests, client.name, 1, limits.requests_per_minute, now)
        self._take(self._bytes, client.name, size, limits.bytes_per_minute, now)
        if client.trying:
            self._take(self._unproven_requests, client.address, 1, limits.unproven_requests_per_minute, now)
            self._take(self._unproven_bytes, client.address, size, limits.unproven_bytes_per_minute, now)
        return Visit(client, size)

    def leave(self, visit: Visit, size: int, *, accepted: bool | None, stored: bool = True) -> None:
        """The exchange is over; otherwise as ``settle``."""
        self._under_way.end(visit.client.name)
        self.settle(visit, size, accepted=accepted, stored=stored)

    def settle(self, visit: Visit, size: int, *, accepted: bool | None, stored: bool = True) -> None:
        """Charge what is known at the end: the request had ``size`` bytes in all, which may have been unknown before.

        ``accepted`` says whether the client's key was taken, None where it did not say. What the address was
        charged for a key that turns out to be good is charged to the key. A request that was refused before anything of
        it was ``stored`` says nothing of its key, and what it was charged for not being proven is given back.
        """
        now, client = self._clock(), visit.client
        more = max(0, size - visit.size)
        if more:
            self._bytes.add(client.name, more, now)
        if not client.trying:
            if accepted is False:
                self._proven.reject(client.name)
        elif accepted:
            self._proven.accept(client.trying)
            for budgets, cost in ((self._requests, 1), (self._bytes, visit.size + more)):
                budgets.add(client.address, -cost, now)
                budgets.add(client.trying, cost, now)
        if client.trying and (accepted or not stored):
            self._unproven_requests.add(client.address, -1, now)
            self._unproven_bytes.add(client.address, -visit.size, now)
        elif client.trying:
            self._unproven_bytes.add(client.address, more, now)

    def _take(self, budgets: Budgets, client: str, cost: float, limit: int, now: float) -> None:
        if not budgets.take(client, cost, limit, now):
            raise self._exceeded(budgets.kind, client, budgets.retry_after(now), limit)

    def _exceeded(self, kind: str, client: str, seconds: float, limit: int) -> LimitExceeded:
        self.count(kind, client)
        return LimitExceeded(f"You have reached the limit {_KEYS[kind]} = {limit} of this server", kind, seconds)

    def count(self, kind: str, client: str) -> None:
        """Count a refusal by the limit ``kind``, and log the first one."""
        self.refused[kind] += 1
        if self.refused[kind] == 1:
            log.warning("first request over %s: the client is %.24s", _KEYS[kind], client)


_KEYS: Final = {
    "connections": "limits.unfinished_connections",
    "exchanges": "limits.exchanges_at_once",
    "requests": "limits.requests_per_minute",
    "bytes": "limits.bytes_per_minute",
    "unproven_requests": "limits.unproven_requests_per_minute",
    "unproven_bytes": "limits.unproven_bytes_per_minute",
}
KINDS: Iterable[str] = tuple(_KEYS)
"""The limits, as metrics name them."""


# Few keys and addresses send most requests.
@functools.lru_cache(maxsize=1024)
def key_name(key: str) -> str:
    """Return a name for a key that does not show it: the same in every process and on every machine."""
    return "key " + hmac.digest(b"gemini-proxy limits", key.encode(), "sha256").hex()


@functools.lru_cache(maxsize=1024)
def network(address: str) -> str:
    """Return what an address is counted as: itself, or the network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, _NETWORK), strict=False))
