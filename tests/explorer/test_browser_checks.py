"""What keeps other sites, other hosts and other people out of the pages."""

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request

from gemini_proxy.explorer.app_keys import DATABASE, DATASETS, SESSION_COOKIE
from gemini_proxy.explorer.pages.sign_in import local_path
from gemini_proxy.http.browser_guard import is_encrypted
from gemini_proxy.traces.keys import Keys
from tests.conftest import StartProxy
from tests.explorer.browsing import Browser, dataset
from tests.support.proxy import Proxy

FORMS = [
    "/explorer",
    "/explorer/sign-in",
    "/explorer/sign-out",
    "/explorer/datasets/x/delete",
    "/explorer/nothing",
    "/explorer/keys",
]
PAGES = ["/explorer", "/explorer/live", "/explorer/dashboard", "/explorer/nothing", "/explorer/datasets/none"]
PAGES += ["/explorer/traffic", "/explorer/guardrails", "/explorer/keys", "/explorer/conversations/none"]


@pytest.fixture
async def stranger(closed: Proxy, session: aiohttp.ClientSession) -> Browser:
    """Someone who has not signed in, where that is needed."""
    return Browser(session, closed.url)


async def a_key(proxy: Proxy, user: str) -> str:
    return (await Keys(proxy.app[DATABASE]).add(user))[1]


async def test_another_host_name_is_not_answered(browser: Browser) -> None:
    """A site whose name leads here gets 421 and a word on the setting, whatever it asks for."""
    hosts = ["evil.example", "evil.example:8005", "localhost.evil.example", "", "a b", "[::1", "0", "127.0.0.1?"]
    hosts += ["evil.example@127.0.0.1", "127.0.0.1/evil.example", "127.0.0.1#evil.example", "127.0.0.1:x"]
    for host in hosts:
        for path in ("/explorer", "/explorer/static/style.css", "/explorer/sign-in", "/"):
            page = await browser.get(path, host=host)
            assert page.status == 421 and "explorer.hosts" in page.text, (host, path)
    for host in ("localhost", "LOCALHOST:99", "127.0.0.1", "127.0.0.2:1", "[::1]", "[::1]:8005"):
        assert (await browser.get("/explorer", host=host)).status == 200, host


async def test_configured_names_are_answered(start_proxy: StartProxy, session: aiohttp.ClientSession) -> None:
    """Those of ``explorer.hosts``, and of the addresses listened on."""
    hosts = ["pages.example.com", "[2001:db8::1]"]
    proxy = await start_proxy(explorer={"hosts": hosts}, server={"listen": ["10.1.2.3:8005"]}, access={"mode": "keys"})
    browser = Browser(session, proxy.url)
    for host in ("pages.example.com", "Pages.Example.COM:443", "[2001:db8::1]:443", "10.1.2.3:8005"):
        assert (await browser.get("/explorer/sign-in", host=host)).status == 200
    assert (await browser.get("/explorer/sign-in", host="example.com")).status == 421


async def test_another_sites_form_changes_nothing(browser: Browser) -> None:
    """403 for what does not come from a page of ours, whatever the path; and what names itself ours and is not."""
    origins = ("https://evil.example", "null", "http://[", "http://127.0.0.1")
    said: list[dict[str, str]] = [{}, *({"origin": origin} for origin in origins)]
    said += [{"sec-fetch-site": site} for site in ("cross-site", "same-site", "none")]
    for headers in said:
        for path in FORMS:
            page = await browser.ask("POST", path, headers=headers, data={"name": "made-elsewhere"})
            assert page.status == 403, (headers, path)
    lying = {"sec-fetch-site": "cross-site", "origin": browser.url}
    assert (await browser.ask("POST", "/explorer", headers=lying, data={"name": "made-elsewhere"})).status == 403
    assert "made-elsewhere" not in (await browser.get("/explorer")).text


async def test_our_own_forms_are_taken(browser: Browser) -> None:
    """By either sign of it."""
    for number, headers in enumerate([{"origin": browser.url}, {"sec-fetch-site": "same-origin", "origin": "null"}]):
        page = await browser.ask("POST", "/explorer", headers=headers, data={"name": f"ours-{number}"})
        assert (page.status, page.location) == (303, f"/explorer/datasets/ours-{number}")


async def test_every_page_is_locked_down(browser: Browser, stranger: Browser) -> None:
    """The policy forbids inline scripts and styles, frames and other sites; no page is cached, none open to others."""
    for path in (*PAGES, "/", "/explorer/sign-in"):
        for visitor in (browser, stranger):
            headers = (await visitor.get(path, origin="https://evil.example")).headers
            assert headers["content-security-policy"] == (
                "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
                "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
            )
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert headers["cross-origin-opener-policy"] == "same-origin"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert not [name for name in headers if name.lower().startswith("access-control")]


