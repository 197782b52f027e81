"""Remember operations, such as the making of a video, and their files, with the user who began them."""

from typing import Final

from gemini_proxy.gemini.doors import Method
from gemini_proxy.gemini.parts import file_media
from gemini_proxy.proxy.exchange import Exchange, Made
from gemini_proxy.traces.handles import Kind
from gemini_proxy.traces.trace import REFUSED, Outcome

_KEPT_SECONDS: Final = 30 * 86_400.0
"""Seconds for which an operation is remembered: Google states no end, and keeps videos for days."""


_FILE_SECONDS: Final = 48 * 3_600.0
"""Seconds for which Google keeps a video's file."""
_MOST_FILES: Final = 64
_READ: Final = (Outcome.COMPLETED, Outcome.UNCHECKED)
_ASKING: Final = frozenset({Method.GET_OPERATION, Method.FETCH_PREDICT_OPERATION})


def made_operations(exchange: Exchange) -> list[Made]:
    """Return the operation that an exchange began, or the files that have come of one; nothing else is remembered."""
    return _files_of(exchange) if exchange.call.method in _ASKING else _begun(exchange)


def _files_of(exchange: Exchange) -> list[Made]:
    """Return the files that the response about an operation names, which are whose it is. No rule sees a video."""
    if not exchange.earlier or exchange.outcome not in _READ:
        return []
    parts = [part for candidate in exchange.merger.candidates for part in candidate.parts]
    named = [file_media(part["fileData"]).reference for part in parts if isinstance(part.get("fileData"), dict)]
    return [
        Made(
            Kind.FILE,
            reference.name,
            exchange.created + _FILE_SECONDS,
            unchecked="a video that a model made",
            details={"uri": reference.said},
        )
        for reference in named[:_MOST_FILES]
        if reference is not None and reference.name
    ]


def _begun(exchange: Exchange) -> list[Made]:
    name, request = exchange.merger.response_id, exchange.request
    if exchange.call.method is not Method.PREDICT_LONG_RUNNING or not exchange.call.generates:
        return []
    if not name or request is None or (exchange.upstream_status or 500) >= 400:
        return []
    return [
        Made(
            Kind.OPERATION,
            f"operations/{name}",
            exchange.created + _KEPT_SECONDS,
            refused=exchange.outcome in REFUSED,
            details={"request": len(request.messages)},
        )
    ]
