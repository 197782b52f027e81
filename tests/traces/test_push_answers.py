"""The body of a push, the meaning of its answer, and the pauses between attempts: no I/O."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.traces.push.answers import Answer, Failed, Failure, Rejected, read_answer
from gemini_proxy.traces.push.queue import push_body, push_document
from gemini_proxy.traces.push.worker import LONGEST, LONGEST_ASKED, Backoff, pause
from tests.traces.pushing import NOW
from tests.traces.samples import ANNOTATION, trace


@pytest.mark.parametrize(
    ("status", "retry_after", "body", "answer"),
    [
        (503, "120", b"", Failed(Failure.SERVER_ERROR, 120.0)),
        (503, "Sun, 06 Nov 1994 08:49:37 GMT", b"", Failed(Failure.SERVER_ERROR, 0.0)),
        (503, "Fri, 15 Jan 2027 08:01:00 GMT", b"", Failed(Failure.SERVER_ERROR, 60.0)),
        (503, "soon", b"", Failed(Failure.SERVER_ERROR)),
        (503, "٣", b"", Failed(Failure.SERVER_ERROR)),
        (503, f"Fri, 15 Jan {'9' * 20} 08:01:00 GMT", b"", Failed(Failure.SERVER_ERROR)),
        (200, None, b"[]", Failed(Failure.UNEXPECTED)),
        (200, None, b'{"id":[]}', Failed(Failure.UNEXPECTED)),
        (200, None, b"\xff", Failed(Failure.UNEXPECTED)),
        (418, None, b"", Failed(Failure.UNEXPECTED)),
        (413, "9", b'{"detail":"too large"}', Rejected(413)),
    ],
)
def test_what_an_answer_means(status: int, retry_after: str | None, body: bytes, answer: Answer) -> None:
    """Success names the trace; a refusal of this trace is for good; all else is for another time."""
    assert read_answer(status, retry_after, body, NOW) == answer


@given(st.integers(100, 999), st.none() | st.text(), st.binary())
def test_any_answer_can_be_read(status: int, retry_after: str | None, body: bytes) -> None:
    """No answer raises, and no Retry-After asks for less than nothing."""
    answer = read_answer(status, retry_after, body, NOW)
    assert not isinstance(answer, Failed) or (answer.retry_after or 0.0) >= 0.0


@given(st.integers(0, 10_000), st.floats(0, 1), st.none() | st.floats(0, 1e12))
def test_pauses_grow_within_bounds(failures: int, jitter: float, asked: float | None) -> None:
    """From half a second to five minutes by ourselves, to an hour when asked, and never shorter after one more."""
    length = pause(failures, jitter, asked)
    assert 0.5 <= length <= (LONGEST if asked is None else max(LONGEST, LONGEST_ASKED))
    assert pause(failures + 1, jitter, asked) >= length


def test_a_failure_that_began_before_the_last_one_was_known_does_not_lengthen_the_pause() -> None:
    patience = Backoff()
    patience.succeeded()
    for _ in range(16):
        patience.failed(begun_in=0, jitter=0.0)
    assert (patience.failures, patience.take_pause(), patience.take_pause()) == (1, 1.0, 0.0)


json_values = st.none() | st.integers(0, 9) | st.text() | st.lists(st.none() | st.text(), max_size=3)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


@given(st.lists(json_objects, max_size=4), json_objects)
def test_the_document_is_the_body_and_no_message_has_a_null_member(messages: Any, metadata: Any) -> None:
    given = trace(messages=messages, metadata=metadata, annotations=(ANNOTATION,))
    body = push_body(given)
    assert orjson.loads(push_document(given)) == body
    assert all(value is not None for message in body["messages"][0] for value in message.values())
    assert body["metadata"][0]["gemini_proxy"]["id"] == given.id
