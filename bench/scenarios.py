"""What is measured: each scenario puts one load on one peer and turns what came of it into figures."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bench.peers import Peer, Server, Stage, holding, load
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
    lone_requests: int = 1000
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
QUICK: Final = Scale(
    repeats=1, unary_requests=2000, unary_warmup=500, lone_requests=300, paced_rounds=1, calm_rounds=1, calm_events=25
)

_SLOW_SHARE: Final = 10
"""A peer that takes ten times as long gets a tenth of the requests."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the report.

    ``proxies``: means nothing for direct calls, whose server is the scripted upstream.
    ``added``: the value of that peer in the same repeat is subtracted from the others'. ``ratio``: compared with the
    pass-through. ``most`` is the goal for gemini-proxy: of the ratio if there is one, else of the value.
    """

    key: str
    title: str
    unit: str = ""
    digits: int = 2
    proxies: bool = False
    added: Peer | None = None
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
_TOLD: Final = Figure("told", "exchanges told to each watcher", digits=0)
_ALL: Final = (Peer.DIRECT, Peer.PASS_THROUGH, Peer.PROXY)
_PROXIES: Final = (Peer.PASS_THROUGH, Peer.PROXY)


def joined(scenario: Scenario, extra: Sequence[Peer]) -> Scenario:
    """``scenario`` for the peers ``extra`` as well."""
    peers = tuple(peer for peer in Peer if peer in scenario.peers or (peer in extra and _measures(scenario, peer)))
    told = (_TOLD,) if Peer.WATCHED in extra else ()
    return replace(scenario, peers=peers, figures=(*scenario.figures, *told))


def _measures(scenario: Scenario, peer: Peer) -> bool:
    """Tell whether the load fits an extra peer: LiteLLM writes streams anew, in which no event is the upstream's."""
    return peer is not Peer.LITELLM or scenario.name in ("unary", "lone")


def measure(scenario: Scenario, stage: Stage, scale: Scale) -> Iterator[tuple[Peer, Values]]:
    """Every repeat measures every peer in turn, so that a slow minute of the machine hits all of them."""
    for _ in range(scale.repeats):
        for peer in scenario.peers:
            yield peer, scenario.measure(stage, peer, scale)


@dataclass(frozen=True, slots=True)
class _Served:
    """A load that came to its end: the server's CPU seconds for it, what failed, and what its watchers were told of."""

    result: LoadResult
    cpu: float
    counts: Values


