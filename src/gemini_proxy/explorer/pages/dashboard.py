"""Serve the dashboard, with figures over an hour, a day, a week or a month, and the page of the live view."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from gemini_proxy.errors import NotFound
from gemini_proxy.explorer.api.request_bodies import is_dataset_name
from gemini_proxy.explorer.app_keys import DATASETS, PRICES, READ_DATABASE
from gemini_proxy.explorer.pages.costs import costs_of, prices_of
from gemini_proxy.explorer.pages.listing_pages import NO_DATASET, TRAFFIC
from gemini_proxy.explorer.pages.plots import Plot, Series, lines, stacked
from gemini_proxy.explorer.pages.site import PageVisit, dataset_path, page
from gemini_proxy.sections import Price
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.figures import Bucket, Counts, DurationHistogram, Figures, resampled, total
from gemini_proxy.traces.trace import REFUSED, Outcome
from gemini_proxy.traces.usage import DatasetUsage, OwnerUsage

RANGES: Final = {
    "1h": ("1 hour", 3_600),
    "24h": ("24 hours", 86_400),
    "7d": ("7 days", 604_800),
    "30d": ("30 days", 2_592_000),
}
_POINTS: Final = 62
_SHOWN: Final = 12
"""Names in a table; the others share a row."""
_COLOURS: Final = 6
"""Names with a color of their own in a plot; the others share one."""
_DAY: Final = 86_400
REFRESHED: Final = {"": "off", "30": "every 30 s", "300": "every 5 min"}
"""Seconds between two refreshes in the browser."""


@dataclass(frozen=True, slots=True)
class BreakdownRow:
    """The counts under one name; ``filters`` select its traces in the list, empty if no list has them."""

    name: str
    filters: Mapping[str, str]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A table of the most frequent names, in columns of counts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[BreakdownRow, ...]


@page
async def live(visit: PageVisit) -> web.StreamResponse:
    """Show the page of the live view, which its script fills."""
    return await visit.show("live.html", datasets=await visit.dataset_names())


@page
async def dashboard(visit: PageVisit) -> web.StreamResponse:
    """Show the figures of one dataset or of all, over a range of time."""
    chosen = visit.query("range") if visit.query("range") in RANGES else "24h"
    _, seconds = RANGES[chosen]
    now = time.time()
    name = visit.query("dataset")
    usage = DatasetUsage(visit.app[READ_DATABASE])
    if name:
        found = OwnerUsage(await usage.of_dataset(await _dataset(visit, name), now - seconds, now, _POINTS), {})
    else:
        found = await usage.by_dataset(visit.user, now - seconds, now, _POINTS)
    refresh = visit.query("refresh") if visit.query("refresh") in REFRESHED else ""
    response = await visit.show(
        "dashboard.html",
        chosen=chosen,
        refresh=refresh,
        refreshed=REFRESHED,
        asked_at=now,
        traffic=partial(_traffic, name),
        ranges={key: words for key, (words, _) in RANGES.items()},
        datasets=await visit.dataset_names(),
        unnamed=NO_DATASET,
        dataset=name,
        path=dataset_path("" if name == NO_DATASET else name),
        since=found.buckets[0].start,
        # Sums over many names: not in the event loop.
        **await asyncio.to_thread(plots_and_tables, found, visit.app[PRICES]()),
    )
    if refresh:
        response.headers["refresh"] = refresh
    return response


def breakdowns(
    figures: Figures, datasets: Mapping[str, Figures], prices: Mapping[str, Price] | None = None
) -> list[Breakdown]:
    """Return the tables below the plots. ``datasets`` is empty if the dashboard is that of one dataset."""
    cost = [costs_of(figures, prices).models] if prices else []
    models = _rows("model", figures.models, [figures.models, figures.prompts, figures.outputs, figures.cached, *cost])
    found = [figures.refusals, figures.asked, figures.masked, figures.logged]
    requests = {name: one.requests for name, one in datasets.items()}
    refused = {name: one.refused for name, one in datasets.items()}
    # In the query the unnamed dataset has a name; "" means the others in a table.
    named = [{name or NO_DATASET: count for name, count in counts.items()} for counts in (requests, refused)]
    tables = [
        Breakdown("Models", ("requests", "tokens in", "tokens out", "cached", *(["cost"] * len(cost))), models),
        Breakdown("Guardrails", ("refused", "asked", "masked", "logged"), _rows("rule", _sum(found), found)),
        Breakdown("Upstream status", ("responses",), _rows("status", figures.statuses, [figures.statuses])),
        Breakdown("Tools called", ("exchanges",), _rows("tool", figures.tools, [figures.tools])),
        Breakdown("Datasets", ("requests", "refused"), _rows("dataset", named[0], named)),
    ]
    return [table for table in tables if table.rows]


def _rows(filtered: str, order: Counts, columns: Sequence[Mapping[str, float]]) -> tuple[BreakdownRow, ...]:
    """Return a row for each of the most frequent names, and one for all others."""
    named = sorted((name for name in order if name), key=lambda name: (-order[name], name))
    shown, others = named[:_SHOWN], [*named[_SHOWN:], ""]
    rows = [BreakdownRow(name, {filtered: name}, tuple(column.get(name, 0) for column in columns)) for name in shown]
    rest = tuple(sum(column.get(name, 0) for name in others) for column in columns)
    return (*rows, BreakdownRow("others", {}, rest)) if any(rest) else tuple(rows)


def _sum(counts: Sequence[Counts]) -> Counts:
    return {name: sum(one.get(name, 0) for one in counts) for name in {name for one in counts for name in one}}


def _traffic(dataset: str, start: float, end: float, filters: Mapping[str, str]) -> str:
    """Return the path of the list of traces between two times that fit the filters."""
    times = {name: datetime.fromtimestamp(at).isoformat(timespec="minutes") for name, at in _times(start, end).items()}
    return f"{TRAFFIC}?{urlencode({**({'dataset': dataset} if dataset else {}), **filters, **times})}"


def _times(start: float, end: float) -> Mapping[str, float]:
    # To the minute, as in the list's form, and with the whole last minute.
    return {"since": start, "until": -(-end // 60) * 60}


def plots_and_tables(usage: OwnerUsage, listed: Mapping[str, Price]) -> dict[str, Any]:
    """Return the values of the page's template that come from the figures, by their names in it."""
    summed = total(bucket.figures for bucket in usage.buckets)
    prices = prices_of({*summed.prompts, *summed.outputs}, listed)
    return {
        "total": summed,
        "costs": costs_of(summed, prices) if listed else None,
        "plots": [*plots(usage.buckets), *([_cost_plot(usage.buckets, prices)] if prices else [])],
        "breakdowns": breakdowns(summed, usage.datasets, prices),
    }


