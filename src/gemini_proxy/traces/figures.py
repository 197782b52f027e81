"""What exchanges add up to: counts, tokens and how long they took, in values that are merged in any order. No I/O."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Final, TypeVar

from gemini_proxy.traces.headline import headline_of
from gemini_proxy.traces.trace import REFUSED, Outcome

# A fifth from bound to bound: a quantile is told from the geometric middle of its interval, at most 9.6 % off.
GROWTH: Final = 1.2
# Milliseconds. Anything faster is counted with the first interval, anything slower than 1.6 hours with the last.
FIRST_BOUND: Final = 0.1
LAST_INTERVAL: Final = 98
_STEP: Final = math.log(GROWTH)

K = TypeVar("K")
Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DurationHistogram:
    """Durations in milliseconds, counted in intervals whose bounds grow by ``GROWTH``.

    ``counts`` holds the intervals that are not empty: 0 up to and with ``FIRST_BOUND``, n up to and with
    ``FIRST_BOUND * GROWTH ** n``.
    """

    counts: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, milliseconds: Iterable[float]) -> "DurationHistogram":
        counts: dict[int, int] = {}
        for value in milliseconds:
            interval = _interval(value)
            counts[interval] = counts.get(interval, 0) + 1
        return cls(counts)

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def __add__(self, other: "DurationHistogram") -> "DurationHistogram":
        return DurationHistogram(_sum(self.counts, other.counts))

    def quantile(self, share: float) -> float | None:
        """Return the duration that ``share`` (0 to 1) of those counted do not exceed, nearest rank, or None.

        Between ``FIRST_BOUND`` and the last bound it is at most 9.6 % off, towards either side.
        """
        rank = max(1, math.ceil(share * self.count))
        for interval in sorted(self.counts):
            rank -= self.counts[interval]
            if rank <= 0:
                return _middle(interval)
        return None


@dataclass(frozen=True, slots=True)
class Figures:
    """What a number of exchanges add up to.

    ``refusals`` counts refused exchanges by the name of the rule: one that two rules refused counts for both. Where
    there were too many names, "" stands for the rarer ones, as in ``models``
    and ``tools``, which counts the exchanges that called a tool; ``statuses`` are those of the upstream's responses.
    ``first_bytes`` has only the exchanges whose upstream sent something.
    """

    outcomes: Counts = field(default_factory=dict)
    refusals: Counts = field(default_factory=dict)
    prompt_tokens: int = 0
    output_tokens: int = 0
    durations: DurationHistogram = DurationHistogram()
    first_bytes: DurationHistogram = DurationHistogram()
    models: Counts = field(default_factory=dict)
    statuses: Counts = field(default_factory=dict)
    tools: Counts = field(default_factory=dict)

    @property
    def requests(self) -> int:
        return sum(self.outcomes.values())

    @property
    def refused(self) -> int:
        return sum(self.outcomes.get(outcome, 0) for outcome in REFUSED)

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(
            _sum(self.outcomes, other.outcomes),
            _sum(self.refusals, other.refusals),
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            self.durations + other.durations,
            self.first_bytes + other.first_bytes,
            _sum(self.models, other.models),
            _sum(self.statuses, other.statuses),
            _sum(self.tools, other.tools),
        )


@dataclass(frozen=True, slots=True)
class Bucket:
    """The figures of the exchanges that began within ``seconds`` from ``start`` on, in Unix seconds."""

    start: int
    seconds: int
    figures: Figures = Figures()


def figures_of(
    outcome: str,
    metadata: Mapping[str, Any],
    duration_ms: float,
    refused_by: Iterable[str] = (),
    model: str | None = None,
    tools: Iterable[str] = (),
) -> Figures:
    """Return the figures of one exchange from its trace; values of the wrong type count for nothing."""
    usage = _mapping(metadata.get("usage"))
    status = headline_of(metadata, "").status
    first_byte = _mapping(metadata.get("latencies_ms")).get("first_byte")
    return Figures(
        {outcome: 1},
        dict.fromkeys(refused_by, 1) if outcome in REFUSED else {},
        _count(usage.get("promptTokenCount")),
        _count(usage.get("candidatesTokenCount")) + _count(usage.get("thoughtsTokenCount")),
        # A pushed trace took no time here.
        DurationHistogram() if outcome == Outcome.PUSHED else DurationHistogram.of([duration_ms]),
        DurationHistogram.of([first_byte]) if isinstance(first_byte, int | float) else DurationHistogram(),
        {} if model is None else {model: 1},
        {} if status is None else {str(status): 1},
        dict.fromkeys(tools, 1),
    )


def total(figures: Iterable[Figures]) -> Figures:
    """Merge all figures."""
    return reduce(Figures.__add__, figures, Figures())


def resampled(buckets: Iterable[Bucket], since: int, until: int, seconds: int) -> list[Bucket]:
    """Buckets merged into those of ``seconds`` each that cover ``since`` to ``until``, the empty ones included.

    The first one starts at the last multiple of ``seconds`` that is not after ``since``.
    """
    merged: dict[int, list[Figures]] = {start: [] for start in range(since - since % seconds, until, seconds)}
    for bucket in buckets:
        into = merged.get(bucket.start - bucket.start % seconds)
        if into is not None:
            into.append(bucket.figures)
    return [Bucket(start, seconds, total(parts)) for start, parts in merged.items()]


def with_fewer_names(figures: Figures, most: int) -> Figures:
    """Keep at most ``most`` rules, models, statuses and tools, which others name; count the rest of each under ""."""
    if max(map(len, (figures.refusals, figures.models, figures.statuses, figures.tools))) <= most:
        return figures
    return replace(
        figures,
        refusals=_most_used(figures.refusals, most),
        models=_most_used(figures.models, most),
        statuses=_most_used(figures.statuses, most),
        tools=_most_used(figures.tools, most),
    )


def _most_used(counts: Counts, most: int) -> Counts:
    if len(counts) <= most:
        return counts
    named = sorted((name for name in counts if name), key=lambda name: counts[name], reverse=True)
    kept = {name: counts[name] for name in named[: most - 1]}
    rest = sum(counts.values()) - sum(kept.values())
    return _sum(kept, {"": rest} if rest else {})


def as_json(figures: Figures) -> dict[str, Any]:
    """Plain JSON for ``from_json``."""
    return {
        "outcomes": dict(figures.outcomes),
        "refusals": dict(figures.refusals),
        "tokens": [figures.prompt_tokens, figures.output_tokens],
        "durations": {str(interval): count for interval, count in figures.durations.counts.items()},
        "first_bytes": {str(interval): count for interval, count in figures.first_bytes.counts.items()},
        "models": dict(figures.models),
        "statuses": dict(figures.statuses),
        "tools": dict(figures.tools),
    }


def from_json(document: Mapping[str, Any]) -> Figures:
    """Return what ``as_json`` was given."""
    prompt_tokens, output_tokens = document["tokens"]
    return Figures(
        document["outcomes"],
        document["refusals"],
        prompt_tokens,
        output_tokens,
        DurationHistogram({int(interval): count for interval, count in document["durations"].items()}),
        DurationHistogram({int(interval): count for interval, count in document["first_bytes"].items()}),
        document["models"],
        document.get("statuses", {}),
        document.get("tools", {}),
    )


def _interval(milliseconds: float) -> int:
    if not milliseconds > FIRST_BOUND:
        return 0
    if milliseconds >= FIRST_BOUND * GROWTH**LAST_INTERVAL:
        return LAST_INTERVAL
    return min(LAST_INTERVAL, math.ceil(math.log(milliseconds / FIRST_BOUND) / _STEP))


def _middle(interval: int) -> float:
    return FIRST_BOUND * GROWTH ** (interval - 0.5) if interval else FIRST_BOUND


def _sum(first: Mapping[K, int], second: Mapping[K, int]) -> Mapping[K, int]:
    if not first or not second:
        return first or second
    merged = dict(first)
    for key, count in second.items():
        merged[key] = merged.get(key, 0) + count
    return merged


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: object) -> int:
    # A pushed trace may say anything; a column of numbers must not grow beyond what JSON readers take.
    return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0
