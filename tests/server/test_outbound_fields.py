"""Fields of a request that have Gemini send the answer, or word of it, to someone else."""

from typing import Any

import aiohttp
import pytest

from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

BODIES = [
    ({"generationOutputConfig": {"outputUriPrefix": "gs://theirs/x"}}, "generationOutputConfig.outputUriPrefix"),
    ({"output_config": {"output_uri_prefix": "gs://theirs/x"}}, "output_config.output_uri_prefix"),
    ({"webhookConfig": {"uris": ["https://theirs.example"]}}, "webhookConfig"),
    ({"generationConfig": {"webhook_uri": "https://theirs.example"}}, "generationConfig.webhook_uri"),
]
each_body = pytest.mark.parametrize(("extra", "address"), BODIES, ids=[address for _, address in BODIES])


@each_body
@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent?alt=sse", "countTokens"])
async def test_they_are_refused(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    method: str,
    extra: dict[str, Any],
    address: str,
) -> None:
    """In Google's own form, with the field and the setting by name; nothing goes upstream."""
    upstream.reply(unary(candidate("fine", "STOP")))
    proxy = await start_proxy()
    async with client.post(proxy.method(method), json={**prompt("hi"), **extra}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert f'"{address}"' in error["message"] and 'guardrails.outbound_fields = "allow"' in error["message"]
    assert upstream.calls == []


@each_body
async def test_where_they_are_allowed_rules_read_them_and_the_trace_says_so(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    extra: dict[str, Any],
    address: str,
) -> None:
    upstream.reply(stream(*sse(candidate("fine", "STOP"))))
    allowed = await start_proxy(guardrails={"outbound_fields": "allow"})
    async with client.post(allowed.stream, json={**prompt("hi"), **extra}) as response:
        assert (response.status, b"fine" in await response.read()) == (200, True)
        assert "unseen=1" in response.headers["x-gemini-proxy-guardrails"]
    trace = await allowed.trace()
    assert trace.metadata["coverage"]["not_checked"] == [
        {"address": f"request.{address}", "reason": "another destination of the response"}
    ]
    strict = await start_proxy(guardrails={"outbound_fields": "allow", "unseen_content": "block"})
    policy = 'raise "to strangers" if:\n    (m: Message)\n    "theirs" in m.content\n'
    ruled = await start_proxy(policy=policy, guardrails={"outbound_fields": "allow"})
    for proxy, reason in ((strict, "another destination of the response"), (ruled, "to strangers")):
        async with client.post(proxy.method(), json={**prompt("hi"), **extra}) as response:
            assert response.status == 400 and reason in await response.text()
