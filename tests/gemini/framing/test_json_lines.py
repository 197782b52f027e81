import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.framing.json_lines import JsonLinesFraming
from tests.gemini.framing.chunking import chunked, read

_LINES = st.lists(st.sampled_from([b'{"a": 1}', b' {"b": "\xc3\xa9\\n"}\r', b"", b" \r", b"[]", b"{", b"\xff"]))
_BODIES = st.builds(lambda mark, lines: mark + b"\n".join(lines), st.sampled_from([b"", b"\xef\xbb\xbf"]), _LINES)


@given(chunked(_BODIES))
def test_lines_in_any_chunks(case: tuple[bytes, list[bytes]]) -> None:
    """Each is a frame as a whole, blank ones without payload; no byte is lost before the first that is no object."""
    body, parts = case
    reading = read(JsonLinesFraming(), parts)
    assert reading == read(JsonLinesFraming(), [body])
    lines = body.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    sound = [line for line in lines if line.strip() in (b'{"a": 1}', b'{"b": "\xc3\xa9\\n"}', b"")]
    assert reading.failed == (len(sound) < len(lines))
    if not reading.failed:
        assert reading.raw == body
        assert reading.payloads == [orjson.loads(line) for line in lines if line.strip()]


def test_a_line_is_bounded() -> None:
    framing = JsonLinesFraming(max_frame_bytes=8)
    assert [frame.payload for frame in framing.feed(b"{}\n{}\n")] == [{}, {}]
    with pytest.raises(DecodeError, match="more than 8 bytes"):
        framing.feed(b" " * 9)
