"""Alerts of a running server: from an exchange to a webhook."""

import asyncio
import logging

import aiohttp
import orjson
import pytest

from tests.conftest import StartProxy
from tests.explorer.asking import PAY, PAYMENTS
from tests.support.proxy import prompt
from tests.support.upstream import Reply, ScriptedUpstream, candidate, unary
from tests.support.webhook import webhook_double

NO_CANARY = """
raise "said CANARY" if:
    (m: Message)
    m.role == "user"
    "CANARY" in m.content
"""


async def metrics(client: aiohttp.ClientSession, url: str) -> str:
    async with client.get(f"{url}/metrics") as response:
        return await response.text()


async def test_what_happens_is_told_and_secrets_are_not(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A refusal, an upstream that fails, an approval that waits; nothing of the URL in logs, metrics and readiness."""
    caplog.set_level(logging.DEBUG)
    async with webhook_double() as webhook, webhook_double() as broken:
        broken.status = 500
        chosen = {"url": webhook.url, "silence": 1}
        proxy = await start_proxy(
            policy=NO_CANARY,
            ask_policy=PAYMENTS,
            guardrails={"ask_timeout": 30},
            limits={"input_tokens_per_day": 5},
            explorer={"public_url": "https://p.example"},
            alerts=[
                {"name": "all", "on": ["refusals", "upstream_errors", "approval_waiting", "budget_spent"], **chosen},
                {"name": "others", "on": ["refusals"], "guardrails": ["another.gr"], **chosen},
                {"name": "broken", "on": ["refusals"], "url": broken.url},
            ],
        )
        async with client.post(proxy.method(), json=prompt("CANARY AIza" + "c" * 35)) as response:
            assert response.status == 400
        trace = await proxy.trace()
        [refusal] = await webhook.until(1)
        assert refusal["text"] == "gemini-proxy: 1 exchange was refused by test policy."
        assert refusal["url"] == f"https://p.example/explorer/traces/{trace.id}"
        upstream.reply(Reply([b"{}"], 503))
        key = {"invariant-authorization": "Bearer inv-" + "a" * 64}
        dataset = proxy.method(prefix="/api/v1/gateway/shop/gemini")
        async with client.post(dataset, json=prompt("hi"), headers=key) as response:
            assert response.status == 503
        told = (await webhook.until(2))[1]
        assert (told["key"], told["example"]["dataset"]) == ("503", "shop")
        upstream.reply(unary(PAY))
        asking = asyncio.create_task(client.post(proxy.method(), json=prompt("Pay them")))
        waiting = (await webhook.until(3))[2]
        assert waiting["type"] == "approval_waiting"
        assert waiting["url"].startswith("https://p.example/explorer/approvals#")
        asking.cancel()
        upstream.reply(unary({**candidate("hi", "STOP"), "usageMetadata": {"promptTokenCount": 7}}))
        statuses = []
        for _ in range(2):
            async with client.post(proxy.method(), json=prompt("hi")) as response:
                statuses.append(response.status)
        assert statuses == [200, 429]
        spent = (await webhook.until(4))[3]
        assert (spent["type"], spent["key"], spent["count"]) == ("budget_spent", "input_tokens", 1)
        while broken.calls < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        async with client.get(f"{proxy.url}/readyz") as response:
            assert (response.status, orjson.loads(await response.read())["alerts"]) == (200, {"broken": "server_error"})
        shown = await metrics(client, proxy.url)
        assert 'gemini_proxy_alerts_sent_total{alert="all"} 4.0' in shown
        assert 'gemini_proxy_alert_failures_total{alert="broken",reason="server_error"}' in shown
        said = b"".join(body for _, body in webhook.received)
        assert b"CANARY" not in said and b"AIza" not in said and b"ACME" not in said
        logged = "".join(str(vars(record)) for record in caplog.records if record.name.startswith("gemini_proxy"))
        assert "xoxb" not in logged + shown and webhook.calls == 4


async def test_without_alerts_nothing_is_noted(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=NO_CANARY)
    async with client.post(proxy.method(), json=prompt("CANARY")) as response:
        assert response.status == 400
    upstream.reply(unary(candidate("hi", "STOP")))
    shown = await metrics(client, proxy.url)
    assert "gemini_proxy_alerts_sent_total{" not in shown
