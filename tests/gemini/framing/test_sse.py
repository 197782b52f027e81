import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.framing.sse import SseFraming
from tests.gemini.framing.chunking import chunked, pieces, read

_LINE_ENDS = ["\r\n", "\n", "\r"]
_LINES = [
    'data: {"a": "ü\u2028"}',
    'data:{"b":',
    "data: 1}",
    "data",
    "data: [DONE]",
    ": hm",
    "event: x",
    "id",
    "data: []",
]
_OTHERS = [
    '{"error": {\n\n"code": 1}}',
    "{",
    "}",
    '"',
    "\\",
    " ",
    "\t",
    " data: {}",
    "<html>",
    "\ufeff",
    "retry: 3",
    "x: {}",
]
_BODIES = st.lists(st.sampled_from(_LINES + _LINE_ENDS * 6 + _OTHERS)).map(lambda texts: "".join(texts).encode())
_GOOD_BODIES = st.lists(
    st.tuples(
        st.sampled_from([*_LINES[:1], "data: [DONE]", ": hm", 'data:{"b":\ndata: 1}', "event: x"]),
        st.sampled_from(_LINE_ENDS),
    )
).map(lambda events: "".join(line + end + end for line, end in events).encode())


def frames(body: bytes) -> list[tuple[bytes, object]]:
    """The frames of a body that arrives whole."""
    reading = read(SseFraming(), [body])
    assert not reading.failed
    return [(frame.raw, frame.payload) for frame in reading.frames]


@given(chunked(_BODIES))
@example((b'data: {"a":1}\r\r\ndata: {}\n\n', [b'data: {"a":1}\r', b"\r", b"\n", b"data: {}\n\n"]))
@example((b"data: {}\r\ndata: \r\n\r\n", [b"data: {}\r", b"\ndata: \r", b"\n\r", b"\n"]))
def test_chunking_changes_nothing(case: tuple[bytes, list[bytes]]) -> None:
    """Any chunking gives the frames of the whole body; only lone line ends and blanks may come as frames apart."""
    body, parts = case
    whole, cut = read(SseFraming(), [body]), read(SseFraming(), parts)
    assert cut.failed == whole.failed
    assert cut.settled == whole.settled
    assert body.startswith(cut.raw)
    assert cut.failed or cut.raw == body


@given(chunked(_GOOD_BODIES))
def test_sound_streams_are_read(case: tuple[bytes, list[bytes]]) -> None:
    """A stream of fields and comments never fails, whatever its line ends and chunks, and loses no byte."""
    body, parts = case
    reading = read(SseFraming(), parts)
    assert not reading.failed
    assert reading.raw == body
    assert len(reading.payloads) == body.count(b'"a"') + body.count(b'"b"')


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\r"])
def test_an_event_is_out_as_soon_as_its_blank_line_is(line_end: bytes) -> None:
    """No event waits for a byte behind its blank line."""
    framing = SseFraming()
    event = b'data: {"a": 1}' + line_end
    assert framing.feed(event) == []
    (frame,) = framing.feed(line_end)
    assert (frame.raw, frame.payload) == (event + line_end, {"a": 1})


def test_half_a_crlf_at_the_end_of_a_chunk() -> None:
    """An event comes out on the CR of its blank line; the LF is a frame of its own, at once."""
    framing = SseFraming()
    assert [frame.raw for frame in framing.feed(b"data: {}\r\n\r")] == [b"data: {}\r\n\r"]
    assert [(frame.raw, frame.payload) for frame in framing.feed(b"\n")] == [(b"\n", None)]
    assert [frame.raw for frame in framing.feed(b"data: {}\n\n")] == [b"data: {}\n\n"]


def test_whatwg_example_comment_data_and_id() -> None:
    """A comment block holds nothing, an event's other fields are part of its bytes only."""
    body = b': test stream\n\ndata: {"n": 1}\nid: 1\n\ndata:{"n": 2}\nid\n\ndata:  {"n": 3}\n\n'
    assert [payload for _, payload in frames(body)] == [None, {"n": 1}, {"n": 2}, {"n": 3}]


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\r"])
def test_a_comment_of_one_byte_is_no_blank_line(line_end: bytes) -> None:
    """An event goes on behind its shortest line."""
    body = b":" + line_end + b"data: {}" + line_end * 2
    assert frames(body) == [(body, {})]


