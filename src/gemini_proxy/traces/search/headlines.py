"""The lines of a listing: what each trace is about, and where what is searched for stands in it."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection, case, func, select

from gemini_proxy.traces.headline import Headline, HitExcerpt, headline_of, question_of
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.schema import traces
from gemini_proxy.traces.search.query import Term, parse
from gemini_proxy.traces.search.searchable_text import text_of
from gemini_proxy.traces.trace import TraceSummary

_MAX_METADATA: Final = 65_536
"""Bytes of metadata that are read for a line: a client says how much a trace has."""
_MAX_BEGINNING: Final = 262_144
"""Bytes of messages in which a hit is looked for."""
_READING: Final = 0.03
"""Seconds for reading messages, for all lines of a page together."""
_AROUND: Final = 60
_HIT: Final = 80
"""Characters shown beside a hit, and of it."""


def read_headlines(
    connection: Connection, found: Sequence[TraceSummary], text: str | None = None
) -> dict[int, Headline]:
    """Read the headlines of traces in a listing; for a search each with the first hit of ``text``."""
    if not found:
        return {}
    metadata = case((func.length(traces.c.metadata) <= _MAX_METADATA, traces.c.metadata))
    query = select(traces.c.seq, traces.c.updated, metadata).where(traces.c.seq.in_([one.seq for one in found]))
    told = {
        seq: (updated, {} if document is None else load(document))
        for seq, updated, document in connection.execute(query)
    }
    hit = first_hit(text or "")
    lines: dict[int, Headline] = {}
    ends = time.perf_counter() + _READING
    for one in found:
        updated, metadata_of = told.get(one.seq, (None, {}))
        asked = metadata_of.get("asked") if isinstance(metadata_of, Mapping) and updated is None else None
        line = headline_of(metadata_of, asked if isinstance(asked, str) else "")
        known = isinstance(asked, str)
        # Further details for pages are read only while there is time.
        if (hit is not None or not known) and time.perf_counter() < ends:
            messages = _beginning(connection, one.seq)
            if not known:
                line = replace(line, asked=question_in(messages))
            if hit is not None:
                line = replace(line, excerpt=excerpt_of(text_of(messages), hit))
        lines[one.seq] = line
    return lines


def _beginning(connection: Connection, seq: int) -> bytes:
    """Return the first messages of a trace, cut off where they are long."""
    query = select(func.substr(traces.c.messages, 1, _MAX_BEGINNING)).where(traces.c.seq == seq)
    return connection.scalar(query) or b""


def question_in(messages: bytes) -> str:
    """Return the first words of the last user message, "" where the JSON is cut off."""
    try:
        found = load(messages)
    except (ValueError, RecursionError):
        return ""
    return (
        question_of([message for message in found if isinstance(message, Mapping)]) if isinstance(found, list) else ""
    )


def first_hit(typed: str) -> re.Pattern[str] | None:
    """Return what finds one of the terms that a user typed; None where none of them must occur."""
    terms = parse(typed)
    if terms is None or not terms.wanted:
        return None
    return re.compile("|".join(_pattern(term) for term in terms.wanted), re.IGNORECASE)


def _pattern(term: Term) -> str:
    # A word's boundary, with the underscore taken for none: the index reads it as a space.
    words = r"[\W_]{1,20}".join(re.escape(word) for word in term.words)
    return rf"(?<![^\W_]){words}" + (r"[^\W_]{0,40}" if term.prefix else r"(?![^\W_])")


def excerpt_of(text: str, hit: re.Pattern[str]) -> HitExcerpt | None:
    """Return the first hit in a text, with the text around it on one line."""
    found = hit.search(text)
    if found is None:
        return None
    start, end = found.span()
    before = text[max(0, start - _AROUND) : start]
    after = text[end : end + _AROUND]
    return HitExcerpt(
        f"…{before}" if start > _AROUND else before,
        found[0][:_HIT],
        f"{after}…" if len(text) > end + _AROUND else after,
    )