def _unary(stage: Stage, peer: Peer, scale: Scale) -> Values:
    server = stage.servers[peer]
    share = _SLOW_SHARE if peer is Peer.LITELLM else 1
    warmup = Workload(
        "unary", server.process.port, 32, scale.unary_warmup // share, dataset=server.dataset, timeout=30.0 * share
    )
    _serve(server, warmup)
    served = _serve(server, replace(warmup, total=scale.unary_requests // share), scale.settle)
    result = served.result
    return {
        "cpu": served.cpu * 1e3 / max(result.done, 1),
        "rate": result.done / result.seconds,
        "p50": result.first.p50 if result.first else 0.0,
        "p99": result.first.p99 if result.first else 0.0,
        **served.counts,
    }


def _lone(stage: Stage, peer: Peer, scale: Scale) -> Values:
    """One client that asks again when it has its answer."""
    server = stage.servers[peer]
    share = _SLOW_SHARE if peer is Peer.LITELLM else 1
    workload = Workload("unary", server.process.port, 1, scale.lone_requests // share, dataset=server.dataset)
    _serve(server, replace(workload, total=max(1, workload.total // 5)))
    served = _serve(server, workload, scale.settle)
    result = served.result
    first = {"p50": result.first.p50, "p99": result.first.p99} if result.first else {"p50": 0.0, "p99": 0.0}
    return {"rate": result.done / result.seconds, **first, **served.counts}


def _paced(stage: Stage, peer: Peer, scale: Scale) -> Values:
    server = stage.servers[peer]
    workload = _streams(server, scale.paced_streams, scale.paced_rounds, scale.paced_events, 10)
    served = _serve(server, workload, scale.settle)
    return {"rate": served.result.events / served.result.seconds, **_per_event(served)}


def _calm(stage: Stage, peer: Peer, scale: Scale) -> Values:
    """Begins over a second: forty requests in one interval would be a load of their own. Warmed, as a proxy is."""
    server = stage.servers[peer]
    _serve(server, _streams(server, scale.calm_streams, 1, 2, 50))
    workload = _streams(server, scale.calm_streams, scale.calm_rounds, scale.calm_events, 50)
    return _per_event(_serve(server, replace(workload, spread_ms=scale.calm_spread_ms), scale.settle))


def _crowd(stage: Stage, peer: Peer, scale: Scale) -> Values:
    server = stage.servers[peer]
    return _per_event(_serve(server, _streams(server, scale.crowd_streams, 1, scale.crowd_events, 50), scale.settle))


def _memory(stage: Stage, peer: Peer, scale: Scale) -> Values:
    """On a fresh server: one that has grown before hides what a stream takes. Watchers are told of the warm-up."""
    with stage.fresh(peer) as server:
        unary = Workload("unary", server.process.port, 4, 40, dataset=server.dataset)
        warmups = (unary, replace(unary, kind="stream", total=8, events=4, interval_ms=1))
        counts = [_serve(server, workload).counts for workload in warmups]
        time.sleep(scale.settle)
        idle = server.process.rss_kib
        held = replace(unary, kind="hold", connections=scale.held_streams, total=scale.held_streams)
        with holding(held) as result:
            time.sleep(scale.settle)
            grown = server.process.rss_kib - idle
    sums = {key: sum(each[key] for each in counts) for key in counts[0]}
    memory = {"idle": idle / 1024, "stream": grown / max(result.done, 1)}
    return {**memory, **sums, "failed": sums["failed"] + result.failed}


def _streams(server: Server, streams: int, rounds: int, events: int, interval: int) -> Workload:
    """Streams that begin evenly over one interval: real ones do not tick together."""
    return Workload(
        "stream",
        server.process.port,
        connections=streams,
        total=streams * rounds,
        events=events,
        interval_ms=interval,
        spread_ms=interval,
        dataset=server.dataset,
    )


def _serve(server: Server, workload: Workload, settle: float = 0.0) -> _Served:
    """Put ``workload`` on ``server``. Telling its watchers is part of its CPU time; one that is not told has failed."""
    before = server.process.cpu_seconds
    result = load(workload)
    time.sleep(settle)
    counts: Values = {"failed": result.failed}
    if server.audience:
        told = server.audience.told(result.done, workload.total)
        counts = {"failed": result.failed + told.failed, "told": told.least}
    return _Served(result, server.process.cpu_seconds - before, counts)


def _per_event(served: _Served) -> Values:
    result = served.result
    spreads = {"first": result.first, "event": result.event, "last": result.last}
    delays = {
        f"{name}_{rank}": getattr(spread, rank) if spread else 0.0
        for name, spread in spreads.items()
        for rank in ("p50", "p99")
    }
    return {"cpu": served.cpu * 1e6 / max(result.events, 1), **served.counts, **delays}


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
        "lone",
        "unary, one connection (the pass-through's own, then added to it)",
        _PROXIES,
        _lone,
        (
            Figure("p50", "latency p50", "ms", added=Peer.PASS_THROUGH, most=1.0),
            Figure("p99", "latency p99", "ms", added=Peer.PASS_THROUGH),
            Figure("rate", "requests a second", "", 0),
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
            Figure("first_p50", "first event p50", "ms", added=Peer.DIRECT, most=2.0),
            Figure("first_p99", "first event p99", "ms", added=Peer.DIRECT),
            Figure("event_p50", "events but the last p50", "ms", added=Peer.DIRECT, most=0.3),
            Figure("event_p99", "events but the last p99", "ms", added=Peer.DIRECT),
            Figure("last_p50", "last event p50", "ms", added=Peer.DIRECT),
            Figure("last_p99", "last event p99", "ms", added=Peer.DIRECT),
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
