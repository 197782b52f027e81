"""Serve the pages of a trace: its conversation and the facts of its exchange, single texts, notes, copies and JSON."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.trace_api import reveal
from gemini_proxy.explorer.app_keys import CATALOGUE, DATASETS, MASKED_VALUES, READ_DATABASE, SHADOWS
from gemini_proxy.explorer.pages.annotated_text import SHOWN, text_window
from gemini_proxy.explorer.pages.conversation import MARKS, conversation_page
from gemini_proxy.explorer.pages.markdown_text import MarkdownTexts
from gemini_proxy.explorer.pages.site import PageVisit, dataset_path, page, see
from gemini_proxy.explorer.pages.stored_messages import StoredMessages
from gemini_proxy.explorer.pages.templating import grouped, milliseconds
from gemini_proxy.explorer.pages.trace_copies import MAX_COPIED, curl_command, parameters, policy_case
from gemini_proxy.guardrails.masking import is_placeholder, placeholders_of_trace
from gemini_proxy.http.browser_guard import BROWSER_HEADERS
from gemini_proxy.http.large_responses import bytes_response
from gemini_proxy.traces.annotation_ranges import AnnotationRanges
from gemini_proxy.traces.catalogue import StoredTrace
from gemini_proxy.traces.datasets import UNNAMED, Dataset
from gemini_proxy.traces.headline import KEY_LENGTH
from gemini_proxy.traces.masked_values import Revealed
from gemini_proxy.traces.rows import load, with_messages
from gemini_proxy.traces.search.listing import Listing
from gemini_proxy.traces.trace import Annotation, Trace, trace_json
from gemini_proxy.traces.visible import as_json

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
    said = [annotation for annotation in shown.annotations if not annotation.source.startswith(PERSON)]
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
    messages = messages_of(stored)
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
    """Add a person's note to a trace."""
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
    """Remove a person's note from a trace."""
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
    text = await asyncio.to_thread(_text_at, stored, address)
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
    """Return the trace that the path names. Raise NotFound, also for a trace of another user."""
    stored = await visit.app[CATALOGUE].stored(visit.user, visit.id("id"))
    if stored is None:
        raise NotFound(NO_TRACE)
    return stored


def messages_of(stored: StoredTrace) -> list[Mapping[str, Any]]:
    """Return the messages of a trace, without list items that are not objects, which a push may hold."""
    return [message for message in load(stored.messages) if isinstance(message, Mapping)]


async def dataset_of(visit: PageVisit, stored: StoredTrace) -> Dataset:
    """Return the dataset that the trace is in. Raise NotFound."""
    dataset = await visit.app[DATASETS].get(visit.user, stored.trace.dataset or UNNAMED)
    if dataset is None:
        raise NotFound(NO_TRACE)
    return dataset


def _text_at(stored: StoredTrace, address: str) -> str | None:
    return StoredMessages(stored.messages).text_at(address)


