"""Serve the lists of traces, of all the user's traffic or one dataset: filter, count and export them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.request_bodies import is_dataset_name
from gemini_proxy.explorer.app_keys import DATASETS, READ_DATABASE, TRACES
from gemini_proxy.explorer.pages.site import PageVisit, dataset_path, page
from gemini_proxy.http.browser_guard import BROWSER_HEADERS
from gemini_proxy.traces.datasets import UNNAMED, Dataset
from gemini_proxy.traces.export import FORMATS, Exporter
from gemini_proxy.traces.search.listing import Listing, TraceCount, TraceQuery
from gemini_proxy.traces.trace import Outcome, outcomes_named

PAGE: Final = 50
TRAFFIC: Final = "/explorer/traffic"
NO_DATASET: Final = "-"
"""The name in the query for exchanges without a dataset."""
MAX_EXPORTED: Final = 10_000
"""Traces that one export from a page holds, the newest; the command line exports any number."""
_MERGED: Final = 200
"""Datasets that one list looks through, those with the newest traces."""
_AT_ONCE: Final = 10
"""Traces of an export that are in memory at once: one may hold megabytes."""
_LONGEST: Final = 500
"""Characters of a filter."""
_FILTERS: Final = "text outcome status rule tool key model conversation since until dataset".split()
_PLAIN: Final = frozenset({"text", "outcome", "rule", "model"})
"""Filters that a list shows at once; the others are folded."""
_INDEXED: Final = frozenset({"text", "status", "tool", "key", "conversation"})
"""Filters by what the indexer has come to, a few seconds after an exchange."""
_FILLED_LATER: Final = frozenset({"status", "tool", "key", "conversation"})
"""Filters that older versions did not index; indexing their traces again takes a while."""
_COUNTED: Final = ("completed", "refused", "errors", "unchecked", "client_gone", "pushed")
"""Outcomes, and groups of them, whose numbers a list shows."""

Filters = dict[str, str]


@page
async def traffic(visit: PageVisit) -> web.StreamResponse:
    """List all traces of the user, newest first, filtered by the query."""
    return await _list(visit, None, await _datasets(visit), TRAFFIC)


@page
async def traces(visit: PageVisit) -> web.StreamResponse:
    """List the traces of a dataset, newest first, filtered by the query."""
    dataset = await visit.dataset()
    return await _list(visit, dataset, [dataset], dataset_path(dataset))


@page
async def export_traffic(visit: PageVisit) -> web.StreamResponse:
    """Send the newest traces of the user that fit the query as a file."""
    return await _export(visit, await _datasets(visit))


@page
async def export_traces(visit: PageVisit) -> web.StreamResponse:
    """Send the newest traces of a dataset that fit the query as a file."""
    return await _export(visit, [await visit.dataset()])


async def _list(
    visit: PageVisit, dataset: Dataset | None, datasets: Sequence[Dataset], path: str
) -> web.StreamResponse:
    filters = _filters(visit)
    query, before = read_query(filters), visit.number("before")
    listing = Listing(visit.app[READ_DATABASE])
    names = ["", *_COUNTED]
    queries = [replace(query, outcome=outcomes_named(name) if name else None) for name in names]
    listed, choices, counts = await asyncio.gather(
        listing.over(datasets, query, PAGE, before), listing.choices(datasets), listing.counts(datasets, queries)
    )
    passes_over = bool(filters.keys() & _FILLED_LATER)
    older = f"{path}?{urlencode({**filters, 'before': listed.older})}" if listed.older is not None else None
    return await visit.show(
        "traces.html",
        dataset=dataset,
        path=path,
        listed=listed,
        traces=listed.traces,
        filters=filters,
        more_filters=bool(filters.keys() - _PLAIN),
        filled_since=await listing.filled_since(visit.user) if passes_over else None,
        follows=bool(filters.keys() & _INDEXED),
        outcomes=[outcome.value for outcome in Outcome],
        counts=_shown_counts(path, filters, dict(zip(names, counts, strict=True))),
        choices=choices,
        datasets=[] if dataset is not None else await visit.dataset_names(),
        no_dataset=NO_DATASET,
        older=older,
        newest=f"{path}?{urlencode(filters)}" if before is not None else None,
        exports=[(name, f"{path}/export?{urlencode({**filters, 'format': name})}") for name in FORMATS],
        most=MAX_EXPORTED,
    )


def _shown_counts(path: str, filters: Filters, counts: Mapping[str, TraceCount]) -> list[tuple[str, str, TraceCount]]:
    """Return name, path of the list and count of each group of outcomes that has traces or is asked for."""
    rest = {name: value for name, value in filters.items() if name != "outcome"}
    asked = filters.get("outcome", "")
    return [
        (name, f"{path}?{urlencode({**rest, **({'outcome': name} if name else {})})}", count)
        for name, count in counts.items()
        if not name or name == asked or count.number or not count.exact
    ]


async def _export(visit: PageVisit, datasets: Sequence[Dataset]) -> web.StreamResponse:
    exporter = FORMATS.get(visit.query("format") or "jsonl")
    if exporter is None:
        raise BadRequest(f"format must be one of {', '.join(FORMATS)}")
    query = read_query(_filters(visit))
    name = f"traces-{datetime.now().astimezone():%Y-%m-%d-%H%M}.{exporter.extension}"
    response = web.StreamResponse(
        headers={
            **BROWSER_HEADERS,
            "content-type": exporter.content_type,
            "content-disposition": f'attachment; filename="{name}"',
            "cache-control": "no-store",
        }
    )
    # Before the first byte: failed reads still become an error page.
    first = await _numbers(visit, datasets, query)
    await response.prepare(visit.request)
    await response.write(exporter.head)
    for start in range(0, len(first), _AT_ONCE):
        await response.write(await _written(visit, exporter, first[start : start + _AT_ONCE]))
    await response.write_eof()
    return response


async def _numbers(visit: PageVisit, datasets: Sequence[Dataset], query: TraceQuery) -> list[int]:
    listing = Listing(visit.app[READ_DATABASE])
    return [summary.seq async for summary in listing.each(datasets, query, MAX_EXPORTED)]


async def _written(visit: PageVisit, exporter: Exporter, numbers: Sequence[int]) -> bytes:
    found = await visit.app[TRACES].numbered(numbers)
    return await asyncio.to_thread(lambda: b"".join(exporter.line(trace) for trace in found))


async def _datasets(visit: PageVisit) -> list[Dataset]:
    """Return the datasets that the query names, or all. Raise NotFound."""
    found = await visit.app[DATASETS].all(visit.user)
    name = visit.query("dataset")
    if not name:
        return found[:_MERGED]
    wanted = UNNAMED if name == NO_DATASET else name
    chosen = [dataset for dataset in found if dataset.name == wanted]
    if not chosen or not (wanted == UNNAMED or is_dataset_name(wanted)):
        raise NotFound("You have no such dataset")
    return chosen


def _filters(visit: PageVisit) -> Filters:
    given = {name: visit.query(name)[:_LONGEST] for name in _FILTERS}
    return {name: value for name, value in given.items() if value}


def read_query(filters: Filters) -> TraceQuery:
    """Read the filters of a list. Raise BadRequest for an unknown outcome, a malformed time or status."""
    outcome, status = filters.get("outcome"), filters.get("status")
    try:
        outcomes = outcomes_named(outcome) if outcome else None
    except ValueError:
        raise BadRequest("There is no such outcome") from None
    if status is not None and not (status.isascii() and status.isdigit() and len(status) == len("200")):
        raise BadRequest("A status must be a number such as 429")
    return TraceQuery(
        outcomes,
        filters.get("model"),
        filters.get("rule"),
        _time(filters.get("since")),
        _time(filters.get("until")),
        filters.get("text"),
        int(status) if status else None,
        filters.get("tool"),
        filters.get("key"),
        filters.get("conversation"),
    )


def _time(text: str | None) -> float | None:
    """Read a time as a browser's form writes it, in this machine's zone unless it names one."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise BadRequest("A time must be written as 2026-01-31T18:30") from None
