"""How an exchange is refused: by a status, or inside a stream, in the framing that the client is reading."""

from gemini_proxy.gemini.refusal import JSON_TYPE, Feedback, Refusal, StreamState, array_refusal, sse_refusal
from gemini_proxy.gemini.response_fields import counts_in
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.response import ClientAnswer
from gemini_proxy.sections import BeforeStream

SSE_TYPE = "text/event-stream"
_ARRAY_TYPE = JSON_TYPE.partition(";")[0]


def refuses_by_event(exchange: Exchange, before_stream: BeforeStream) -> bool:
    """Whether a stream of which no byte has left is refused by an event; else it is by HTTP 400."""
    # A client that parses the text would show the event as a fault of its own, without the reason.
    structured = exchange.request is not None and exchange.request.structured
    return before_stream == "event" or (before_stream == "auto" and not structured)


def refusal_tail(exchange: Exchange, answer: ClientAnswer, refusal: Refusal, feedback: Feedback) -> bytes:
    """What is sent in place of everything withheld.

    Where a part of the answer has left, it goes on in the framing of that. Else the framing is the one asked for,
    whatever the upstream's was; where they differ, what passed does not leave.
    """
    asked = SSE_TYPE if exchange.call.query.alt == "sse" else _ARRAY_TYPE
    framing = exchange.framing if answer.begun else asked
    passed, left = (exchange.gate.take(), exchange.gate.events_left) if exchange.gate else (b"", 0)
    if framing != exchange.framing:
        passed, left = b"", 0
        answer.stream_head(SSE_TYPE if framing == SSE_TYPE else JSON_TYPE)
    state = _state(exchange)
    if framing == SSE_TYPE:
        return passed + sse_refusal(refusal, state, feedback)
    return passed + array_refusal(refusal, state, opened=left > 0, elements=left)


def _state(exchange: Exchange) -> StreamState:
    merger = exchange.merger
    expected = (exchange.request.candidate_count if exchange.request else None) or 1
    seen = tuple(candidate.index for candidate in merger.candidates)
    return StreamState(
        indexes=seen or tuple(range(min(expected, 8))),
        # Nothing that rules read may stand in the refusal that came of it.
        usage=counts_in(merger.usage or {}),
        model_version=merger.model_version or exchange.call.model,
        response_id=merger.response_id,
    )
