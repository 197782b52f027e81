"""What becomes of an operation that takes a while, such as a video's: it is remembered with who began it."""

from typing import Final

from gemini_proxy.gemini.doors import Method
from gemini_proxy.proxy.exchange import Exchange, Made
from gemini_proxy.traces.handles import Kind
from gemini_proxy.traces.trace import REFUSED

_KEPT_SECONDS: Final = 30 * 86_400.0
"""How long an operation is remembered: Google says no end, and keeps its videos for days."""


def made_operations(exchange: Exchange) -> list[Made]:
    """Return the operation that an exchange began, none where the upstream began none."""
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
