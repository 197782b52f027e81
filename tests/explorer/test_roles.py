"""What the role of a key allows: model calls, rules and what else calls are checked with, in the API and the pages."""

from typing import Any

import aiohttp
import pytest

from gemini_proxy.traces.keys import Role
from tests.conftest import StartProxy
from tests.explorer.api import SAMPLE, SECRETIVE, Api
from tests.explorer.browsing import Browser
from tests.explorer.conftest import caller
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary

FORBIDDEN = "This key has the role {role}: only a key with the role operator changes this"


@pytest.fixture(params=["client", "approver"])
async def restricted(request: pytest.FixtureRequest, closed: Proxy, session: aiohttp.ClientSession) -> tuple[Api, Role]:
    """A key of alice's that may change nothing, and its role."""
    return await caller(closed, session, "alice", request.param), request.param


async def signed_in(api: Api) -> Browser:
    browser = Browser(api.session, api.url)
    assert (await browser.post("/explorer/sign-in", key=api.key, next="/explorer")).status == 303
    return browser


async def call_model(proxy: Proxy, key: str, **headers: str) -> tuple[int, Any]:
    sent = {"x-goog-api-key": "AIzaTest", "invariant-authorization": f"Bearer {key}", **headers}
    async with aiohttp.ClientSession() as session:
        async with session.post(proxy.method(), json=prompt("hi"), headers=sent) as response:
            return response.status, await response.json()


@pytest.mark.parametrize("role", ["client", "operator"])
async def test_a_client_and_an_operator_call_the_model(
    closed: Proxy, session: aiohttp.ClientSession, upstream: ScriptedUpstream, role: Role
) -> None:
    upstream.reply(unary(candidate("hello", "STOP")))
    api = await caller(closed, session, "alice", role)
    assert (await call_model(closed, api.key))[0] == 200
    assert (await closed.trace()).owner == "alice"


