"""Requests of the Interactions API become the messages that rules read of any request."""

from typing import Any

import orjson
import pytest

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.doors import Duty
from gemini_proxy.gemini.interactions.request import contents_of_messages, read_request
from gemini_proxy.gemini.interactions.wire import INTERACTIONS
from gemini_proxy.gemini.json_edit import json_strings
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.parts import Reference
from gemini_proxy.gemini.request import GeminiRequest
from tests.gemini.interactions.streams import call_step, text_step

TEXT_FILE = {"type": "document", "mime_type": "text/plain", "data": "YSBTRUNSRVQ="}
"""Says "a SECRET"."""


def read(**fields: Any) -> GeminiRequest:
    return read_request(orjson.dumps({"model": "gemini-3-flash", **fields}))


def user(*texts: str) -> Message:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


@pytest.mark.parametrize(
    "given",
    [
        "hi",
        {"type": "text", "text": "hi"},
        [{"type": "text", "text": "hi"}],
        [{"type": "user_input", "content": "hi"}],
        [{"type": "user_input", "content": [{"type": "text", "text": "hi"}]}],
        {"type": "user_input", "content": {"type": "text", "text": "hi"}},
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    ],
)
def test_every_form_of_an_input(given: Any) -> None:
    request = read(input=given)
    assert request.messages == (user("hi"),)
    assert not request.unchecked


def test_a_history_of_steps() -> None:
    """Each step is the event that it would be in a request of contents."""
    request = read(
        system_instruction="be brief",
        tools=[
            {
                "type": "function",
                "name": "send",
                "description": "Sends mail",
                "parameters": {"type": "object", "properties": {"token": {"type": "string"}}},
                "defer_loading": True,
            }
        ],
        input=[
            {"type": "user_input", "content": [{"type": "text", "text": "send it"}]},
            {"type": "thought", "summary": [{"type": "text", "text": "hm"}], "signature": "c2ln"},
            call_step("send", {"to": "a@b.c"}),
            {"type": "function_result", "call_id": "c1", "name": "send", "result": {"sent": True}},
            {"type": "function_result", "call_id": "c2", "name": "look", "result": [{"type": "text", "text": "seen"}]},
            text_step("done"),
            {"type": "text", "text": "more"},
            {"type": "text", "text": "yet"},
        ],
    )
    assert request.messages == (
        {
            "tools": [
                {
                    "name": "send",
                    "description": "Sends mail",
                    "inputSchema": {"type": "object", "properties": {"token": {"type": "string"}}},
                }
            ]
        },
        {"role": "system", "content": "be brief"},
        user("send it"),
        {"role": "assistant", "content": "hm", "thought": True},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "send", "arguments": {"to": "a@b.c"}}}
            ],
        },
        {"role": "tool", "tool_name": "send", "content": {"sent": True}, "tool_call_id": "c1"},
        {"role": "tool", "tool_name": "look", "content": "seen", "tool_call_id": "c2"},
        {"role": "assistant", "content": "done"},
        user("more", "yet"),
    )
    assert request.stored is request.messages and not request.unchecked
    assert contents_of_messages(orjson.dumps({"input": request_input()})) == (0, 1)


def request_input() -> list[dict[str, Any]]:
    return [text_step("a"), {"type": "text", "text": "b"}, {"type": "image", "data": "AA==", "mime_type": "image/png"}]


@pytest.mark.parametrize(
    ("fields", "address", "reference"),
    [
        (
            {"previous_interaction_id": "v1_a"},
            "request.previous_interaction_id",
            Reference("interaction", "interactions/v1_a", "v1_a"),
        ),
        (
            {"previousInteractionId": "v1_a"},
            "request.previous_interaction_id",
            Reference("interaction", "interactions/v1_a", "v1_a"),
        ),
        (
            {"previous_interaction_id": "interactions/v1_a"},
            "request.previous_interaction_id",
            Reference("interaction", "interactions/v1_a", "interactions/v1_a"),
        ),
        (
            {"cached_content": "cachedContents/c"},
            "request.cached_content",
            Reference("cache", "cachedContents/c", "cachedContents/c"),
        ),
        ({"continuation_token": "t"}, "request.continuation_token", None),
        ({"agent": "deep-research"}, "request.agent", None),
        ({"environment": "environments/e"}, "request.environment", None),
        ({"tools": [{"type": "google_search"}]}, "request.tools", None),
        (
            {"input": {"type": "image", "uri": "files/f"}},
            "messages.0.content.0",
            Reference("file", "files/f", "files/f"),
        ),
        ({"webhook_config": {"uris": ["https://a.b"]}}, "request.webhook_config", None),
        ({"response_format": {"type": "video", "gcs_uri": "gs://a"}}, "request.response_format.gcs_uri", None),
    ],
)
def test_what_no_rule_can_read_is_named(fields: dict[str, Any], address: str, reference: Reference | None) -> None:
    [unchecked] = [one for one in read(**fields).unchecked if one.address == address]
    assert unchecked.reference == reference


