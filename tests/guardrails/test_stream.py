"""Which bytes may leave before a verdict."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.framing.json_array import JsonArrayFraming
from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.request import read_request
from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.response_messages import candidate_messages
from gemini_proxy.guardrails.rules import guardrail
from gemini_proxy.guardrails.stream import ResponseStream, StreamCheck, TextViolated
from gemini_proxy.guardrails.workers import Workers
from tests.support.proxy import prompt
from tests.support.upstream import call_part, candidate, sse

SIZE = 1 << 20


def held(mode: StreamCheck = "final", framing: Any = None, candidates: int | None = None) -> ResponseStream:
    return ResponseStream(framing or SseFraming(), Merger(), mode, candidates, SIZE)


def fed(stream: ResponseStream, *data: bytes) -> bytes:
    return b"".join([stream.feed(piece) for piece in data])


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
    stream, left, at = held(mode), b"", 0
    for cut in cuts:
        left += stream.feed(body[at : at + cut])
        at += cut
        if stream.wants_check:
            left += stream.passed(())
    left += stream.feed(body[at:])
    stream.close()
    left += stream.take() + stream.release()
    assert left == body
    assert stream.events_left == len(events)


@given(payloads)
def test_no_function_call_and_no_end_leaves_unjudged(events: list[dict[str, Any]]) -> None:
    """In ``final`` nothing leaves from the first event on that calls a function or finishes the response."""
    stream = held()
    left = stream.feed(b"".join(sse(*events)))
    kept = next(
        (i for i, event in enumerate(events) if b"functionCall" in orjson.dumps(event) or finishes(event)), None
    )
    assert left + stream.take() == b"".join(sse(*events[:kept]))


def finishes(event: dict[str, Any]) -> bool:
    return any("finishReason" in one for one in event.get("candidates", []))


@given(payloads)
def test_hold_lets_nothing_leave(events: list[dict[str, Any]]) -> None:
    stream = held("hold")
    assert fed(stream, *sse(*events)) == b""
    stream.close()
    assert stream.take() == b""
    assert not stream.wants_check


def test_the_end_is_where_every_candidate_has_finished() -> None:
    """With two candidates asked for, the first one's end does not withhold the second's text."""
    stream = held(candidates=2)
    events = sse(candidate("a", "STOP"), {"candidates": [{"index": 1, "content": {"parts": [{"text": "b"}]}}]})
    assert fed(stream, *events) == b"".join(events)
    assert fed(stream, *sse({"candidates": [{"index": 1, "finishReason": "STOP"}]})) == b""


def test_a_streamed_call_wants_its_check_when_it_is_whole() -> None:
    """Pieces of a call are withheld; the check is asked for when its last piece has come."""
    stream = held()
    opening = {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "willContinue": True}}]}}]}
    closing: dict[str, Any] = {"candidates": [{"content": {"parts": [{"functionCall": {}}]}}]}
    assert fed(stream, *sse(opening)) == b""
    assert not stream.wants_check
    assert fed(stream, *sse(closing)) == b""
    assert stream.wants_check


def test_what_stands_before_a_call_leaves_whatever_its_check_says() -> None:
    """Text in one chunk with a call is withheld while the call is checked, and then leaves alone or with it."""
    text, call = sse(candidate("a"), call_part("f"))
    for passes in (True, False):
        stream = held()
        assert (stream.feed(text + call), stream.wants_check) == (b"", True)
        left = stream.passed(()) if passes else stream.postpone()
        assert (left, stream.wants_check) == (text + call if passes else text, False)
        assert stream.feed(sse(candidate("b"))[0]) == (sse(candidate("b"))[0] if passes else b"")


def test_a_refusal_goes_on_behind_what_stood_before_the_call() -> None:
    text, call = sse(candidate("a"), call_part("f"))
    stream = held()
    assert stream.feed(text + call) == b""
    assert (stream.following, stream.take(), stream.events_left) == (text, text, 1)
    assert stream.following == call


def test_an_array_keeps_its_bracket_until_the_end() -> None:
    """Nothing may follow an array's bracket, so it waits even where no finish reason came."""
    stream = held(framing=JsonArrayFraming())
    body = orjson.dumps([candidate("a"), candidate("b")])
    left = stream.feed(body)
    stream.close()
    left += stream.take()
    assert not left.endswith(b"]")
    assert left + stream.release() == body


def test_a_whole_body_leaves_only_when_released() -> None:
    stream = held(framing=WholeBodyFraming())
    body = orjson.dumps(candidate("a", "STOP"))
    assert stream.feed(body) == b""
    stream.close()
    assert stream.take() == b""
    assert stream.release() == body


