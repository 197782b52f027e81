"""The page of approvals: what is shown of what waits, and who decides it with which form."""

import re
from typing import Any

import aiohttp
import pytest

from gemini_proxy.explorer.app_keys import APPROVALS
from gemini_proxy.traces.approvals import ApprovalRequest
from gemini_proxy.traces.keys import Role
from tests.conftest import StartProxy
from tests.explorer.asking import PAY, PAYMENTS, UNKNOWN, asked_for, waiting_call
from tests.explorer.browsing import Browser, Page, mine, record
from tests.explorer.conftest import caller
from tests.support.proxy import Proxy
from tests.support.upstream import ScriptedUpstream, unary

PATH = "/explorer/approvals"


async def signed_in(proxy: Proxy, session: aiohttp.ClientSession, user: str, role: Role) -> Browser:
    """A browser of somebody with a new key of that role."""
    browser = Browser(session, proxy.url)
    api = await caller(proxy, session, user, role)
    assert (await browser.post("/explorer/sign-in", key=api.key, next=PATH)).location == PATH
    return browser


def waits(page: Page) -> list[str]:
    """The ids of what a page shows as waiting."""
    return re.findall(r'<article class="policy-card approval" id="(\w+)"', page.body)


async def state(proxy: Proxy, approval_id: str) -> str:
    found = await proxy.app[APPROVALS].get(approval_id)
    assert found is not None
    return found.state


async def test_a_call_is_allowed_in_the_page(
    start_proxy: StartProxy, upstream: ScriptedUpstream, session: aiohttp.ClientSession, database_url: str
) -> None:
    """From the queue to the client's response; without a script."""
    upstream.reply(unary(PAY))
    asking = await start_proxy(ask_policy=PAYMENTS, access={"mode": "keys"}, traces={"database": database_url})
    client = await caller(asking, session, "bot", "client")
    ada = await signed_in(asking, session, "ada", "approver")
    assert "No approvals are waiting" in (await ada.get(PATH)).text
    async with waiting_call(asking, client.key) as (approval, call):
        page = await ada.get(PATH)
        assert waits(page) == [approval.id]
        for said in ("a payment", "test ask policy", "user bot", "Call of pay", '"to": "ACME"', '"amount": 12'):
            assert said in page.text
        assert '<span class="count" title="Approvals that wait">1</span>' in (await ada.get("/explorer")).body
        done = await ada.post(f"{PATH}/{approval.id}", decision="once")
        assert (done.status, done.location) == (303, PATH)
        assert (await call)[0] == 200
    page = await ada.get(PATH)
    assert waits(page) == [] and re.search(r"allowed.*by ada \(key \w+\)", page.text, re.DOTALL)
    assert 'class="count"' not in page.body
    [kept] = (await asking.trace()).metadata["approvals"]
    assert (kept["state"], kept["decided_by"][:9]) == ("allowed", "ada (key ")


async def test_a_denial_is_shown_with_its_reason(closed: Proxy, session: aiohttp.ClientSession) -> None:
    ada, approval = await signed_in(closed, session, "ada", "approver"), await asked_for(closed.app[APPROVALS], "bot")
    await ada.post(f"{PATH}/{approval.id}", decision="deny", reason=" <ask> accounting ")
    found = await closed.app[APPROVALS].get(approval.id)
    assert found is not None and (found.state, found.reason) == ("denied", "<ask> accounting")
    page = await ada.get(PATH)
    assert "denied" in page.text and "&lt;ask&gt; accounting" in page.body


async def test_an_hour_is_an_hour(closed: Proxy, session: aiohttp.ClientSession) -> None:
    ada, approval = await signed_in(closed, session, "ada", "approver"), await asked_for(closed.app[APPROVALS], "bot")
    await ada.post(f"{PATH}/{approval.id}", decision="hour")
    found = await closed.app[APPROVALS].get(approval.id)
    assert found is not None and found.decided_at is not None
    assert found.until - found.decided_at == 3600
    assert "allowed until" in (await ada.get(PATH)).text


async def test_a_conversation_is_allowed_where_it_is_known(closed: Proxy, session: aiohttp.ClientSession) -> None:
    ada, approvals = await signed_in(closed, session, "ada", "approver"), closed.app[APPROVALS]
    await asked_for(approvals, "eve")
    assert "in this conversation" not in (await ada.get(PATH)).text
    approval = await asked_for(approvals, "bot", conversation="c1")
    assert "in this conversation" in (await ada.get(PATH)).text
    await ada.post(f"{PATH}/{approval.id}", decision="conversation")
    found = await approvals.get(approval.id)
    assert found is not None and (found.state, found.for_conversation, found.until) == ("allowed", True, 0.0)
    assert "allowed in its conversation" in (await ada.get(PATH)).text


async def test_what_is_too_late_or_is_no_decision_is_said(closed: Proxy, session: aiohttp.ClientSession) -> None:
    ada, approvals = await signed_in(closed, session, "ada", "approver"), closed.app[APPROVALS]
    approval, expired = await asked_for(approvals, "bot"), await asked_for(approvals, "eve", seconds=-1)
    for decision, reason in (("", ""), ("allow", ""), ("deny", "x" * 1001), ("deny", "a\0b")):
        assert (await ada.post(f"{PATH}/{approval.id}", decision=decision, reason=reason)).status == 400
    assert await state(closed, approval.id) == "waiting"
    await ada.post(f"{PATH}/{approval.id}", decision="deny")
    for late, was in ((approval, "denied"), (expired, "expired")):
        page = await ada.post(f"{PATH}/{late.id}", decision="once")
        assert page.status == 409 and f"it is {was}" in page.text and PATH in page.links()
    assert (await ada.post(f"{PATH}/{UNKNOWN}", decision="once")).status == 404


