"""Serve the pages that run the rules in force on a trace, and that send its request again."""

import asyncio
import re
import uuid
from collections.abc import Mapping
from typing import Final

import aiohttp
from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound, Unavailable
from gemini_proxy.explorer.app_keys import DATABASE, TRACES
from gemini_proxy.explorer.checks import MAX_TRIED_BYTES, try_rules_in_force
from gemini_proxy.explorer.pages.conversation import conversation_page
from gemini_proxy.explorer.pages.site import PageVisit, keys_needed, page, see
from gemini_proxy.explorer.pages.trace_copies import (
    MAX_COPIED,
    RecordedRequest,
    recorded_request,
    why_not_repeated,
)
from gemini_proxy.explorer.pages.trace_pages import dataset_of, messages_of, stored_trace
from gemini_proxy.guardrails.rules import strongest
from gemini_proxy.traces.catalogue import StoredTrace
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.headline import CONVERSATION_HEADER
from gemini_proxy.traces.search.listing import Listing, TraceQuery
from gemini_proxy.traces.trace import Trace, annotations_for

MAX_KEY: Final = 512
"""The longest key that a form accepts, in characters."""
_KEY: Final = re.compile(r"[\x21-\x7e]{1,512}")
_SECONDS: Final = 300.0
"""Seconds to wait for the response to a request sent again: a model may think for minutes, a person decide."""
_PIECE: Final = 65_536
_LOOKED_AT, _AT_ONCE = 50, 5
"""Newest traces of the dataset among which that of a request sent again is looked for; each may hold megabytes."""


@page
async def try_rules(visit: PageVisit) -> web.StreamResponse:
    """Show the violations that the rules in force find in a trace."""
    stored = await stored_trace(visit)
    if len(stored.messages) > MAX_TRIED_BYTES:
        raise NotFound("The trace is too long to try rules on here; policy backtest does")
    tried = await try_rules_in_force(visit.app, visit.user, stored)
    violations = [violation for guardrail in tried for violation in guardrail.violations]
    first = visit.number("from", 0) or 0
    shown = await asyncio.to_thread(conversation_page, stored.messages, annotations_for(violations), first)
    coverage = stored.trace.metadata.get("coverage")
    return await visit.show(
        "try.html",
        trace=stored.trace,
        tried=tried,
        strongest=strongest(violation.action for violation in violations),
        masked=isinstance(coverage, Mapping) and bool(coverage.get("masked_values")),
        conversation=shown,
    )


@page
async def ask_replay(visit: PageVisit) -> web.StreamResponse:
    """Ask for the key to send a request again with, or say why it cannot be sent."""
    return await _ask(visit, await stored_trace(visit))


@page
async def replay(visit: PageVisit) -> web.StreamResponse:
    """Send a trace's request to this server again, with the submitted key, and show the new trace."""
    visit.require_operator()
    stored, form = await stored_trace(visit), await visit.form()
    request, why_not = _request(stored)
    if request is None:
        raise BadRequest(why_not)
    keys = [form.get("key", "").strip(), *([form.get("own_key", "").strip()] if _needs_own_key(visit, stored) else ())]
    if not all(_KEY.fullmatch(key) for key in keys):
        return await _ask(visit, stored, "A key must have visible characters only and must not be empty.")
    # It names the new trace, which the response itself does not.
    conversation = f"replay-{stored.trace.id[:8]}-{uuid.uuid4().hex[:12]}"
    headers = {"x-goog-api-key": keys[0], "content-type": "application/json", CONVERSATION_HEADER: conversation}
    if len(keys) > 1:
        headers["invariant-authorization"] = f"Bearer {keys[1]}"
    said = await _send(visit.request, request, headers)
    found = await _newest_of(visit, await dataset_of(visit, stored), conversation)
    return await _ask(visit, stored, said) if found is None else see(f"/explorer/traces/{found.id}")


async def _newest_of(visit: PageVisit, dataset: Dataset, conversation: str) -> Trace | None:
    """Return the trace of a conversation among the dataset's newest, since it is not indexed yet; None if not there."""
    listed = await Listing(visit.app[DATABASE]).page(dataset, TraceQuery(), _LOOKED_AT)
    positions = [summary.position for summary in listed.traces]
    for start in range(0, len(positions), _AT_ONCE):
        for trace in await visit.app[TRACES].at(dataset, positions[start : start + _AT_ONCE]):
            if trace.metadata.get("conversation") == conversation:
                return trace
    return None


async def _ask(visit: PageVisit, stored: StoredTrace, wrong: str = "") -> web.StreamResponse:
    _, why_not = _request(stored)
    return await visit.show(
        "replay.html",
        400 if wrong else 200,
        trace=stored.trace,
        why_not=why_not,
        wrong=wrong,
        needs_own_key=_needs_own_key(visit, stored),
        longest=MAX_KEY,
    )


def _needs_own_key(visit: PageVisit, stored: StoredTrace) -> bool:
    """Return whether the request needs a key of this server too, to be recorded for the visitor in the same dataset."""
    return keys_needed(visit.request) or stored.trace.dataset is not None


def _request(stored: StoredTrace) -> tuple[RecordedRequest | None, str]:
    """Return the request, or the reason why it cannot be sent again."""
    if why_not := why_not_repeated(stored.trace):
        return None, why_not
    if len(stored.messages) > MAX_COPIED:
        return None, "It is too long to be rebuilt from the trace."
    request = recorded_request(stored.trace, messages_of(stored))
    return request, "" if request is not None else "The trace does not hold what was asked."


async def _send(visit: web.Request, request: RecordedRequest, headers: Mapping[str, str]) -> str:
    """Send a request to this server, at the address of this visit. Return the outcome if there is no trace.

    Raise Unavailable if there is no response.
    """
    address = visit.transport.get_extra_info("sockname") if visit.transport else None
    if isinstance(address, tuple):
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        connector: aiohttp.BaseConnector = aiohttp.TCPConnector()
        url = f"http://{host}:{address[1]}"
    elif address:
        connector, url = aiohttp.UnixConnector(str(address)), "http://localhost"
    else:
        raise Unavailable("The request cannot be sent: the connection is gone")
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
            session.post(
                url + request.path, data=request.body.encode(), headers=headers, allow_redirects=False
            ) as response,
        ):
            # The trace exists before the last byte comes.
            async for _ in response.content.iter_chunked(_PIECE):
                pass
    except TimeoutError:
        raise Unavailable(f"The request was not answered within {_SECONDS:g} seconds") from None
    except aiohttp.ClientError:
        raise Unavailable("This server did not answer the request") from None
    return f"The server answered {response.status} and recorded no trace that you can see."
