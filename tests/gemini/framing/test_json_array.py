import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.framing.json_array import JsonArrayFraming
from tests.gemini.framing.chunking import chunked, pieces, read

_TOKENS = st.sampled_from(
    ["[", "]", "{}", ",", " ", "\n", '{"a": "}\\"]\\\\"}', '{"a": {"b": [{}]}}', "{", "}", '"', "1", "\\"]
)
_ANY_BODIES = st.lists(_TOKENS).map(lambda texts: "".join(texts).encode())
# Beyond 64 bits a number is read as floating point.
_NUMBERS = st.integers(-(2**63), 2**64 - 1)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_ELEMENTS = st.lists(st.dictionaries(st.text(), _JSON, max_size=3), max_size=4)
_SPACE = st.text(" \t\r\n", max_size=3)


@st.composite
def arrays(draw: st.DrawFn) -> bytes:
    """An array of objects, written with any JSON white space."""
    texts = [
        json.dumps(each, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.integers(0, 2)))
        for each in draw(_ELEMENTS)
    ]
    spaced = [draw(_SPACE) + text + draw(_SPACE) for text in texts]
    return (draw(_SPACE) + "[" + draw(_SPACE) + ",".join(spaced) + "]" + draw(_SPACE)).encode()


@given(chunked(arrays()))
@settings(max_examples=50)
def test_arrays_in_any_chunks(case: tuple[bytes, list[bytes]]) -> None:
    """Each element is a frame, the closing bracket a last one, and no byte is lost."""
    body, parts = case
    framing = JsonArrayFraming()
    reading = read(framing, parts)
    assert not reading.failed
    assert reading.raw == body
    assert reading.payloads == json.loads(body)
    assert reading.frames[-1].payload is None
    assert reading.frames[-1].raw.strip().endswith(b"]")


@given(chunked(_ANY_BODIES))
def test_chunking_changes_nothing(case: tuple[bytes, list[bytes]]) -> None:
    """Sound or not, a body in pieces gives exactly the frames, or the fault, of the whole body."""
    body, parts = case
    assert read(JsonArrayFraming(), parts) == read(JsonArrayFraming(), [body])


@given(_ANY_BODIES)
def test_nothing_but_arrays_of_objects_and_objects(body: bytes) -> None:
    """What is read is what a JSON parser takes for an array of objects, or for one object."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    objects = value if isinstance(value, list) else [value]
    sound = all(isinstance(each, dict) for each in objects)
    assert read(JsonArrayFraming(), [body]).failed == (not sound and body.strip() != b"")


def test_separators_belong_to_the_element_behind_them() -> None:
    """The bracket comes with the first element, a comma with the next, the rest at the end."""
    framing = JsonArrayFraming()
    assert framing.feed(b"[") == []
    assert [frame.raw for frame in framing.feed(b'{"a": 1}\n,\r\n{"a"')] == [b'[{"a": 1}']
    assert [frame.raw for frame in framing.feed(b": 2}\n]")] == [b'\n,\r\n{"a": 2}']
    assert [(frame.raw, frame.payload) for frame in framing.end()] == [(b"\n]", None)]


@pytest.mark.parametrize("body", [b"", b" \r\n"])
def test_an_empty_body_has_no_element(body: bytes) -> None:
    reading = read(JsonArrayFraming(), [body])
    assert (reading.raw, reading.failed, reading.payloads) == (body, False, [])


@pytest.mark.parametrize("size", [1, 1000])
def test_a_single_object_instead_of_an_array(size: int) -> None:
    """An error in place of the array is one frame, and no array was opened."""
    framing = JsonArrayFraming()
    body = b'{\n  "error": {"code": 400, "message": "[x]"}\n}\n'
    reading = read(framing, pieces(body, size))
    assert (reading.raw, reading.failed) == (body, False)
    assert reading.payloads == [{"error": {"code": 400, "message": "[x]"}}]


@pytest.mark.parametrize(
    "body",
    [
        b"[",
        b"[{}",
        b"[{},",
        b"[{},]",
        b"[,{}]",
        b"[{} {}]",
        b"[{}]x",
        b"[{}][{}]",
        b"[{}]]",
        b"[1]",
        b"[[{}]]",
    ]
    + [
        b'["a"]',
        b"[null]",
        b"{} {}",
        b"{}]",
        b'[{"a": }]',
        b'[{"a": "\xff"}]',
        b"<html></html>",
        b"data: {}\n\n",
        b"\xef\xbb\xbf[]",
    ],
)
def test_what_is_no_array_of_objects_is_an_error(body: bytes) -> None:
    """Cut off, garbled, continued behind its bracket, or of other things than objects: a DecodeError each."""
    assert read(JsonArrayFraming(), [body]).failed


def test_frame_over_the_limit() -> None:
    """An element over the limit is refused before it is all there; so are endless separators."""
    for body in (b'[{"a": "' + b"x" * 100, b"[" + b" " * 100, b"[{}]" + b" " * 101):
        framing = JsonArrayFraming(max_frame_bytes=100)
        with pytest.raises(DecodeError):
            for piece in pieces(body, 1):
                framing.feed(piece)
    assert read(JsonArrayFraming(max_frame_bytes=9), [b"[" + b'{"a":"x"}, ' * 2 + b"]"]).failed


@pytest.mark.parametrize("size", [1000, 65536])
def test_megabyte_elements_in_small_pieces(size: int) -> None:
    """An element of megabytes is read at a cost that lets this test end."""
    body = b'[{"a": "' + b"\\\\\\n" * 2_000_000 + b'"}\n]'
    assert [frame.raw for frame in read(JsonArrayFraming(), pieces(body, size)).frames] == [body[:-2], b"\n]"]


def test_a_flood_of_empty_elements_is_refused() -> None:
    """Reading an element takes its time however short it is: the number of them goes by the size of the body."""
    framing = JsonArrayFraming()
    framing.feed(b"[")
    with pytest.raises(DecodeError, match="too many pieces"):
        for _ in range(100):
            framing.feed(b"{}," * 1000)


def test_many_small_elements_in_one_piece() -> None:
    """A large piece of tiny elements is cut without searching it again for each."""
    body = b"[" + b"{},\n" * 50_000 + b"{}]"
    assert len(read(JsonArrayFraming(), [body]).payloads) == 50_001
