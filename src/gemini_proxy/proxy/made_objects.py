"""Find the objects that Gemini keeps of an exchange, by its response, so that each is remembered as a handle."""

from typing import Final

from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.doors import Method
from gemini_proxy.gemini.interactions.request import INTERACTION_ID
from gemini_proxy.gemini.kept import read_kept
from gemini_proxy.gemini.parts import file_media
from gemini_proxy.proxy.exchange import Exchange, Made
from gemini_proxy.proxy.handle_keeper import INTERACTIONS
from gemini_proxy.traces.handles import Kind
from gemini_proxy.traces.trace import REFUSED, Outcome

_INTERACTION_SECONDS: Final = 55 * 86_400.0
"""The longest time for which Google stores an interaction."""
_OPERATION_SECONDS: Final = 30 * 86_400.0
"""Seconds for which an operation is remembered: Google states no end, and keeps videos for days."""
_VIDEO_SECONDS: Final = 48 * 3_600.0
"""Seconds for which Google keeps a video's file."""
_RESULTS_SECONDS: Final = 30 * 86_400.0
"""Seconds for which the file of a batch's responses is remembered: Google states no end."""
_MOST_FILES: Final = 64
_READ: Final = (Outcome.COMPLETED, Outcome.UNCHECKED)
_UNREAD: Final = "the response of an earlier interaction, which was not read whole"
_GOES_ON: Final = frozenset(("IN_PROGRESS", "QUEUED"))
_ASKING: Final = frozenset({Method.GET_OPERATION, Method.FETCH_PREDICT_OPERATION})


def made_objects(exchange: Exchange) -> list[Made]:
    """Return the interaction, the operation or the files that an exchange has made: those that show at its end."""
    wire = exchange.call.row.wire
    if wire == "interactions":
        return _interaction(exchange)
    if wire == "predictions":
        return _files_of(exchange) if exchange.call.method in _ASKING else _operation(exchange)
    return []


def made_by(call: ModelCall, answer: bytes) -> list[Made]:
    """Return the cache or the batch that a call has made, by the upstream's response; nothing if that names none."""
    kept = read_kept(answer)
    kind = Kind.BATCH if call.row.wire == "batch" else Kind.CACHE
    return [] if kept is None else [Made(kind, kept.name, kept.expires)]


def made_results(exchange: Exchange, file: str, batch: str) -> Made:
    """Return the file of a batch's responses; it belongs to the batch's owner. It is read when it is downloaded."""
    return Made(
        Kind.FILE,
        file,
        exchange.created + _RESULTS_SECONDS,
        unchecked="results of a batch, which are read where they are downloaded",
        details={"results_of": batch},
    )


def _interaction(exchange: Exchange) -> list[Made]:
    """Return the interaction that Gemini stores for an exchange; nothing if it is not known to store one.

    A refused interaction is remembered as refused, and one whose response was not read to its end as unread. One that
    the request asked for is remembered again with its new response, if it was known before.
    """
    call, request = exchange.call, exchange.request
    if request is None or not exchange.call.generates:
        return []
    name = call.names.get("id") or exchange.merger.response_id or ""
    if (exchange.upstream_status or 500) >= 400 or not INTERACTION_ID.fullmatch(name):
        return []
    refused = exchange.outcome in REFUSED
    creates = call.method is Method.CREATE_INTERACTION
    if not refused and (request.settings.get("store") is False or not (creates or exchange.earlier)):
        return []
    if not refused and any(unchecked.address == "request.last_event_id" for unchecked in request.unchecked):
        return []
    finished = [candidate.finish_reason for candidate in exchange.merger.candidates]
    read = exchange.outcome in _READ and bool(finished) and _GOES_ON.isdisjoint(map(str, finished))
    return [
        Made(
            Kind.INTERACTION,
            f"{INTERACTIONS}{name}",
            exchange.created + _INTERACTION_SECONDS,
            unchecked="" if read else _UNREAD,
            refused=refused,
            details={"request": len(request.messages), "masked": exchange.restoring is not None},
        )
    ]


def _files_of(exchange: Exchange) -> list[Made]:
    """Return the files named in a response about an operation; they belong to its owner. No rule sees a video."""
    if not exchange.earlier or exchange.outcome not in _READ:
        return []
    parts = [part for candidate in exchange.merger.candidates for part in candidate.parts]
    named = [file_media(part["fileData"]).reference for part in parts if isinstance(part.get("fileData"), dict)]
    return [
        Made(
            Kind.FILE,
            reference.name,
            exchange.created + _VIDEO_SECONDS,
            unchecked="a video that a model made",
            details={"uri": reference.said},
        )
        for reference in named[:_MOST_FILES]
        if reference is not None and reference.name
    ]


def _operation(exchange: Exchange) -> list[Made]:
    """Return the operation that an exchange has begun, such as the making of a video; it belongs to the same user."""
    name, request = exchange.merger.response_id, exchange.request
    if exchange.call.method is not Method.PREDICT_LONG_RUNNING or not exchange.call.generates:
        return []
    if not name or request is None or (exchange.upstream_status or 500) >= 400:
        return []
    return [
        Made(
            Kind.OPERATION,
            f"operations/{name}",
            exchange.created + _OPERATION_SECONDS,
            refused=exchange.outcome in REFUSED,
            details={"request": len(request.messages)},
        )
    ]
