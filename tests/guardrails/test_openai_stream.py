"""Which bytes of an OpenAI-shaped stream may leave before a verdict."""

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.openai.wire import OPENAI
from gemini_proxy.guardrails.stream import ResponseStream, StreamCheck
from tests.gemini.openai.test_chat_responses import streamed

CALL = read_call("POST", "/v1beta/openai/chat/completions")
MODES: tuple[StreamCheck, ...] = ("final", "hold")


@settings(max_examples=50)
@given(streamed(), st.lists(st.integers(1, 300), max_size=8), st.sampled_from(MODES), st.booleans())
def test_no_piece_of_a_call_leaves_unjudged(
    drawn: tuple[dict[str, Any], list[dict[str, Any]]], cuts: list[int], mode: StreamCheck, allowed: bool
) -> None:
    """However the bytes come: those before a call may leave, the rest with a check alone; all of them in the end."""
    whole, chunks = drawn
    frames = [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]
    body = b"".join(frames)
    before_call = sum(map(len, frames[: next((at for at, one in enumerate(frames) if b"tool_calls" in one), None)]))
    merger = Merger()
    stream = ResponseStream(SseFraming(), merger, mode, len(whole["choices"]), 1 << 20, reader=OPENAI.new_reader(CALL))
    left, passed, at = b"", False, 0
    for cut in [*cuts, len(body)]:
        left += stream.feed(body[at : at + cut])
        at += cut
        assert passed or len(left) <= before_call
        if stream.wants_check:
            assert any("functionCall" in part for one in merger.candidates for part in one.parts)
            left += stream.passed(()) if allowed else stream.postpone()
            passed = allowed
    stream.close()
    left += stream.take()
    assert passed or len(left) <= before_call
    assert left + stream.release() == body
