"""Doors as the configuration opens and shuts them, before a scripted upstream."""

import aiohttp

from gemini_proxy.guardrails.coverage import HEADER
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.upstream import Reply, ScriptedUpstream

POLICY = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n'


async def test_an_open_door_passes_what_it_does_not_read_and_says_so(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Bodies and responses are the client's and Gemini's own; the trace has nothing of them but that."""
    proxy = await start_proxy(policy=POLICY, doors={"triggers": "pass", "environments": "pass"})
    upstream.reply(Reply([b'{"id": "t1"}']))
    headers = {"x-goog-api-key": "AIzaDoors"}
    async with client.post(f"{proxy.url}/v1/triggers", json={"what": "Dublin"}, headers=headers) as response:
        assert (response.status, await response.json()) == (200, {"id": "t1"})
        assert "unchecked" in response.headers[HEADER]
    path = "/upload/v1/environments/e/files/a/b.txt"
    data, typed = b"\x00Dublin", {**headers, "content-type": "text/plain"}
    async with client.put(f"{proxy.url}{path}", data=data, headers=typed) as response:
        assert response.status == 200
    async with client.delete(f"{proxy.url}/v1/triggers/t1", headers=headers) as response:
        assert response.status == 200
    first, second, third = upstream.calls
    assert (first.method, first.target, first.json) == ("POST", "/v1/triggers", {"what": "Dublin"})
    assert (second.method, second.target, second.body) == ("PUT", path, data)
    assert (third.method, third.target, third.body) == ("DELETE", "/v1/triggers/t1", b"")
    trace = await proxy.trace()
    assert (trace.outcome, trace.messages) == (Outcome.UNCHECKED, [])
    assert "triggers" in trace.metadata["coverage"]["unchecked"]


async def test_what_must_be_seen_keeps_an_open_door_shut(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=POLICY, doors={"triggers": "pass"}, guardrails={"unseen_content": "block"})
    async with client.post(f"{proxy.url}/v1/triggers", json={}, headers={"x-goog-api-key": "AIzaDoors"}) as response:
        assert (response.status, upstream.calls) == (400, [])
        assert "cannot be checked" in (await response.json())["error"]["message"]


async def test_a_shut_door_is_a_404_that_says_what_opens_it(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=POLICY, doors={"tokens": "deny"})
    headers = {"x-goog-api-key": "AIzaDoors"}
    async with client.post(proxy.method("countTokens"), json={"contents": []}, headers=headers) as response:
        assert (response.status, upstream.calls) == (404, [])
        assert 'doors.tokens = "guard"' in (await response.json())["error"]["message"]