def test_a_token_is_of_the_interaction_that_is_named_with_it() -> None:
    request = read(previous_interaction_id="v1_a", continuation_token="t")
    assert {one.reference for one in request.unchecked} == {Reference("interaction", "interactions/v1_a", "v1_a")}


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": {"SECRET": "x"}},
        {"generation_config": {"stop_sequences": ["SECRET word"]}},
        {"generation_config": {"temperature": "SECRET word"}},
        {"generation_config": {"transcription_config": {"custom_vocabulary": ["SECRET"]}}},
        {"response_format": {"type": "text", "schema": {"description": "SECRET"}}},
        {"tools": [{"type": "mcp_server", "url": "https://a.b/SECRET"}]},
        {"tools": [{"type": "function", "name": "f", "short_description": "SECRET"}]},
        {"tools": [{"type": "function", "name": "f", "parameters": {"description": "SECRET"}}]},
        {"input": [{"type": "user_input", "note": "SECRET"}]},
        {"input": [{"type": "model_output", "content": [{"type": "text", "text": "a", "annotations": ["SECRET"]}]}]},
        {"input": [{"type": "thought", "summary": "SECRET"}]},
        {"input": [{"type": "function_result", "call_id": "c", "result": ["SECRET"]}]},
        {"input": [{"type": "code_execution_result", "call_id": "c", "result": "SECRET"}]},
        {"input": [{"type": "function_result", "call_id": "c", "result": [{"a": 1}, TEXT_FILE]}]},
        {"input": [{"type": "function_call", "name": "f", "arguments": {}, "call_id": "a SECRET"}]},
        {"input": [{"type": "function_result", "call_id": "c", "result": "", "id": "a SECRET"}]},
        {"input": [{"type": "code_execution_call", "id": "c", "name": "SECRET", "arguments": {}}]},
        {"input": [{"type": "thought", "signature": "a SECRET"}]},
        {"input": [{"type": "unknown", "words": ["SECRET"]}]},
        {"input": [{"words": "SECRET"}]},
        {"some_new_field": {"words": "SECRET"}},
        {"agent_config": {"type": "deep-research", "note": "SECRET"}},
    ],
)
def test_every_string_is_text(fields: dict[str, Any]) -> None:
    assert b"SECRET" in orjson.dumps(read(**fields).messages)


def test_secrets_are_not_stored() -> None:
    """Keys in tools and values of an environment are checked and neither kept in messages nor in settings."""
    canary = "AIzaCanary0123456789"
    request = read(
        input="hi",
        tools=[
            {"type": "mcp_server", "url": "https://a.b", "headers": {"x": canary}},
            {"type": "retrieval", "exa_ai_search_config": {"api_key": canary}},
        ],
        environment={"type": "remote", "env": {"A": {"value": canary}}},
    )
    assert canary.encode() in orjson.dumps(request.messages)
    assert canary.encode() not in orjson.dumps([request.stored, request.settings])
    assert canary in request.secrets


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"input":"a","input":"b"}',
        b'{"system_instruction":"a","systemInstruction":"b"}',
        b'{"input":7}',
        b'{"input":["a"]}',
        b'{"input":[{"type":7}]}',
        b'{"input":{"type":"text","text":7}}',
        b'{"input":{"type":"function_call","arguments":"x"}}',
        b'{"tools":"x"}',
        b'{"previous_interaction_id":7}',
        b'{"previous_interaction_id":" v1_a"}',
        b'{"previous_interaction_id":"v1%5Fa"}',
        b'{"previous_interaction_id":"interactions/interactions/v1_a"}',
    ],
)
def test_what_can_be_read_two_ways_or_not_at_all(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_request(body)


def test_what_the_body_says_of_the_call() -> None:
    request = read(input="a", stream=True, response_format={"type": "text", "mime_type": "application/json"})
    assert (request.model, request.streams, request.structured) == ("gemini-3-flash", True, True)
    assert not read(input="a").structured and not read(input="a").streams


def test_which_strings_may_be_masked() -> None:
    """Those that the model reads as text: no id, type, name or signature."""
    body = orjson.dumps(
        {
            "model": "x",
            "system_instruction": "SECRET",
            "labels": {"a": "x"},
            "tools": [{"type": "x", "name": "x", "description": "SECRET"}],
            "input": [
                {"type": "x", "content": [{"type": "x", "text": "SECRET"}, {"data": "x", "mime_type": "x"}]},
                {"type": "x", "id": "x", "name": "x", "arguments": {"id": "SECRET"}, "signature": "x"},
                {"type": "x", "call_id": "x", "result": [{"name": "SECRET"}]},
            ],
        }
    )
    texts = [string.text for string in json_strings(body) if INTERACTIONS.is_request_text(string.path)]
    assert texts == ["SECRET"] * 5
    contents = [INTERACTIONS.content_of(string.path) for string in json_strings(body) if string.text == "SECRET"]
    assert contents == [None, None, 0, 1, 2]


def test_a_request_for_an_interaction() -> None:
    """Its query says whether it streams; what it was asked, and what came before an event, is unchecked."""
    duties = {"interactions": Duty.GUARD}
    call = read_call("GET", "/v1/interactions/v1_a?stream=true&last_event_id=7", duties)
    assert call.upstream_target == "/v1/interactions/v1_a?stream=true&last_event_id=7"
    request = INTERACTIONS.read_request(call, b"")
    assert request.streams and [one.address for one in request.unchecked] == ["request.id", "request.last_event_id"]
    with pytest.raises(BadRequest):
        INTERACTIONS.read_request(call, b'{"input":"a"}')
    twice = read_call("GET", "/v1/interactions/v1_a?stream=true&stream=false", duties)
    with pytest.raises(BadRequest):
        INTERACTIONS.read_request(twice, b"")
