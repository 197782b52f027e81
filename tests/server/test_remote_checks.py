"""The whole proxy with ``engine = "remote"``, between a scripted Gemini and a guardrails service."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from multidict import CIMultiDict

from gemini_proxy.errors import BadRequest
from gemini_proxy.proxy.credentials import Credentials, read_credentials
from gemini_proxy.traces.trace import Outcome, Trace
from tests.conftest import StartProxy
from tests.server.test_key_leaks import stored_bytes
from tests.support.guardrails_service import GuardrailsService, guardrails_service
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import Hang, Reply, ScriptedUpstream, call_part, candidate, sse, stream, unary

NO_DUBLIN = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n'
LOG_CORK = 'raise "Cork was named" if:\n    (m: Message)\n    "Cork" in m.content\n'
NO_CORK_HEADER = {"Invariant-Guardrails": r'raise "no Cork" if:\n    (m: Message)\n    "Cork" in m.content'}
CONFIGURED = "inv-CANARY-configured-0123456789"
INVARIANT = "inv-CANARY-invariant-0123456789"
OVERRIDE = "inv-CANARY-override-0123456789"


@pytest.fixture
async def service() -> AsyncIterator[GuardrailsService]:
    async with guardrails_service() as started:
        yield started


@pytest.fixture
async def start(start_proxy: StartProxy, service: GuardrailsService) -> StartProxy:
    """Start a proxy that asks the service; ``key`` is the configured one."""

    async def started(*, key: str | None = CONFIGURED, policy: str = NO_DUBLIN, **options: Any) -> Proxy:
        remote = {"url": service.url} | ({"api_key": key} if key else {})
        guardrails = {"engine": "remote", "remote": remote, **options.pop("guardrails", {})}
        return await start_proxy(policy=policy, guardrails=guardrails, **options)

    return started


async def error_of(response: aiohttp.ClientResponse) -> Any:
    """The Google error that an answer is; fails where it is none."""
    error = (await response.json())["error"]
    assert error["code"] == response.status
    return error


async def test_allowed_bytes_are_upstreams(
    start: StartProxy, upstream: ScriptedUpstream, service: GuardrailsService, client: aiohttp.ClientSession
) -> None:
    """Request and answer are checked by the service, and what it allows passes untouched."""
    proxy = await start()
    events = sse(candidate("In "), candidate("Cork", "STOP"))
    upstream.reply(stream(*events))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        assert response.status == 200
        assert await response.read() == b"".join(events)
    request_check, final_check = service.checks
    assert request_check.json["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Where?"}]}]
    assert [message["content"] for message in final_check.json["messages"]] == [
        [{"type": "text", "text": "Where?"}],
        "In Cork",
    ]
    trace = await proxy.trace()
    assert {call.headers["X-Session-Id"] for call in service.checks} == {trace.id}
    assert trace.outcome is Outcome.COMPLETED
    assert trace.metadata["coverage"]["verdict"] == "passed" and trace.metadata["coverage"]["milliseconds"] > 0


@pytest.mark.parametrize("request_check", ["overlap", "before"])
async def test_a_request_is_refused(
    start: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, request_check: str
) -> None:
    """Beside the upstream call or before it; in its trace the rule stands at its words."""
    proxy = await start(guardrails={"request_check": request_check})
    upstream.reply(Reply(before_head=Hang()))
    async with client.post(proxy.method(), json=prompt("To Dublin")) as response:
        assert response.status == 400
        assert (await error_of(response))["message"].endswith("The request did not pass the guardrails: no Dublin")
    assert bool(upstream.calls) <= (request_check == "overlap")
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_REQUEST
    assert [(one.content, one.address) for one in trace.annotations] == [("no Dublin", "messages.0.content.0.text:3-9")]


async def test_a_unary_answer_is_refused(
    start: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start()
    upstream.reply(unary(candidate("In Dublin", "STOP")))
    async with client.post(proxy.method(), json=prompt("Where?")) as response:
        assert response.status == 400
        assert "The response did not pass the guardrails: no Dublin" in (await error_of(response))["message"]
    assert (await proxy.trace()).annotations[0].address == "messages.1.content:3-9"


async def test_a_streamed_answer_is_refused(
    start: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """What passed before stays; the last event is the refusal, and the body ends cleanly."""
    proxy = await start()
    events = sse(candidate("In "), candidate("Dublin", "STOP"))
    upstream.reply(stream(*events))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        body = await response.read()
    assert body.startswith(events[0]) and events[1] not in body
    refusal = orjson.loads(body.removeprefix(events[0]).removeprefix(b"data: "))
    assert refusal["candidates"][0]["finishReason"] == "SAFETY"
    assert (await proxy.trace()).outcome is Outcome.REFUSED_RESPONSE


async def test_a_call_waits_for_the_service(
    start: StartProxy, upstream: ScriptedUpstream, service: GuardrailsService, client: aiohttp.ClientSession
) -> None:
    """A function call does not leave before the service has seen it, and then leaves before the answer's end."""
    proxy = await start()
    rest = asyncio.Event()
    events = sse(call_part("go", city="Cork"), candidate("done", "STOP"))
    upstream.reply(stream(events[0], rest, events[1]))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        assert await response.content.readany() == events[0]
        assert service.checks[-1].json["messages"][-1]["tool_calls"][0]["function"]["name"] == "go"
        rest.set()
        assert await response.read() == events[1]


