"""Approvals by API: who sees them, who decides, and what that does to the call that waits."""

import aiohttp
import orjson
import pytest

from gemini_proxy.explorer.app_keys import APPROVALS, DATABASE, SESSION_COOKIE
from gemini_proxy.traces.keys import Role, Sessions
from tests.conftest import StartProxy
from tests.explorer.api import Api
from tests.explorer.asking import PAY, PAYMENTS, UNKNOWN, asked_for, waiting_call
from tests.explorer.conftest import caller
from tests.support.proxy import Proxy
from tests.support.upstream import ScriptedUpstream, unary

ALLOW = {"decision": "allow"}


@pytest.fixture
async def asking(start_proxy: StartProxy, upstream: ScriptedUpstream, database_url: str) -> Proxy:
    """A server that wants keys and asks for payments; the model pays."""
    upstream.reply(unary(PAY))
    return await start_proxy(ask_policy=PAYMENTS, access={"mode": "keys"}, traces={"database": database_url})


@pytest.fixture
async def approver(closed: Proxy, session: aiohttp.ClientSession) -> Api:
    return await caller(closed, session, "ada", "approver")


async def test_an_approver_allows_what_waits(asking: Proxy, session: aiohttp.ClientSession) -> None:
    client, ada = await caller(asking, session, "bot", "client"), await caller(asking, session, "ada", "approver")
    async with waiting_call(asking, client.key) as (approval, call):
        [listed] = await ada.get("/approvals?state=waiting")
        assert listed == await ada.get(f"/approvals/{approval.id}") == await client.get(f"/approvals/{approval.id}")
        assert (listed["id"], listed["state"], listed["user"]) == (approval.id, "waiting", "bot")
        assert listed["shown"] == {"asked": [{"tool": "pay", "arguments": {"to": "ACME", "amount": 12}}]}
        assert (listed["message"], listed["guardrail"], listed["time_decided"]) == (
            "a payment",
            "test ask policy",
            None,
        )
        decided = await ada.post(f"/approvals/{approval.id}", ALLOW)
        assert (decided["state"], decided["until"]) == ("allowed", None)
        status, body = await call
        assert (status, orjson.loads(body)) == (200, PAY)
    trace = await asking.trace()
    [kept] = trace.metadata["approvals"]
    assert (trace.id, kept["state"]) == (listed["trace"], "allowed")
    assert kept["decided_by"].startswith("ada (key ")
    assert await ada.get("/approvals?state=waiting") == []
    assert [one["state"] for one in await ada.get("/approvals")] == ["allowed"]


async def test_a_denial_says_why(asking: Proxy, session: aiohttp.ClientSession) -> None:
    client, ada = await caller(asking, session, "bot", "client"), await caller(asking, session, "ada", "approver")
    async with waiting_call(asking, client.key) as (approval, call):
        await ada.post(f"/approvals/{approval.id}", {"decision": "deny", "reason": "ask accounting"})
        status, body = await call
    assert status == 400 and b"denied: ask accounting" in body


async def test_an_allowance_may_last(closed: Proxy, approver: Api) -> None:
    approval = await asked_for(closed.app[APPROVALS], "bot")
    decided = await approver.post(f"/approvals/{approval.id}", {**ALLOW, "seconds": 3600})
    assert decided["until"] > decided["time_decided"]
    for _ in range(2):
        assert (await asked_for(closed.app[APPROVALS], "bot")).state == "allowed"


@pytest.mark.parametrize("role", ["client", "operator"])
async def test_a_key_that_makes_calls_decides_nothing(
    asking: Proxy, session: aiohttp.ClientSession, role: Role
) -> None:
    """Not its own, nor another's, nor what does not exist; and the call goes on waiting."""
    api, other = await caller(asking, session, "bot", role), await caller(asking, session, "eve", role)
    async with waiting_call(asking, api.key) as (approval, call):
        for one in (api, other):
            for approval_id in (approval.id, UNKNOWN):
                status, said = await one.refused("POST", f"/approvals/{approval_id}", ALLOW)
                assert status == 403 and f"role {role}" in said
        assert (await api.get(f"/approvals/{approval.id}"))["state"] == "waiting"
        assert not call.done()


