"""What a request gives Gemini's servers to identify with elsewhere: found, and taken out for traces."""

from typing import Any

import pytest

from gemini_proxy.gemini.fields import snake_case
from gemini_proxy.policy import Conversation, compile_policy
from tests.gemini.reading import read, said, spelled

CANARY = "zqsecretqz-0123456789"


@pytest.mark.parametrize("spell", [str, snake_case], ids=["camelCase", "snake_case"])
@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"mcpServers": [{"name": "m", "streamableHttpTransport": {"headers": {"Authorization": CANARY}}}]}]},
        {"tools": {"mcpServers": {"streamableHttpTransport": {"headers": {"x-any": [CANARY, {"deep": CANARY}]}}}}},
        {"tools": {"mcpServers": {"streamableHttpTransport": {"url": f"https://x/sse?v=2&api_key={CANARY}==#a"}}}},
        {"tools": {"mcpServers": {"streamableHttpTransport": {"url": f"https://user:{CANARY}@x/sse?q"}}}},
        {"tools": {"mcpServers": {"streamableHttpTransport": {"url": f"https://x/?{CANARY}"}}}},
        {"tools": [{"exaAiSearch": {"apiKey": CANARY, "customConfigs": {"x": 1}}}]},
        {"tools": [{"parallelAiSearch": {"apiKey": CANARY}}]},
        {"tools": [{"parallelAiSearch": {"customConfigs": {"secret": [CANARY]}}}]},
        {"tools": [{"googleMaps": {"authConfig": {"apiKeyConfig": {"apiKeyString": CANARY}}}}]},
        {"tools": [{"retrieval": {"externalApi": {"apiAuth": {"apiKeyConfig": {"apiKeyString": CANARY}}}}}]},
        {"tools": [{"retrieval": {"externalApi": {"authConfig": {"oauthConfig": {"accessToken": CANARY}}}}}]},
        {"tools": [{"retrieval": {"externalApi": {"authConfig": {"oidcConfig": {"idToken": CANARY}}}}}]},
        {"tools": [{"retrieval": {"externalApi": {"authConfig": {"httpBasicAuthConfig": {"password": CANARY}}}}}]},
        {"webhookConfig": {"uris": ["https://x"], "signingSecret": CANARY}},
        {"toolConfig": {"newThing": {"clientSecret": CANARY}}},
    ],
)
def test_a_secret_is_read_by_rules_and_kept_by_no_trace(body: dict[str, Any], spell: Any) -> None:
    """Addresses into the messages stay what they are: what is kept is as long."""
    request = read(spelled({"contents": [{"parts": [{"text": "hi"}]}], **body}, spell))
    assert CANARY in said(request.messages)
    assert CANARY not in said(request.stored) + said([request.settings]) + repr(request.settings)
    assert "[redacted]" in said(request.stored)
    assert list(map(len, _texts(request.messages))) == list(map(len, _texts(request.stored)))
    assert any(CANARY in secret for secret in request.secrets)


@pytest.mark.parametrize(
    "body",
    [
        {"contents": {"parts": {"text": f"https://x/?key={CANARY}", "partMetadata": {"apiKey": CANARY}}}},
        {"contents": {"role": "model", "parts": {"functionCall": {"name": "f", "args": {"headers": {"a": CANARY}}}}}},
        {"systemInstruction": {"parts": {"text": CANARY}, "token": CANARY}},
        {"tools": {"functionDeclarations": {"name": "f", "parameters": {"properties": {"apiKey": {"title": CANARY}}}}}},
        {"generationConfig": {"responseSchema": {"properties": {"token": {"description": CANARY}}}}},
        {"labels": {"token": CANARY}},
        {"tools": {"googleSearch": {"excludeDomains": [CANARY]}}},
    ],
)
def test_what_a_model_reads_stays(body: dict[str, Any]) -> None:
    """However its fields are called: a trace holds what was said."""
    request = read(body)
    assert request.stored is request.messages and request.secrets == ()
    assert CANARY in said(request.stored)


def test_short_secrets_go_as_well_and_take_nothing_else_along() -> None:
    """A word that also stands elsewhere is no reason to take it out there."""
    tool = {"mcpServers": {"streamableHttpTransport": {"headers": {"a": "hello", "b": "", "c": 5, "d": None}}}}
    request = read({"contents": {"parts": {"text": "hello 5"}}, "tools": tool})
    assert request.stored[1] == request.messages[1] and request.secrets == ()
    assert request.stored[0]["tools"][0]["description"].split("\n")[-7:] == ["a", "*****", "b", "", "c", "*", "d"]
    headers = request.settings["tools"]["mcpServers"]["streamableHttpTransport"]["headers"]
    assert headers == {"a": "*****", "b": "", "c": "*", "d": None}


def test_the_list_of_secrets_is_in_no_repr() -> None:
    assert "secrets" not in repr(read({"tools": {"mcpServers": {"token": CANARY}}})._replace(messages=()))


def test_what_a_rule_found_is_at_the_same_place_in_what_is_kept() -> None:
    tool = {"mcpServers": {"streamableHttpTransport": {"headers": {"authorization": f"Bearer {CANARY}"}, "url": "x"}}}
    request = read({"contents": [], "tools": tool})
    policy = compile_policy(f'raise "x" if:\n    (t: Tool)\n    "{CANARY}" in t.description')
    ((address,),) = [violation.ranges for violation in policy.check(Conversation.of(request.messages))]
    path, _, place = address.partition(":")
    start, end = map(int, place.split("-"))
    assert path == "messages.0.tools.0.description"
    assert request.messages[0]["tools"][0]["description"][start:end] == CANARY
    assert request.stored[0]["tools"][0]["description"][start:end] == "ed]" + "*" * (len(CANARY) - 3)
    assert request.secrets == (f"Bearer {CANARY}", CANARY)


def _texts(value: Any) -> list[str]:
    return said(value).split("\n")