def test_whatwg_example_several_data_lines() -> None:
    """Data lines are joined by a line feed: within JSON that is white space, within a string it is an error."""
    assert frames(b'data: {"price":\ndata: 2}\n\n') == [(b'data: {"price":\ndata: 2}\n\n', {"price": 2})]
    assert read(SseFraming(), [b'data: {"YHOO\ndata: +2": 1}\n\n']).failed


def test_whatwg_example_empty_data() -> None:
    """Data fields without data are no payload, and neither is the terminator of other APIs."""
    for body in (b"data\n\n", b"data\ndata\n\n", b"data:\n\n", b"data: [DONE]\n\n"):
        assert frames(body) == [(body, None)]


def test_whatwg_example_space_after_the_colon() -> None:
    """One space after the colon, none, or several make the same payload."""
    assert {str(frames(b"data:" + b" " * n + b'{"test": 1}\n\n')[0][1]) for n in range(4)} == {"{'test': 1}"}


def test_byte_order_mark() -> None:
    """A byte order mark is passed on and read past, in one piece or in three."""
    body = b'\xef\xbb\xbfdata: {"a": 1}\n\n'
    for size in (1, 2, 100):
        reading = read(SseFraming(), pieces(body, size))
        assert (reading.raw, reading.payloads, reading.failed) == (body, [{"a": 1}], False)
    assert read(SseFraming(), [b"\xef\xbb"]).failed


def test_data_within_a_string_is_no_delimiter() -> None:
    """What looks like an event inside JSON text is text."""
    body = b'data: {"text": "data: {}\\n\\ndata: {\\"error\\": 1}"}\r\n\r\n'
    assert frames(body) == [(body, {"text": 'data: {}\n\ndata: {"error": 1}'})]


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\u0085", "\x7f"])
def test_only_cr_and_lf_end_a_line(char: str) -> None:
    """Characters that Unicode calls line ends are text."""
    body = f'data: {{"text": "{char}"}}\n\n'.encode()
    assert frames(body) == [(body, {"text": char})]


@pytest.mark.parametrize("tail", [b"", b"\r\n", b"\n", b"\r"])
def test_last_event_without_its_blank_line(tail: bytes) -> None:
    """A body that ends within or right after a line still gives that event."""
    body = b'data: {"a": 1}' + tail
    assert frames(body) == [(body, {"a": 1})]


@pytest.mark.parametrize("before", [b"", b'data: {"a": 1}\r\n\r\n'])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_bare_error_object(before: bytes, size: int) -> None:
    """A pretty-printed error, alone or behind events, blank lines and braces in it, is one frame."""
    error = b'{\n  "error": {\n\n    "message": "a } \\" {",\r\n\r\n  "code": 503}\n}'
    reading = read(SseFraming(), pieces(before + error + b"\n", size))
    assert (reading.raw, reading.failed) == (before + error + b"\n", False)
    assert reading.payloads[-1] == {"error": {"message": 'a } " {', "code": 503}}
    assert error in [frame.raw for frame in reading.frames]


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE html>\n<html></html>\n\n",
        b'[{"error": {}}]',
        b' data: {"a": 1}\n\n',
        b'Data: {"a": 1}\n\n',
        b'answer: {"a": 1}\n\n',
        b'data: {"a": 1}\n{"error": {}}\n\n',
        b'{"error": {}} data: {}\n\n',
        b'{"error": {}}data: {}\n\n',
        b'{"error": {}',
        b'data: {"a": 1\n\n',
        b'data: {"a": 1',
        b"data: [1]\n\n",
        b"data: 1\n\n",
        b"data: null\n\n",
        b'data: {"a": "\xff"}\n\n',
        b'data: {"a": 1} {"b": 2}\n\n',
        b'data: {"a": 1}\x00\n\n',
    ],
)
def test_what_cannot_be_read_is_an_error(body: bytes) -> None:
    """Neither a field nor JSON, bad JSON, no object, invalid UTF-8, a broken remainder: a DecodeError each."""
    reading = read(SseFraming(), [body])
    assert reading.failed
    assert read(SseFraming(), pieces(body, 1)).frames == reading.frames


