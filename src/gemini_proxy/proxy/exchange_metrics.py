"""Count this process's exchanges in plain numbers, written and read on the event loop."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gemini_proxy.gemini.doors import Method
from gemini_proxy.guardrails.rules import HEADER_NAME
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.traces.redact import redact
from gemini_proxy.traces.trace import Outcome

OTHER: Final = "other"
MAX_LEARNT: Final = 50
"""Names of users' rules that get a label value of their own: each is a time series for as long as the process lives."""
_LONGEST_NAME: Final = 64
_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_CHECK_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_TOKENS: Final = {
    "promptTokenCount": "prompt",
    "candidatesTokenCount": "candidates",
    "thoughtsTokenCount": "thoughts",
    "cachedContentTokenCount": "cached",
    "toolUsePromptTokenCount": "tool_use",
}
_MOST_TOKENS: Final = 1_000_000_000
"""The most that one exchange may add: the upstream reports the number, and a wrong sum cannot be corrected."""


class Histogram:
    """Count observations up to each bound, and sum them."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Return each bound with the observations up to it, the last one without bound."""
        total = 0
        buckets = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class ExchangeMetrics:
    """Count exchanges as they are recorded.

    ``rules`` are the operator's own rules, which always keep their names. ``learns`` is the number of names of other
    rules to keep, in the order of their appearance; all further rules count as ``other``.
    """

    def __init__(self, rules: Iterable[str] = (), *, learns: int = MAX_LEARNT) -> None:
        self._names = {HEADER_NAME, *rules}
        self._room = len(self._names) + learns
        self.exchanges: Counter[tuple[Method, Outcome]] = Counter()
        self.upstream: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.masked: Counter[str] = Counter()
        self.masked_values: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.duration = {True: Histogram(_SECONDS), False: Histogram(_SECONDS)}
        self.first_byte = Histogram(_SECONDS)
        self.check = Histogram(_CHECK_SECONDS)

    def know(self, rules: Iterable[str]) -> None:
        """Take these for names of the operator's rules as well."""
        before = len(self._names)
        self._names.update(rules)
        self._room += len(self._names) - before

    def add(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        call, outcome = exchange.call, exchange.outcome or Outcome.FAILED
        self.exchanges[call.method, outcome] += 1
        if exchange.upstream_status is not None:
            self.upstream[f"{exchange.upstream_status // 100}xx"] += 1
        seconds = time.perf_counter() - exchange.started_at
        self.duration[exchange.streams].observe(seconds)
        if (first_byte_at := exchange.response.first_byte_at) is not None:
            self.first_byte.observe(first_byte_at - exchange.started_at)
        elif outcome is not Outcome.CLIENT_GONE:
            # Events withheld until the end leave now.
            self.first_byte.observe(seconds)
        if exchange.rules.deciding:
            self.check.observe(exchange.check_ms / 1000)
        if exchange.violations:
            masked = {violation.guardrail.name for violation in exchange.violations if violation.action == "mask"}
            self.masked.update(map(self._name, masked))
        if exchange.refusal is not None:
            self.refusals.update(self.refusing(exchange))
        if usage := exchange.merger.usage:
            self._count_tokens(usage)

    def refusing(self, exchange: Exchange) -> set[str]:
        """Return the guardrails that a refused exchange is counted for, by the names that they are counted by."""
        blocked = {one.guardrail.name for one in exchange.violations if one.action == "block"}
        masked = {one.guardrail.name for one in exchange.violations if one.action == "mask"}
        return set(map(self._name, blocked or masked))

    def _count_tokens(self, usage: Mapping[str, Any]) -> None:
        for key, kind in _TOKENS.items():
            if key in usage and (count := tokens(usage, key)):
                self.tokens[kind] += count

    def _name(self, name: str) -> str:
        if name in self._names:
            return name
        if len(self._names) >= self._room or not _is_name(name):
            return OTHER
        self._names.add(name)
        return name


def tokens(usage: Mapping[str, object], name: str) -> int:
    """Return a count of a ``usageMetadata``; 0 where it has none, or none that can be one."""
    count = usage.get(name)
    return count if type(count) is int and 0 < count <= _MOST_TOKENS else 0


def _is_name(name: str) -> bool:
    """Return whether it looks like a name, not like a text or a key."""
    return 0 < len(name) <= _LONGEST_NAME and name.isprintable() and redact(name) == name
