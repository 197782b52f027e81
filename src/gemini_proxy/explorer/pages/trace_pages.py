"""The pages of one trace: as a conversation, one of its texts, and as JSON."""

import asyncio
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.trace_api import reveal
from gemini_proxy.explorer.app_keys import CATALOGUE, DATASETS, MASKED_VALUES, READ_DATABASE, SHADOWS
from gemini_proxy.explorer.pages.annotated_text import SHOWN, text_window
from gemini_proxy.explorer.pages.conversation import MARKS, conversation_page
from gemini_proxy.explorer.pages.markdown_text import MarkdownTexts
from gemini_proxy.explorer.pages.site import PageVisit, dataset_path, page, see
from gemini_proxy.explorer.pages.stored_messages import StoredMessages
from gemini_proxy.explorer.pages.trace_copies import MAX_COPIED, curl_command, policy_case
from gemini_proxy.explorer.pages.trace_facts import facts
from gemini_proxy.guardrails.masking import is_placeholder, placeholders_of_trace
from gemini_proxy.http.browser_guard import BROWSER_HEADERS
from gemini_proxy.http.large_responses import bytes_response
from gemini_proxy.traces.annotation_ranges import AnnotationRanges
from gemini_proxy.traces.catalogue import StoredTrace
from gemini_proxy.traces.datasets import UNNAMED, Dataset
from gemini_proxy.traces.masked_values import Revealed
from gemini_proxy.traces.rows import load, with_messages
from gemini_proxy.traces.search.listing import Listing
from gemini_proxy.traces.trace import Annotation, trace_json

PERSON: Final = "person:"
"""The prefix of a note's source, before the name of the user who wrote it."""
LABEL: Final = "label"
MASKED_SHOWN: Final = 100
"""Placeholders of a trace that are listed."""
MAX_NOTE: Final = 2_000
"""Characters of a note."""
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
    return await _show(visit, await stored_trace(visit))


@page
async def reveal_value(visit: PageVisit) -> web.StreamResponse:
    """Show one trace with the value behind one of its placeholders, to a key with the role operator.

    Only the response to the form shows it: it has no address, so no browser fetches it by itself.
    """
    stored, placeholder = await stored_trace(visit), (await visit.form()).get("placeholder", "")
    if not is_placeholder(placeholder):
        raise BadRequest("A placeholder is one such as <EMAIL_ADDRESS_7f3a9c0b12>")
    return await _show(visit, stored, await reveal(visit.app, stored.trace, placeholder, visit.identity))


async def _show(visit: PageVisit, stored: StoredTrace, revealed: Revealed | None = None) -> web.Response:
    shown, dataset = stored.trace, await dataset_of(visit, stored)
    neighbours = await Listing(visit.app[READ_DATABASE]).neighbours(dataset, shown.position)
    first = visit.number("from", 0) or 0
    said = [one for one in shown.annotations if not one.source.startswith(PERSON)]
    conversation = await asyncio.to_thread(conversation_page, stored.messages, said, first)
    operates = visit.identity.role == "operator"
    return await visit.show(
        "trace.html",
        trace=shown,
        dataset=dataset,
        path=dataset_path(dataset),
        facts=facts(shown),
        conversation=conversation,
        markdown=None if visit.query("view") == "checked" else MarkdownTexts(),
        neighbours=neighbours,
        shadowed=await visit.app[SHADOWS].of_trace(dataset, shown.id) if operates else (),
        remarks=[note for note in stored.annotations if note.annotation.source.startswith(PERSON)],
        person=PERSON,
        longest_note=MAX_NOTE,
        copied=len(stored.messages) <= MAX_COPIED,
        masked=await _masked(visit, stored),
        revealed=revealed,
    )


async def _masked(visit: PageVisit, stored: StoredTrace) -> list[tuple[str, bool]]:
    """Return a trace's placeholders for a visitor who may see their values, each with whether its value is kept."""
    if visit.identity.role != "operator":
        return []
    found = (await asyncio.to_thread(placeholders_of_trace, stored.messages))[:MASKED_SHOWN]
    values = visit.app[MASKED_VALUES]()
    kept = await values.kept(stored.trace, found) if values is not None and found else frozenset[str]()
    return [(placeholder, placeholder in kept) for placeholder in found]


