"""The pages of one trace: as a conversation, one of its texts, and as JSON."""

import asyncio
from typing import Final

from aiohttp import web

from gemini_proxy.errors import NotFound
from gemini_proxy.explorer.app_keys import CATALOGUE, DATASETS, READ_DATABASE
from gemini_proxy.explorer.pages.annotated_text import SHOWN, text_window
from gemini_proxy.explorer.pages.conversation import MARKS, conversation_page
from gemini_proxy.explorer.pages.site import PageVisit, dataset_path, page
from gemini_proxy.explorer.pages.stored import StoredMessages
from gemini_proxy.explorer.pages.trace_facts import facts
from gemini_proxy.http.browser_guard import BROWSER_HEADERS
from gemini_proxy.http.large_responses import bytes_response
from gemini_proxy.traces.annotation_ranges import AnnotationRanges
from gemini_proxy.traces.catalogue import StoredTrace
from gemini_proxy.traces.datasets import UNNAMED, Dataset
from gemini_proxy.traces.rows import with_messages
from gemini_proxy.traces.search.listing import Listing
from gemini_proxy.traces.trace import trace_json

NO_TRACE: Final = "There is no such trace"
_RAW: Final = {
    **BROWSER_HEADERS,
    "content-type": "application/json",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; sandbox",
}


@page
async def trace(visit: PageVisit) -> web.StreamResponse:
    """Show one trace as a conversation."""
    stored = await _stored(visit)
    shown, dataset = stored.trace, await _dataset(visit, stored)
    neighbours = await Listing(visit.app[READ_DATABASE]).neighbours(dataset, shown.position)
    first = visit.number("from", 0) or 0
    conversation = await asyncio.to_thread(conversation_page, stored.messages, shown.annotations, first)
    return await visit.show(
        "trace.html",
        trace=shown,
        dataset=dataset,
        path=dataset_path(dataset),
        facts=facts(shown),
        conversation=conversation,
        neighbours=neighbours,
    )


@page
async def trace_text(visit: PageVisit) -> web.StreamResponse:
    """Show one text of a trace, a part at a time."""
    stored = await _stored(visit)
    trace, dataset = stored.trace, await _dataset(visit, stored)
    address, start = visit.query("at"), visit.number("from", 0) or 0
    text = await asyncio.to_thread(_text, stored, address)
    if text is None or start > len(text):
        raise NotFound("The trace has no text at this address")
    marks = AnnotationRanges(trace.annotations[:MARKS]).on(address)
    return await visit.show(
        "text.html",
        trace=trace,
        dataset=dataset,
        address=address,
        start=start,
        end=min(len(text), start + SHOWN),
        step=SHOWN,
        shown=await asyncio.to_thread(text_window, text, address, marks, start),
    )


@page
async def trace_raw(visit: PageVisit) -> web.StreamResponse:
    """Show one trace as JSON."""
    found = await _stored(visit)
    shown = trace_json(found.trace)
    del shown["messages"]
    return bytes_response(await asyncio.to_thread(with_messages, shown, found.messages), _RAW)


async def _stored(visit: PageVisit) -> StoredTrace:
    """Return the trace. Raise NotFound for another user's trace as for none."""
    stored = await visit.app[CATALOGUE].stored(visit.user, visit.id("id"))
    if stored is None:
        raise NotFound(NO_TRACE)
    return stored


async def _dataset(visit: PageVisit, stored: StoredTrace) -> Dataset:
    dataset = await visit.app[DATASETS].get(visit.user, stored.trace.dataset or UNNAMED)
    if dataset is None:
        raise NotFound(NO_TRACE)
    return dataset


def _text(stored: StoredTrace, address: str) -> str | None:
    return StoredMessages(stored.messages).text_at(address)
