"""Model Armor as a detector, before a server that answers as the documentation of its REST API says."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gemini_proxy.config import Config, ConfigError, load_config
from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.model_armor import ModelArmorAnswerer
from gemini_proxy.guardrails.service_client import ServiceClient
from gemini_proxy.policy import Answer, Question
from gemini_proxy.server.asked_services import AskedServices, unanswerable
from tests.guardrails.test_asking import IMPORTS, judged
from tests.support.upstream import Reply, ScriptedUpstream, unary

TEMPLATE = "projects/p-1/locations/europe-west4/templates/t-1"
POLICY = (
    IMPORTS.replace("decision", "model_armor") + 'raise "armor" if:\n    (m: Message)\n    "rai" in model_armor(m)\n'
)


@pytest.fixture
async def service() -> AsyncIterator[ScriptedUpstream]:
    server = ScriptedUpstream()
    await server.start()
    yield server
    await server.stop()


def result(invocation: str = "SUCCESS", overall: str | None = None, /, **filters: str) -> dict[str, Any]:
    """An answer; each of ``filters`` with its match state. Sensitive data has one more level than the others."""
    found: dict[str, Any] = {}
    for name, state in filters.items():
        inner = {"executionState": "EXECUTION_SUCCESS", "matchState": state}
        found[name] = {f"{name}FilterResult": {"inspectResult": inner} if name == "sdp" else inner}
    overall = overall or ("MATCH_FOUND" if "MATCH_FOUND" in filters.values() else "NO_MATCH_FOUND")
    verdict = {"filterMatchState": overall, "invocationResult": invocation, "filterResults": found}
    return {"sanitizationResult": verdict}


async def answered(
    service: ScriptedUpstream, *replies: Reply, detector: str = "model_armor", times: int = 1, **options: Any
) -> Answer:
    service.reply(*replies)
    question = Question(
        detector, "text", orjson.dumps({"response": True} if options.pop("response", False) else {}).decode()
    )
    async with ServiceClient("Model Armor") as client:
        armor = ModelArmorAnswerer(client, TEMPLATE, options.pop("token", "ya29.token"), service.url, **options)
        for _ in range(times):
            answer = await armor.answer(question, None)
        return answer


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (result(rai="NO_MATCH_FOUND", sdp="NO_MATCH_FOUND"), ()),
        (result(rai="MATCH_FOUND", pi_and_jailbreak="MATCH_FOUND", csam="NO_MATCH_FOUND"), ("rai", "pi_and_jailbreak")),
        (result(sdp="MATCH_FOUND"), ("sdp",)),
        (result("PARTIAL", rai="MATCH_FOUND"), ("rai",)),
        (result("SUCCESS", "MATCH_FOUND"), ("unnamed",)),
    ],
)
async def test_filters_that_match_are_named(
    service: ScriptedUpstream, given: dict[str, Any], labels: tuple[str, ...]
) -> None:
    assert await answered(service, unary(given)) == labels
    (call,) = service.calls
    assert (call.method, call.target) == ("POST", f"/v1/{TEMPLATE}:sanitizeUserPrompt")
    assert call.headers["authorization"] == "Bearer ya29.token"
    assert call.json == {"userPromptData": {"text": "text"}}


async def test_a_response_is_asked_about_as_one(service: ScriptedUpstream) -> None:
    await answered(service, unary(result()), response=True)
    assert service.calls[0].target == f"/v1/{TEMPLATE}:sanitizeModelResponse"
    assert service.calls[0].json == {"modelResponseData": {"text": "text"}}


@pytest.mark.parametrize(("name", "found"), [("rai", True), ("csam", True), ("sdp", False)])
async def test_moderated_is_its_moderation_filters(service: ScriptedUpstream, name: str, found: bool) -> None:
    assert await answered(service, unary(result(**{name: "MATCH_FOUND"})), detector="moderated") is found


@pytest.mark.parametrize(
    "reply",
    [
        unary(result("PARTIAL", rai="NO_MATCH_FOUND")),
        unary(result("FAILURE")),
        unary(
            {
                "sanitizationResult": {
                    "filterMatchState": "FILTER_MATCH_STATE_UNSPECIFIED",
                    "invocationResult": "SUCCESS",
                }
            }
        ),
        unary({}),
        unary({"error": {"code": 403}}, status=403),
    ],
)
async def test_what_was_not_filtered_has_no_answer(service: ScriptedUpstream, reply: Reply) -> None:
    """A filter that was skipped has said nothing: that is not clean."""
    with pytest.raises(EngineUnavailable, match="Model Armor"):
        await answered(service, reply)


async def test_the_machines_token_is_asked_for_before_it_ends(service: ScriptedUpstream) -> None:
    now = iter([0.0, 3539.0, 3540.0, 3540.0])
    token = unary({"access_token": "ya29.machine", "expires_in": 3600, "token_type": "Bearer"})
    script = (token, unary(result()), unary(result()), token, unary(result()))
    await answered(service, *script, token=None, metadata=f"{service.url}/token", times=3, clock=lambda: next(now))
    assert [call.target.partition(":")[0] for call in service.calls] == [
        "/token", f"/v1/{TEMPLATE}", f"/v1/{TEMPLATE}", "/token", f"/v1/{TEMPLATE}",
    ]  # fmt: skip
    assert service.calls[0].headers["metadata-flavor"] == "Google"
    assert service.calls[1].headers["authorization"] == "Bearer ya29.machine"


async def test_a_machine_without_a_token_says_so(service: ScriptedUpstream) -> None:
    with pytest.raises(EngineUnavailable, match=r"set guardrails\.model_armor\.token"):
        await answered(service, unary({}), token=None, metadata=f"{service.url}/token")


async def test_a_policy_asks_it_as_configured(service: ScriptedUpstream) -> None:
    service.reply(unary(result(rai="MATCH_FOUND")))
    armor = {"template": TEMPLATE, "url": service.url, "token": "ya29.token"}
    config = Config.model_validate({"guardrails": {"model_armor": armor}})
    assert unanswerable(config, ("model_armor", "moderated")) == []
    async with AskedServices(config) as asked_services:
        verdict = await judged(asked_services.asking, POLICY)
    assert [violation.ranges for violation in verdict.violations] == [("messages.0.content",)]
    assert "ya29" not in repr(config)


def test_what_is_missing_for_it_is_named(tmp_path: Path) -> None:
    assert unanswerable(Config.model_construct(), ["model_armor"]) == [
        "model_armor(...) needs Model Armor: set guardrails.model_armor.template"
    ]
    file = tmp_path / "config.toml"
    file.write_text('[guardrails.model_armor]\ntemplate = "my-template"\n')
    with pytest.raises(ConfigError, match=r"guardrails\.model_armor\.template"):
        load_config(file)


def test_the_service_is_that_of_the_templates_location() -> None:
    armor = ModelArmorAnswerer(ServiceClient("Model Armor"), TEMPLATE, None)
    assert armor._url == f"https://modelarmor.europe-west4.rep.googleapis.com/v1/{TEMPLATE}"