@pytest.mark.parametrize("role", ["client", "operator"])
async def test_without_the_role_there_is_no_form(closed: Proxy, session: aiohttp.ClientSession, role: Role) -> None:
    """What one's own calls ask for is shown, with the way to decide; a form that is sent all the same is refused."""
    bot = await signed_in(closed, session, "bot", role)
    own, other = await asked_for(closed.app[APPROVALS], "bot"), await asked_for(closed.app[APPROVALS], "eve")
    page = await bot.get(PATH)
    assert waits(page) == [own.id]
    assert f"Your key has the role {role}." in page.text and "gemini-proxy approvals allow" in page.text
    assert f"{PATH}/" not in page.body and 'name="decision"' not in page.body
    for approval in (own, other):
        refused = await bot.post(f"{PATH}/{approval.id}", decision="once")
        assert refused.status == 403 and "only a key with the role approver" in refused.text
        assert await state(closed, approval.id) == "waiting"


async def test_an_open_server_shows_the_queue_and_the_command(proxy: Proxy, browser: Browser) -> None:
    approval = await asked_for(proxy.app[APPROVALS], "developer")
    page = await browser.get(PATH)
    assert waits(page) == [approval.id]
    assert "gemini-proxy approvals allow" in page.text and approval.id in page.text
    assert 'name="decision"' not in page.body
    refused = await browser.post(f"{PATH}/{approval.id}", decision="once")
    assert refused.status == 403 and "gemini-proxy approvals allow ID" in refused.text
    assert await state(proxy, approval.id) == "waiting"


async def test_another_site_decides_nothing(closed: Proxy, session: aiohttp.ClientSession) -> None:
    """Nor does a link, nor somebody who has not signed in."""
    ada, approval = await signed_in(closed, session, "ada", "approver"), await asked_for(closed.app[APPROVALS], "bot")
    path = f"{PATH}/{approval.id}"
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": closed.url, "sec-fetch-site": "cross-site"},
    ):
        assert (await ada.post(path, headers, decision="once")).status == 403
    assert (await ada.ask("POST", path, headers={}, data={"decision": "once"})).status == 403
    assert (await ada.get(f"{path}?decision=once")).status == 404
    assert (await Browser(session, closed.url).post(path, decision="once")).status == 401
    assert (await Browser(session, closed.url).get(PATH)).location.startswith("/explorer/sign-in")
    assert await state(closed, approval.id) == "waiting"


async def test_hostile_text_is_text(closed: Proxy, session: aiohttp.ClientSession) -> None:
    """Everywhere; and what cannot be seen is spelled out: the person must see what is allowed."""
    evil = "</pre><script>alert(1)</script>"
    unseen = "AC\u200bME\u202e\ud800"
    shown = [
        {"tool": evil, "arguments": {evil: evil, "to": unseen, "amount": 2**70}},
        {"tool": "raw", "arguments": evil},
        {"role": evil, "texts": [evil, unseen]},
    ]
    fields: dict[str, Any] = {"message": evil, "guardrail": evil, "dataset": evil}
    await asked_for(closed.app[APPROVALS], evil, shown, **fields)
    await asked_for(closed.app[APPROVALS], "past", shown, seconds=-1, **fields)
    page = await (await signed_in(closed, session, "ada", "approver")).get(PATH)
    assert page.status == 200 and "<script>alert" not in page.body
    assert page.body.count("&lt;script&gt;alert(1)") >= 16
    for spelled in ("AC\\u200bME\\u202e\\ud800", str(2**70)):
        assert page.text.count(spelled) >= 2


async def test_a_conversation_is_linked_once_it_has_a_trace(proxy: Proxy, browser: Browser) -> None:
    [kept] = await record(proxy, mine("hello"))
    await asked_for(proxy.app[APPROVALS], "developer", trace=kept.id)
    await asked_for(proxy.app[APPROVALS], "developer", trace=UNKNOWN, subject="another")
    links = [link for link in (await browser.get(PATH)).links() if link.startswith("/explorer/traces/")]
    assert links == [f"/explorer/traces/{kept.id}"]


async def test_it_is_said_that_something_is_not_shown(proxy: Proxy, browser: Browser) -> None:
    """The whole conversation if the rule points at nothing, or what is neither a call nor a text."""
    approvals = proxy.app[APPROVALS]
    first = await asked_for(approvals, "developer", [])
    assert "the approval is for the whole conversation" in (await browser.get(PATH)).text
    await approvals.decide(first.id, allow=False, by="ada")
    fields: dict[str, Any] = {"dataset": None, "trace": UNKNOWN, "guardrail": "g", "message": "m", "subject": "s"}
    await approvals.open(ApprovalRequest(owner="developer", shown={"asked": [], "unshown": True}, **fields), 60)
    page = await browser.get(PATH)
    assert "such as an image. It is not shown." in page.text