@page
async def copy(visit: PageVisit) -> web.StreamResponse:
    """Show a trace as a case for ``policy test``, or its request as a command."""
    stored = await stored_trace(visit)
    kind = visit.query("as")
    if kind not in ("case", "curl"):
        raise BadRequest("The parameter as must be case or curl")
    if len(stored.messages) > MAX_COPIED:
        raise NotFound("The trace is too long for this page; its JSON is complete")
    messages = [one for one in load(stored.messages) if isinstance(one, Mapping)]
    if kind == "case":
        text: str | None = await asyncio.to_thread(policy_case, stored.trace, messages)
        title, about = (
            "Policy case",
            (
                "Save this beside a policy as NAME.cases.yaml and run gemini-proxy policy test: it expects the "
                "violations found here. Change fires to expect others."
            ),
        )
    else:
        text = await asyncio.to_thread(curl_command, _base_url(visit), stored.trace, messages)
        title, about = (
            "Request for the command line",
            (
                "Made from the trace, without a key: set GEMINI_API_KEY. Masked values appear as placeholders, and "
                "thought signatures are not kept."
            ),
        )
    if text is None:
        raise NotFound("Only calls of generateContent and streamGenerateContent can be written as a command")
    return await visit.show("copy.html", trace=stored.trace, title=title, about=about, text=text)


@page
async def add_note(visit: PageVisit) -> web.StreamResponse:
    """Add what a person says of a trace."""
    trace_id, form = visit.id("id"), await visit.form()
    text = form.get("note", "").strip()
    if not 0 < len(text) <= MAX_NOTE:
        raise BadRequest(f"A note must have 1 to {MAX_NOTE} characters")
    kind = {LABEL: True} if form.get("kind") == LABEL else {}
    note = Annotation(text, "", f"{PERSON}{visit.user}", extra=kind)
    if await visit.app[CATALOGUE].annotate(visit.user, trace_id, note) is None:
        raise NotFound(NO_TRACE)
    return see(f"/explorer/traces/{trace_id}#remarks")


@page
async def remove_note(visit: PageVisit) -> web.StreamResponse:
    """Remove what a person said of a trace."""
    trace_id, note = visit.id("id"), visit.id("note")
    if not await visit.app[CATALOGUE].remove_annotation(visit.user, trace_id, note, PERSON):
        raise NotFound("There is no such note")
    return see(f"/explorer/traces/{trace_id}#remarks")


def _base_url(visit: PageVisit) -> str:
    return f"{visit.request.scheme}://{visit.request.host}"


@page
async def trace_text(visit: PageVisit) -> web.StreamResponse:
    """Show one text of a trace, a part at a time."""
    stored = await stored_trace(visit)
    trace, dataset = stored.trace, await dataset_of(visit, stored)
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
    found = await stored_trace(visit)
    shown = trace_json(found.trace)
    del shown["messages"]
    return bytes_response(await asyncio.to_thread(with_messages, shown, found.messages), _RAW)


async def stored_trace(visit: PageVisit) -> StoredTrace:
    """Return the trace. Raise NotFound for another user's trace as for none."""
    stored = await visit.app[CATALOGUE].stored(visit.user, visit.id("id"))
    if stored is None:
        raise NotFound(NO_TRACE)
    return stored


async def dataset_of(visit: PageVisit, stored: StoredTrace) -> Dataset:
    """Return the dataset that the trace is in. Raise NotFound."""
    dataset = await visit.app[DATASETS].get(visit.user, stored.trace.dataset or UNNAMED)
    if dataset is None:
        raise NotFound(NO_TRACE)
    return dataset


def _text(stored: StoredTrace, address: str) -> str | None:
    return StoredMessages(stored.messages).text_at(address)
