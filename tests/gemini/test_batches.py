"""Batches as they are begun, and what has come of them."""

from typing import Any

import orjson
import pytest

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.batches import FILE, BatchReader, has_output, read_batch, without_output
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.parts import Reference
from tests.gemini.reading import said


def begun(source: dict[str, Any], **fields: Any) -> bytes:
    return orjson.dumps({"batch": {"inputConfig": source, **fields}})


def inline(*requests: Any) -> dict[str, Any]:
    return {"requests": {"requests": list(requests)}}


def text(said: str) -> dict[str, Any]:
    return {"contents": [{"parts": [{"text": said}]}]}


def test_requests_are_read_behind_each_other() -> None:
    found = read_batch(
        begun(
            inline(
                {"request": text("one"), "metadata": {"key": "first"}},
                {"request": {"contents": [{"parts": [{"fileData": {"fileUri": "files/a"}}]}]}},
                {"request": {"content": {"parts": [{"text": "embedded"}]}, "title": "named"}},
            ),
            displayName="shown",
        )
    )
    assert {"one", "first", "embedded", "named", "shown"} <= set(said(found.messages).split())
    [unread] = found.unchecked
    index = int(unread.address.split(".")[1])
    assert found.messages[index]["content"][0]["type"] == "file"
    assert found.settings == {"displayName": "shown"}


def test_a_file_of_requests_is_a_reference() -> None:
    for name in ("fileName", "file_name"):
        [unread] = read_batch(begun({name: "files/abc"})).unchecked
        assert (unread.address, unread.reference) == (FILE, Reference("file", "files/abc", "files/abc", True))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"{}", "either in"),
        (begun({}), "either in"),
        (begun({**inline(), "fileName": "files/a"}), "either in"),
        (begun({"fileName": "gs://bucket/a"}), "must name an uploaded file"),
        (begun(inline({"request": text("a")}, {"contents": []})), "Request 2 of the batch"),
        (begun(inline({"request": {"contents": [{"parts": [{"text": 1}]}]}})), "Request 1 of the batch"),
        (begun(inline("a")), "must be an object"),
        (begun(inline(*[{"request": {}}] * 10_001)), "more than 10000 requests"),
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes, fault: str) -> None:
    with pytest.raises(BadRequest, match=fault):
        read_batch(body)


def test_where_results_would_go_is_named() -> None:
    hook = {"uris": ["https://a.example"]}
    assert read_batch(begun(inline(), webhookConfig=hook)).outbound == ("webhookConfig",)
    inner = {"request": {**text("a"), "generationOutputConfig": {"outputUriPrefix": "gs://b"}}}
    assert read_batch(begun(inline(inner))).outbound == ("generationOutputConfig.outputUriPrefix",)


PENDING = {"name": "batches/a", "metadata": {"@type": "x", "state": "BATCH_STATE_PENDING", "displayName": "mine"}}


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        (PENDING, False),
        ({**PENDING, "done": True}, False),
        ({"name": "a", "metadata": {"inputConfig": {"fileName": "files/a"}}}, False),
        ({"name": "a", "metadata": {"inputConfig": {"requests": {}}}}, True),
        ({**PENDING, "response": {}}, True),
        ({"name": "a", "metadata": {"displayName": "the owner's own"}}, False),
        ({"name": "a", "metadata": {"state": "some text"}}, True),
        ({**PENDING, "error": {"message": "no"}}, True),
        ({"name": "a", "metadata": {"output": {}}}, True),
        ({"name": "a", "metadata": []}, True),
    ],
)
def test_output_is_whatever_is_not_known_to_be_none(answer: dict[str, Any], output: bool) -> None:
    assert has_output(orjson.dumps(answer)) is output
    assert has_output(orjson.dumps(answer) + b" " * 70_000)


def test_a_page_has_no_output() -> None:
    full = {"name": "b", "done": True, "response": {"x": "secret"}, "metadata": {"state": "S", "output": "secret"}}
    page = without_output(orjson.dumps({"operations": [full, PENDING], "nextPageToken": "t"}))
    left = {"name": "b", "done": True, "metadata": {"state": "S"}}
    assert orjson.loads(page) == {"operations": [left, PENDING], "nextPageToken": "t"}


@pytest.mark.parametrize("page", [b"[]", b"x", b'{"operations":{}}', b'{"operations":["a"]}'])
def test_other_pages_are_not_passed_on(page: bytes) -> None:
    with pytest.raises(DecodeError):
        without_output(page)


@pytest.mark.parametrize(
    "output",
    [
        {"inlinedResponses": "a"},
        {"inlinedResponses": {"inlinedResponses": "a"}},
        {"inlinedResponses": {"inlinedResponses": ["a"]}},
        {"inlinedResponses": [{"response": {"candidates": "a"}}]},
        {"inlinedResponses": [{"response": {"candidates": [{"content": "a"}]}}]},
        {"inlinedResponses": [{"response": {"candidates": [{"content": {"parts": "a"}}]}}]},
        {"inlinedResponses": [], "inlined_responses": []},
    ],
)
def test_responses_of_another_shape_are_not_passed_on(output: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        for payload in BatchReader().read({"metadata": {"output": output}}):
            Merger().add(payload)


@pytest.mark.parametrize(
    "beside", [{"modelVersion": "some text"}, {"usageMetadata": {"totalTokenCount": 1, "note": ["some text"]}}]
)
def test_what_counts_is_text_where_it_says_something(beside: dict[str, Any]) -> None:
    answers = [{"response": {"candidates": [], **beside}}]
    [told] = BatchReader().read({"response": {"inlinedResponses": {"inlinedResponses": answers}}})
    assert "some text" in str(told)
    plain = {"usageMetadata": {"totalTokenCount": 1, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1}]}}
    [told] = BatchReader().read({"response": {"inlinedResponses": [{"response": plain}]}})
    assert "usageMetadata" not in str(told)


def test_responses_do_not_run_into_each_other() -> None:
    answers = [{"response": {"candidates": [{"content": {"parts": [{"text": piece}]}}]}} for piece in ("Dub", "lin")]
    merger = Merger()
    for payload in BatchReader().read({"response": {"inlinedResponses": {"inlinedResponses": answers}}}):
        merger.add(payload)
    [found] = merger.candidates
    assert [part["text"] for part in found.parts if "text" in part] == ["Dub", "lin"]
    assert merger.finished()
