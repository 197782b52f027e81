"""Draw plots over time as shapes on a canvas, for an SVG that a template writes. No I/O."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from gemini_proxy.explorer.pages.costs import money

WIDTH: Final = 560
HEIGHT: Final = 190
# On a phone letters are a third larger on the canvas: "0.06 ms" must fit beside it.
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 8, 10, 24
_LABEL: Final = 58
"""Canvas units for one label of the time axis."""
_CLOCK_STEPS: Final = (300, 600, 900, 1_800, 3_600, 7_200, 10_800, 14_400, 21_600, 43_200)
_DAY_STEPS: Final = (1, 2, 4, 7, 14, 28)
_STEPS: Final = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10, 20)
_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Series:
    """Values over time under one name, None where there is no value. ``style`` is a class of the style sheet."""

    name: str
    style: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Label:
    """A word at an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    style: str


@dataclass(frozen=True, slots=True)
class Span:
    """The part of the canvas that belongs to one bucket, its title, and from when to when it is in Unix seconds."""

    x: float
    width: float
    title: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Curve:
    """A line: an SVG path, and the values that stand alone."""

    path: str
    dots: tuple[tuple[float, float], ...]
    style: str


@dataclass(frozen=True, slots=True)
class PlotRow:
    """One line of the table with the same data, from ``start`` to ``end`` in Unix seconds."""

    time: str
    values: tuple[str, ...]
    start: int
    end: int

    @property
    def empty(self) -> bool:
        return all(value in ("", "0") for value in self.values)


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot; ``empty`` says that there is nothing to draw. ``filters`` are of the list of what it counts."""

    id: str
    title: str
    series: tuple[Series, ...]
    bars: tuple[Bar, ...]
    lines: tuple[Curve, ...]
    spans: tuple[Span, ...]
    y_labels: tuple[Label, ...]
    x_labels: tuple[Label, ...]
    rows: tuple[PlotRow, ...]
    empty: bool
    filters: Mapping[str, str] = field(default_factory=dict)

    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    base: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def stacked(
    identity: str,
    title: str,
    starts: Sequence[int],
    seconds: int,
    series: Sequence[Series],
    filters: Mapping[str, str] | None = None,
    unit: Literal["", "$"] = "",
) -> Plot:
    """Draw counts, or dollars, as stacked bars. ``filters`` select the counted traces in a list."""
    totals = [sum(layer.values[index] or 0 for layer in series) for index in range(len(starts))]
    ceiling = _ceiling(max(totals, default=0), whole=not unit)
    bars: list[Bar] = []
    for index in range(len(starts)):
        x, width = _slot(index, len(starts))
        y: float = HEIGHT - _BOTTOM
        for layer in series:
            height = (layer.values[index] or 0) / ceiling * _plot_height()
            if height:
                y -= height
                bars.append(Bar(_round(x + width * 0.1), _round(y), _round(width * 0.8), _round(height), layer.style))
    plot = _plot(identity, title, starts, seconds, series, ceiling, unit, bars=tuple(bars), empty=not any(totals))
    return replace(plot, filters=filters or {})


def lines(identity: str, title: str, starts: Sequence[int], seconds: int, series: Sequence[Series]) -> Plot:
    """Draw durations in milliseconds as lines."""
    values = [value for curve in series for value in curve.values if value is not None]
    ceiling = _ceiling(max(values, default=0), whole=False)
    drawn = tuple(_line(curve, len(starts), ceiling) for curve in series)
    return _plot(identity, title, starts, seconds, series, ceiling, "ms", drawn=drawn, empty=not values)


def _plot(
    identity: str,
    title: str,
    starts: Sequence[int],
    seconds: int,
    series: Sequence[Series],
    ceiling: float,
    unit: str,
    *,
    bars: tuple[Bar, ...] = (),
    drawn: tuple[Curve, ...] = (),
    empty: bool,
) -> Plot:
    rows = tuple(
        PlotRow(
            _moment(start, "%Y-%m-%d %H:%M"),
            tuple(_said(column.values[index], unit) for column in series),
            start,
            start + seconds,
        )
        for index, start in enumerate(starts)
    )
    spans = tuple(_span(index, len(starts), row, series) for index, row in enumerate(rows))
    y_labels = tuple(
        Label(_round(_y(share * ceiling, ceiling)), _scale(share * ceiling, ceiling, unit)) for share in (0, 0.5, 1)
    )
    return Plot(identity, title, tuple(series), bars, drawn, spans, y_labels, _x_labels(starts, seconds), rows, empty)


def _line(series: Series, count: int, ceiling: float) -> Curve:
    path: list[str] = []
    dots: list[tuple[float, float]] = []
    values = series.values
    for index, value in enumerate(values):
        if value is None:
            continue
        x, width = _slot(index, count)
        at = (_round(x + width / 2), _round(_y(value, ceiling)))
        begins = index == 0 or values[index - 1] is None
        path.append(f"{'M' if begins else 'L'}{at[0]} {at[1]}")
        if begins and (index + 1 == count or values[index + 1] is None):
            dots.append(at)
    return Curve(" ".join(path), tuple(dots), series.style)


def _x_labels(starts: Sequence[int], seconds: int) -> tuple[Label, ...]:
    """Return labels at round times of this machine's clock; over days at its midnights, at regular distances."""
    if not starts:
        return ()
    since, until = starts[0], starts[-1] + seconds
    scale = (WIDTH - _LEFT - _RIGHT) / (until - since)
    if seconds >= _DAY:
        # One bar is a day or more in UTC: its date is that of its noon, in any time zone of this machine.
        form, every = "%a %d" if until - since <= 8 * _DAY else "%d %b", math.ceil(_LABEL / (seconds * scale))
        moments: Iterable[int] = (start + _DAY // 2 for start in starts[::every])
    elif until - since <= 2 * _DAY:
        step = next((step for step in _CLOCK_STEPS if step * scale >= _LABEL), _CLOCK_STEPS[-1])
        form, moments = "%H:%M", _clock_times(since, until, step)
    else:
        days = next((days for days in _DAY_STEPS if days * _DAY * scale >= _LABEL), _DAY_STEPS[-1])
        form, moments = "%a %d" if until - since <= 8 * _DAY else "%d %b", _midnights(since, until, days)
    places = ((_LEFT + (moment - since) * scale, _moment(moment, form)) for moment in moments)
    return tuple(Label(_round(x), text) for x, text in places if x <= WIDTH - _RIGHT - _LABEL / 3)


def _clock_times(since: int, until: int, step: int) -> Iterator[int]:
    offset = round((datetime.fromtimestamp(since).astimezone().utcoffset() or timedelta()).total_seconds())
    yield from range(since + -(since + offset) % step, until, step)


def _midnights(since: int, until: int, days: int) -> Iterator[int]:
    """Yield every ``days``-th midnight: days have 23 to 25 hours."""
    begun = datetime.fromtimestamp(since)
    day = begun.replace(hour=0, minute=0, second=0, microsecond=0)
    if day < begun:
        day += timedelta(days=1)
    while day.timestamp() < until:
        yield round(day.timestamp())
        day += timedelta(days=days)


def _title(row: PlotRow, series: Sequence[Series]) -> str:
    values = [
        f"{column.name} {value}" for column, value in zip(series, row.values, strict=True) if value not in ("0", "")
    ]
    return f"{row.time}: {', '.join(values) or 'nothing'}"


def _ceiling(most: float, *, whole: bool) -> float:
    """Return a round number that is not below ``most``; ``whole`` says that its half must be a whole number."""
    if most <= 0:
        return 2
    size = 10.0 ** math.floor(math.log10(most))
    steps = [step * size for step in _STEPS if step * size >= most]
    return next((step for step in steps if not whole or step % 2 == 0), steps[-1])


def _slot(index: int, count: int) -> tuple[float, float]:
    width = (WIDTH - _LEFT - _RIGHT) / max(1, count)
    return _LEFT + index * width, width


def _span(index: int, count: int, row: PlotRow, series: Sequence[Series]) -> Span:
    x, width = _slot(index, count)
    return Span(_round(x), _round(width), _title(row, series), row.start, row.end)


def _plot_height() -> float:
    return HEIGHT - _TOP - _BOTTOM


def _y(value: float, ceiling: float) -> float:
    return HEIGHT - _BOTTOM - value / ceiling * _plot_height()


def _scale(value: float, ceiling: float, unit: str) -> str:
    """Write a value at the axis, in the unit that fits the largest one."""
    if unit == "ms" and value:
        return f"{value / 1000:g} s" if ceiling >= 1000 else f"{value:g} ms"
    if unit == "$":
        return f"${value:g}" if value else "0"
    factor, letter = (1_000_000, "M") if ceiling >= 1_000_000 else (1_000, "k") if ceiling >= 10_000 else (1, "")
    return f"{value / factor:g}{letter}" if value else "0"


def _said(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "$":
        return money(value)
    return f"{value:,.1f} ms" if unit == "ms" else f"{value:,.0f}"


def _moment(at: int, form: str) -> str:
    return datetime.fromtimestamp(at).strftime(form)


def _round(value: float) -> float:
    return round(value, 2)
