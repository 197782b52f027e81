"""Sum exchanges up: counts, tokens and durations, in values that can be merged in any order. No I/O."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from gemini_proxy.traces.headline import upstream_status
from gemini_proxy.traces.trace import REFUSED, Outcome

# A fifth from bound to bound: a quantile is told from the geometric middle of its interval, at most 9.6 % off.
GROWTH: Final = 1.2
# Milliseconds. Anything faster is counted with the first interval, anything slower than 1.6 hours with the last.
FIRST_BOUND: Final = 0.1
LAST_INTERVAL: Final = 98
_STEP: Final = math.log(GROWTH)

_BOUNDED: Final = (
    "refusals",
    "models",
    "statuses",
    "tools",
    "logged",
    "masked",
    "asked",
    "prompts",
    "outputs",
    "cached",
)
_NAMED: Final = ("outcomes", *_BOUNDED)
_TIMES: Final = ("durations", "first_bytes", "checks", "heads")

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
        return DurationHistogram(_sum((self.counts, other.counts)))

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


_NO_DURATIONS: Final = DurationHistogram()


@dataclass(frozen=True, slots=True)
class Figures:
    """The sums over a number of exchanges.

    ``refusals`` counts refused exchanges by the name of the rule: one that two rules refused counts for both.
    ``logged``, ``masked`` and ``asked`` count in the same way the exchanges in which a rule found something to log, to
    mask, or to ask a person about. ``models`` and ``tools`` count exchanges, the latter those that called a tool,
    ``statuses`` the upstream's responses; ``prompts``, ``outputs`` and ``cached`` tokens by model, the cached ones
    being among the prompts'. Where there were too many names, "" stands for the rarer ones. ``first_bytes`` and
    ``heads`` have only the exchanges whose upstream sent something, ``checks`` those that rules were run on.

    What a version of this program did not count yet is missing in the figures of its time.
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
    logged: Counts = field(default_factory=dict)
    masked: Counts = field(default_factory=dict)
    asked: Counts = field(default_factory=dict)
    prompts: Counts = field(default_factory=dict)
    outputs: Counts = field(default_factory=dict)
    cached: Counts = field(default_factory=dict)
    checks: DurationHistogram = DurationHistogram()
    heads: DurationHistogram = DurationHistogram()

    @property
    def requests(self) -> int:
        return sum(self.outcomes.values())

    @property
    def refused(self) -> int:
        return sum(self.outcomes.get(outcome, 0) for outcome in REFUSED)

    def __add__(self, other: "Figures") -> "Figures":
        return total((self, other))


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
    findings: Mapping[str, Collection[str]] | None = None,
    model: str | None = None,
    tools: Iterable[str] = (),
) -> Figures:
    """Return the figures of one exchange from its trace; values of the wrong type count for nothing.

    ``findings`` are the rules that found something in it, by what they do then.
    """
    found = findings or {}
    usage = _mapping(metadata.get("usage"))
    status = upstream_status(metadata)
    latencies = _mapping(metadata.get("latencies_ms"))
    prompt = _count(usage.get("promptTokenCount"))
    output = _count(usage.get("candidatesTokenCount")) + _count(usage.get("thoughtsTokenCount"))
    cached = _count(usage.get("cachedContentTokenCount"))
    refused_by = (rule for action, rules in found.items() if action != "log" for rule in rules)
    return Figures(
        outcomes={outcome: 1},
        refusals=dict.fromkeys(refused_by, 1) if outcome in REFUSED else {},
        prompt_tokens=prompt,
        output_tokens=output,
        # A pushed trace took no time here.
        durations=_NO_DURATIONS if outcome == Outcome.PUSHED else _duration(duration_ms),
        first_bytes=_duration(latencies.get("first_byte")),
        models=_of_model(model, 1),
        statuses={} if status is None else {str(status): 1},
        tools=dict.fromkeys(tools, 1),
        logged=dict.fromkeys(found.get("log", ()), 1),
        masked=dict.fromkeys(found.get("mask", ()), 1),
        asked=dict.fromkeys(found.get("ask", ()), 1),
        prompts=_of_model(model, prompt),
        outputs=_of_model(model, output),
        cached=_of_model(model, cached),
        checks=_duration(_mapping(metadata.get("coverage")).get("milliseconds") or None),
        heads=_duration(latencies.get("upstream_head")),
    )


