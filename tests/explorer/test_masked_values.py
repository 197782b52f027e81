"""Values behind the placeholders of a trace: who sees them, where, and what the audit log tells of it."""

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
from click.testing import CliRunner

from gemini_proxy.cli import main
from gemini_proxy.explorer.app_keys import AUDIT
from gemini_proxy.traces.keys import Role
from gemini_proxy.traces.trace import Trace
from tests.cli.process import write_config
from tests.conftest import StartProxy
from tests.explorer.api import Api
from tests.explorer.conftest import caller
from tests.explorer.test_roles import signed_in
from tests.proxy.test_kept_values import KEPT, KEYS
from tests.proxy.test_masking import EMAIL, EVERYWHERE, OTHER, PLACEHOLDER
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary


async def masked(proxy: Proxy, session: aiohttp.ClientSession, upstream: ScriptedUpstream, key: str) -> Trace:
    """An exchange in which the client's value was masked, and one of the model's."""
    upstream.reply(unary(candidate(f"Ask {OTHER}", "STOP")))
    headers = {"x-goog-api-key": "AIzaTest", "invariant-authorization": f"Bearer {key}"}
    url = proxy.method(prefix="/api/v1/gateway/shop/gemini")
    async with session.post(url, json=prompt(f"Write to {EMAIL}"), headers=headers) as response:
        assert response.status == 200
    return await proxy.trace()


def placeholders(trace: Trace) -> list[str]:
    sent, said = re.findall(PLACEHOLDER, str(trace.messages))
    return [sent, said]


async def read_log(proxy: Proxy) -> list[tuple[str, str, Any]]:
    """Who has read which value of what."""
    entries = await proxy.app[AUDIT].of_action("value.read")
    return [(entry.by.partition(" ")[0], entry.subject, entry.described["after"]) for entry in entries]


async def test_an_operator_sees_the_value_behind_a_placeholder_and_the_audit_log_tells(
    start_proxy: StartProxy, upstream: ScriptedUpstream, session: aiohttp.ClientSession, database_url: str
) -> None:
    """By API and in the page; the user's own client key, an approver and another user do not."""
    proxy = await start_proxy(
        mask_policy=EVERYWHERE, guardrails=KEPT, access={"mode": "keys"}, traces={"database": database_url}
    )
    roles: list[Role] = ["operator", "client", "approver"]
    ann, client, approver = [await caller(proxy, session, "ann", role) for role in roles]
    bob = await caller(proxy, session, "bob")
    trace = await masked(proxy, session, upstream, client.key)
    sent, said = placeholders(trace)
    path, page = f"/trace/{trace.id}/value", f"/explorer/traces/{trace.id}"
    for api, refusal in ((client, 403), (approver, 403), (bob, 404)):
        assert (await api.refused("POST", path, {"placeholder": sent}))[0] == refusal
        browser = await signed_in(api)
        assert (await browser.post(f"{page}/value", placeholder=sent)).status == refusal
        shown = await browser.get(page)
        assert "Show the value" not in shown.body and EMAIL not in shown.body
    assert await read_log(proxy) == []
    assert await ann.post(path, {"placeholder": sent}) == {"placeholder": sent, "state": "read", "value": EMAIL}
    browser = await signed_in(ann)
    shown = await browser.get(page)
    assert "2 masked values" in shown.text and shown.body.count("Show the value</button>") == 2
    assert EMAIL not in shown.body and OTHER not in shown.body
    read = await browser.post(f"{page}/value", placeholder=said)
    assert OTHER in read.text and EMAIL not in read.body and "no-store" in read.headers["cache-control"]
    expected = [("ann", f"trace {trace.id}", {"placeholder": one}) for one in (sent, said)]
    assert await read_log(proxy) == expected
    # Nobody fetches it by an address, nor from another site.
    assert (await browser.get(f"{page}/value")).status == 404
    assert (await browser.post(f"{page}/value", {"origin": "https://evil.test"}, placeholder=sent)).status == 403
    assert (await browser.post(f"{page}/value", placeholder="hello")).status == 400
    unknown = {"placeholder": "<EMAIL_ADDRESS_0123456789>"}
    assert (await ann.post(path, unknown))["state"] == "not_kept"
    assert await read_log(proxy) == expected
    assert EMAIL not in str([entry.described for entry in await proxy.app[AUDIT].latest(100)])


async def test_a_value_that_cannot_be_read_is_said_to_be_so(
    start_proxy: StartProxy, upstream: ScriptedUpstream, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """By API and on the command line, which reads it with the right key and tells the audit log as well."""
    first = await start_proxy(mask_policy=EVERYWHERE, guardrails=KEPT)
    api = Api(session, first.url)
    trace = await masked(first, session, upstream, api.key)
    sent, _ = placeholders(trace)
    other = await start_proxy(mask_policy=EVERYWHERE, guardrails={**KEPT, "value_keys": KEYS[1]})
    foreign = Api(session, other.url)
    assert await foreign.post(f"/trace/{trace.id}/value", {"placeholder": sent}) == {
        "placeholder": sent,
        "state": "unreadable",
        "value": None,
    }
    without = Api(session, (await start_proxy()).url)
    assert (await without.post(f"/trace/{trace.id}/value", {"placeholder": sent}))["state"] == "not_kept"

    def run(**guardrails: str) -> tuple[int, str]:
        config = write_config(tmp_path, guardrails=guardrails, traces={"database": first.database})
        result = CliRunner().invoke(main, ["--config", str(config), "traces", "reveal", trace.id, sent, "--by", "eve"])
        return result.exit_code, result.output

    assert await asyncio.to_thread(run, **KEPT) == (0, f"{EMAIL}\n")
    code, said = await asyncio.to_thread(run, **{**KEPT, "value_keys": KEYS[1]})
    assert code == 1 and "not configured" in said and EMAIL not in said
    code, said = await asyncio.to_thread(run)
    assert code == 1 and "guardrails.value_keys is not set" in said
    assert await read_log(first) == [("eve", f"trace {trace.id}", {"placeholder": sent})]
