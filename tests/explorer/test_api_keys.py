"""Whose key opens what: authentication, ownership, browsers and hosts, from outside."""

from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from gemini_proxy.explorer.app_keys import DATABASE, SESSION_COOKIE
from gemini_proxy.traces.keys import Keys, Sessions
from tests.conftest import StartProxy
from tests.explorer.api import KEY, SAMPLE, SECRETIVE, Api
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import ScriptedUpstream

BAD_KEY = (401, "You must provide a valid API key.")
IDENTITY = "/user/identity"


NO_KEYS: list[Mapping[str, str]] = [
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": KEY},
    {"authorization": f"Basic {KEY}"},
    {"authorization": f"Bearer {KEY} {KEY}"},
    {"authorization": f"Bearer {KEY}, Bearer {KEY}"},
    {"authorization": "Bearer sk-123"},
    {"authorization": "Bearer inv-"},
    {"authorization": "Bearer inv-é"},
    {"authorization": "Bearer inv-" + "a" * 5000},
]


async def test_what_is_no_key_is_401(checker: Api, alice: Api) -> None:
    """In the contract's words, whatever the mode."""
    for headers in NO_KEYS:
        assert await checker.refused("GET", IDENTITY, headers=headers) == BAD_KEY
        assert await alice.refused("GET", IDENTITY, headers=headers) == BAD_KEY


async def test_without_a_key_nobody_gets_in_where_keys_are_asked_for(closed: Proxy) -> None:
    """No header is 401 as well: for every route, before anything of the request is read."""
    async with aiohttp.ClientSession() as session:
        for method, path in (("GET", IDENTITY), ("POST", "/push/trace"), ("GET", "/dataset/list"), ("GET", "/feed")):
            async with session.request(method, f"{closed.url}/api/v1{path}", data=None) as answer:
                assert (answer.status, (await answer.json())["detail"]) == BAD_KEY


async def test_an_open_server_asks_for_no_key(checker: Api, session: aiohttp.ClientSession) -> None:
    """Who sends none is the developer, as on the pages, for every kind of call."""
    assert await nobody(session, checker.url, "GET", IDENTITY) == (200, {"username": "developer"})
    made = await nobody(session, checker.url, "POST", "/push/trace", {"messages": [SAMPLE], "dataset": "open"})
    assert made[0] == 200
    [trace] = made[1]["id"]
    assert (await checker.get(f"/trace/{trace}"))["extra_metadata"]["uploader"] == "Via API"
    note = {"content": "seen", "address": "messages.0.content:0-5"}
    assert (await nobody(session, checker.url, "POST", f"/trace/{trace}/annotate", note))[0] == 200
    assert [one["content"] for one in await checker.get(f"/trace/{trace}/annotations")] == ["seen"]
    checked = {"messages": [{"role": "user", "content": "secret"}], "policy": SECRETIVE}
    status, verdict = await nobody(session, checker.url, "POST", "/policy/check", checked)
    assert status == 200 and len(verdict["errors"]) == 1
    dataset = await checker.get(checker.at("open"))
    path = f"/dataset/{dataset['id']}/policy"
    assert (await nobody(session, checker.url, "POST", path, {"name": "p", "policy": SECRETIVE}))[0] == 200
    async with session.get(f"{checker.url}/api/v1/feed?last=1") as feed:
        assert feed.status == 200 and await feed.content.readany()


async def nobody(
    session: aiohttp.ClientSession, url: str, method: str, path: str, json: object = None, **headers: str
) -> tuple[int, Any]:
    """Status and body of a call that names no key."""
    async with session.request(method, f"{url}/api/v1{path}", json=json, headers=headers) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 401),
        ({"origin": "null"}, 401),
        ({"sec-fetch-site": "cross-site"}, 401),
        ({"sec-fetch-site": "same-site"}, 401),
        ({"sec-fetch-site": "cross-site", "origin": "http://{host}"}, 401),
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example", "origin": "http://evil.example", "sec-fetch-site": "same-origin"}, 421),
        ({"origin": "http://{host}"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
    ],
)
async def test_a_foreign_page_is_not_nobody(
    checker: Api, session: aiohttp.ClientSession, headers: Mapping[str, str], status: int
) -> None:
    """Any page may send a request to this machine; those of other sites read and write nothing without a key."""
    sent = {name: value.format(host=checker.url.removeprefix("http://")) for name, value in headers.items()}
    for method, path, body in (("GET", IDENTITY, None), ("POST", "/push/trace", {"messages": [SAMPLE]})):
        assert (await nobody(session, checker.url, method, path, body, **sent))[0] == status
    assert (await nobody(session, checker.url, "GET", "/feed?last=x", **sent))[0] == (400 if status == 200 else status)
    assert await checker.get("/dataset/list") == []


