"""What the OpenAI path's requests say is read as the same contents in Gemini's own words are."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.openai.request import messages_read, read_chat, read_embeddings
from gemini_proxy.gemini.parts import Reference
from gemini_proxy.gemini.request import GeminiRequest
from tests.gemini.reading import read, said

CALLS = [{"id": "c1", "type": "function", "function": {"name": "send", "arguments": '{"to":"a@b.de"}'}}]
PIXEL = "iVBORw0KGgo="


def chat(*messages: Mapping[str, Any], **fields: Any) -> GeminiRequest:
    """Return a chat with these messages as it is read."""
    return read_chat(orjson.dumps({"model": "m", "messages": messages, **fields}))


def test_a_conversation_is_read_as_in_geminis_words() -> None:
    found = chat(
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
        {"role": "assistant", "content": "On it.", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "c1", "content": "sent"},
        {"role": "assistant", "content": "Done."},
        tools=[{"type": "function", "function": {"name": "send", "description": "Sends.", "parameters": {}}}],
        stop=["END"],
    )
    same = read(
        {
            "tools": [{"functionDeclarations": [{"name": "send", "description": "Sends.", "parameters": {}}]}],
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Hi"}, {"text": "!"}]},
                {
                    "role": "model",
                    "parts": [
                        {"text": "On it."},
                        {"functionCall": {"id": "c1", "name": "send", "args": {"to": "a@b.de"}}},
                    ],
                },
                {
                    "role": "user",
                    "parts": [{"functionResponse": {"id": "c1", "name": "send", "response": {"result": "sent"}}}],
                },
                {"role": "model", "parts": [{"text": "Done."}]},
            ],
        }
    )
    assert [message for message in found.messages if "field" not in message] == list(same.messages)
    assert [message["field"] for message in found.messages if "field" in message] == ["request.stop"]
    assert found.unchecked == ()


def test_places_name_the_message_of_each_message() -> None:
    body = {
        "model": "m",
        "user": "u",
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "assistant", "content": "a", "reasoning_content": "r", "tool_calls": CALLS},
            {"role": "user", "name": "Ann", "content": "u"},
        ],
    }
    raw = orjson.dumps(body)
    places = messages_read(raw)
    assert len(places) == len(read_chat(raw).messages)
    assert places == (None, None, 0, 1, 1, 1, 2, 2)


@pytest.mark.parametrize(
    ("part", "unchecked"),
    [
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}, "inline image/png"),
        ({"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}, "a file behind a URI"),
        ({"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}}, "inline audio/wav"),
        ({"type": "file", "file": {"file_id": "files/1"}}, "a file behind a URI"),
    ],
)
def test_media_are_declared(part: Mapping[str, Any], unchecked: str) -> None:
    found = chat({"role": "user", "content": [{"type": "text", "text": "See"}, part]})
    [one] = found.unchecked
    assert (one.address, one.reason) == ("messages.0.content.1", unchecked)
    assert (one.reference is not None) == ("file_id" in str(part))


def test_a_file_of_text_is_read() -> None:
    file = {"file_data": "data:text/plain;base64,aGlkZGVu", "filename": "a.txt"}
    assert "hidden" in said(chat({"role": "user", "content": [{"type": "file", "file": file}]}).messages)


def test_signatures_are_no_text() -> None:
    signed = {"google": {"thought_signature": "c2lnbmF0dXJl" * 99, "thought": True}}
    call = {**CALLS[0], "extra_content": signed}
    found = chat({"role": "assistant", "content": "a", "extra_content": signed, "tool_calls": [call]})
    assert "c2ln" not in said(found.messages)
    other = chat({"role": "user", "content": "a", "extra_content": {"google": {"note": "read me"}}})
    assert "read me" in said(other.messages)


def test_a_cache_is_declared_in_both_places() -> None:
    google = {"google": {"cached_content": "cachedContents/1", "thinking_config": {"thinking_budget": 9}}}
    for fields in ({"extra_body": google}, google):
        [found] = chat(**fields).unchecked
        assert found.reason == "cached content"
        assert found.reference == Reference("cache", "cachedContents/1", "cachedContents/1")


def test_settings_of_the_call() -> None:
    found = chat(n=2, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}})
    assert (found.candidate_count, found.structured) == (2, True)
    assert (chat().candidate_count, chat(response_format={"type": "text"}).structured) == (None, False)


def test_keys_for_servers_stay_out_of_traces() -> None:
    key = "sk-canary-0123456789"
    tool = {"type": "mcp", "server_url": "https://a.example", "headers": {"Authorization": f"Bearer {key}"}}
    found = chat({"role": "user", "content": "hi"}, tools=[tool])
    assert key in said(found.messages)
    assert key not in said(found.stored)
    assert key not in str(found.settings)
    assert [one.reason for one in found.unchecked] == ["mcp runs at the provider"]


def test_parameters_of_tools_are_no_secrets() -> None:
    parameters = {"type": "object", "properties": {"password": {"type": "string"}}}
    found = chat(tools=[{"type": "function", "function": {"name": "login", "parameters": parameters}}])
    assert found.stored is found.messages
    assert found.messages[0]["tools"][0]["inputSchema"] == parameters


def test_embeddings_are_read() -> None:
    def embed(given: Any) -> GeminiRequest:
        return read_embeddings(orjson.dumps({"model": "m", "input": given, "user": "u1"}))

    assert {"one", "two", "u1"} <= set(said(embed(["one", "two"]).messages).split())
    assert "one" in said(embed("one").messages)
    assert [one.reason for one in embed([[1, 2]]).unchecked] == ["text given as tokens"]


def test_both_spellings_are_read() -> None:
    call = {"id": "c1", "function": {"name": "send", "arguments": "{}"}}
    for name in ("toolCalls", "tool_calls"):
        assert chat({"role": "assistant", name: [call]}).messages[0]["tool_calls"][0]["function"]["name"] == "send"
    with pytest.raises(BadRequest):
        chat({"role": "assistant", "toolCalls": [], "tool_calls": [call]})


@pytest.mark.parametrize(
    "message",
    [
        {"role": "owner", "content": "x"},
        {"content": "x"},
        {"role": "user", "content": 1},
        {"role": "user", "content": [{"type": "image_url", "image_url": 1}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a":1,"a":2}'}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "assistant", "tool_calls": "f"},
    ],
)
def test_what_cannot_be_read_is_refused(message: Mapping[str, Any]) -> None:
    with pytest.raises(BadRequest):
        chat(message)
