"""The figures of a run as one table, which is plain text and Markdown at once, and as JSON."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.peers import Peer
from bench.scenarios import Figure, Scenario, Values


@dataclass(frozen=True, slots=True)
class Measured:
    """The values of a scenario: for each peer, those of every repeat in order."""

    scenario: Scenario
    runs: Mapping[Peer, list[Values]] = field(default_factory=lambda: {peer: [] for peer in Peer})

    def values(self, figure: Figure, peer: Peer) -> list[float]:
        """``figure`` in every repeat; empty where the scenario does not measure ``peer``."""
        if figure.proxies and peer is Peer.DIRECT:
            return []
        own = [run[figure.key] for run in self.runs[peer] if figure.key in run]
        if not own or figure.added in (None, peer):
            return own
        base = [run[figure.key] for run in self.runs[figure.added]]
        return [value - least for value, least in zip(own, base, strict=True)]

    def ratio(self, figure: Figure) -> float | None:
        """Median of gemini-proxy over median of the pass-through, where the figure asks for it."""
        return self.compared(figure, Peer.PROXY, Peer.PASS_THROUGH) if figure.ratio else None

    def compared(self, figure: Figure, peer: Peer, other: Peer) -> float | None:
        """Median of ``peer`` over median of ``other``; None where one was not measured or is nothing."""
        own, base = self.values(figure, peer), self.values(figure, other)
        if not own or not base or statistics.median(base) <= 0:
            return None
        return statistics.median(own) / statistics.median(base)

    def reached(self, figure: Figure) -> bool | None:
        """Whether gemini-proxy is within the figure's goal; None where there is none or nothing to compare with."""
        if figure.most is None:
            return None
        value = self.ratio(figure) if figure.ratio else statistics.median(self.values(figure, Peer.PROXY))
        return None if value is None else value <= figure.most

    @property
    def failures(self) -> float:
        """Requests and streams that did not come to their right end, over all peers and repeats."""
        return sum(run["failed"] for runs in self.runs.values() for run in runs)


def table(measured: Sequence[Measured]) -> str:
    """Medians, with the smallest and largest of several repeats in parentheses.

    The ratio is gemini-proxy's to the pass-through. Where both were measured there is one of ``watched`` to ``before``.
    """
    peers = [peer for peer in Peer if any(one.runs[peer] for one in measured)]
    compared = {Peer.WATCHED, Peer.BEFORE} <= set(peers)
    headings = ("", *peers, "ratio", "goal", *(["watched/before"] if compared else []))
    rows: list[tuple[str, ...]] = [headings]
    for one in measured:
        rows.append((f"**{one.scenario.title}**", *[""] * (len(headings) - 1)))
        rows.extend(_row(one, figure, peers, compared) for figure in one.scenario.figures)
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    lines = [_line(row, widths) for row in rows]
    rule = [f"{'-' * (width + 1)}:" for width in widths[1:]]
    lines.insert(1, f"|{'-' * (widths[0] + 2)}|{'|'.join(rule)}|")
    return "\n".join(lines)


def as_json(measured: Sequence[Measured]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Every value measured: scenario, figure, peer, repeats."""
    return {
        one.scenario.name: {
            figure.key: {peer.value: one.values(figure, peer) for peer in one.scenario.peers}
            for figure in one.scenario.figures
        }
        for one in measured
    }


def _row(one: Measured, figure: Figure, peers: Sequence[Peer], compared: bool) -> tuple[str, ...]:
    title = f"{figure.title}, {figure.unit}" if figure.unit else figure.title
    return (
        title,
        *(_cell(figure, one.values(figure, peer), signed=figure.added not in (None, peer)) for peer in peers),
        _ratio(one.ratio(figure)),
        _goal(one, figure),
        *([_ratio(one.compared(figure, Peer.WATCHED, Peer.BEFORE))] if compared else []),
    )


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _cell(figure: Figure, values: Sequence[float], *, signed: bool) -> str:
    if not values:
        return ""
    form = f"{'+' if signed else ''}.{figure.digits}f"
    median = format(statistics.median(values), form)
    if min(values) == max(values):
        return median
    return f"{median} ({min(values):{form}}..{max(values):{form}})"


def _goal(one: Measured, figure: Figure) -> str:
    reached = one.reached(figure)
    if reached is None:
        return ""
    verdict = "met" if reached else "missed"
    return f"{figure.most:g} at most: {verdict}" if figure.most else f"none: {verdict}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = row
    return f"| {first:<{widths[0]}} | {' | '.join(_padded(rest, widths[1:]))} |"


def _padded(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    return (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
