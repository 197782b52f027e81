"""Keep the budgets of clients: the rest of a limit for each. No I/O; callers pass times in, as Unix seconds.

A budget belongs to one client, for one minute or one day of the clock. Processes that share a database share budgets by
leases: a process grants as much as it has a lease for, and a small part without one. Leases are requested in advance,
in the background.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from gemini_proxy.traces.budgets import Answer, Ask

MINUTE: Final = 60.0
DAY: Final = 86_400.0
MAX_CLIENTS: Final = 100_000
"""Clients whose budgets are kept at once, for each limit; of more, those first seen in the window start again."""
MAX_PROVEN: Final = 10_000
"""Keys that are known to be good; of more, those unused for longest are charged to their addresses again."""
FREE: Final = 0.05
"""The part of a limit that is granted without a lease, by all processes together."""
EXACT: Final = 100
"""Of limits smaller than this each process grants at least one without a lease."""
REFRESH: Final = 20.0
"""Seconds between two looks at how many processes share the limits, and for which a budget is taken as used up."""
ASK_AGAIN: Final = 1.0
"""Seconds for which it is believed that nothing is left of a budget, and what others have used of one."""
IDLE: Final = 2.0
"""Seconds after which a lease that is not used is given back."""


class Sharing:
    """Tell whether this process shares its budgets now, and with how many others."""

    def __init__(self) -> None:
        self.on = False
        """True if it does; else it applies the whole limits by itself."""
        self._processes = 1
        self._free_from = math.inf

    def joined(self, processes: int, now: float) -> None:
        """Note the number of processes that share the database.

        A process grants without leases only from the first minute that began after all others knew of it: so the parts
        granted in a minute never add up to more than FREE.
        """
        if self._free_from == math.inf:
            self._free_from = math.ceil((now + REFRESH) / MINUTE) * MINUTE
        self.on, self._processes = True, processes

    def left(self) -> None:
        """Note that the database is away: each process holds clients to its own limits."""
        self.on = False

    def free(self, limit: float, now: float) -> float:
        """Return how much of a limit is granted without a lease."""
        part = math.floor(limit * FREE / self._processes) if now >= self._free_from else 0
        return part if limit >= EXACT else max(1, part)


@dataclass(slots=True)
class _Use:
    used: float = 0.0
    leased: float = 0.0
    lease: float = 0.0
    latest: float = 0.0
    empty_until: float = 0.0


class Budgets:
    """Each client's use of one limit in the current window.

    ``kind`` names the limit, ``period`` is the length of its windows in seconds. The last request of a budget may take
    more than the rest of it, so that a limit on bytes refuses no body for its size alone.
    """

    def __init__(self, kind: str, period: float, sharing: Sharing | None = None) -> None:
        self.kind = kind
        self._period = period
        self._sharing = sharing or Sharing()
        self._begins = self._ends = 0.0
        self._uses: dict[str, _Use] = {}
        self._wanted: dict[str, float] = {}
        self._leased: set[str] = set()

    def lacks(self, client: str, limit: float, now: float) -> bool:
        """Return whether only a lease can tell if anything is left for the client; request one then."""
        if not limit:
            return False
        use = self._use(client, now)
        if use.used < use.leased <= limit or use.used >= limit:
            return False
        if use.used < self._granted(use, limit, now) or now < use.empty_until:
            return False
        self._wanted[client] = limit
        return True

    def take(self, client: str, cost: float, limit: float, now: float, *, known: bool = True) -> bool:
        """Use ``cost`` of the client's budget; return False if nothing is left. A limit of 0 means no limit.

        While the use by others is not ``known``, this process grants the whole limit, and asks for it afterwards.
        """
        use = self._use(client, now)
        if not limit:
            use.used += cost
            return True
        granted = self._granted(use, limit, now) if known else limit
        if use.used >= granted:
            return False
        use.used += cost
        use.latest = now
        ahead = use.lease if use.leased else granted
        if granted < limit and use.used + ahead / 2 >= granted and now >= use.empty_until:
            self._wanted[client] = limit
        return True

    def add(self, client: str, cost: float, now: float) -> None:
        """Charge a cost that is known only afterwards; a negative ``cost`` is given back."""
        use = self._use(client, now)
        use.used = max(0.0, use.used + cost)

    def retry_after(self, now: float) -> float:
        """Return the seconds until the window ends and every budget is whole again."""
        return self._ends - now

    @property
    def wanted(self) -> bool:
        """Return whether leases are wanted now."""
        return bool(self._wanted)

    def asks(self, most: int, now: float) -> Iterator[Ask]:
        """Give what to ask the database, at most ``most``. Leases that were not used for a while are given back."""
        self._turn(now)
        idle = [client for client in self._leased - self._wanted.keys() if now - self._uses[client].latest >= IDLE]
        for client in idle[:most]:
            use = self._uses[client]
            self._leased.discard(client)
            surplus, use.leased = use.leased - use.used, min(use.leased, use.used)
            if surplus > 0:
                most -= 1
                yield Ask(self.kind, client, int(self._ends), -surplus)
        for client in list(self._wanted)[:most]:
            use, limit = self._use(client, now), self._wanted.pop(client)
            debt = use.used - use.leased - self._sharing.free(limit, now)
            yield Ask(self.kind, client, int(self._ends), max(0.0, debt), limit)

    def answered(self, ask: Ask, answer: Answer, now: float) -> None:
        """Take the lease that the database gives."""
        if ask.ends != int(self._ends) or not ask.limit or (use := self._uses.get(ask.client)) is None:
            return
        use.leased += ask.settle + answer.granted
        use.lease = answer.granted
        use.latest = now
        if answer.granted:
            self._leased.add(ask.client)
        else:
            use.empty_until = now + ASK_AGAIN

    def _granted(self, use: _Use, limit: float, now: float) -> float:
        if not self._sharing.on:
            return limit
        return min(limit, use.leased + self._sharing.free(limit, now))

    def _use(self, client: str, now: float) -> _Use:
        self._turn(now)
        use = self._uses.get(client)
        if use is None:
            if len(self._uses) >= MAX_CLIENTS:
                first = next(iter(self._uses))
                self._leased.discard(first)
                self._wanted.pop(first, None)
                del self._uses[first]
            use = self._uses[client] = _Use()
        return use

    def _turn(self, now: float) -> None:
        """Begin another window where the last one has ended."""
        if not self._begins <= now < self._ends:
            self._ends = (now // self._period + 1) * self._period
            self._begins = self._ends - self._period
            self._uses.clear()
            self._wanted.clear()
            self._leased.clear()


@dataclass(slots=True)
class _Spent:
    known: float = 0.0
    sending: float = 0.0
    waiting: float = 0.0
    asked: float = -math.inf

    @property
    def total(self) -> float:
        return self.known + self.sending + self.waiting


class Spending:
    """Each client's spending of one kind today, as known here: each lease request brings that of other processes."""

    def __init__(self, kind: str, sharing: Sharing | None = None) -> None:
        self.kind = kind
        self._sharing = sharing or Sharing()
        self._ends = 0.0
        self._spent: dict[str, _Spent] = {}
        self._wanted: dict[str, None] = {}

    def lacks(self, client: str, now: float) -> bool:
        """Return whether the client's spending is unknown yet; request it then."""
        if not self._sharing.on or self._of(client, now).asked > -math.inf:
            return False
        self._wanted[client] = None
        return True

    def total(self, client: str, now: float) -> float:
        """Return the client's spending of today."""
        spent = self._of(client, now)
        if now - spent.asked >= ASK_AGAIN:
            self._wanted[client] = None
        return spent.total

    def add(self, client: str, count: float, now: float) -> None:
        """Note what an exchange has cost."""
        self._of(client, now).waiting += count
        self._wanted[client] = None

    def retry_after(self, now: float) -> float:
        """Return the seconds until the day ends."""
        return self._ends - now

    @property
    def wanted(self) -> bool:
        """Return whether there is something to write or request now."""
        return bool(self._wanted)

    def asks(self, most: int, now: float) -> Iterator[Ask]:
        """Give what to write and to ask, at most ``most``."""
        self._turn(now)
        for client in list(self._wanted)[:most]:
            del self._wanted[client]
            spent = self._of(client, now)
            spent.sending, spent.waiting = spent.waiting, 0.0
            yield Ask(self.kind, client, int(self._ends), spent.sending)

    def answered(self, ask: Ask, answer: Answer, now: float) -> None:
        """Take what all processes have written so far."""
        if ask.ends == int(self._ends) and (spent := self._spent.get(ask.client)) is not None:
            spent.known, spent.sending, spent.asked = answer.taken, 0.0, now

    def failed(self, ask: Ask) -> None:
        """Keep what was not written, for the next time."""
        if ask.ends == int(self._ends) and (spent := self._spent.get(ask.client)) is not None:
            spent.sending, spent.waiting = 0.0, spent.waiting + ask.settle
            self._wanted[ask.client] = None

    def _of(self, client: str, now: float) -> _Spent:
        self._turn(now)
        if client not in self._spent:
            if len(self._spent) >= MAX_CLIENTS:
                first = next(iter(self._spent))
                self._wanted.pop(first, None)
                del self._spent[first]
            self._spent[client] = _Spent()
        return self._spent[client]

    def _turn(self, now: float) -> None:
        if not self._ends - DAY <= now < self._ends:
            self._ends = (now // DAY + 1) * DAY
            self._spent.clear()
            self._wanted.clear()


class AtOnce:
    """Count each client's exchanges in progress."""

    def __init__(self) -> None:
        self._under_way: dict[str, int] = {}

    def __getitem__(self, client: str) -> int:
        return self._under_way.get(client, 0)

    def begin(self, client: str) -> int:
        """Count one more, and return how many there are."""
        count = self._under_way[client] = self._under_way.get(client, 0) + 1
        return count

    def end(self, client: str) -> None:
        """Count one less."""
        if (left := self._under_way.pop(client, 0) - 1) > 0:
            self._under_way[client] = left


class Proven:
    """Digests of Gemini keys that the upstream has accepted."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def accept(self, key: str) -> None:
        """Note that the upstream has answered a request with this key."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > MAX_PROVEN:
            self._keys.popitem(last=False)

    def reject(self, key: str) -> None:
        """Note that the upstream has refused this key."""
        self._keys.pop(key, None)


class Client(NamedTuple):
    """The client that pays for a request: ``name`` is a digest of a key known to be valid, else the address.

    ``trying`` is the digest of a key that is not proven yet. So a client that makes up keys stays one client, that of
    the address, and clients who share an address are told apart as soon as their keys have worked.

    An OAuth token changes every hour, or whenever its owner likes: it proves which project is charged, and is not
    charged itself. ``account`` is then the project to charge once ``trying`` has worked, and ``proof`` the digest of
    the token that worked.
    """

    name: str
    address: str
    trying: str = ""
    account: str = ""
    proof: str = ""
