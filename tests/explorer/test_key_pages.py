"""Operators make, look over and revoke the keys of their user in the pages."""

import re

import aiohttp
import pytest

from gemini_proxy.explorer.app_keys import ACCESS, DATABASE
from gemini_proxy.explorer.pages import key_pages
from gemini_proxy.traces.keys import Keys, Role
from tests.explorer.api import Api
from tests.explorer.browsing import Browser
from tests.support.proxy import Proxy


async def _signed_in(proxy: Proxy, session: aiohttp.ClientSession, user: str, role: Role) -> tuple[Browser, str]:
    record, key = await Keys(proxy.app[DATABASE]).add(user, role)
    browser = Browser(session, proxy.url)
    assert (await browser.post("/explorer/sign-in", key=key)).status == 303
    return browser, record.id


async def test_a_key_is_made_used_and_revoked(closed: Proxy, session: aiohttp.ClientSession) -> None:
    """It is shown once, counts at once, its use is kept, and after it is revoked it counts no more."""
    ann, own = await _signed_in(closed, session, "ann", "operator")
    page = await ann.post("/explorer/keys", role="client")
    [key] = re.findall(r"inv-[0-9a-f]{64}", page.body)
    caller = Api(session, closed.url, key, "ann")
    assert (await caller.get("/user/identity"))["username"] == "ann"
    await closed.app[ACCESS].write_uses()
    page = await ann.get("/explorer/keys")
    assert key not in page.body and key[-4:] in page.text and page.headers["cache-control"] == "no-store"
    made = next(one for one in await Keys(closed.app[DATABASE]).all() if one.hint == key[-4:] and one.id != own)
    assert (made.role, made.owner) == ("client", "ann") and made.used is not None and made.used >= made.created
    assert "not yet" not in page.text and "this browser" in page.text
    assert (await ann.post(f"/explorer/keys/{made.id}/revoke")).location == "/explorer/keys"
    assert (await caller.call("GET", "/user/identity"))[0] == 401
    assert (await ann.post(f"/explorer/keys/{made.id}/revoke")).status == 404


async def test_only_operators_change_keys_and_only_their_own(
    closed: Proxy, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key of another user, none that decides approvals, not without a form of ours, and not without end."""
    ann, _ = await _signed_in(closed, session, "ann", "operator")
    _, bobs = await _signed_in(closed, session, "bob", "operator")
    approver, _ = await Keys(closed.app[DATABASE]).add("ann", "approver")
    client, _ = await _signed_in(closed, session, "ann", "client")
    assert bobs not in (await ann.get("/explorer/keys")).text
    for asked, status in (
        (client.get("/explorer/keys"), 403),
        (client.post("/explorer/keys", role="operator"), 403),
        (ann.post("/explorer/keys", role="approver"), 400),
        (ann.post("/explorer/keys", {"origin": "https://evil.example"}, role="client"), 403),
        (ann.post(f"/explorer/keys/{bobs}/revoke"), 404),
        (ann.post(f"/explorer/keys/{approver.id}/revoke"), 404),
    ):
        assert (await asked).status == status
    monkeypatch.setattr(key_pages, "MAX_KEYS", 3)
    assert (await ann.post("/explorer/keys", role="client")).status == 400
    assert all(one.revoked is None for one in await Keys(closed.app[DATABASE]).all())


async def test_open_access_makes_no_keys(proxy: Proxy, browser: Browser) -> None:
    """Any program on the machine could: keys would outlive the day on which access is closed."""
    assert "Access is open" in (await browser.get("/explorer/keys")).text
    assert (await browser.post("/explorer/keys", role="client")).status == 400
    assert await Keys(proxy.app[DATABASE]).all() == []