def total(figures: Iterable[Figures]) -> Figures:
    """Merge all figures."""
    parts = list(figures)
    merged: dict[str, Any] = {name: _sum(getattr(part, name) for part in parts) for name in _NAMED}
    for name in _TIMES:
        merged[name] = DurationHistogram(_sum(getattr(part, name).counts for part in parts))
    for name in ("prompt_tokens", "output_tokens"):
        merged[name] = sum(getattr(part, name) for part in parts)
    return Figures(**merged)


def starts(since: int, until: int, seconds: int) -> range:
    """Return where buckets of ``seconds`` each begin that cover ``since`` to ``until``.

    The first one is the last multiple of ``seconds`` that is not after ``since``.
    """
    return range(since - since % seconds, until, seconds)


def resampled(buckets: Iterable[Bucket], since: int, until: int, seconds: int) -> list[Bucket]:
    """Merge buckets into those of ``seconds`` each that cover ``since`` to ``until``, the empty ones included."""
    merged: dict[int, list[Figures]] = {start: [] for start in starts(since, until, seconds)}
    for bucket in buckets:
        into = merged.get(bucket.start - bucket.start % seconds)
        if into is not None:
            into.append(bucket.figures)
    return [Bucket(start, seconds, total(parts)) for start, parts in merged.items()]


def with_fewer_names(figures: Figures, most: int) -> Figures:
    """Keep at most ``most`` rules, models, statuses and tools, which others name; count the rest of each under ""."""
    counts = {name: getattr(figures, name) for name in _BOUNDED}
    fewer: dict[str, Any] = {name: _most_used(found, most) for name, found in counts.items() if len(found) > most}
    return replace(figures, **fewer) if fewer else figures


def _most_used(counts: Counts, most: int) -> Counts:
    if len(counts) <= most:
        return counts
    named = sorted((name for name in counts if name), key=lambda name: counts[name], reverse=True)
    kept = {name: counts[name] for name in named[: most - 1]}
    rest = sum(counts.values()) - sum(kept.values())
    return {**kept, "": rest} if rest else kept


def as_json(figures: Figures) -> dict[str, Any]:
    """Return figures as plain JSON for ``from_json``."""
    histograms = {name: getattr(figures, name).counts for name in _TIMES}
    return {
        "tokens": [figures.prompt_tokens, figures.output_tokens],
        **{name: dict(getattr(figures, name)) for name in _NAMED},
        **{name: {str(interval): count for interval, count in counts.items()} for name, counts in histograms.items()},
    }


def from_json(documents: Iterable[Mapping[str, Any]]) -> Figures:
    """Return the sum of what ``as_json`` was given each time, by this version or an earlier one."""
    # Thousands of documents: they are added up as they are, and become figures once.
    sums: dict[str, dict[str, int]] = {name: {} for name in (*_NAMED, *_TIMES)}
    prompt_tokens = output_tokens = 0
    for document in documents:
        prompt, output = document["tokens"]
        prompt_tokens += prompt
        output_tokens += output
        for name, merged in sums.items():
            if (counts := document.get(name)) is not None:
                for key in counts:
                    merged[key] = merged.get(key, 0) + counts[key]
    read: dict[str, Any] = {name: sums[name] for name in _NAMED}
    for name in _TIMES:
        read[name] = DurationHistogram({int(interval): count for interval, count in sums[name].items()})
    return Figures(prompt_tokens=prompt_tokens, output_tokens=output_tokens, **read)


def _interval(milliseconds: float) -> int:
    if not milliseconds > FIRST_BOUND:
        return 0
    if milliseconds >= FIRST_BOUND * GROWTH**LAST_INTERVAL:
        return LAST_INTERVAL
    return min(LAST_INTERVAL, math.ceil(math.log(milliseconds / FIRST_BOUND) / _STEP))


def _middle(interval: int) -> float:
    return FIRST_BOUND * GROWTH ** (interval - 0.5) if interval else FIRST_BOUND


def _sum(parts: Iterable[Mapping[K, int]]) -> Mapping[K, int]:
    merged: dict[K, int] = {}
    for part in parts:
        for key, count in part.items():
            merged[key] = merged.get(key, 0) + count
    return merged


def _of_model(model: str | None, count: int) -> Counts:
    return {} if model is None or not count else {model: count}


def _duration(value: object) -> DurationHistogram:
    return DurationHistogram({_interval(value): 1}) if isinstance(value, int | float) else _NO_DURATIONS


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    # A pushed trace may say anything; a column of numbers must not grow beyond what JSON readers take.
    return int(value) if isinstance(value, int) and 0 <= value < 1 << 40 else 0
