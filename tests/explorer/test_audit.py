"""The audit log in the API and the pages: every change is there with who made it, and each user sees their own."""

import asyncio

from gemini_proxy.explorer.app_keys import AUDIT, DATABASE
from gemini_proxy.traces.audit import UNKNOWN, Change
from gemini_proxy.traces.keys import Keys
from tests.explorer.api import Api
from tests.explorer.browsing import SECRETIVE, Browser
from tests.explorer.conftest import caller
from tests.support.proxy import Proxy


async def test_changes_by_api_are_listed_to_their_user(closed: Proxy, alice: Api, bob: Api) -> None:
    dataset = (await alice.dataset("shop"))["id"]
    rule = {"name": "<b>r</b>", "policy": SECRETIVE, "action": "block"}
    await alice.post(f"/dataset/{dataset}/policy", rule)
    entries = await alice.get("/audit")
    assert [entry["action"] for entry in entries] == ["rule.added", "key.added"]
    assert entries[0]["by"].startswith("alice (key ")
    assert (entries[0]["before"], entries[0]["after"]["content"]) == (None, SECRETIVE)
    assert [entry["owner"] for entry in await bob.get("/audit")] == ["bob"]
    assert await alice.get("/audit?limit=1") == entries[:1]
    assert await alice.get(f"/audit?before={entries[0]['seq']}") == entries[1:]
    client = await caller(closed, alice.session, "carol", role="client")
    assert (await client.refused("GET", "/audit"))[0] == 403


async def test_the_page_shows_what_changed_and_hides_nothing(browser: Browser, proxy: Proxy) -> None:
    log = proxy.app[AUDIT]
    await log.append(Change("rule.changed", "rule <script>", "eve\u202e", "developer", {"name": "a"}, {"name": "<i>"}))
    for number in range(51):
        await log.append(Change("key.added", f"key {number}", "", None, None, {"id": number}))
    page = await browser.get("/explorer/audit")
    assert page.status == 200
    assert UNKNOWN in page.text and "rule <script>" not in page.text
    [older] = [link for link in page.links() if "before=" in link]
    page = await browser.get(older)
    assert "rule <script>" in page.text and "<script>" not in page.body.partition("<main")[2]
    assert "\u202e" not in page.body and "settings.loaded" in page.text


async def test_every_change_of_pages_and_api_says_who_made_it(browser: Browser, proxy: Proxy) -> None:
    """None is by somebody unknown."""
    await browser.post("/explorer", name="shop")
    await browser.post("/explorer/datasets/shop/rules", name="r", content=SECRETIVE, action="block", enabled="on")
    await browser.post("/explorer/datasets/shop/tools/labels", trusted="pay")
    await browser.post("/explorer/datasets/shop/delete")
    entries = await proxy.app[AUDIT].latest(100)
    assert [(entry.action, entry.by) for entry in entries][:3] == [
        (action, "developer (without a key)") for action in ("dataset.deleted", "labels.changed", "rule.added")
    ]
    await asyncio.gather(*(Keys(proxy.app[DATABASE]).add("x") for _ in range(2)))
    assert [entry.by for entry in await proxy.app[AUDIT].latest(2)] == [UNKNOWN, UNKNOWN]