async def test_window_is_hold(
    start: StartProxy, upstream: ScriptedUpstream, service: GuardrailsService, client: aiohttp.ClientSession
) -> None:
    """Nothing leaves before the end, so that a refusal is a clean one; the trace names the rules that wait."""
    proxy = await start(guardrails={"stream_check": "window", "window_overlap": 0})
    upstream.reply(stream(*sse(candidate("In " * 500), candidate("Dublin", "STOP"))))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        body = await response.read()
    assert body.count(b"data: ") == 1 and b"no Dublin" in body
    assert len(service.checks) == 2
    coverage = (await proxy.trace()).metadata["coverage"]
    assert coverage["mode"] == "hold" and coverage["judged_only_at_the_end"] == ["test policy"]
    events = sse(candidate("In "), candidate("Cork", "STOP"))
    upstream.reply(stream(*events))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        assert await response.read() == b"".join(events)


async def test_refusals_in_a_history_are_shown_to_the_service(
    start: StartProxy, upstream: ScriptedUpstream, service: GuardrailsService, client: aiohttp.ClientSession
) -> None:
    """What a client sends back as the model's words is the client's text, whoever said it first."""
    proxy = await start()
    said = "[Invariant] The response did not pass the guardrails: no Dublin"
    history = {"contents": [{"role": "model", "parts": [{"text": said}]}, *prompt("So?")["contents"]]}
    async with client.post(proxy.method(), json=history) as response:
        assert response.status == 400
    assert service.checks[0].json["messages"][0]["content"] == said


async def test_header_rules_are_asked_with_the_others(
    start: StartProxy, upstream: ScriptedUpstream, service: GuardrailsService, client: aiohttp.ClientSession
) -> None:
    """In one call, and the violation is that of the rule it belongs to; the dataset is named."""
    proxy = await start()
    upstream.reply(unary(candidate("In Cork", "STOP")))
    url = proxy.method(prefix="/api/v1/gateway/agents/gemini")
    headers = NO_CORK_HEADER | {"invariant-authorization": f"Bearer {INVARIANT}"}
    async with client.post(url, json=prompt("Where?"), headers=headers) as response:
        assert "no Cork" in (await error_of(response))["message"]
    assert {call.json["dataset_name"] for call in service.checks} == {"agents"}
    assert {len(call.json["policies"]) for call in service.checks} == {2}
    assert (await proxy.trace()).annotations[0].guardrail["name"] == "Invariant-Guardrails"