def test_frames_before_a_fault_come_first() -> None:
    """The call that meets a fault behind good events returns those; every later call raises."""
    framing = SseFraming()
    assert [frame.payload for frame in framing.feed(b"data: {}\n\ndata: [\n\n")] == [{}]
    with pytest.raises(DecodeError):
        framing.feed(b"data: {}\n\n")
    with pytest.raises(DecodeError):
        framing.end()


@pytest.mark.parametrize("start", [b'data: {"', b'{"', b": ", b"data: \ndata: "])
def test_frame_over_the_limit(start: bytes) -> None:
    """A frame over the limit is refused before it is all there, one at the limit is not."""
    framing = SseFraming(max_frame_bytes=100)
    framing.feed(start + b"x" * (100 - len(start)))
    with pytest.raises(DecodeError):
        framing.feed(b"x")


def test_limit_is_on_a_frame_not_on_the_body() -> None:
    """Whole frames over the limit are refused as well; many small ones are not."""
    event = b'data: {"a": 1}\n\n'
    assert len(SseFraming(max_frame_bytes=len(event)).feed(event * 100)) == 100
    assert read(SseFraming(max_frame_bytes=len(event) - 1), [event]).failed


@pytest.mark.parametrize("size", [1000, 65536])
@pytest.mark.parametrize("around", [(b'data: {"a": "', b'"}\r\n\r\n'), (b'{"error": "', b'"}')])
def test_megabyte_lines_in_small_pieces(size: int, around: tuple[bytes, bytes]) -> None:
    """A line of megabytes is read at a cost that lets this test end."""
    body = around[0] + b"x\\n" * 2_500_000 + around[1]
    reading = read(SseFraming(), pieces(body, size))
    assert [frame.raw for frame in reading.frames] == [body]


@pytest.mark.parametrize("event", [b"data:\r\r", b":\n\n", b"\r", b"{}\n"])
def test_many_small_frames_in_one_piece(event: bytes) -> None:
    """A large piece of tiny events is cut without searching it again for each."""
    assert read(SseFraming(), [event * 30_000]).raw == event * 30_000


@pytest.mark.parametrize(
    "unit",
    [b":\n\n", b":\n", b":\n\ndata: {}\n\n", b"data: {}\r\n\r\n", b"data:\n\n", b"data:\n", b"{}\n", b"event\n\n"],
)
def test_a_flood_of_next_to_nothing_is_refused(unit: bytes) -> None:
    """A frame or a line takes its time however short it is: the number of them goes by the size of the body."""
    framing = SseFraming()
    with pytest.raises(DecodeError, match="too many pieces"):
        for _ in range(100):
            framing.feed(unit * 1000)


def test_short_events_with_signs_of_life_are_no_flood() -> None:
    """A token an event, each with a comment before it."""
    event = b': alive\n\ndata: {"candidates":[{"content":{"parts":[{"text":"a"}],"role":"model"},"index":0}]}\r\n\r\n'
    assert read(SseFraming(), [event * 1000] * 20).raw == event * 20_000


_EVENTS = [
    'data: {"a": "ü"}\r\n\r\n',
    'data:{"b": [1,\t2]}\r\n\r\n',
    "data: [DONE]\r\n\r\n",
    "data: {broken\r\n\r\n",
    "data: 1\r\n\r\n",
    ": hm\r\n\r\n",
    "data: {}\n\n",
    'data: {"c":\r\ndata: 1}\r\n\r\n',
    "\r\n\r\n",
    '{"error": {}}',
]


@given(st.lists(st.lists(st.sampled_from(_EVENTS[:3] * 4 + _EVENTS), min_size=1)))
@example([['data: {"a": "ü"}\r\n\r\n'], ['{"error": {}}'], ['data: {"a": "ü"}\r\n\r\n']])
@example([['data: {"a": "ü"}\r\n\r\n'], ["data:{}\r\n\r\n", "data: {broken\r\n\r\n"], ["data:{}\r\n\r\n"]])
def test_whole_events_are_read_as_by_the_byte(groups: list[list[str]]) -> None:
    """Pieces that end with an event, as they come from Google, give the frames and the fault of any other pieces."""
    parts = ["".join(group).encode() for group in groups]
    whole, cut = read(SseFraming(), parts), read(SseFraming(), [bytes([byte]) for byte in b"".join(parts)])
    assert cut.failed == whole.failed
    assert cut.settled == whole.settled