_LISTED: Final = 20
"""Parts not checked, and other entries, that are shown one by one."""
_LONGEST: Final = 2_000
"""Characters of one entry."""
_ERRORS: Final = 400
_TOKENS: Final = {
    "promptTokenCount": "prompt",
    "cachedContentTokenCount": "cached",
    "thoughtsTokenCount": "thoughts",
    "candidatesTokenCount": "response",
    "totalTokenCount": "total",
}
_TOLD: Final = frozenset(
    "model usage model_version latencies_ms coverage refusal error via_gateway conversation asked request_messages"
    " upstream_status upstream_error allowed_before".split()
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One value about an exchange under its name; ``detail`` is shown with it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """``timing``, ``tokens`` and ``checks`` are a few words each; ``unchecked`` lists unread content with reasons.

    ``warning`` says what was not checked in the whole exchange, "" if nothing. ``upstream`` is the upstream's error
    message, ``parameters`` are the request's.
    """

    model: Fact
    timing: tuple[Fact, ...]
    tokens: tuple[Fact, ...]
    checks: tuple[Fact, ...]
    unchecked: tuple[Fact, ...]
    unchecked_more: int
    refusal: Fact | None
    error: str
    warning: str
    upstream: Fact | None
    conversation: str
    key: str
    parameters: tuple[Fact, ...]
    others: tuple[Fact, ...]


def facts(trace: Trace) -> Facts:
    """Describe an exchange by its trace's metadata, which may come from anywhere: no shape is certain."""
    metadata = trace.metadata
    coverage = _mapping(metadata.get("coverage"))
    refusal = _mapping(metadata.get("refusal"))
    unseen = coverage.get("not_checked")
    unseen = unseen if isinstance(unseen, list) else []
    count = coverage.get("not_checked_in_all")
    asked = parameters(metadata)
    return Facts(
        _model(trace),
        tuple(_timing(trace)),
        tuple(
            Fact(word, grouped(number))
            for name, word in _TOKENS.items()
            if (number := _number(_mapping(metadata.get("usage")).get(name))) is not None
        ),
        tuple(_checks(coverage, _number(metadata.get("allowed_before")))),
        tuple(
            Fact(_text(_mapping(entry).get("address")), _text(_mapping(entry).get("reason")))
            for entry in unseen[:_LISTED]
        ),
        max(0, (count if isinstance(count, int) else len(unseen)) - min(len(unseen), _LISTED)),
        Fact(_text(refusal.get("reason")), _text(refusal.get("text"))) if refusal else None,
        _text(metadata.get("error")),
        _warning(coverage),
        _upstream(metadata),
        _text(metadata.get("conversation")),
        (trace.tenant or "")[:KEY_LENGTH],
        tuple(Fact(name, _text(value)) for name, value in asked.items()),
        tuple(
            Fact(_text(name), _text(value))
            for name, value in list(metadata.items())[:200]
            if name not in _TOLD and name not in asked and value is not None
        ),
    )


def _warning(coverage: Mapping[str, Any]) -> str:
    verdict = coverage.get("verdict")
    if verdict == "off":
        return "Nothing was checked: no guardrail applied to this exchange."
    if verdict == "unchecked":
        return f"The checks gave no verdict and the exchange passed: {_text(coverage.get('unchecked')) or 'no reason'}"
    return "The exchange ended before its last check." if verdict == "pending" else ""


def _upstream(metadata: Mapping[str, Any]) -> Fact | None:
    """Return status and message of an upstream response that was an error; None for any other."""
    status, error = _number(metadata.get("upstream_status")), _mapping(metadata.get("upstream_error"))
    if not error and (status is None or status < _ERRORS):
        return None
    return Fact("" if status is None else f"{status:.0f}", _text(error.get("message")), _text(error.get("status")))


def _model(trace: Trace) -> Fact:
    version = _text(trace.metadata.get("model_version"))
    return Fact("model", trace.model or "", version if version != trace.model else "")


def _timing(trace: Trace) -> Iterator[Fact]:
    latencies = _mapping(trace.metadata.get("latencies_ms"))
    yield Fact("total", milliseconds(trace.duration_ms))
    for name, word in {"upstream_head": "upstream response", "first_byte": "first event"}.items():
        if (value := _number(latencies.get(name))) is not None:
            yield Fact(word, milliseconds(value))
    if (value := _number(_mapping(trace.metadata.get("coverage")).get("milliseconds"))) is not None:
        yield Fact("checks", milliseconds(value))


def _checks(coverage: Mapping[str, Any], allowed: float | None) -> Iterator[Fact]:
    if not coverage:
        return
    rules = coverage.get("rules")
    rules = rules if isinstance(rules, list) else []
    yield Fact("verdict", _text(coverage.get("verdict")), _text(coverage.get("unchecked")))
    yield Fact("mode", _text(coverage.get("mode")))
    names = ", ".join(_text(name) for name in rules[:_LISTED])
    if (messages := _number(coverage.get("checked_messages"))) is not None:
        yield Fact("messages", grouped(messages))
    if allowed is not None:
        yield Fact("allowed before", grouped(allowed), 'messages that rules with scope="new" leave alone')
    yield Fact("rules", f"{len(rules)}", names + (", …" if len(rules) > _LISTED else ""))
    if (masked := _number(coverage.get("masked_values"))) is not None:
        kept = coverage.get("values_kept") is True
        told = "they come back in later responses" if kept else "placeholders stay in later responses"
        yield Fact("masked values", grouped(masked), told)
    if isinstance(waiting := coverage.get("judged_only_at_the_end"), list):
        yield Fact("checked only at the end", ", ".join(_text(name) for name in waiting[:_LISTED]))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """Return a number that can be written, else None; JSON may hold integers of any length."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return value if usable else None


def _text(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else as_json(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