async def test_only_an_approver_sees_what_is_anothers(closed: Proxy, alice: Api, bob: Api, approver: Api) -> None:
    approvals = closed.app[APPROVALS]
    hers, nobodys = await asked_for(approvals, "alice"), await asked_for(approvals, "")
    assert [one["id"] for one in await alice.get("/approvals")] == [hers.id]
    assert await bob.get("/approvals") == []
    assert await bob.refused("GET", f"/approvals/{hers.id}") == (404, "Approval not found")
    assert {one["id"] for one in await approver.get("/approvals")} == {hers.id, nobodys.id}
    assert len(await approver.get("/approvals?limit=1")) == 1


async def test_what_is_decided_or_over_stays_as_it_is(closed: Proxy, approver: Api) -> None:
    approvals = closed.app[APPROVALS]
    decided, expired = await asked_for(approvals, "alice"), await asked_for(approvals, "bob", seconds=-1)
    await approver.post(f"/approvals/{decided.id}", {"decision": "deny"})
    for approval, state in ((decided, "denied"), (expired, "expired")):
        refused = await approver.refused("POST", f"/approvals/{approval.id}", ALLOW)
        assert refused == (409, f"The approval is no longer pending: it is {state}")
    assert await approver.refused("POST", f"/approvals/{UNKNOWN}", ALLOW) == (404, "Approval not found")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, 'decision must be "allow" or "deny"'),
        ({"decision": "maybe"}, 'decision must be "allow" or "deny"'),
        ({**ALLOW, "seconds": 0}, "seconds must be a number from 1 to 2592000"),
        ({**ALLOW, "seconds": 1e9}, "seconds must be a number from 1 to 2592000"),
        ({"decision": "deny", "reason": "x" * 1001}, "reason must not be longer than 1000 characters"),
        ({"decision": "deny", "reason": "a\0b"}, "reason must not hold the character NUL"),
    ],
)
async def test_a_decision_is_one(closed: Proxy, approver: Api, body: object, said: str) -> None:
    approval = await asked_for(closed.app[APPROVALS], "alice")
    # An empty object would be no body.
    assert await approver.refused("POST", f"/approvals/{approval.id}", data=orjson.dumps(body)) == (400, said)
    assert (await approver.get(f"/approvals/{approval.id}"))["state"] == "waiting"
    assert (await approver.refused("GET", "/approvals?state=denied"))[0] == 400


async def test_looking_decides_nothing(closed: Proxy, approver: Api, session: aiohttp.ClientSession) -> None:
    """Whatever the query says; there is no other method either."""
    approval = await asked_for(closed.app[APPROVALS], "alice")
    path = f"/approvals/{approval.id}"
    assert (await approver.get(f"{path}?decision=allow"))["state"] == "waiting"
    for method in ("PUT", "PATCH", "DELETE"):
        assert (await approver.refused(method, path, ALLOW))[0] == 405
    assert (await approver.get(path))["state"] == "waiting"


async def test_another_sites_page_decides_nothing(closed: Proxy, approver: Api, session: aiohttp.ClientSession) -> None:
    """In the browser of somebody who has signed in; our own pages do."""
    approval = await asked_for(closed.app[APPROVALS], "alice")
    token = await Sessions(closed.app[DATABASE]).open(approver.key, 60)
    url = f"{closed.url}/api/v1/approvals/{approval.id}"
    for origin, status in ((None, 401), ("https://evil.example", 401), ("null", 401), (closed.url, 200)):
        headers = {"cookie": f"{SESSION_COOKIE}={token}", **({"origin": origin} if origin else {})}
        async with session.post(url, json=ALLOW, headers=headers) as response:
            assert response.status == status


async def test_an_open_server_names_the_command_line(proxy: Proxy, checker: Api) -> None:
    """Every program of the machine could decide there, and so could the one that asks."""
    approval = await asked_for(proxy.app[APPROVALS], checker.user)
    status, said = await checker.refused("POST", f"/approvals/{approval.id}", ALLOW)
    assert status == 403 and "gemini-proxy approvals allow ID" in said
    assert (await checker.get(f"/approvals/{approval.id}"))["state"] == "waiting"