async def test_a_policy_it_cannot_check_does_not_pass(
    start: StartProxy, upstream: ScriptedUpstream, service: GuardrailsService, client: aiohttp.ClientSession
) -> None:
    """Beside violations it is named in the trace; alone it is no verdict."""
    proxy = await start()
    service.unable = ("Cork",)
    upstream.reply(unary(candidate("fine", "STOP")))
    for text, reason in (("To Dublin", "GUARDRAIL_BLOCKED"), ("hi", "GUARDRAIL_UNAVAILABLE")):
        async with client.post(proxy.method(), json=prompt(text), headers=NO_CORK_HEADER) as response:
            assert response.status == 400
            error = await error_of(response)
        assert error["details"][0]["reason"] == reason
        if reason == "GUARDRAIL_BLOCKED":
            assert "cannot check" in (await proxy.trace()).metadata["coverage"]["unchecked"]
        else:
            assert "Invariant-Guardrails: cannot check" in error["message"]


@pytest.mark.parametrize("unavailable", ["block", "allow"])
@pytest.mark.parametrize("status", [403, 500])
async def test_an_unavailable_service(
    start: StartProxy,
    upstream: ScriptedUpstream,
    service: GuardrailsService,
    client: aiohttp.ClientSession,
    unavailable: str,
    status: int,
) -> None:
    """Refused, or passed where the configuration says so, and then recorded as not checked."""
    proxy = await start(guardrails={"unavailable": unavailable})
    service.status = status
    upstream.reply(unary(candidate("fine", "STOP")))
    async with client.post(proxy.method(), json=prompt("To Dublin")) as response:
        assert response.status == (400 if unavailable == "block" else 200)
        text = await response.text()
    trace = await proxy.trace()
    assert "CANARY" not in text
    if unavailable == "block":
        assert "GUARDRAIL_UNAVAILABLE" in text and f"HTTP {status}" in text
    else:
        assert trace.outcome is Outcome.UNCHECKED
        assert f"HTTP {status}" in trace.metadata["coverage"]["unchecked"]


async def test_a_silent_service(
    start: StartProxy, upstream: ScriptedUpstream, service: GuardrailsService, client: aiohttp.ClientSession
) -> None:
    """The time of a check is that of the configuration."""
    proxy = await start(guardrails={"timeout": 0.1})
    service.gate = asyncio.Event()
    upstream.reply(unary(candidate("fine", "STOP")))
    async with client.post(proxy.method(), json=prompt("hi")) as response:
        assert "in time" in (await error_of(response))["message"]
    service.gate.set()


@pytest.mark.parametrize("unavailable", ["block", "allow"])
@pytest.mark.parametrize("request_check", ["overlap", "before"])
@pytest.mark.parametrize("streams", [False, True])
async def test_a_key_that_is_not_accepted_is_401(
    start: StartProxy,
    upstream: ScriptedUpstream,
    service: GuardrailsService,
    client: aiohttp.ClientSession,
    unavailable: str,
    request_check: str,
    streams: bool,
) -> None:
    """Whatever the configuration lets pass, and whether or not the upstream call is under way, which then ends."""
    proxy = await start(guardrails={"unavailable": unavailable, "request_check": request_check})
    service.keys = {"another"}
    upstream.reply(Reply(before_head=Hang()))
    async with client.post(proxy.stream if streams else proxy.method(), json=prompt("hi")) as response:
        assert response.status == 401
        error = await error_of(response)
        assert error["status"] == "UNAUTHENTICATED" and "did not accept the API key" in error["message"]
        assert "verdict=refused" in response.headers["x-gemini-proxy-guardrails"]
    if upstream.calls:
        async with asyncio.timeout(5):
            await upstream.closed_by_caller.wait()
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_REQUEST
    assert trace.metadata["refusal"]["reason"] == "GUARDRAIL_UNAUTHENTICATED"


