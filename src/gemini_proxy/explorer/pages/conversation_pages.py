"""Serve the page of a conversation: the messages of all its exchanges, each message once, under its exchange."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from gemini_proxy.errors import NotFound
from gemini_proxy.explorer.app_keys import CATALOGUE, DATASETS, READ_DATABASE
from gemini_proxy.explorer.pages.annotated_text import Note, notes
from gemini_proxy.explorer.pages.conversation import BlockReader, Message
from gemini_proxy.explorer.pages.markdown_text import MarkdownTexts
from gemini_proxy.explorer.pages.site import PageVisit, page
from gemini_proxy.traces.annotation_ranges import AnnotationRanges
from gemini_proxy.traces.catalogue import StoredTrace
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.search.listing import Listing, TraceQuery
from gemini_proxy.traces.trace import Trace, TraceSummary

EXCHANGES: Final = 50
"""Exchanges of one page, the newest."""
_MOST: Final = 8_000_000
"""Bytes of messages that one page reads; further exchanges are named without their content."""
_MARKS: Final = 200
"""Annotations of one exchange that are drawn."""


@dataclass(frozen=True, slots=True)
class ConversationStep:
    """One exchange: its new messages, and its annotations.

    ``missing`` says why there are no messages. ``repeated`` is the number of messages at the beginning that the
    exchange before it has too.
    """

    trace: Trace
    messages: tuple[Message, ...]
    repeated: int
    missing: str = ""
    notes: tuple[Note, ...] = ()


@page
async def conversation(visit: PageVisit) -> web.StreamResponse:
    """Show a conversation, the oldest exchange first."""
    name = visit.request.match_info["id"]
    found, more = await _exchanges(visit, name)
    if not found:
        raise NotFound(
            "You have no such conversation, or its exchanges are not indexed yet: try again in a few seconds"
        )
    stored = await _stored(visit, found)
    return await visit.show(
        "conversation.html",
        markdown=MarkdownTexts(),
        name=name,
        steps=await asyncio.to_thread(steps, stored),
        more=more,
        most=EXCHANGES,
    )


async def _exchanges(visit: PageVisit, name: str) -> tuple[list[TraceSummary], bool]:
    """Return the newest exchanges of a conversation, the oldest first, and whether there are older ones."""
    datasets = await visit.app[DATASETS].all(visit.user)
    listing = Listing(visit.app[READ_DATABASE])
    found = [summary async for summary in listing.each(datasets, TraceQuery(conversation=name), EXCHANGES + 1)]
    return found[:EXCHANGES][::-1], len(found) > EXCHANGES


async def _stored(visit: PageVisit, found: Sequence[TraceSummary]) -> list[StoredTrace]:
    """Return the traces, without the messages of those that no longer fit on the page."""
    traces: list[StoredTrace] = []
    left = _MOST
    for summary in found:
        stored = await visit.app[CATALOGUE].stored(visit.user, summary.id)
        if stored is None:
            continue
        fits = len(stored.messages) <= left
        left -= len(stored.messages) if fits else 0
        traces.append(stored if fits else StoredTrace(stored.trace, b"", stored.annotations))
    return traces


def steps(stored: Sequence[StoredTrace]) -> list[ConversationStep]:
    """Return the exchanges, each with the messages that it added to the conversation."""
    reader_full = False
    said: list[str] = []
    made: list[ConversationStep] = []
    for exchange in stored:
        if not exchange.messages:
            made.append(ConversationStep(exchange.trace, (), 0, "This exchange is too long for this page."))
            continue
        messages = load(exchange.messages)
        keys = [_key(message) for message in messages]
        repeated = _common(said, keys)
        said = keys
        if reader_full:
            made.append(ConversationStep(exchange.trace, (), repeated, "No more fits on this page."))
            continue
        marks = AnnotationRanges(exchange.trace.annotations[:_MARKS])
        reader = BlockReader(marks)
        # Their notes are above the messages: marks are numbered per exchange, not per page.
        reader.known.update(mark.number for mark in marks.all)
        shown: list[Message] = []
        for index in range(repeated, len(messages)):
            if reader.spent:
                reader_full = True
                break
            shown.append(reader.message(index, messages[index]))
        made.append(ConversationStep(exchange.trace, tuple(shown), repeated, notes=notes(marks.all)))
    return made


def _key(message: Any) -> str:
    """Return the identity of a message in later requests; clients leave out thoughts and the candidate's index.

    Return "" for a message that is not compared.
    """
    if not isinstance(message, Mapping) or message.get("thought") or "role" not in message:
        return ""
    kept = {name: value for name, value in message.items() if name != "candidate"}
    return json.dumps(kept, sort_keys=True, default=str)


def _common(before: Sequence[str], now: Sequence[str]) -> int:
    """Return how many messages at the beginning of ``now`` repeat those of ``before``."""
    theirs = [key for key in before if key]
    place = 0
    for index, key in enumerate(now):
        if not key:
            continue
        if place >= len(theirs) or theirs[place] != key:
            return index
        place += 1
    return len(now)
