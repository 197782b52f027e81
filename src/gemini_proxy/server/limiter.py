"""Hold exchanges to the limits of their clients, and count refusals."""

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gemini_proxy.errors import LimitExceeded
from gemini_proxy.proxy.exchange_metrics import tokens
from gemini_proxy.sections import Limits
from gemini_proxy.server.limits import (
    ASK_AGAIN,
    MINUTE,
    REFRESH,
    AtOnce,
    Budgets,
    Client,
    Proven,
    Sharing,
    Spending,
)
from gemini_proxy.traces.budgets import MOST_ASKS, Answer, Ask, SharedBudgets
from gemini_proxy.traces.clock import is_set_within
from gemini_proxy.traces.errors import StoreError

log = logging.getLogger(__name__)

_SOON: Final = 1.0
"""Seconds after which to ask again for what frees up at any time."""
_PATIENCE: Final = 1.0
"""Seconds for which the database is waited for before it counts as away."""
_LEARNING: Final = 3.0
"""Seconds that a request waits for an answer of the database; then this process's own limit holds for it."""
_ROUNDS: Final = 3
"""Answers of the database that a request waits for at most: the one under way when it came, and its own."""
_GATHER: Final = 0.01
"""Seconds between two transactions, in which requests gather."""
_AFTER_FAILURE: Final = 1.0
"""Seconds between two when the database is away."""
_NETWORK: Final = 64
"""Bits of an IPv6 address that identify a client: one client has all addresses that share them."""


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
        self._sharing = Sharing()
        self._requests = Budgets("requests", MINUTE, self._sharing)
        self._bytes = Budgets("bytes", MINUTE, self._sharing)
        self._unproven_requests = Budgets("unproven_requests", MINUTE, self._sharing)
        self._unproven_bytes = Budgets("unproven_bytes", MINUTE, self._sharing)
        self._input = Spending("input_tokens", self._sharing)
        self._output = Spending("output_tokens", self._sharing)
        self._shared = {
            budgets.kind: budgets
            for budgets in (self._requests, self._bytes, self._unproven_requests, self._unproven_bytes)
        }
        self._spent = {spending.kind: spending for spending in (self._input, self._output)}
        self._kinds: tuple[Budgets | Spending, ...] = (*self._shared.values(), *self._spent.values())
        self._proven = Proven()
        self._process = uuid.uuid4().hex
        self._wake, self._round = asyncio.Event(), asyncio.Event()
        self._looked = -math.inf
        self._told_away = False
        self.refused: Counter[str] = Counter()
        """Requests refused, by limit."""
        self.soft: Counter[str] = Counter()
        """Clients and datasets that have spent more than a soft limit on a day, by limit."""

    def client(self, invariant: str | None, gemini: str | None, address: str, project: str | None = None) -> Client:
        """Return the client to charge: ``invariant`` is a key that is valid here, ``gemini`` one that the client sent.

        ``project`` is given if that is a token for a project of Vertex AI, "" if none is named.
        """
        address = f"address {network(address)}"
        if invariant:
            return Client(_key_name(invariant), address)
        if not gemini:
            return Client(address, address)
        if project is not None:
            # A token that is valid for one project proves nothing about another.
            proof, account = _key_name(f"{project}\n{gemini}"), _key_name(f"project {project}") if project else address
            if proof in self._proven:
                return Client(account, address, proof=proof)
            return Client(address, address, proof, account)
        key = _key_name(gemini)
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
        """Charge a request of ``size`` bytes that is not an exchange. Raises LimitExceeded.

        If it must first know what other processes have granted, it waits for the background task to learn that.
        """
        limits = self._limits()
        charges = [
            (self._requests, client.name, 1, limits.requests_per_minute),
            (self._bytes, client.name, size, limits.bytes_per_minute),
        ]
        if client.trying:
            charges += [
                (self._unproven_requests, client.address, 1, limits.unproven_requests_per_minute),
                (self._unproven_bytes, client.address, size, limits.unproven_bytes_per_minute),
            ]
        now = self._clock()
        if _any_lacks(charges, now):
            await self._await(lambda now: _any_lacks(charges, now))
            now = self._clock()
        for budgets, name, cost, limit in charges:
            if budgets.take(name, cost, limit, now):
                continue
            # Learning took too long, or a new minute has begun, of which nothing is known yet.
            if not (budgets.lacks(name, limit, now) and budgets.take(name, cost, limit, now, known=False)):
                raise self._exceeded(budgets.kind, name, budgets.retry_after(now), limit)
        for budgets, *_ in charges:
            if budgets.wanted:
                self._wake.set()
        return Visit(client, size)

    def leave(self, visit: Visit, size: int, *, accepted: bool | None, stored: bool = True) -> None:
        """Note that the exchange is over; otherwise do as ``settle``."""
        self._under_way.end(visit.client.name)
        self.settle(visit, size, accepted=accepted, stored=stored)

    def settle(self, visit: Visit, size: int, *, accepted: bool | None, stored: bool = True) -> None:
        """Charge the final costs: the request had ``size`` bytes in all, which may have been unknown before.

        ``accepted`` says whether the upstream took the client's key, None if it did not say. If the key turns out to be
        valid, the address's charges for it move to the key. A request that was refused before anything of it was
        ``stored`` says nothing about its key, and its charge as unproven is given back.
        """
        now, client = self._clock(), visit.client
        more = max(0, size - visit.size)
        if more:
            self._bytes.add(client.name, more, now)
        if not client.trying:
            if accepted is False:
                self._proven.reject(client.proof or client.name)
        elif accepted:
            self._proven.accept(client.trying)
            for budgets, cost in ((self._requests, 1), (self._bytes, visit.size + more)):
                budgets.add(client.address, -cost, now)
                budgets.add(client.account or client.trying, cost, now)
        if client.trying and (accepted or not stored):
            self._unproven_requests.add(client.address, -1, now)
            self._unproven_bytes.add(client.address, -visit.size, now)
        elif client.trying:
            self._unproven_bytes.add(client.address, more, now)

    async def afford(self, client: Client, dataset: str) -> None:
        """Raise LimitExceeded where the client has spent the tokens of a day in ``dataset``."""
        limits = self._limits()
        if not limits.bounds_tokens:
            return
        spendings = [(spending, hard) for spending, soft, hard in self._token_limits(limits) if hard or soft]
        subject = _subject(client, dataset)
        await self._await(lambda now: any([spending.lacks(subject, now) for spending, _ in spendings]))
        now = self._clock()
        for spending, hard in spendings:
            if spending.total(subject, now) >= hard > 0:
                raise self._exceeded(spending.kind, subject, spending.retry_after(now), hard)
        if any(spending.wanted for spending, _ in spendings):
            self._wake.set()

    def spend(self, client: Client, dataset: str, usage: Mapping[str, object]) -> None:
        """Note the tokens of an exchange, as its ``usageMetadata`` counts them."""
        limits = self._limits()
        if not limits.bounds_tokens:
            return
        subject, now = _subject(client, dataset), self._clock()
        for spending, soft, hard in self._token_limits(limits):
            if not (soft or hard):
                continue
            if count := sum(tokens(usage, name) for name in _TOKENS[spending.kind]):
                spending.add(subject, count, now)
                self._wake.set()

    def _token_limits(self, limits: Limits) -> Iterable[tuple[Spending, int, int]]:
        return (
            (self._input, limits.soft_input_tokens_per_day, limits.input_tokens_per_day),
            (self._output, limits.soft_output_tokens_per_day, limits.output_tokens_per_day),
        )

    async def share(self, budgets: SharedBudgets) -> None:
        """Share what clients use with the other processes on the database, until cancelled."""
        while True:
            await self.learn(budgets)
            await asyncio.sleep(_AFTER_FAILURE if not self._sharing.on else _GATHER)
            await is_set_within(self._wake, ASK_AGAIN)
            self._wake.clear()

    async def learn(self, budgets: SharedBudgets) -> None:
        """Ask the database once for all pending budgets, and wake the requests that wait for them.

        Call it once before the first request: until then this process knows nothing about the others.
        """
        now = self._clock()
        asks: list[Ask] = []
        for kind in self._kinds:
            asks += kind.asks(MOST_ASKS - len(asks), now)
        if asks or not self._sharing.on or now - self._looked >= REFRESH:
            await self._ask(budgets, asks, now)
        if any(kind.wanted for kind in self._kinds):
            self._wake.set()
        self._round.set()
        self._round = asyncio.Event()

    async def _ask(self, budgets: SharedBudgets, asks: Sequence[Ask], now: float) -> None:
        until = int((now // MINUTE + 2) * MINUTE)
        try:
            async with asyncio.timeout(_PATIENCE):
                processes, answers = await budgets.settle(asks, self._process, until, now)
        except (StoreError, TimeoutError) as error:
            self._sharing.left()
            for ask in asks:
                if ask.kind in self._spent:
                    self._spent[ask.kind].failed(ask)
            if not self._told_away:
                self._told_away = True
                log.warning("limits are counted in this process alone until the database responds: %s", error)
            return
        self._told_away = False
        self._looked = now
        self._sharing.joined(processes, now)
        for ask, answer in zip(asks, answers, strict=True):
            if ask.kind in self._spent:
                self._spent[ask.kind].answered(ask, answer, now)
                self._notice(ask, answer)
            else:
                self._shared[ask.kind].answered(ask, answer, now)

    def _notice(self, ask: Ask, answer: Answer) -> None:
        """Tell of a soft limit that this process was the one to cross: of all that share it, one is."""
        (soft,) = (soft for spending, soft, _ in self._token_limits(self._limits()) if spending.kind == ask.kind)
        if answer.taken - ask.settle < soft <= answer.taken:
            self.soft[ask.kind] += 1
            client, _, dataset = ask.client.partition("\n")
            log.warning(
                "over limits.soft_%s_per_day: the client is %.24s, the dataset %.64r", ask.kind, client, dataset
            )

    async def _await(self, lacks: Callable[[float], bool]) -> None:
        """Wait while something has to be learned that the background can learn, for a bounded time."""
        if not lacks(self._clock()):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEARNING):
                for _ in range(_ROUNDS):
                    if not lacks(self._clock()):
                        return
                    self._wake.set()
                    await self._round.wait()

    def _exceeded(self, kind: str, client: str, seconds: float, limit: int) -> LimitExceeded:
        self.count(kind, client)
        return LimitExceeded(f"You have reached the limit {_KEYS[kind]} = {limit} of this server", kind, seconds)

    def spent_budgets(self) -> dict[str, int]:
        """Return how often budgets of tokens were found spent, by budget: hard ones count requests, soft ones count the
        clients and datasets that crossed them."""
        hard = {kind: self.refused[kind] for kind in TOKEN_KINDS}
        return {**hard, **{f"soft_{kind}": self.soft[kind] for kind in TOKEN_KINDS}}

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
    "input_tokens": "limits.input_tokens_per_day",
    "output_tokens": "limits.output_tokens_per_day",
}
KINDS: Iterable[str] = tuple(_KEYS)
"""The limits, as metrics name them."""
TOKEN_KINDS: Final = ("input_tokens", "output_tokens")
"""Kinds with a soft limit beside the hard one."""
_TOKENS: Final = {
    "input_tokens": ("promptTokenCount", "toolUsePromptTokenCount"),
    "output_tokens": ("candidatesTokenCount", "thoughtsTokenCount"),
}


def _any_lacks(charges: Sequence[tuple[Budgets, str, int, int]], now: float) -> bool:
    """Return whether a lease is needed to tell what is left for a charge. All of them are requested, for one wait."""
    lacks = False
    for budgets, name, _, limit in charges:
        if budgets.lacks(name, limit, now):
            lacks = True
    return lacks


def _subject(client: Client, dataset: str) -> str:
    return f"{client.account or client.trying or client.name}\n{dataset}"


# Cached, since few keys and addresses send most requests.
@functools.lru_cache(maxsize=1024)
def _key_name(key: str) -> str:
    """Return a name for a key that does not show it: the same in every process and on every machine."""
    return "key " + hmac.digest(b"gemini-proxy limits", key.encode(), "sha256").hex()


@functools.lru_cache(maxsize=4096)
def network(address: str) -> str:
    """Return what an address is counted as: itself, or the network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, _NETWORK), strict=False))
