"""Who may use the proxy, and whose the traces are."""

import re
from typing import Any

import aiohttp
import pytest

from gemini_proxy.traces.catalogue import Catalogue
from gemini_proxy.traces.keys import Keys
from tests.conftest import StartProxy
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary

KEYS = {"mode": "keys"}
UNKNOWN = "inv-" + "0" * 64


async def key_of(proxy: Proxy, user: str) -> str:
    _, key = await Keys(proxy.store.database).add(user)
    return key


async def ask(proxy: Proxy, dataset: str = "", **headers: str) -> tuple[int, Any]:
    prefix = f"/api/v1/gateway/{dataset}/gemini" if dataset else ""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as session:
        async with session.post(proxy.method(prefix=prefix), json=prompt("hi"), headers=named) as answer:
            return answer.status, await answer.json()


@pytest.fixture(autouse=True)
def _answers(upstream: ScriptedUpstream) -> None:
    upstream.reply(unary(candidate("hello", "STOP")))


@pytest.mark.parametrize("key", ["foo", "inv-", "Inv-1", "inv-a b"])
async def test_with_open_access_a_key_has_to_look_like_one(start_proxy: StartProxy, key: str) -> None:
    proxy = await start_proxy()
    status, error = await ask(proxy, x_goog_api_key="K", invariant_authorization=f"Bearer {key}")
    assert status in (400, 401)
    assert key not in str(error)


async def test_with_open_access_every_key_is_the_developers(start_proxy: StartProxy) -> None:
    proxy = await start_proxy()
    assert (await ask(proxy, "set", x_goog_api_key="K;invariant-auth=inv-1"))[0] == 200
    first = await proxy.trace()
    assert (first.owner, first.dataset) == ("developer", "set")
    assert (await ask(proxy, x_goog_api_key="K"))[0] == 200
    second = await proxy.trace()
    assert (second.owner, second.dataset) == ("developer", None)


async def test_a_trace_is_of_the_user_whose_key_it_came_with(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(access=KEYS)
    key = await key_of(proxy, "ann")
    assert (await ask(proxy, "set", x_goog_api_key=f"K;invariant-auth={key}"))[0] == 200
    trace = await proxy.trace()
    assert (trace.owner, trace.dataset) == ("ann", "set")
    catalogue = Catalogue(proxy.store.database)
    assert await catalogue.stored("ann", trace.id) is not None
    assert await catalogue.stored("bob", trace.id) is None


@pytest.mark.parametrize("configured", [None, "OPERATORS"])
async def test_a_key_that_is_unknown_or_revoked_is_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, configured: str | None
) -> None:
    """From the next request on, in Google's form, and without a word to the upstream."""
    proxy = await start_proxy(access=KEYS, upstream={"api_key": configured})
    keys = Keys(proxy.store.database)
    record, key = await keys.add("ann")
    for given in (UNKNOWN, "inv-short", "other"):
        status, answer = await ask(proxy, x_goog_api_key=f"K;invariant-auth={given}")
        assert status == 401
        assert answer["error"]["status"] == "UNAUTHENTICATED"
    assert upstream.calls == []
    assert (await ask(proxy, x_goog_api_key=f"K;invariant-auth={key}"))[0] == 200
    assert await keys.revoke(record.id)
    assert (await ask(proxy, x_goog_api_key=f"K;invariant-auth={key}"))[0] == 401
    assert len(upstream.calls) == 1


