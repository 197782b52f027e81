"""The resumable protocol, and files as rules read them."""

import codecs
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini import uploads
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.request import GeminiRequest, read_request
from gemini_proxy.gemini.uploads import (
    Announced,
    TextTest,
    UploadedFile,
    read_chunk,
    read_start,
    require_as_declared,
)
from gemini_proxy.guardrails.addresses import value_at

START = {
    "x-goog-upload-protocol": "resumable",
    "x-goog-upload-command": "start",
    "x-goog-upload-header-content-length": "5",
    "x-goog-upload-header-content-type": "text/plain",
}
CALL = read_call("POST", "/v1beta/models/m:generateContent")


def read_file(announced: Announced, data: bytes) -> GeminiRequest:
    return uploads.read_file(UploadedFile(announced, b"", data))


def announced(mime_type: str = "text/plain", **names: str) -> Announced:
    return Announced(mime_type, 5, names)


@pytest.mark.parametrize("body", [b"", b'{"file": {}}', b'{"file": {"sizeBytes": "5", "mime_type": "text/plain"}}'])
def test_a_start_is_read(body: bytes) -> None:
    read = read_start(START | {"x-goog-upload-file-name": "a.txt"}, body)
    assert (read.mime_type, read.size, dict(read.names)) == ("text/plain", 5, {"X-Goog-Upload-File-Name": "a.txt"})


def test_all_that_a_start_says_beside_type_and_size_is_text() -> None:
    file = {"display_name": "a", "name": "files/b", "more": {"c": ["d"]}}
    read = read_start(START, orjson.dumps({"file": file}))
    assert list(read.names.values()) == ["a", "files/b", "c\nd"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-goog-upload-protocol": "multipart"}, b""),
        ({"x-goog-upload-protocol": "raw"}, b""),
        ({"x-goog-upload-command": "start, upload"}, b""),
        ({"x-goog-upload-command": "upload, finalize"}, b""),
        ({"x-goog-upload-header-content-length": "-1"}, b""),
        ({"x-goog-upload-header-content-length": "9" * 16}, b""),
        ({"x-goog-upload-header-content-type": "text/plain\x00"}, b""),
        ({"x-goog-upload-header-content-type": ""}, b""),
        ({}, b'{"file": {"mimeType": "image/png"}}'),
        ({}, b'{"file": {"size_bytes": 6}}'),
        ({}, b'{"file": {"mimeType": "text/plain", "mime_type": "text/plain"}}'),
        ({}, b'{"file": {"name": "a", "name": "b"}}'),
        ({}, b'{"file": "x"}'),
        ({}, b'{"file": {}, "more": "x"}'),
        ({}, b"[]"),
    ],
)
def test_a_start_that_can_be_read_two_ways_is_refused(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_start(START | headers, body)


@pytest.mark.parametrize("command", ["", "start", "upload; finalize", "finalize, upload", "upload, upload", "delete"])
def test_other_commands_are_refused(command: str) -> None:
    with pytest.raises(BadRequest):
        read_chunk({"x-goog-upload-command": command})


MARKED = [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, b""]


@given(
    st.sampled_from(MARKED), st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)), st.integers(1, 7)
)
def test_text_is_what_decodes_whole_however_it_is_cut(mark: bytes, data: bytes, size: int) -> None:
    """In UTF-8, or in what the mark at its start says."""
    data = mark + data
    test = TextTest()
    for start in range(0, len(data), size):
        test.feed(data[start : start + size])
    test.feed(b"", final=True)
    starts = {4: "utf-32", 2: "utf-16"}
    encoding = next((starts[len(one)] for one in (*MARKED[2:4], *MARKED[:2]) if data.startswith(one)), "utf-8")
    try:
        is_text = "\0" not in data.decode(encoding)
    except UnicodeDecodeError:
        is_text = False
    assert test.encoding == (encoding if is_text else "")


@pytest.mark.parametrize(
    ("mime_type", "is_text", "taken"),
    [
        ("text/plain", True, True),
        ("application/octet-stream", True, True),
        ("application/pdf", True, True),
        ("image/svg+xml", True, True),
        ("IMAGE/PNG; x=y", True, False),
        ("audio/wav", True, False),
        ("image/png", False, True),
        ("application/octet-stream", False, True),
        ("text/plain; charset=utf-16", False, False),
        ("text/plain; charset=utf-16", True, False),
        ('text/plain; x=y; charset="utf-7"', True, False),
        ("text/plain; charset=UTF-8; x=y", True, True),
        ("application/json", False, False),
        ("jsonl", False, False),
    ],
)
def test_what_is_declared_as_one_and_is_the_other_is_refused(mime_type: str, is_text: bool, taken: bool) -> None:
    try:
        require_as_declared(announced(mime_type), "utf-8" if is_text else "")
    except BadRequest:
        assert not taken
    else:
        assert taken


def test_text_of_a_file_that_may_hold_more_is_read_and_declared() -> None:
    read = read_file(announced("application/pdf"), b"%PDF-1.4 hi")
    assert (len(read.messages), [one.reason for one in read.unchecked]) == (1, [uploads.SEEN_BY_DIGEST])
    assert read_file(announced(), b"\xef\xbb\xbfhi").messages[0]["content"][0]["text"] == "hi"


REQUESTS = st.fixed_dictionaries(
    {
        "contents": st.lists(
            st.sampled_from(
                [
                    {"parts": [{"text": "a"}, {"inlineData": {"mimeType": "image/png", "data": "aaaa"}}]},
                    {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"x": "y"}}}]},
                ]
            ),
            max_size=2,
        )
    },
    optional={"cachedContent": st.just("cachedContents/c"), "labels": st.just({"k": "v"})},
)


@given(st.lists(st.tuples(REQUESTS, st.sampled_from([{}, {"key": "k1"}])), max_size=3))
def test_a_file_of_a_batch_is_the_requests_in_it(lines: list[tuple[dict[str, Any], dict[str, str]]]) -> None:
    """Each as it is read alone, with what stands beside it, and addresses that lead to the same."""
    data = b"\n\n".join(orjson.dumps({"request": request, **beside}) for request, beside in lines)
    read = read_file(announced("jsonl", name="n"), data)
    alone = [read_request(CALL, orjson.dumps(request)) for request, _ in lines]
    marked = [message for message in read.messages if "field" in str(message) and "line" in str(message)]
    assert len(marked) == sum(bool(beside) for _, beside in lines)
    said = [message for message in read.messages[1:] if message not in marked]
    assert said == [message for one in alone for message in one.messages]
    unchecked = [(one, request) for request in alone for one in request.unchecked]
    for moved, (one, request) in zip(read.unchecked, unchecked, strict=True):
        assert moved.reference == one.reference
        if one.address.startswith("messages"):
            assert value_at(read.messages, moved.address) == value_at(request.messages, one.address)


@pytest.mark.parametrize("line", [b"x", b"[]", b'{"request": 1}', b'{"a": {}}', b'{"request": {}, "request": {}}'])
def test_a_line_that_is_no_request_is_named(line: bytes) -> None:
    with pytest.raises(BadRequest, match="Line 3 of the file"):
        read_file(announced("application/jsonl"), b'{"request": {}}\n\n' + line)


def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_REQUESTS", 2)
    with pytest.raises(BadRequest, match="more than 2 lines"):
        read_file(announced("jsonl"), b'{"request": {}}\n' * 3)