async def test_a_model_call_into_a_dataset_needs_an_invariant_key(
    proxy: Proxy, session: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    """Where access is open as well: the old gateway's words."""
    url = proxy.method(prefix="/api/v1/gateway/set/gemini")
    async with session.post(url, json=prompt("hi"), headers={"x-goog-api-key": "K"}) as answer:
        assert (answer.status, (await answer.json())["error"]["message"]) == (400, "Missing invariant api key")
    assert upstream.calls == []


async def test_two_keys_are_none(checker: Api) -> None:
    """Whoever reads one of the two headers may take another than we."""
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
    async with checker.session.get(f"{checker.url}/api/v1{IDENTITY}", headers=headers) as answer:
        assert answer.status == 401


async def test_any_key_of_the_form_opens_an_open_server(checker: Api) -> None:
    """All of them are the developer's."""
    for key in ("inv-x", KEY, "inv-" + "f" * 64):
        assert await checker.get(IDENTITY, headers={"authorization": f"bearer {key}"}) == {"username": "developer"}


async def test_unknown_and_revoked_keys_are_401(closed: Proxy, alice: Api) -> None:
    """From the next request on."""
    assert await alice.refused("GET", IDENTITY, headers={"authorization": f"Bearer {KEY}"}) == BAD_KEY
    keys = Keys(closed.app[DATABASE])
    [record] = await keys.all()
    assert await alice.get(IDENTITY) == {"username": "alice"}
    await keys.revoke(record.id)
    assert await alice.refused("GET", IDENTITY) == BAD_KEY


async def test_what_is_anothers_is_not_there(alice: Api, bob: Api) -> None:
    """Every way to another user's dataset, policy or trace is 404, in the words for one that does not exist."""
    made = await alice.dataset("hers")
    policies = f"/dataset/{made['id']}/policy"
    whole = await alice.post(policies, {"name": "p", "policy": SECRETIVE})
    policy = whole["extra_metadata"]["policies"][0]["id"]
    [trace] = await alice.push(SAMPLE, dataset="hers", annotations=[[{"content": "c", "address": "a"}]])
    note = {"content": "c", "address": "a"}
    no_dataset, no_trace = (404, "Dataset not found"), (404, "Trace not found")
    for method, path, body, expected in (
        ("GET", alice.at("hers"), None, no_dataset),
        ("GET", f"/dataset/byid/{made['id']}", None, no_dataset),
        ("DELETE", alice.at("hers"), None, no_dataset),
        ("DELETE", f"/dataset/byid/{made['id']}", None, no_dataset),
        ("GET", f"{alice.at('hers')}/traces", None, no_dataset),
        ("GET", f"/dataset/byid/{made['id']}/traces", None, no_dataset),
        ("GET", f"{alice.at('hers')}/policy", None, no_dataset),
        ("GET", bob.at("hers"), None, no_dataset),
        ("GET", "/dataset/metadata/hers", None, no_dataset),
        ("GET", "/dataset/metadata/hers?owner_username=alice", None, no_dataset),
        ("GET", "/dataset/metadata/hers?owner=alice", None, no_dataset),
        ("PUT", "/dataset/metadata/hers", {"metadata": {"a": 1}}, no_dataset),
        ("POST", policies, {"name": "p", "policy": SECRETIVE}, no_dataset),
        ("PUT", f"{policies}/{policy}", {"enabled": False}, no_dataset),
        ("DELETE", f"{policies}/{policy}", None, no_dataset),
        ("GET", f"/trace/{trace}", None, no_trace),
        ("GET", f"/trace/{trace}/messages", None, no_trace),
        ("GET", f"/trace/{trace}/annotations", None, no_trace),
        ("POST", f"/trace/{trace}/messages", {"messages": [{}]}, no_trace),
        ("POST", f"/trace/{trace}/annotate", note, no_trace),
        ("POST", f"/trace/{trace}/annotations/update", {"source": "user", "annotations": []}, no_trace),
    ):
        assert await bob.refused(method, path, body) == expected, (method, path)
    assert await bob.get("/dataset/list") == []
    unchanged = await alice.get(alice.at("hers"))
    assert unchanged["extra_metadata"] == whole["extra_metadata"]
    found = await alice.get(f"/trace/{trace}")
    assert (found["messages"], len(found["annotations"])) == (SAMPLE, 1)


async def test_a_policy_is_changed_through_its_own_dataset_only(alice: Api) -> None:
    """Another dataset of the same user does not lead to it."""
    one, two = await alice.dataset("one"), await alice.dataset("two")
    whole = await alice.post(f"/dataset/{one['id']}/policy", {"name": "p", "policy": SECRETIVE})
    path = f"/dataset/{two['id']}/policy/{whole['extra_metadata']['policies'][0]['id']}"
    assert (await alice.refused("PUT", path, {"enabled": False}))[0] == 404
    assert (await alice.refused("DELETE", path))[0] == 404


async def test_two_users_may_have_a_dataset_of_one_name(alice: Api, bob: Api) -> None:
    """Each sees what is in their own."""
    await alice.push(SAMPLE, dataset="same")
    await bob.push([], [], dataset="same")
    assert len(await alice.get(f"{alice.at('same')}/traces")) == 1
    assert len(await bob.get(f"{bob.at('same')}/traces")) == 2
    for path in ("", "/traces", "/policy"):
        assert (await bob.refused("GET", f"{alice.at('same')}{path}"))[0] == 404
    for name in ("owner", "owner_username"):
        assert (await bob.refused("GET", f"/dataset/metadata/same?{name}=alice"))[0] == 404
    assert (await bob.refused("DELETE", alice.at("same")))[0] == 404
    assert len(await bob.get("/dataset/list")) == 1


@pytest.mark.parametrize(
    ("headers", "lets"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"origin": "http://{host}"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "same-origin, same-origin"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://[::1"}, False),
        ({}, False),
    ],
)
async def test_a_session_writes_only_from_our_own_pages(
    closed: Proxy, alice: Api, headers: Mapping[str, str], lets: bool
) -> None:
    """A browser that is signed in may call; another site's page, which has the same browser do it, may not."""
    token = await Sessions(closed.app[DATABASE]).open(alice.key, 60)
    host = alice.url.removeprefix("http://")
    sent = {name: value.format(host=host) for name, value in headers.items()}
    async with aiohttp.ClientSession() as session:
        url = f"{alice.url}/api/v1/dataset/create"
        sent["cookie"] = f"{SESSION_COOKIE}={token}"
        async with session.post(url, json={"name": "made"}, headers=sent) as answer:
            assert answer.status == (200 if lets else 401)
    assert len(await alice.get("/dataset/list")) == lets


async def test_a_session_reads_and_ends(closed: Proxy, alice: Api) -> None:
    """With the cookie alone, from our own pages; not once it is closed, and never with a made-up one."""
    sessions = Sessions(closed.app[DATABASE])
    token = await sessions.open(alice.key, 60)
    assert token is not None
    async with aiohttp.ClientSession() as session:

        async def asked(cookie: str, **headers: str) -> int:
            sent = {"cookie": f"{SESSION_COOKIE}={cookie}", **headers}
            async with session.get(f"{alice.url}/api/v1{IDENTITY}", headers=sent) as answer:
                return answer.status

        assert await asked(token) == 200
        assert await asked(token, **{"sec-fetch-site": "cross-site"}) == 401
        assert await asked("x") == 401
        assert await asked('"\\377"') == 401
        assert await asked(token, authorization="Bearer inv-x") == 401
        await sessions.close(token)
        assert await asked(token) == 401


async def test_an_open_server_answers_to_its_own_names_only(start_proxy: StartProxy) -> None:
    """A foreign name that leads to this machine does not open it to that name's pages."""
    proxy = await start_proxy(explorer={"hosts": ["explorer.example.com"]})
    async with aiohttp.ClientSession() as session:
        for host, status in (
            ("localhost", 200),
            ("127.0.0.1:1", 200),
            ("[::1]", 200),
            ("explorer.example.com", 200),
            ("evil.example", 421),
            ("127.0.0.1.evil.example", 421),
        ):
            headers = {"host": host, "authorization": f"Bearer {KEY}"}
            async with session.get(f"{proxy.url}/api/v1{IDENTITY}", headers=headers) as answer:
                assert answer.status == status, host