async def test_an_approver_calls_no_model(
    closed: Proxy, session: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    """Whichever way the key is given, and not the list of models either; nothing goes upstream."""
    api = await caller(closed, session, "alice", "approver")
    status, said = await call_model(closed, api.key)
    assert (status, said["error"]["status"]) == (403, "PERMISSION_DENIED")
    assert said["error"]["message"] == "A key with the role approver cannot make calls"
    for headers in ({"x-goog-api-key": f"AIzaTest;invariant-auth={api.key}"}, {"x-goog-api-key": api.key}):
        assert (await call_model(closed, api.key, **headers))[0] in (400, 403)
    listed = {"x-goog-api-key": f"AIzaTest;invariant-auth={api.key}"}
    async with session.get(f"{closed.url}/v1beta/models", headers=listed) as response:
        assert response.status == 403
    assert upstream.calls == []


async def test_only_an_operator_changes_rules_by_api(closed: Proxy, alice: Api, restricted: tuple[Api, Role]) -> None:
    """Nor labels, pinned tools, or the dataset that they are of; what was there stays and is shown."""
    api, role = restricted
    made = await alice.dataset("hers")
    own = f"/dataset/{made['id']}"
    whole = await alice.post(f"{own}/policy", {"name": "p", "policy": SECRETIVE})
    policy = whole["extra_metadata"]["policies"][0]["id"]
    labels = {"tool_labels": {"acts": ["pay"]}}
    for method, path, body in (
        ("POST", f"{own}/policy", {"name": "q", "policy": SECRETIVE}),
        ("PUT", f"{own}/policy/{policy}", {"enabled": False}),
        ("DELETE", f"{own}/policy/{policy}", None),
        ("GET", f"{own}/policy/{policy}/versions", None),
        ("POST", f"{own}/policy/{policy}/versions/1/restore", None),
        ("GET", f"{own}/shadows", None),
        ("POST", f"{own}/shadows", {"policy": SECRETIVE, "share": 5, "policy_id": policy}),
        ("PUT", f"{own}/shadows/{policy}", {"share": 5}),
        ("GET", f"{own}/shadows/{policy}/differences", None),
        ("POST", f"{own}/shadows/{policy}/promote", {"id": 1}),
        ("DELETE", f"{own}/shadows/{policy}", None),
        ("POST", f"{own}/tools/accept", {"name": "send", "digest": "0" * 64}),
        ("POST", f"{own}/tools/forget", {"name": "send"}),
        ("PUT", "/dataset/metadata/hers", {"metadata": labels}),
        ("POST", "/dataset/create", {"name": "new", "metadata": labels}),
        ("DELETE", alice.at("hers"), None),
        ("DELETE", f"/dataset/byid/{made['id']}", None),
    ):
        assert await api.refused(method, path, body) == (403, FORBIDDEN.format(role=role)), (method, path)
    assert (await api.get(alice.at("hers")))["extra_metadata"] == whole["extra_metadata"]
    assert len(await api.get("/dataset/list")) == 1


async def test_a_client_sees_and_pushes_its_own_traces(closed: Proxy, session: aiohttp.ClientSession) -> None:
    api = await caller(closed, session, "alice", "client")
    await api.post("/dataset/create", {"name": "hers"})
    [trace] = await api.push(SAMPLE, dataset="hers")
    assert (await api.get(f"/trace/{trace}"))["messages"] == SAMPLE
    assert (await api.post("/policy/check", {"messages": SAMPLE, "policy": SECRETIVE})) == {"errors": []}


async def test_only_an_operator_changes_rules_in_the_pages(alice: Api, restricted: tuple[Api, Role]) -> None:
    """The forms are not shown either."""
    api, role = restricted
    made = await alice.dataset("hers")
    whole = await alice.post(f"/dataset/{made['id']}/policy", {"name": "p", "policy": SECRETIVE})
    policy = whole["extra_metadata"]["policies"][0]["id"]
    browser, operator = await signed_in(api), await signed_in(alice)
    rules = "/explorer/datasets/hers/rules"
    forms: list[tuple[str, dict[str, str]]] = [
        (rules, {"name": "q", "content": SECRETIVE, "action": "block"}),
        (f"{rules}/{policy}", {"name": "q", "content": SECRETIVE, "action": "log"}),
        (f"{rules}/{policy}/switch", {"to": "off"}),
        (f"{rules}/{policy}/delete", {}),
        (f"{rules}/shadow", {"name": "q", "content": SECRETIVE, "action": "block", "share": "5"}),
        (f"{rules}/{policy}/shadow", {"name": "q", "content": SECRETIVE, "action": "block", "share": "5"}),
        (f"{rules}/{policy}/shadow/share", {"share": "5"}),
        (f"{rules}/{policy}/shadow/promote", {"shadow": "1"}),
        (f"{rules}/{policy}/shadow/end", {}),
        ("/explorer/datasets/hers/delete", {}),
        ("/explorer/datasets/hers/tools/accept", {"name": "send", "digest": "0" * 64}),
        ("/explorer/datasets/hers/tools/forget", {"name": "send"}),
        ("/explorer/datasets/hers/tools/labels", {"acts": "pay"}),
    ]
    for path, fields in forms:
        page = await browser.post(path, None, **fields)
        assert page.status == 403 and FORBIDDEN.format(role=role) in page.text, path
    assert (await alice.get(alice.at("hers")))["extra_metadata"] == whole["extra_metadata"]
    for path, form in (
        (rules, f"{rules}/{policy}/switch"),
        (f"{rules}/{policy}", f"{rules}/{policy}/shadow"),
        ("/explorer/datasets/hers/tools", "/tools/labels"),
        ("/explorer", "/explorer/datasets/hers/delete"),
    ):
        assert form in (await operator.get(path)).body
        assert form not in (await browser.get(path)).body


async def test_an_open_server_is_its_developers(start_proxy: StartProxy, session: aiohttp.ClientSession) -> None:
    """The roles of keys that are in its database say nothing there."""
    proxy = await start_proxy()
    api = await caller(proxy, session, "developer", "client")
    made = await api.dataset("hers")
    await api.post(f"/dataset/{made['id']}/policy", {"name": "p", "policy": SECRETIVE})
