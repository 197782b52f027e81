"""What is measured: each scenario puts one load on one peer and turns what came of it into figures."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bench.peers import Peer, Stage, holding, load
from bench.workload import LoadResult, Workload

Values = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large and how often. The full size is what is published; the others show that it runs.

    ``settle`` is in seconds: for work that a server does after its last answer, which is part of its CPU time.
    """

    repeats: int = 3
    settle: float = 0.2
    unary_requests: int = 6000
    unary_warmup: int = 1000
    paced_streams: int = 200
    paced_rounds: int = 3
    paced_events: int = 100
    calm_streams: int = 40
    calm_rounds: int = 2
    calm_events: int = 50
    calm_spread_ms: int = 1000
    held_streams: int = 1000
    crowd_streams: int = 1000
    crowd_events: int = 20


FULL: Final = Scale()
QUICK: Final = Scale(repeats=1, unary_requests=2000, unary_warmup=500, paced_rounds=1, calm_rounds=1, calm_events=25)


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the report.

    ``proxies``: means nothing for direct calls, whose server is the scripted upstream.
    ``added``: direct's value of the same repeat is subtracted from the others'. ``ratio``: compared with the
    pass-through. ``most`` is the goal for gemini-proxy: of the ratio if there is one, else of the value.
    """

    key: str
    title: str
    unit: str = ""
    digits: int = 2
    proxies: bool = False
    added: bool = False
    ratio: bool = False
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load, the peers it is put on, and the figures it gives for each."""

    name: str
    title: str
    peers: Sequence[Peer]
    measure: Callable[[Stage, Peer, Scale], Values]
    figures: Sequence[Figure]


_FAILED: Final = Figure("failed", "failed or unfinished", digits=0, most=0)
_ALL: Final = tuple(Peer)
_PROXIES: Final = (Peer.PASS_THROUGH, Peer.PROXY)


def measure(scenario: Scenario, stage: Stage, scale: Scale) -> Iterator[tuple[Peer, Values]]:
    """Every repeat measures every peer in turn, so that a slow minute of the machine hits all of them."""
    for _ in range(scale.repeats):
        for peer in scenario.peers:
            yield peer, scenario.measure(stage, peer, scale)


def _unary(stage: Stage, peer: Peer, scale: Scale) -> Values:
    port = stage.servers[peer].port
    load(Workload("unary", port, 32, scale.unary_warmup))
    result, seconds = _with_cpu(stage, peer, scale, Workload("unary", port, 32, scale.unary_requests))
    return {
        "cpu": seconds * 1e3 / max(result.done, 1),
        "rate": result.done / result.seconds,
        "p50": result.first.p50 if result.first else 0.0,
        "p99": result.first.p99 if result.first else 0.0,
        "failed": result.failed,
    }


def _paced(stage: Stage, peer: Peer, scale: Scale) -> Values:
    workload = _streams(stage, peer, scale.paced_streams, scale.paced_rounds, scale.paced_events, 10)
    result, seconds = _with_cpu(stage, peer, scale, workload)
    return {"rate": result.events / result.seconds, **_per_event(result, seconds)}


def _calm(stage: Stage, peer: Peer, scale: Scale) -> Values:
    """Begins over a second: forty requests in one interval would be a load of their own. Warmed, as a proxy is."""
    load(_streams(stage, peer, scale.calm_streams, 1, 2, 50))
    workload = _streams(stage, peer, scale.calm_streams, scale.calm_rounds, scale.calm_events, 50)
    result, seconds = _with_cpu(stage, peer, scale, replace(workload, spread_ms=scale.calm_spread_ms))
    return _per_event(result, seconds)


def _crowd(stage: Stage, peer: Peer, scale: Scale) -> Values:
    result, seconds = _with_cpu(
        stage, peer, scale, _streams(stage, peer, scale.crowd_streams, 1, scale.crowd_events, 50)
    )
    return _per_event(result, seconds)