def _cost_plot(buckets: Sequence[Bucket], prices: Mapping[str, Price]) -> Plot:
    """Draw the cost of models; over more than two days, by days in UTC."""
    since, until = buckets[0].start, buckets[-1].start + buckets[-1].seconds
    daily = until - since > 2 * _DAY
    shown = resampled(buckets, since, until, _DAY) if daily else buckets
    costs = [costs_of(bucket.figures, prices).models for bucket in shown]
    names = sorted(prices, key=lambda name: (-sum(cost.get(name, 0) for cost in costs), name))
    series = [
        Series(name, f"plot-{index}", [cost.get(name, 0) for cost in costs])
        for index, name in enumerate(names[:_COLOURS], start=1)
    ]
    if others := names[_COLOURS:]:
        rest = [sum(cost.get(name, 0) for name in others) for cost in costs]
        series.append(Series("other models", "plot-other", rest))
    title = "Cost by day (UTC)" if daily else "Cost"
    return stacked("cost", title, [bucket.start for bucket in shown], shown[0].seconds, series, unit="$")


def plots(buckets: Sequence[Bucket]) -> list[Plot]:
    """Return the plots of the dashboard."""
    starts, seconds = [bucket.start for bucket in buckets], buckets[0].seconds if buckets else 1
    figures = [bucket.figures for bucket in buckets]
    return [
        stacked("requests", "Requests", starts, seconds, _outcomes(figures)),
        stacked("refusals", "Refusals by guardrail", starts, seconds, _refusals(figures), {"outcome": "refused"}),
        stacked("findings", "Logged, masked, asked", starts, seconds, _findings(figures)),
        lines("guard", "Checks beside the upstream", starts, seconds, _compared(figures)),
        lines("latency", "Latency", starts, seconds, _quantiles([figure.durations for figure in figures])),
        lines(
            "first",
            "Time to first event",
            starts,
            seconds,
            _quantiles([figure.first_bytes for figure in figures]),
        ),
    ]


def _outcomes(figures: Sequence[Figures]) -> list[Series]:
    def count(bucket: Figures, *outcomes: str) -> int:
        return sum(bucket.outcomes.get(outcome, 0) for outcome in outcomes)

    completed = [count(bucket, Outcome.COMPLETED, Outcome.PUSHED) for bucket in figures]
    refused = [count(bucket, *REFUSED) for bucket in figures]
    others = [
        bucket.requests - passed - stopped for bucket, passed, stopped in zip(figures, completed, refused, strict=True)
    ]
    return [
        Series("completed", "plot-ok", completed),
        Series("refused", "plot-block", refused),
        Series("other", "plot-other", others),
    ]


def _refusals(figures: Sequence[Figures]) -> list[Series]:
    counts = total(figures).refusals
    named = sorted((rule for rule in counts if rule), key=lambda rule: (-counts[rule], rule))
    shown, rest = named[:_COLOURS], {*named[_COLOURS:], ""}
    series = [
        Series(rule, f"plot-{index}", [bucket.refusals.get(rule, 0) for bucket in figures])
        for index, rule in enumerate(shown, start=1)
    ]
    others = [sum(bucket.refusals.get(rule, 0) for rule in rest) for bucket in figures]
    return [*series, Series("other guardrails", "plot-other", others)] if any(others) else series


def _findings(figures: Sequence[Figures]) -> list[Series]:
    return [
        Series("logged", "plot-other", [sum(figure.logged.values()) for figure in figures]),
        Series("masked", "plot-1", [sum(figure.masked.values()) for figure in figures]),
        Series("asked", "plot-2", [sum(figure.asked.values()) for figure in figures]),
    ]


def _compared(figures: Sequence[Figures]) -> list[Series]:
    """Return the times of an exchange's checks beside those until its upstream began to respond."""
    checks, heads = _quantiles([bucket.checks for bucket in figures]), _quantiles([bucket.heads for bucket in figures])
    return [
        *(replace(one, name=f"checks, {one.name}") for one in checks),
        *(replace(one, name=f"upstream, {one.name}", style=f"plot-{number}") for number, one in enumerate(heads, 3)),
    ]


def _quantiles(histograms: Sequence[DurationHistogram]) -> list[Series]:
    return [
        Series("median", "plot-1", [histogram.quantile(0.5) for histogram in histograms]),
        Series("95 %", "plot-2", [histogram.quantile(0.95) for histogram in histograms]),
    ]


async def _dataset(visit: PageVisit, name: str) -> Dataset:
    dataset = None
    if name == NO_DATASET or is_dataset_name(name):
        dataset = await visit.app[DATASETS].get(visit.user, "" if name == NO_DATASET else name)
    if dataset is None:
        raise NotFound("You have no such dataset")
    return dataset