def test_a_response_over_the_limit_cannot_be_read() -> None:
    stream = ResponseStream(SseFraming(), Merger(), "final", None, 100)
    with pytest.raises(DecodeError, match="larger"):
        stream.feed(b"x" * 101)


OVERLAP = 12
REQUEST = read_request(
    read_call("POST", "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"), orjson.dumps(prompt("hi"))
)
RULE = 'raise "x" if:\n    (m: Message)\n    m.role == "assistant"\n    "forbidden" in m.content\n'


class Windowed:
    """A response in ``window``. A check of the whole always passes."""

    def __init__(self, overlap: int = OVERLAP) -> None:
        self.merger = Merger()
        check = Check((guardrail("rule", RULE, "block"),), REQUEST.messages)
        session = NativeEngine(Workers(), 5.0).open_session(check, overlap)
        first = len(REQUEST.messages)
        self.stream = ResponseStream(
            SseFraming(), self.merger, "window", None, SIZE, session=session, first_message=first
        )

    def feed(self, data: bytes) -> bytes:
        left = self.stream.feed(data)
        if self.stream.wants_check:
            left += self.stream.passed(candidate_messages(REQUEST, self.merger))
        return left

    def end(self) -> bytes:
        self.stream.close()
        return self.stream.take() + self.stream.release()


def spoken(text: str, index: int, *, thought: bool = False) -> dict[str, Any]:
    part = {"text": text, "thought": True} if thought else {"text": text}
    return {"candidates": [{"index": index, "content": {"parts": [part]}}]}


SPOKEN = st.lists(
    st.one_of(
        st.builds(spoken, st.text("ab c", max_size=20), st.integers(0, 1), thought=st.booleans()),
        st.just(call_part("f", x=1)),
        st.just({"usageMetadata": {"totalTokenCount": 1}}),
    ),
    max_size=10,
)


@given(SPOKEN, st.lists(st.integers(1, 300), max_size=10))
def test_in_window_all_bytes_leave_in_order_in_the_end(events: list[dict[str, Any]], cuts: list[int]) -> None:
    """Whatever the chunking, what left and what was released are the upstream's bytes."""
    body, windowed, left, at = b"".join(sse(*events)), Windowed(), b"", 0
    for cut in cuts:
        left += windowed.feed(body[at : at + cut])
        at += cut
    left += windowed.feed(body[at:])
    assert body.startswith(left)
    assert left + windowed.end() == body
    assert windowed.stream.events_left == len(events)


@given(st.lists(st.text("ab c", max_size=20), max_size=12), st.integers(0, 30))
def test_in_window_an_event_waits_until_enough_text_has_followed_it(texts: list[str], overlap: int) -> None:
    """And not longer: an event leaves with the one that completes what has to follow it."""
    windowed, lengths = Windowed(overlap), [len(text) for text in texts]
    for number, event in enumerate(sse(*[candidate(text) for text in texts]), 1):
        windowed.feed(event)
        said = sum(lengths[:number])
        leaves = [not text or said - sum(lengths[: at + 1]) >= overlap for at, text in enumerate(texts[:number])]
        assert windowed.stream.events_left == (leaves.index(False) if False in leaves else number)


def test_in_window_text_that_violates_is_named_by_its_candidate_and_leaves_nothing() -> None:
    """Split over events and beside another candidate: the address is that of the whole text."""
    windowed = Windowed()
    events = sse(spoken("all is well", 0), spoken("this is for", 1), spoken("bidden", 1), spoken("!", 0))
    assert windowed.feed(events[0] + events[1]) == b""
    with pytest.raises(TextViolated) as violated:
        windowed.feed(events[2] + events[3])
    ((index, violation),) = violated.value.violations
    assert (index, violation.ranges) == (1, ("messages.1.content:8-17",))
    assert windowed.stream.take() == b""


def test_in_window_an_event_that_only_the_end_completes_waits_for_the_final_check() -> None:
    windowed = Windowed(overlap=0)
    unfinished = sse(candidate("forbidden"))[0].rstrip()
    assert windowed.feed(unfinished) == b""
    windowed.stream.close()
    assert (windowed.stream.take(), windowed.stream.release()) == (b"", unfinished)


def test_in_window_nothing_leaves_once_a_check_was_postponed() -> None:
    """However much text follows: the final check decides."""
    windowed = Windowed()
    call, *rest = sse(call_part("f"), *[candidate("some more text to follow")] * 3)
    assert (windowed.stream.feed(call), windowed.stream.wants_check) == (b"", True)
    assert windowed.stream.postpone() == b""
    assert windowed.feed(b"".join(rest)) == b""
    assert windowed.end() == call + b"".join(rest)
