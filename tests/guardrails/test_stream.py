"""Which bytes may leave before a verdict."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.framing.json_array import JsonArrayFraming
from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.guardrails.stream import FrameGate, StreamCheck
from tests.support.upstream import call_part, candidate, sse

SIZE = 1 << 20


def gate(mode: StreamCheck = "final", framing: Any = None, candidates: int | None = None) -> FrameGate:
    return FrameGate(framing or SseFraming(), Merger(), mode, candidates, SIZE)


def fed(one: FrameGate, *data: bytes) -> bytes:
    for piece in data:
        one.feed(piece)
    return one.take()


payloads = st.lists(
    st.one_of(
        st.text(max_size=20).map(candidate),
        st.text(max_size=20).map(lambda text: candidate(text, "STOP")),
        st.just(call_part("f", x=1)),
        st.just({"usageMetadata": {"totalTokenCount": 1}}),
    ),
    max_size=6,
)


@given(payloads, st.lists(st.integers(1, 400), max_size=8), st.sampled_from(["final", "hold"]))
def test_all_bytes_leave_in_order_in_the_end(events: list[dict[str, Any]], cuts: list[int], mode: StreamCheck) -> None:
    """Whatever the chunking, what left and what was released are the upstream's bytes."""
    body = b"".join(sse(*events))
    one, left, at = gate(mode), b"", 0
    for cut in cuts:
        left += fed(one, body[at : at + cut])
        at += cut
        if one.wants_verdict:
            one.release()
    one.feed(body[at:])
    one.end()
    left += one.take()
    one.release()
    assert left + one.take() == body
    assert one.events_left == len(events)


@given(payloads)
def test_no_function_call_and_no_end_leaves_unjudged(events: list[dict[str, Any]]) -> None:
    """In ``final`` nothing leaves from the first frame on that calls a function or finishes the answer."""
    one = gate()
    left = fed(one, *sse(*events))
    kept = next(
        (i for i, event in enumerate(events) if b"functionCall" in orjson.dumps(event) or finishes(event)), None
    )
    assert left == b"".join(sse(*events[:kept]))


def finishes(event: dict[str, Any]) -> bool:
    return any("finishReason" in one for one in event.get("candidates", []))


@given(payloads)
def test_hold_lets_nothing_leave(events: list[dict[str, Any]]) -> None:
    one = gate("hold")
    assert fed(one, *sse(*events)) == b""
    one.end()
    assert one.take() == b""
    assert not one.wants_verdict


def test_the_end_is_where_every_candidate_has_finished() -> None:
    """With two candidates asked for, the first one's end does not withhold the second's text."""
    one = gate(candidates=2)
    events = sse(candidate("a", "STOP"), {"candidates": [{"index": 1, "content": {"parts": [{"text": "b"}]}}]})
    assert fed(one, *events) == b"".join(events)
    assert fed(one, *sse({"candidates": [{"index": 1, "finishReason": "STOP"}]})) == b""


def test_streamed_call_wants_its_verdict_when_it_is_whole() -> None:
    """Pieces of a call are withheld; the verdict is asked for when its last piece has come."""
    one = gate()
    opening = {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "willContinue": True}}]}}]}
    closing: dict[str, Any] = {"candidates": [{"content": {"parts": [{"functionCall": {}}]}}]}
    assert fed(one, *sse(opening)) == b""
    assert not one.wants_verdict
    assert fed(one, *sse(closing)) == b""
    assert one.wants_verdict


def test_an_array_keeps_its_bracket_until_the_end() -> None:
    """Nothing may follow an array's bracket, so it waits even where no finish reason came."""
    one = gate(framing=JsonArrayFraming())
    body = orjson.dumps([candidate("a"), candidate("b")])
    left = fed(one, body)
    one.end()
    left += one.take()
    assert not left.endswith(b"]")
    one.release()
    assert left + one.take() == body


def test_a_whole_body_leaves_only_when_released() -> None:
    one = gate(framing=WholeBodyFraming())
    body = orjson.dumps(candidate("a", "STOP"))
    assert fed(one, body) == b""
    one.end()
    assert one.take() == b""
    one.release()
    assert one.take() == body


def test_an_answer_over_the_limit_cannot_be_read() -> None:
    one = FrameGate(SseFraming(), Merger(), "final", None, 100)
    with pytest.raises(DecodeError, match="larger"):
        one.feed(b"x" * 101)
