"""Budgets of clients: what each may still use of a limit. No I/O; times are Unix seconds that callers pass in.

A budget is of one client for one minute of the clock, in one process.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final

MINUTE: Final = 60.0
MAX_CLIENTS: Final = 100_000
"""Clients whose budgets are kept at once, for each limit; of more, those first seen in the window start again."""
MAX_PROVEN: Final = 10_000
"""Keys that are known to be good; of more, those unused for longest are charged to their addresses again."""


class Budgets:
    """What each client has used of one limit in the window that runs.

    ``kind`` names the limit, ``period`` is the length of its windows in seconds. The last request of a budget may take
    more than is left of it, so that a limit on bytes refuses no body for its size alone.
    """

    def __init__(self, kind: str, period: float) -> None:
        self.kind = kind
        self._period = period
        self._ends = 0.0
        self._used: dict[str, float] = {}

    def take(self, client: str, cost: float, limit: float, now: float) -> bool:
        """Use ``cost`` of the client's budget; False where nothing is left of it. A limit of 0 is none."""
        if limit and self._so_far(client, now) >= limit:
            return False
        self.add(client, cost, now)
        return True

    def add(self, client: str, cost: float, now: float) -> None:
        """Charge what is known only afterwards; a negative ``cost`` is given back."""
        so_far = self._so_far(client, now)
        if client not in self._used and len(self._used) >= MAX_CLIENTS:
            del self._used[next(iter(self._used))]
        self._used[client] = max(0.0, so_far + cost)

    def retry_after(self, now: float) -> float:
        """Return the seconds until the window ends and every budget is whole again."""
        return self._ends - now

    def _so_far(self, client: str, now: float) -> float:
        if not self._ends - self._period <= now < self._ends:
            self._ends = (now // self._period + 1) * self._period
            self._used.clear()
        return self._used.get(client, 0.0)


class AtOnce:
    """Counts what each client has under way."""

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()

    def __getitem__(self, client: str) -> int:
        return self._under_way[client]

    def begin(self, client: str) -> int:
        """Count one more, and return how many there are."""
        self._under_way[client] += 1
        return self._under_way[client]

    def end(self, client: str) -> None:
        """Count one less."""
        self._under_way[client] -= 1
        if not self._under_way[client]:
            del self._under_way[client]


class Proven:
    """Digests of Gemini keys that the upstream has accepted."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def accept(self, key: str) -> None:
        """The upstream has answered a request with this key."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > MAX_PROVEN:
            self._keys.popitem(last=False)

    def reject(self, key: str) -> None:
        """The upstream has refused this key."""
        self._keys.pop(key, None)


@dataclass(frozen=True, slots=True)
class Client:
    """Whom a request is charged to: ``name`` is a digest of a key that is known to be good, else the address.

    ``trying`` is the digest of a key of which nothing is known yet. Whoever makes up keys stays one client by this
    rule, that of the address, and clients who share an address are told apart as soon as their keys have worked.
    """

    name: str
    address: str
    trying: str = ""
