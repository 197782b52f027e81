import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from tests.gemini.framing.chunking import chunked, read

_BODIES = st.sampled_from([b"", b"{}", b' {"a": ["\xc3\xbc"]}\n', b"[{}]", b'{"a"'])


@given(chunked(_BODIES))
def test_one_frame_for_any_chunking(case: tuple[bytes, list[bytes]]) -> None:
    """A body in pieces is the one frame, or the fault, of the whole body."""
    body, parts = case
    reading = read(WholeBodyFraming(), parts)
    assert reading == read(WholeBodyFraming(), [body])
    assert reading.failed or [frame.raw for frame in reading.frames] == [body]


def test_nothing_comes_before_the_end() -> None:
    """The frame is made when the body has ended, white space and all."""
    framing = WholeBodyFraming()
    assert framing.feed(b'{"a": 1}\n') == []
    assert [(frame.raw, frame.payload) for frame in framing.end()] == [(b'{"a": 1}\n', {"a": 1})]


@pytest.mark.parametrize("body", [b"<html></html>", b"[{}]", b"null", b'"a"', b"{} {}", b'{"a": "\xff"}', b"{"])
def test_what_is_no_object_is_an_error(body: bytes) -> None:
    """Anything but one JSON object in UTF-8 is a DecodeError."""
    assert read(WholeBodyFraming(), [body]).failed


@pytest.mark.parametrize("body", [b"", b" \n"])
def test_an_empty_body_has_no_payload(body: bytes) -> None:
    framing = WholeBodyFraming()
    framing.feed(body)
    assert framing.end() == [(body, None)]


def test_body_over_the_limit() -> None:
    """A body at the limit is read; the byte beyond it is refused, then and at the end."""
    framing = WholeBodyFraming(max_frame_bytes=2)
    framing.feed(b"{}")
    with pytest.raises(DecodeError):
        framing.feed(b" ")
    with pytest.raises(DecodeError):
        framing.end()
