"""What answers say of things that Gemini keeps."""

import time

import orjson
import pytest

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.kept import names_in, page_of, read_change, read_kept


@pytest.mark.parametrize(
    ("answer", "name", "lasts"),
    [
        ({"name": "cachedContents/c"}, "cachedContents/c", 3_600),
        ({"file": {"name": "files/f"}}, "files/f", 172_800),
        ({"name": "files/f", "expirationTime": "soon"}, "files/f", 172_800),
        ({"name": "cachedContents/c", "expireTime": 5}, "cachedContents/c", 3_600),
    ],
)
def test_what_was_made(answer: object, name: str, lasts: float) -> None:
    kept = read_kept(orjson.dumps(answer))
    assert kept is not None
    assert (kept.name, round((kept.expires - time.time() - lasts) / 600)) == (name, 0)


def test_an_end_that_google_names_holds() -> None:
    kept = read_kept(b'{"name": "cachedContents/c", "expireTime": "2030-01-01T00:00:00.123456789Z"}')
    assert kept is not None
    assert int(kept.expires) == 1_893_456_000


@pytest.mark.parametrize("answer", [b"", b"[]", b"x", b"{}", b'{"name": 1}', b'{"name": ""}', b'{"file": {}}'])
def test_what_names_nothing_was_not_made(answer: bytes) -> None:
    assert read_kept(answer) is None
    assert read_kept(orjson.dumps({"name": "c" * 513})) is None


@pytest.mark.parametrize(
    "body", [b'{"ttl": "60s"}', b'{"name": "cachedContents/c", "expire_time": "2030-01-01T00:00:00Z"}']
)
def test_when_a_cache_ends_can_be_changed(body: bytes) -> None:
    assert "name" not in orjson.loads(read_change(body))


@pytest.mark.parametrize(
    "body", [b'{"contents": []}', b'{"ttl": "60s", "displayName": "x"}', b'{"ttl": {"text": "x"}}', b"[]", b"x"]
)
def test_nothing_else_can_be(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_change(body)


def test_a_page_has_what_is_to_be_seen_and_all_else_of_it() -> None:
    body = b'{ "files": [{"name": "files/a"}, {"name": "files/b", "x": 1}, {}], "nextPageToken": "t" }'
    assert names_in(body, "files") == ["files/a", "files/b"]
    assert orjson.loads(page_of(body, "files", {"files/b"})) == {
        "files": [{"name": "files/b", "x": 1}],
        "nextPageToken": "t",
    }
    whole = b'{ "files": [{"name": "files/a"}] }'
    assert page_of(whole, "files", {"files/a"}) == whole
    assert page_of(b"{}", "files", set()) == b"{}"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"files": {}}', b'{"files": ["files/a"]}'])
def test_a_page_that_cannot_be_read_is_not_passed_on(body: bytes) -> None:
    with pytest.raises(DecodeError):
        names_in(body, "files")
