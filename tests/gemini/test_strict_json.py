"""A body is read in the one way every parser reads it, or refused."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.strict_json import MAX_DEPTH, read_object

INVALID = [
    # nothing, or not one object
    b"",
    b" ",
    b"null",
    b"true",
    b"1",
    b'"a"',
    b"[]",
    b'[{"a":1}]',
    b"{}{}",
    b"{} {}",
    b"{}x",
    b"{}\x00",
    b"{},",
    b"{}]",
    b"{}}",
    b"{}//",
    b"{}#",
    b"[{}",
    # members
    b"{",
    b"}",
    b'{"a"',
    b'{"a"}',
    b'{"a":',
    b'{"a":}',
    b'{"a":1',
    b'{"a":1,}',
    b'{"a":1,,"b":2}',
    b'{,"a":1}',
    b'{"a" 1}',
    b'{"a"::1}',
    b'{"a":1:2}',
    b'{"a":1 "b":2}',
    b"{a:1}",
    b"{contents:[]}",
    b"{'contents':[]}",
    b"{\"a\":'b'}",
    b"{1:1}",
    b"{null:1}",
    b'{"a":1;"b":2}',
    b"{[]:1}",
    b'{"a":/*c*/1}',
    b'{"a":1}//c',
    b'{"a"=1}',
    # lists
    b'{"a":[1,]}',
    b'{"a":[,1]}',
    b'{"a":[1,,2]}',
    b'{"a":[1 2]}',
    b'{"a":[1}',
    b'{"a":1]}',
    b'{"a":[}',
    b'{"a":[1:2]}',
    # literals and numbers
    b'{"a":NaN}',
    b'{"a":nan}',
    b'{"a":Infinity}',
    b'{"a":-Infinity}',
    b'{"a":inf}',
    b'{"a":True}',
    b'{"a":nul}',
    b'{"a":undefined}',
    b'{"a":01}',
    b'{"a":-01}',
    b'{"a":+1}',
    b'{"a":.5}',
    b'{"a":5.}',
    b'{"a":1.e1}',
    b'{"a":1e}',
    b'{"a":1e+}',
    b'{"a":1.2.3}',
    b'{"a":-}',
    b'{"a":--1}',
    b'{"a":0x1F}',
    b'{"a":1_000}',
    b'{"a":1f}',
    b'{"a":0b1}',
    '{"a":\uff11}'.encode(),
    # strings
    b'{"a":"b}',
    b'{"a":"\n"}',
    b'{"a":"\t"}',
    b'{"a":"\x00"}',
    b'{"a":"\x1f"}',
    b'{"a":"\\x41"}',
    b'{"a":"\\a"}',
    b'{"a":"\\\'"}',
    b'{"a":"\\u12"}',
    b'{"a":"\\u12g4"}',
    b'{"a":"\\U0041"}',
    b'{"a":"\\',
    b'{"a":"\\"}',
    b'{"\\ud800":1}',
    b'{"a":"\\ud800"}',
    b'{"a":"\\udc00"}',
    b'{"a":"\\udc00\\ud800"}',
    b'{"a":"\\ud800\\u0041"}',
    b'{"a":"\\ud800x"}',
    # white space and encodings
    b'\x0c{"a":1}',
    b'\x0b{"a":1}',
    '\u00a0{"a":1}'.encode(),
    '{"a":\u20601}'.encode(),
    '{\u2028"a":1}'.encode(),
    b'\xef\xbb\xbf{"a":1}',
    '{"a":1}'.encode("utf-16"),
    '{"a":1}'.encode("utf-16-le"),
    '{"a":1}'.encode("utf-16-be"),
    '{"a":1}'.encode("utf-32"),
    '{"a":"é"}'.encode("latin-1"),
    b'{"a":"\xff"}',
    b'{"a":"\xc0\xaf"}',
    b'{"a":"\xed\xa0\x80"}',
    b'{"a":"\xf4\x90\x80\x80"}',
    b'{"a":"\xe2\x82"}',
    b'{"\xff":1}',
    b"\xff",
]
VALID: list[tuple[bytes, dict[str, Any]]] = [
    (b"{}", {}),
    (b" \t\r\n{ } \n", {}),
    (b'{"":0}', {"": 0}),
    (b'{"a":{"a":{"a":1}}}', {"a": {"a": {"a": 1}}}),
    (b'{"a":[{"a":1},{"a":1}]}', {"a": [{"a": 1}, {"a": 1}]}),
    (b'{"a":1,"A":2}', {"a": 1, "A": 2}),
    (b'{"a:b":"c:d","e":"::"}', {"a:b": "c:d", "e": "::"}),
    (b'{"a":"\\u003a","b":"\\u003A:"}', {"a": ":", "b": "::"}),
    (b'{"a\\u003a":1,"a":2}', {"a:": 1, "a": 2}),
    (b'{"a":"\\\\u003a"}', {"a": "\\u003a"}),
    (b'{"c\\u006fntents":[]}', {"contents": []}),
    (b'{"a":"\\"b\\":1,\\"b\\":2"}', {"a": '"b":1,"b":2'}),
    (b'{"a":"\\u0000\\/\\b\\f\\n\\r\\t"}', {"a": "\0/\b\f\n\r\t"}),
    (b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
    ('{"ключ":"значение \u2028"}'.encode(), {"ключ": "значение \u2028"}),
    (b'{"a":[null,true,false,-0,0.5,1E+2,1e-2]}', {"a": [None, True, False, 0, 0.5, 100.0, 0.01]}),
    (b'{"a":18446744073709551615}', {"a": 2**64 - 1}),
    (b'{"a":-9223372036854775808}', {"a": -(2**63)}),
    (b'{"a":123456789012345678901234567890}', {"a": 123456789012345678901234567890.0}),
]
REPEATED = [
    b'{"a":1,"a":1}',
    b'{"a":1,"b":2,"a":3}',
    b'{"contents":[],"c\\u006fntents":[]}',
    b'{"\\u0063ontents":[],"c\\u006Fntents":[]}',
    b'{"x":{"a":1,"a":2}}',
    b'{"x":[[{"a":1,"a":2}]]}',
    b'{"contents":[{"parts":[{"text":"a","text":"b"}]}]}',
    b'{"contents":[{"parts":[{"text":"a"}],"parts":[]}]}',
    b'{"":1,"":2}',
    b'{"a:":1,"a\\u003a":2}',
    # an escaped colon for each that the repetition lost
    b'{"a":1,"a":2,"b":"\\u003a"}',
    b'{"a":1,"a":2,"b":"\\u003A"}',
    b'{"a":":","a":"","b":"\\u003a\\u003a"}',
    b'{"a":{"b":1},"a":"\\u003a\\u003a"}',
    b'{"a":1,"a":2,"\\u003a":3}',
    # what the repetition hid is not read, but may not hurt either
    b'{"a":' + b"[" * 70 + b"]" * 70 + b',"a":1}',
    b'{"a":' + b"[" * 1000 + b"]" * 1000 + b',"a":1}',
    b'{"a":' + b'{"b":' * 500 + b"1" + b"}" * 500 + b',"a":1}',
    b'{"n":' + b"1" * 250 + b',"a":1,"a":2}',
    b'{"n":-1' + b"0" * 6000 + b".5e-5000" + b',"a":1,"a":2}',
]


@pytest.mark.parametrize("body", INVALID, ids=lambda body: repr(body[:40]))
def test_not_json_is_refused(body: bytes) -> None:
    """Whatever some parser somewhere would take for JSON."""
    with pytest.raises(BadRequest):
        read_object(body)


@pytest.mark.parametrize(("body", "expected"), VALID, ids=lambda case: repr(case)[:40])
def test_json_is_read(body: bytes, expected: dict[str, Any]) -> None:
    assert read_object(body) == expected


@pytest.mark.parametrize("body", REPEATED, ids=lambda body: repr(body[:40]))
def test_repeated_keys_are_refused(body: bytes) -> None:
    """At any depth, in any spelling, whatever else the body holds to hide them."""
    with pytest.raises(BadRequest):
        read_object(body)


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    """An object of ``depth`` levels, the object itself counted."""
    return b'{"a":' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_has_a_limit(opening: bytes, closing: bytes) -> None:
    """64 levels are read; 65 are not, however the nesting is made."""
    assert MAX_DEPTH == 64
    assert read_object(nested(64, opening, closing))
    for depth in (65, 1000, 1024, 1025, 50_000):
        with pytest.raises(BadRequest):
            read_object(nested(depth, opening, closing))


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"[" * 100_000, b"[{" * 50_000])
def test_open_brackets_cost_little(body: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(BadRequest):
        read_object(body)
    assert time.perf_counter() - started < 0.5


def test_error_does_not_repeat_the_body() -> None:
    with pytest.raises(BadRequest) as caught:
        read_object(b'{"AIzaSecret": AIzaSecret}')
    assert "AIza" not in caught.value.message
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


KEYS = st.sampled_from(["a", "b", "a:", ":", "contents", "parts", "", "\\u0061", '"'])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["", ":", "::", "a", "\\u003a", '"a":1']))


@st.composite
def written_string(draw: st.DrawFn, values: st.SearchStrategy[str] = KEYS) -> str:
    """A JSON string in which each character is written plainly or as an escape."""
    spelled = []
    for char in draw(values):
        plain = json.dumps(char)[1:-1]
        escaped = f"\\u{ord(char):04x}"
        spelled.append(draw(st.sampled_from([plain, plain, escaped, escaped.upper().replace("\\U", "\\u")])))
    return f'"{"".join(spelled)}"'


@st.composite
def written_object(draw: st.DrawFn, depth: int = 3) -> str:
    """JSON text of an object that may repeat keys, anywhere and in any spelling."""
    members = []
    for _ in range(draw(st.integers(0, 4))):
        members.append(f"{draw(written_string())}{draw(st.sampled_from([':', ' : ']))}{draw(written_value(depth))}")
    return "{" + ",".join(members) + "}"


@st.composite
def written_value(draw: st.DrawFn, depth: int) -> str:
    kind = draw(st.integers(0, 3)) if depth else 0
    if kind == 1:
        return "[" + ",".join(draw(st.lists(written_value(depth - 1), max_size=3))) + "]"
    if kind == 2:
        return draw(written_object(depth - 1))
    scalar = draw(SCALARS)
    return draw(written_string(st.just(scalar))) if isinstance(scalar, str) else json.dumps(scalar)


def repeats_a_key(text: str) -> bool:
    """Python's parser tells every pair of every object."""
    repeated = []
    json.loads(text, object_pairs_hook=lambda pairs: repeated.append(len(dict(pairs)) != len(pairs)))
    return any(repeated)


@given(written_object())
def test_repeated_keys_are_found_exactly(text: str) -> None:
    """An object is refused if and only if it, or one inside it, repeats a key."""
    if repeats_a_key(text):
        with pytest.raises(BadRequest, match="repeats a key"):
            read_object(text.encode())
    else:
        assert read_object(text.encode()) == json.loads(text)


@given(st.one_of(st.binary(max_size=50), st.text(alphabet='{}[]:,"\\u0a1e-. \n', max_size=30).map(str.encode)))
def test_any_bytes_are_an_object_or_a_bad_request(body: bytes) -> None:
    """No other exception leaves the reader, and what it reads Python's parser reads alike."""
    try:
        value = read_object(body)
    except BadRequest:
        return
    assert value == json.loads(body)