@pytest.mark.parametrize("stream_check", ["final", "hold"])
async def test_a_key_that_is_revoked_under_way(
    start: StartProxy,
    upstream: ScriptedUpstream,
    service: GuardrailsService,
    client: aiohttp.ClientSession,
    stream_check: str,
) -> None:
    """401 as long as no byte has left; after that the stream ends with a refusal."""
    proxy = await start(guardrails={"stream_check": stream_check, "request_check": "before"})
    rest = asyncio.Event()
    events = sse(candidate("In "), candidate("Cork", "STOP"))
    upstream.reply(stream(events[0], rest, events[1]))
    asking = asyncio.ensure_future(client.post(proxy.stream, json=prompt("Where?")))
    await asyncio.wait_for(upstream.called.wait(), 5)
    if stream_check == "final":
        first = await (await asking).content.readany()
        assert first == events[0]
    service.keys = set()
    rest.set()
    async with await asking as response:
        body = await response.read()
    if stream_check == "hold":
        assert response.status == 401 and orjson.loads(body)["error"]["status"] == "UNAUTHENTICATED"
    else:
        assert response.status == 200
        refusal = orjson.loads(body.removeprefix(b"data: "))
        assert "did not accept the API key" in refusal["candidates"][0]["content"]["parts"][0]["text"]
    assert (await proxy.trace()).outcome is Outcome.REFUSED_RESPONSE


@pytest.mark.parametrize(
    ("configured", "headers", "used"),
    [
        (CONFIGURED, {}, CONFIGURED),
        (CONFIGURED, {"invariant-authorization": f"Bearer {INVARIANT}"}, CONFIGURED),
        (CONFIGURED, {"invariant-guardrails-authorization": f"Bearer {OVERRIDE}"}, OVERRIDE),
        (None, {"invariant-authorization": f"Bearer {INVARIANT}"}, INVARIANT),
        (None, {"x-goog-api-key": f"AIza;invariant-auth={INVARIANT}"}, INVARIANT),
        (
            None,
            {
                "invariant-authorization": f"Bearer {INVARIANT}",
                "invariant-guardrails-authorization": f"bearer {OVERRIDE}",
            },
            OVERRIDE,
        ),
    ],
)
async def test_whose_key_is_used(
    start: StartProxy,
    upstream: ScriptedUpstream,
    service: GuardrailsService,
    client: aiohttp.ClientSession,
    configured: str | None,
    headers: dict[str, str],
    used: str,
) -> None:
    """The request's own for the service, else the configured one, else the request's Invariant key."""
    proxy = await start(key=configured)
    upstream.reply(unary(candidate("fine", "STOP")))
    async with client.post(proxy.method(), json=prompt("hi"), headers=headers) as response:
        assert response.status == 200
    assert [call.key for call in service.checks] == [used, used]


async def test_no_key_at_all_is_401(
    start: StartProxy, upstream: ScriptedUpstream, service: GuardrailsService, client: aiohttp.ClientSession
) -> None:
    """Said so, and nobody is asked: not the service, and with unavailable = "allow" not the model either."""
    proxy = await start(key=None, guardrails={"unavailable": "allow", "request_check": "before"})
    async with client.post(proxy.method(), json=prompt("hi")) as response:
        assert response.status == 401
        assert "No key for the guardrails service" in (await error_of(response))["message"]
    assert not service.calls and not upstream.calls


@pytest.mark.parametrize("value", ["Basic abc", "Bearer", "inv-1", "Bearer a b"])
async def test_a_malformed_key_is_a_bad_request(
    start: StartProxy, service: GuardrailsService, client: aiohttp.ClientSession, value: str
) -> None:
    proxy = await start()
    headers = {"invariant-guardrails-authorization": value}
    async with client.post(proxy.method(), json=prompt("hi"), headers=headers) as response:
        assert response.status == 400
        assert (await error_of(response))["message"] == "Invalid API Key format"
    assert not service.checks