async def test_the_operators_gemini_key_is_spent_for_users_alone(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """A client names itself in the place of a Gemini key, and its key stays here."""
    proxy = await start_proxy(access=KEYS, upstream={"api_key": "OPERATORS"})
    key = await key_of(proxy, "ann")
    assert (await ask(proxy))[0] == 401
    assert (await ask(proxy, x_goog_api_key="anything"))[0] == 401
    assert upstream.calls == []
    assert (await ask(proxy, x_goog_api_key=key))[0] == 200
    assert upstream.calls[0].headers["x-goog-api-key"] == "OPERATORS"
    assert key.encode() not in upstream.calls[0].raw_head
    assert (await proxy.trace()).owner == "ann"


async def test_a_client_that_brings_its_own_gemini_key_needs_no_other(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """It spends its own, and what it says is nobody else's to read."""
    proxy = await start_proxy(access=KEYS)
    assert (await ask(proxy, x_goog_api_key="K"))[0] == 200
    assert (await proxy.trace()).owner == ""


async def test_an_invariant_key_alone_is_no_gemini_key(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = await start_proxy()
    status, answer = await ask(proxy, x_goog_api_key="inv-1")
    assert status == 400
    assert answer["error"]["message"] == "Missing LLM Provider API Key"
    assert upstream.calls == []


async def test_a_key_made_elsewhere_is_known_at_once(start_proxy: StartProxy) -> None:
    """By another process on the same database."""
    proxy = await start_proxy(access=KEYS)
    other = await type(proxy.store).open(proxy.database)
    for user in ("ann", "bob"):
        _, key = await Keys(other.database).add(user)
        assert (await ask(proxy, x_goog_api_key=f"K;invariant-auth={key}"))[0] == 200
        assert (await proxy.trace()).owner == user
    await other.close()


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "http://evil.example", "host": "evil.example"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
]


@pytest.mark.parametrize("marks", FOREIGN)
async def test_a_foreign_page_spends_nobodys_key(
    start_proxy: StartProxy, upstream: ScriptedUpstream, marks: dict[str, str]
) -> None:
    """With open access a page of another site gets 403, JSON or not, and nothing goes upstream."""
    proxy = await start_proxy(upstream={"api_key": "AIzaOperator"})
    status, error = await ask(proxy, **marks)
    assert (status, error["error"]["status"]) == (403, "PERMISSION_DENIED")
    assert upstream.calls == []


@pytest.mark.parametrize("marks", [{}, {"sec_fetch_site": "none"}, {"sec_fetch_mode": "cors"}])
async def test_what_is_no_page_is_served(start_proxy: StartProxy, marks: dict[str, str]) -> None:
    """Programs say nothing of a site, and a browser's user may type an address."""
    proxy = await start_proxy(upstream={"api_key": "AIzaOperator"})
    assert (await ask(proxy, **marks))[0] == 200


async def test_pages_may_use_a_server_that_asks_for_keys(start_proxy: StartProxy) -> None:
    """There a page has to have a key, and what it may do with it is its own business."""
    proxy = await start_proxy(access=KEYS)
    key = await key_of(proxy, "ann")
    marks = {"origin": "https://app.example", "sec_fetch_site": "cross-site"}
    assert (await ask(proxy, x_goog_api_key=f"K;invariant-auth={key}", **marks))[0] == 200


FROM_ELSEWHERE = [
    ({"x_forwarded_for": "203.0.113.7"}, 403),
    ({"x_forwarded_for": "127.0.0.1"}, 403),
    ({"x_real_ip": "203.0.113.7"}, 403),
    ({"forwarded": "for=203.0.113.7"}, 403),
    ({"via": "1.1 front"}, 403),
    ({"host": "gemini.example.com"}, 421),
]
OPEN_PATHS = {"/healthz", "/readyz", "/api/v1/gateway/health"}


@pytest.mark.parametrize(("marks", "refused"), FROM_ELSEWHERE)
async def test_open_access_is_for_this_machine(
    start_proxy: StartProxy, upstream: ScriptedUpstream, marks: dict[str, str], refused: int
) -> None:
    """A request that came through a proxy is refused on every path but those of health, in words that help."""
    proxy = await start_proxy(upstream={"api_key": "AIzaOperator"})
    status, error = await ask(proxy, **marks)
    assert status == refused
    assert 'access.mode = "keys"' in error["error"]["message"]
    headers = {name.replace("_", "-"): value for name, value in marks.items()}
    async with aiohttp.ClientSession() as session:
        for path in paths(proxy):
            async with session.get(f"{proxy.url}{path}", headers=headers) as answer:
                text = await answer.text()
            # Paths that take no GET say no more than that.
            allowed = {200} if path in OPEN_PATHS else {refused, 405} if path.startswith("/api/") else {refused}
            assert answer.status in allowed, path
            assert answer.status != refused or "access.mode" in text
    assert upstream.calls == []


def paths(proxy: Proxy) -> set[str]:
    """A path for each route that takes GET."""
    routes = [route for route in proxy.app.router.routes() if route.method in ("GET", "*") and route.resource]
    found = {re.sub(r"\{.*?\}+", "x", route.resource.canonical) for route in routes if route.resource}
    assert len(found) > 30
    return found


@pytest.mark.parametrize(("marks", "refused"), FROM_ELSEWHERE)
async def test_a_proxy_that_is_named_may_bring_clients(
    start_proxy: StartProxy, marks: dict[str, str], refused: int
) -> None:
    proxy = await start_proxy(access={"trusted_proxies": ["127.0.0.0/8"]}, upstream={"api_key": "AIzaOperator"})
    assert (await ask(proxy, **marks))[0] == 200


async def test_http_1_0_is_a_proxys(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """A stock nginx gives itself away by nothing else."""
    proxy = await start_proxy(upstream={"api_key": "AIzaOperator"})
    async with aiohttp.ClientSession(version=aiohttp.HttpVersion10) as session:
        async with session.post(proxy.method(), json=prompt("hi")) as answer:
            assert answer.status == 403
    assert upstream.calls == []