async def test_only_the_editors_script_may_add_a_style(proxy: Proxy, browser: Browser) -> None:
    """By a nonce that no two responses share, and that stands on no other element."""
    await dataset(proxy)
    seen = set()
    for _ in range(2):
        page = await browser.get("/explorer/datasets/demo/rules/new")
        [nonce] = re.findall(r' nonce="([\w-]{20,})"', page.body)
        assert f"style-src 'self' 'nonce-{nonce}';" in page.headers["content-security-policy"]
        assert page.headers["content-security-policy"].count("nonce") == 1
        seen.add(nonce)
    assert len(seen) == 2


async def test_static_files_are_cached_by_their_content(proxy: Proxy, browser: Browser) -> None:
    """For ever under the address that pages use, and not under any other."""
    await dataset(proxy)
    page = await browser.get("/explorer/datasets/demo/rules/new")
    links = re.findall(r'(?:href|src)="(/explorer/static/[^"]+)"', page.body)
    assert len(links) >= 7
    for link in links:
        page = await browser.get(link)
        assert (page.status, page.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
        assert page.headers["x-content-type-options"] == "nosniff"
        assert (await browser.get(link.partition("?")[0] + "?v=old")).headers["cache-control"] == "no-cache"


async def test_only_static_files_are_served(browser: Browser) -> None:
    for name in ("nothing.js", "..%2fpages_traces.py", "%2e%2e/keys.py", "style.css%00", ".", "vendor"):
        assert (await browser.get(f"/explorer/static/{name}")).status == 404, name


async def test_nothing_is_shown_before_the_sign_in(stranger: Browser) -> None:
    """Each page leads to the form, and remembers itself; a form that was sent is 401."""
    for path in (*PAGES, "/explorer/datasets/x?outcome=failed&text=a%26b"):
        page = await stranger.get(path)
        assert page.status == 303 and page.location.startswith("/explorer/sign-in?next=%2Fexplorer")
    assert (await stranger.post("/explorer", name="mine")).status == 401
    for path in ("/explorer/api/check-policy", "/explorer/api/try-policy"):
        page = await stranger.ask("POST", path, headers={"origin": stranger.url}, json={"policy": "x"})
        assert (page.status, page.body) == (401, '{"detail":"You must provide a valid API key."}')


async def test_a_key_opens_the_page_that_was_asked_for(stranger: Browser, closed: Proxy) -> None:
    """And the session lasts until it is ended, here or by revoking the key."""
    keys = Keys(closed.app[DATABASE])
    record, key = await keys.add("alice")
    page = await stranger.get("/explorer/dashboard?range=7d")
    form = await stranger.get(page.location)
    assert 'name="next" value="/explorer/dashboard?range=7d"' in form.body
    page = await stranger.post("/explorer/sign-in", key=f" {key} ", next="/explorer/dashboard?range=7d")
    assert (page.status, page.location) == (303, "/explorer/dashboard?range=7d")
    page = await stranger.get("/explorer")
    assert page.status == 200 and "alice" in page.text
    other = Browser(stranger.session, stranger.url, dict(stranger.cookies))
    page = await stranger.post("/explorer/sign-out")
    assert (page.status, page.location) == (303, "/explorer/sign-in")
    assert (await other.get("/explorer")).status == 303
    await stranger.post("/explorer/sign-in", key=key)
    assert (await stranger.get("/explorer")).status == 200
    await keys.revoke(record.id)
    assert (await stranger.get("/explorer")).status == 303


async def test_a_wrong_key_is_said_to_be_wrong(stranger: Browser) -> None:
    """No session, and the key is not repeated."""
    for key in ("", "inv-", "inv-" + "0" * 64, "'; --", "\N{GRINNING FACE}", "x" * 10_000, "\x00"):
        page = await stranger.post("/explorer/sign-in", key=key, next="/explorer/live")
        assert page.status == 401 and "not valid" in page.text, key
        assert "set-cookie" not in page.headers
        assert len(key) < 5 or key not in page.body
        assert 'value="/explorer/live"' in page.body


async def test_the_key_is_never_taken_from_an_address(stranger: Browser, closed: Proxy) -> None:
    """It would stay in histories and logs."""
    key = await a_key(closed, "alice")
    await stranger.get(f"/explorer/sign-in?key={key}")
    assert (await stranger.get("/explorer")).status == 303


@pytest.mark.parametrize(
    ("headers", "secure"), [({}, False), ({"x-forwarded-proto": "https"}, True), ({"x-forwarded-proto": "http"}, False)]
)
async def test_the_cookie_is_only_for_us(
    stranger: Browser, closed: Proxy, headers: dict[str, str], secure: bool
) -> None:
    """No script reads it, no other site sends it; over https it stays there. A proxy on this machine may say so."""
    page = await stranger.post("/explorer/sign-in", headers, key=await a_key(closed, "alice"))
    cookie = page.headers["set-cookie"]
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert cookie.startswith(f"{SESSION_COOKIE}=")
    assert {"httponly", "samesite=lax", "path=/", "max-age=1209600"} <= parts
    assert ("secure" in parts) is secure


async def test_the_sign_in_leads_nowhere_else(stranger: Browser, closed: Proxy) -> None:
    """What is no page of ours becomes the first page."""
    key = await a_key(closed, "alice")
    for wanted in (
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/explorer//evil.example",
        "/explorerevil",
        "/explorer.evil.example",
        "javascript:alert(1)",
        "/api/v1/feed",
        "/explorer/\r\nset-cookie: a=b",
        "/explorer/\\\\evil",
        "/explorer?" + "x" * 3000,
        "",
    ):
        page = await stranger.post("/explorer/sign-in", key=key, next=wanted)
        assert (page.status, page.location) == (303, "/explorer"), wanted
        assert local_path(wanted) == "/explorer"


async def test_without_keys_there_is_no_sign_in(browser: Browser) -> None:
    """Everybody on this machine is the developer."""
    page = await browser.get("/explorer/sign-in?next=/explorer/live")
    assert (page.status, page.location) == (303, "/explorer/live")
    page = await browser.get("/explorer")
    assert "developer" in page.text and "Sign out" not in page.text


async def test_one_user_finds_nothing_of_anothers(stranger: Browser, closed: Proxy) -> None:
    """The same page as for what does not exist, for reading and for changing."""
    dataset = await closed.app[DATASETS].create("bob", "bobs")
    await stranger.post("/explorer/sign-in", key=await a_key(closed, "alice"))
    assert "bobs" not in (await stranger.get("/explorer")).text
    for path in ("", "/rules", "/rules/new", "/delete"):
        page = await stranger.get(f"/explorer/datasets/bobs{path}")
        other = await stranger.get(f"/explorer/datasets/none{path}")
        assert (page.status, page.text.replace("bobs", "none")) == (404, other.text)
    for path in ("/delete", "/rules", f"/rules/{dataset.id}", f"/rules/{dataset.id}/delete"):
        assert (await stranger.post(f"/explorer/datasets/bobs{path}", name="x", content="x")).status == 404
    body = {"dataset": "bobs", "policy": 'raise "x" if:\n    (m: Message)\n'}
    page = await stranger.ask("POST", "/explorer/api/try-policy", headers={"origin": stranger.url}, json=body)
    assert (page.status, page.body) == (404, '{"detail":"Dataset not found"}')
    assert await closed.app[DATASETS].get("bob", "bobs") is not None


@pytest.mark.parametrize(
    ("peer", "said", "secure"),
    [
        ("", "https", True),
        (None, "https", True),
        (("127.0.0.1", 5), "https", True),
        (("::1", 5, 0, 0), "https", True),
        (("10.0.0.9", 5), "https", False),
        (("127.0.0.1", 5), "http", False),
        (("127.0.0.1", 5), "https, http", False),
        (("127.0.0.1", 5), None, False),
    ],
)
def test_only_a_proxy_on_this_machine_can_say_that_it_was_https(peer: Any, said: str | None, secure: bool) -> None:
    """Over a unix socket or the loopback; anybody can write the header."""

    class Transport(asyncio.Transport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return peer if name == "peername" else default

    headers = {} if said is None else {"x-forwarded-proto": said}
    request = make_mocked_request("POST", "/explorer/sign-in", headers, transport=Transport())
    assert is_encrypted(request) is secure


def test_templates_have_no_way_round_escaping() -> None:
    """No ``safe``, no inline script or style, no address of another site."""
    folder = Path(__file__).parents[2] / "src/gemini_proxy/explorer/pages"
    templates = {path.name: path.read_text() for path in (folder / "templates").iterdir()}
    assert len(templates) > 10
    for name, text in templates.items():
        for pattern in (r"\|\s*safe", "autoescape", r"<script(?! src=)", "<style", r"\sstyle=", r"\son\w+=", "https?:"):
            assert not re.search(pattern, text), (name, pattern)
    for path in (folder / "static").glob("*.js"):
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert word not in path.read_text(), (path.name, word)