def test_the_key_for_the_service() -> None:
    """Given once, in its own header, and in no repr; beside it the other keys are what they were."""
    headers = CIMultiDict({"x-goog-api-key": "K", "Invariant-Guardrails-Authorization": f"Bearer {OVERRIDE}"})
    found = read_credentials(headers, None, None, None)
    assert found == Credentials("K", None, OVERRIDE)
    assert "CANARY" not in repr(found)
    headers.add("invariant-guardrails-authorization", f"Bearer {OVERRIDE}")
    with pytest.raises(BadRequest, match="more than once"):
        read_credentials(headers, None, None, None)


async def test_logging_rules_are_asked_with_the_configured_key(
    start: StartProxy, upstream: ScriptedUpstream, service: GuardrailsService, client: aiohttp.ClientSession
) -> None:
    proxy = await start(log_policy=LOG_CORK)
    upstream.reply(unary(candidate("In Cork", "STOP")))
    headers = {"invariant-guardrails-authorization": f"Bearer {OVERRIDE}"}
    async with client.post(proxy.method(), json=prompt("Where?"), headers=headers) as response:
        assert response.status == 200
    trace = await proxy.eventually(lambda trace: trace.annotations)
    assert trace.annotations[0].address == "messages.1.content:3-7"
    assert [call.key for call in service.checks] == [OVERRIDE, OVERRIDE, CONFIGURED]


async def test_logging_rules_wait_for_the_service(
    start: StartProxy,
    upstream: ScriptedUpstream,
    service: GuardrailsService,
    client: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What lets an exchange pass unchecked does not take its logging rules for done."""
    proxy = await start(log_policy=LOG_CORK, guardrails={"unavailable": "allow"})
    service.status = 500
    upstream.reply(unary(candidate("In Cork", "STOP")))
    async with client.post(proxy.method(), json=prompt("Where?")) as response:
        assert response.status == 200

    def logged(trace: Trace) -> bool:
        fields = {"msg": "logging rules of a trace failed", "trace_id": trace.id, "error": "EngineUnavailable"}
        return any(fields.items() <= vars(record).items() for record in caplog.records)

    await proxy.eventually(logged)


async def test_policies_of_files_are_sent_ahead(start: StartProxy, service: GuardrailsService) -> None:
    """With the configured key, blocking and logging ones, before any request."""
    await start(log_policy=LOG_CORK)
    await service.until(lambda: len(service.loads) == 2)
    assert [call.json["policy"] for call in service.loads] == [NO_DUBLIN, LOG_CORK]
    assert {call.key for call in service.loads} == {CONFIGURED}


async def test_without_a_key_nothing_runs_by_itself(
    start: StartProxy, service: GuardrailsService, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator is told that logging rules have nobody to ask."""
    await start(key=None, log_policy=LOG_CORK)
    assert "logging rules cannot be checked" in caplog.text
    assert not service.calls


async def test_keys_are_nowhere_else(
    start: StartProxy,
    upstream: ScriptedUpstream,
    service: GuardrailsService,
    client: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """No key for the service goes upstream, into a log record, an answer or the trace store, whatever it answers."""
    caplog.set_level(logging.DEBUG)
    proxy = await start(log_policy=LOG_CORK)
    upstream.reply(unary(candidate("In Cork", "STOP")))
    given = {
        "invariant-authorization": f"Bearer {INVARIANT}",
        "invariant-guardrails-authorization": f"Bearer {OVERRIDE}",
    }
    seen = b""
    for status, accepted in ((200, None), (500, None), (400, None), (200, {"another"})):
        service.status, service.keys = status, accepted
        for headers in (given, {}):
            async with client.post(proxy.method(), json=prompt("Where?"), headers=headers) as response:
                seen += await response.read() + repr(response.raw_headers).encode()
    assert {OVERRIDE, CONFIGURED} <= {call.key for call in service.calls}
    seen += stored_bytes(tmp_path)
    seen += "\n".join(f"{record.getMessage()} {record.__dict__!r}" for record in caplog.records).encode()
    seen += b"".join(call.raw_head + call.body for call in upstream.calls)
    assert b"via_gateway" in seen and upstream.calls
    assert b"CANARY" not in seen
