"""What the load generator is asked to do and what it answers: plain values that go between processes as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Kind = Literal["unary", "stream", "hold"]
DATASET: Final = "bench"
KEY: Final = "inv-bench"
"""An Invariant key: with open access any is one."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One load on one address.

    ``unary``: ``total`` requests over ``connections`` connections. ``stream``: ``total`` streams of ``events`` events,
    ``interval_ms`` apart, at most ``connections`` at once; the connections begin evenly over ``spread_ms``.
    ``hold``: ``connections`` silent streams that stay open until standard input ends.
    Whatever is not done after ``timeout`` seconds is given up and counted as unfinished. With ``dataset`` the requests
    name it in their path, and bring an Invariant key. ``question`` is the JSON body of each, "" for the usual one.
    """

    kind: Kind
    port: int
    connections: int
    total: int
    events: int = 0
    interval_ms: int = 0
    spread_ms: float = 0.0
    timeout: float = 30.0
    dataset: str = ""
    question: str = ""

    @property
    def model(self) -> str:
        """The model name that tells the scripted upstream what to answer."""
        match self.kind:
            case "unary":
                return "bench-unary"
            case "stream":
                return f"bench-{self.events}x{self.interval_ms}"
            case "hold":
                return "bench-silent"

    @property
    def target(self) -> str:
        """The request target that Gemini has for it, below the dataset's path where there is one."""
        method = "generateContent" if self.kind == "unary" else "streamGenerateContent?alt=sse"
        base = f"/api/v1/gateway/{self.dataset}/gemini" if self.dataset else ""
        return f"{base}/v1beta/models/{self.model}:{method}"


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of a duration, in milliseconds."""

    p50: float
    p95: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of a workload.

    ``first`` is the time from a request to its answer, or to the first event of its stream. ``event`` is the time from
    the upstream's write of an event to its arrival, for all events but the last of a stream, whose times are in
    ``last``: a guard withholds the end until it has judged the whole.
    """

    done: int
    errors: int
    unfinished: int
    events: int
    seconds: float
    first: Spread | None
    event: Spread | None
    last: Spread | None

    @property
    def failed(self) -> int:
        """Requests and streams that did not come to their right end."""
        return self.errors + self.unfinished


def spread(nanoseconds: Sequence[int]) -> Spread | None:
    """The percentiles of ``nanoseconds``, nearest rank; None where there are none."""
    if not nanoseconds:
        return None
    ordered = sorted(nanoseconds)

    def rank(share: float) -> float:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] / 1e6

    return Spread(rank(0.5), rank(0.95), rank(0.99), ordered[-1] / 1e6)


def dump(value: Workload | LoadResult) -> str:
    """``value`` as one line of JSON."""
    return json.dumps(asdict(value))


def load_workload(line: str) -> Workload:
    """The workload in ``line``. Raises TypeError for keys that are none."""
    return Workload(**json.loads(line))


def load_result(line: str) -> LoadResult:
    """The result in ``line``. Raises TypeError for keys that are none."""
    values: dict[str, Any] = json.loads(line)
    for name in ("first", "event", "last"):
        values[name] = values[name] and Spread(**values[name])
    return LoadResult(**values)
