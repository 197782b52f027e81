"""What a request refers to, put before its own messages."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.parts import Reference, Unchecked, file_media
from gemini_proxy.gemini.references import Earlier, after_earlier, references_of
from gemini_proxy.gemini.request import GeminiRequest, read_request
from gemini_proxy.guardrails.addresses import value_at

CALL = read_call("POST", "/v1beta/models/m:generateContent")
FILE = "https://generativelanguage.googleapis.com/v1beta/files/abc"

PARTS = st.sampled_from(
    [
        {"text": "a"},
        {"fileData": {"fileUri": FILE, "mimeType": "text/plain"}},
        {"fileData": {"fileUri": "files/other", "mimeType": "text/plain"}},
        {"fileData": {"fileUri": "https://example.com/x", "mimeType": "text/plain"}},
        {"inlineData": {"mimeType": "image/png", "data": "aaaa"}},
        {"functionResponse": {"name": "f", "response": {}, "parts": [{"fileData": {"fileUri": "files/abc"}}]}},
    ]
)
BODIES = st.fixed_dictionaries(
    {"contents": st.lists(st.fixed_dictionaries({"parts": st.lists(PARTS, max_size=3)}), max_size=3)},
    optional={"cachedContent": st.sampled_from(["cachedContents/c", "c", "projects/p/locations/l/cachedContents/c"])},
)
MESSAGES = st.lists(st.builds(lambda text: {"role": "user", "content": text}, st.text(max_size=3)), max_size=3)
EARLIER = st.builds(
    lambda messages, unread: Earlier(tuple(messages), (Unchecked("messages.0.content", "x"),), unread),
    MESSAGES,
    st.sampled_from(["", "a file seen only by digest"]),
)


def read(body: dict[str, Any]) -> GeminiRequest:
    return read_request(CALL, orjson.dumps(body))


@given(BODIES, st.data())
def test_the_requests_own_messages_and_addresses_follow_what_stands_before(
    body: dict[str, Any], data: st.DataObject
) -> None:
    request = read(body)
    references = references_of(request)
    known = {reference: data.draw(EARLIER) for reference in references if data.draw(st.booleans())}
    whole = after_earlier(request, known)
    before = [message for earlier in known.values() for message in earlier.messages]
    assert list(whole.messages) == [*before, *request.messages]
    assert list(whole.stored) == [*before, *request.stored]
    assert whole.earlier == len(before)
    own = whole.unchecked[len(known) :]
    left = [
        one
        for one in request.unchecked
        if one.reference is None or one.reference not in known or known[one.reference].unread
    ]
    assert len(own) == len(left)
    for moved, one in zip(own, left, strict=True):
        if one.address.startswith("messages."):
            assert value_at(whole.messages, moved.address) == value_at(request.messages, one.address)
        else:
            assert moved.address == one.address


def test_messages_of_several_references_come_once() -> None:
    request = read({"contents": [{"parts": [{"fileData": {"fileUri": FILE}}, {"fileData": {"fileUri": "files/abc"}}]}]})
    once = Earlier(({"role": "user", "content": "text"},))
    known = dict.fromkeys(references_of(request), once)
    assert len(known) == 2
    whole = after_earlier(request, known)
    assert (whole.earlier, whole.unchecked) == (1, ())


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (FILE, "files/abc"),
        (f"{FILE}:download?alt=media", "files/abc"),
        ("files/abc", "files/abc"),
        ("http://localhost:8005/v1/files/a-b_c", "files/a-b_c"),
        ("https://example.com/a.txt", None),
        ("gs://bucket/files/abc", None),
        (f"{FILE}/../x", ""),
        (f"{FILE}?x=files/abc", ""),
        (FILE.replace("files", "%66iles"), ""),
        (FILE.replace("/v1beta", "//v1beta").replace("https", "HTTPS"), ""),
        ("/v1beta/files/abc", ""),
        (" files/abc", ""),
        ("https://youtu.be/files/abc#x", None),
        ("files/" + "a" * 129, ""),
    ],
)
def test_names_of_files(uri: str, name: str | None) -> None:
    reference = file_media({"fileUri": uri, "mimeType": "text/plain"}).reference
    assert reference == (None if name is None else Reference("file", name, uri, mime_type="text/plain" if name else ""))


@pytest.mark.parametrize(
    "cached", ["cachedContents/", "cachedContents/a/b", "cachedContents/a%2Fb", 7, ["c"], " c", "/cachedContents/a"]
)
def test_what_may_be_read_as_a_name_of_a_cache_and_is_none_is_refused(cached: object) -> None:
    """It could name another user's."""
    with pytest.raises(BadRequest, match="name of a cache"):
        read({"contents": [], "cachedContent": cached})