def _memory(stage: Stage, peer: Peer, scale: Scale) -> Values:
    """On a fresh server: one that has grown before hides what a stream takes."""
    with stage.fresh(peer) as server:
        load(Workload("unary", server.port, 4, 40))
        load(Workload("stream", server.port, 4, 8, events=4, interval_ms=1))
        time.sleep(scale.settle)
        idle = server.rss_kib
        with holding(Workload("hold", server.port, scale.held_streams, scale.held_streams)) as result:
            time.sleep(scale.settle)
            grown = server.rss_kib - idle
    return {"idle": idle / 1024, "stream": grown / max(result.done, 1), "failed": result.failed}


def _streams(stage: Stage, peer: Peer, streams: int, rounds: int, events: int, interval: int) -> Workload:
    """Streams that begin evenly over one interval: real ones do not tick together."""
    return Workload(
        "stream",
        stage.servers[peer].port,
        connections=streams,
        total=streams * rounds,
        events=events,
        interval_ms=interval,
        spread_ms=interval,
    )


def _with_cpu(stage: Stage, peer: Peer, scale: Scale, workload: Workload) -> tuple[LoadResult, float]:
    server = stage.servers[peer]
    before = server.cpu_seconds
    result = load(workload)
    time.sleep(scale.settle)
    return result, server.cpu_seconds - before


def _per_event(result: LoadResult, seconds: float) -> Values:
    spreads = {"first": result.first, "event": result.event, "last": result.last}
    delays = {
        f"{name}_{rank}": getattr(spread, rank) if spread else 0.0
        for name, spread in spreads.items()
        for rank in ("p50", "p99")
    }
    return {"cpu": seconds * 1e6 / max(result.events, 1), "failed": result.failed, **delays}


SCENARIOS: Final = (
    Scenario(
        "unary",
        "unary, 1.45 kB answers, 32 connections",
        _ALL,
        _unary,
        (
            Figure("cpu", "CPU per 1,000 requests", "s", 3, proxies=True, ratio=True, most=1.5),
            Figure("rate", "requests a second", "", 0, ratio=True),
            Figure("p50", "latency p50", "ms"),
            Figure("p99", "latency p99", "ms"),
            _FAILED,
        ),
    ),
    Scenario(
        "s200",
        "200 streams, 100 events 10 ms apart",
        _PROXIES,
        _paced,
        (
            Figure("cpu", "CPU per million events", "s", 1, proxies=True, ratio=True, most=1.5),
            Figure("rate", "events a second", "", 0),
            Figure("event_p50", "event delay p50", "ms"),
            Figure("event_p99", "event delay p99", "ms"),
            _FAILED,
        ),
    ),
    Scenario(
        "lat40",
        "40 streams, 50 events 50 ms apart (direct's own, then added to it)",
        _ALL,
        _calm,
        (
            Figure("first_p50", "first event p50", "ms", added=True, most=2.0),
            Figure("first_p99", "first event p99", "ms", added=True),
            Figure("event_p50", "events but the last p50", "ms", added=True, most=0.3),
            Figure("event_p99", "events but the last p99", "ms", added=True),
            Figure("last_p50", "last event p50", "ms", added=True),
            Figure("last_p99", "last event p99", "ms", added=True),
            _FAILED,
        ),
    ),
    Scenario(
        "memory",
        "1,000 silent open streams",
        _PROXIES,
        _memory,
        (
            Figure("stream", "resident memory a stream", "KiB", 1, most=50),
            Figure("idle", "resident memory idle", "MiB", 1),
            _FAILED,
        ),
    ),
    Scenario(
        "s1000",
        "1,000 streams at once, 20 events 50 ms apart",
        _ALL,
        _crowd,
        (
            _FAILED,
            Figure("cpu", "CPU per million events", "s", 1, proxies=True, ratio=True),
            Figure("first_p50", "first event p50", "ms", 1),
            Figure("first_p99", "first event p99", "ms", 1),
            Figure("event_p50", "event delay p50", "ms"),
            Figure("event_p99", "event delay p99", "ms"),
        ),
    ),
)
