"""The pages of rules: written, given back, changed, checked and tried."""

import asyncio
import re
import sys
from html import unescape
from typing import Any

import aiohttp
import orjson
import pytest

from gemini_proxy.explorer.app_keys import POLICIES
from tests.conftest import StartProxy
from tests.explorer.browsing import SECRETIVE, Browser, dataset, mine, record, rule, rules
from tests.support.proxy import Proxy
from tests.support.upstream import ScriptedUpstream


async def test_a_rule_is_written_and_holds(proxy: Proxy, browser: Browser, upstream: ScriptedUpstream) -> None:
    """From the next request on, without a script."""
    await dataset(proxy)
    page = await browser.post(
        "/explorer/datasets/demo/rules",
        name="no secrets",
        content=SECRETIVE.replace("\n", "\r\n"),
        action="block",
        enabled="on",
    )
    assert (page.status, page.location) == (303, "/explorer/datasets/demo/rules")
    assert await rules(proxy) == [("no secrets", "block", True, SECRETIVE)]
    assert "no secrets" in (await browser.get(page.location)).text
    body = {"contents": [{"parts": [{"text": "the secret"}]}]}
    headers = {"x-goog-api-key": "AIzaTest", "invariant-authorization": "Bearer inv-test"}
    path = "/api/v1/gateway/demo/gemini/v1beta/models/gemini-2.5-flash:generateContent"
    answer = await browser.ask("POST", path, headers=headers, json=body)
    assert answer.status == 400 and "a secret was asked for" in answer.body


async def test_what_holds_is_shown_with_where_it_comes_from(
    start_proxy: StartProxy, session: aiohttp.ClientSession
) -> None:
    """The dataset's own rules, the files' with their texts and whether they hold, and what a header is worth."""
    forbidden = SECRETIVE.replace("a secret was asked for", "<files>")
    proxy = await start_proxy(policy=forbidden, log_policy=SECRETIVE)
    browser = Browser(session, proxy.url)
    await record(proxy, mine("hello", dataset=None))
    kept = await rule(proxy, "own", action="log")
    shown = await shown_rules(browser, "/explorer/datasets/demo/rules")
    assert shown == [("own", "log", "on"), ("test policy", "block", "on"), ("test log policy", "log", REPLACED)]
    page = await browser.get("/explorer/datasets/demo/rules")
    assert "&lt;files&gt;" in page.body and "<files>" not in page.body
    assert "Invariant-Guardrails are added to the blocking rules" in page.text
    assert re.findall(r"(\d+ \w+) <span[^>]*>\(files\)", (await browser.get("/explorer")).body) == [
        "1 block",
        "1 block",
        "1 log",
    ]
    await proxy.app[POLICIES].change(await dataset(proxy), kept.id, action="block")
    shown = await shown_rules(browser, "/explorer/datasets/demo/rules")
    assert shown == [("own", "block", "on"), ("test policy", "block", REPLACED), ("test log policy", "log", "on")]
    shown = await shown_rules(browser, "/explorer/traces/rules")
    assert shown == [("test policy", "block", "on"), ("test log policy", "log", "on")]
    assert "/rules/new" not in (await browser.get("/explorer/traces/rules")).body


@pytest.mark.parametrize(
    ("guardrails", "said"),
    [
        ({"header_policies": "replace"}, "replace all blocking rules"),
        ({"header_policies": "off"}, "Invariant-Guardrails are ignored."),
        ({"engine": "off"}, "Nothing is checked before it is passed on: guardrails.engine is off."),
    ],
)
async def test_settings_that_decide_over_all_rules_are_said(
    start_proxy: StartProxy, session: aiohttp.ClientSession, guardrails: dict[str, str], said: str
) -> None:
    proxy = await start_proxy(guardrails=guardrails)
    await dataset(proxy)
    page = await Browser(session, proxy.url).get("/explorer/datasets/demo/rules")
    assert said in page.text and "None configured." in page.text


REPLACED = "replaced by the dataset's rules"


async def shown_rules(browser: Browser, path: str) -> list[tuple[str, str, str]]:
    """Name, action and state of each rule of a page."""
    cards = re.findall(r"<article.*?</header>", (await browser.get(path)).body, re.DOTALL)
    return [
        (text_of("h2", card), text_of('span class="action', card), text_of('span class="state', card)) for card in cards
    ]


def text_of(tag: str, markup: str) -> str:
    """What the first element of that kind says."""
    found = re.search(rf"<{tag}[^>]*>(.*?)</{tag.split()[0]}>", markup, re.DOTALL)
    assert found is not None, (tag, markup)
    return unescape(re.sub("<[^>]*>", "", found[1]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('raise "x" if:\n    (m: Mesage)\n', "line 2, column 5"),
        ("", "the policy is empty"),
        (" \n ", "the policy is empty"),
        ("x" * 70_000, "over 65536 characters"),
        ("a\nb\x00", "line 2, column 1: the policy holds the character NUL"),
        ("</textarea><script>", "line 1, column 1"),
    ],
)
async def test_a_rule_that_does_not_load_is_given_back(
    proxy: Proxy, browser: Browser, content: str, reason: str
) -> None:
    """400, with all that was written, line and reason; nothing is kept, new or changed."""
    kept = await rule(proxy)
    before = await rules(proxy)
    for path in ("/explorer/datasets/demo/rules", f"/explorer/datasets/demo/rules/{kept.id}"):
        page = await browser.post(path, name="<new>", content=content, action="log")
        assert page.status == 400 and reason in page.text
        given = re.search(r"<textarea[^>]*>\n(.*)</textarea>", page.body, re.DOTALL)
        assert given is not None
        if "\x00" not in content:
            assert given[1].replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"') == content
        assert 'value="&lt;new&gt;"' in page.body and 'value="log" checked' in page.body
    assert await rules(proxy) == before


@pytest.mark.parametrize("name", ["", " ", "x" * 257, "a\x00b"])
async def test_a_rule_needs_a_name(proxy: Proxy, browser: Browser, name: str) -> None:
    await dataset(proxy)
    page = await browser.post("/explorer/datasets/demo/rules", name=name, content=SECRETIVE)
    assert page.status == 400 and "name" in page.text and 'id="wrong-name"' in page.body
    assert await rules(proxy) == []


async def test_a_rule_is_changed_switched_and_deleted(proxy: Proxy, browser: Browser) -> None:
    """Each by a form of its own; deleting asks first."""
    kept = await rule(proxy)
    path = f"/explorer/datasets/demo/rules/{kept.id}"
    assert SECRETIVE.splitlines()[2].strip().replace('"', "&#34;") in (await browser.get(path)).body
    await browser.post(path, name="renamed", content=SECRETIVE + "\n", action="block", enabled="on")
    assert await rules(proxy) == [("renamed", "block", True, SECRETIVE + "\n")]
    for to, action, enabled in [
        ("log", "log", True),
        ("off", "log", False),
        ("on", "log", True),
        ("mask", "mask", True),
        ("block", "block", True),
    ]:
        assert (await browser.post(f"{path}/switch", to=to)).status == 303
        assert (await rules(proxy))[0][1:3] == (action, enabled)
    assert (await browser.post(f"{path}/switch", to="sideways")).status == 400
    assert "renamed" in (await browser.get(f"{path}/delete")).text and len(await rules(proxy)) == 1
    assert (await browser.post(f"{path}/delete")).status == 303
    assert await rules(proxy) == []
    for gone in (path, f"{path}/delete"):
        assert (await browser.get(gone)).status == 404
    for gone in (path, f"{path}/delete", f"{path}/switch"):
        assert (await browser.post(gone, name="x", content=SECRETIVE, to="on")).status == 404


async def ask(browser: Browser, name: str, body: Any) -> tuple[int, Any]:
    page = await browser.ask("POST", f"/explorer/api/{name}", headers={"origin": browser.url}, json=body)
    assert page.headers["content-type"] == "application/json"
    return page.status, orjson.loads(page.body)


async def test_a_policy_is_checked_as_it_is_written(browser: Browser) -> None:
    """Line, column, reason and the place; or how many rules, and what may not be meant."""
    status, found = await ask(browser, "check-policy", {"policy": 'raise "x" if:\n    (m: Mesage)\n'})
    assert (status, found["ok"], found["line"], found["column"]) == (200, False, 2, 5)
    assert "Message" in found["reason"] and found["caret"] == "    (m: Mesage)\n    ^"
    status, found = await ask(browser, "check-policy", {"policy": SECRETIVE})
    assert (status, found["ok"], found["rules"], found["warnings"]) == (200, True, 1, [])
    _, found = await ask(
        browser, "check-policy", {"policy": 'raise "x" if:\n    (m: Message)\n    input.word in m.content\n'}
    )
    assert found["ok"] and "input.word is not set" in found["warnings"][0]["message"]
    _, found = await ask(
        browser, "check-policy", {"policy": 'raise "x" if:\n    (m: Message)\n    m.role == "model"\n'}
    )
    [warning] = found["warnings"]
    assert (warning["line"], warning["column"]) == (3, 15) and '"assistant"' in warning["suggestion"]
    assert (await ask(browser, "check-policy", {"policy": "x" * 10**6}))[1]["ok"] is False
    bodies: list[Any] = [{}, {"policy": 7}, {"policy": None}, [], "x"]
    for body in bodies:
        assert (await ask(browser, "check-policy", body))[0] == 400


async def test_a_policy_is_tried_on_the_newest_traces(proxy: Proxy, browser: Browser) -> None:
    """It says which it would have refused, newest first, and for which words; the dataset stays as it is."""
    said = ["nothing", "a secret", "nothing", "my secret too", "nothing"]
    recorded = await record(proxy, *(mine(messages=[{"role": "user", "content": text}]) for text in said))
    await record(proxy, mine("secret", dataset="other"))
    status, found = await ask(browser, "try-policy", {"dataset": "demo", "policy": SECRETIVE, "last": 4})
    assert (status, found["ok"], found["checked"], found["refused"], found["complete"]) == (200, True, 4, 2, True)
    assert [one["trace"] for one in found["findings"]] == [recorded[3].id, recorded[1].id]
    (violation,) = found["findings"][0]["violations"]
    assert violation["message"] == "a secret was asked for"
    assert violation["excerpts"] == [{"role": "user", "before": "my ", "found": "secret", "after": " too"}]
    _, found = await ask(browser, "try-policy", {"dataset": "demo", "policy": SECRETIVE, "last": 10**9})
    assert found["checked"] == 5
    assert (await ask(browser, "try-policy", {"dataset": "demo", "policy": "nonsense"}))[1]["ok"] is False
    assert await rules(proxy) == []
    for body in ({"dataset": 1, "policy": "x"}, {"dataset": "demo"}, {"dataset": "demo", "policy": "x", "last": "all"}):
        assert (await ask(browser, "try-policy", body))[0] == 400
    assert (await ask(browser, "try-policy", {"dataset": "\x00", "policy": SECRETIVE}))[0] == 404


async def test_a_trial_ends_in_time(start_proxy: StartProxy, session: aiohttp.ClientSession) -> None:
    """A check that does not end gives no verdict on its trace, and the others are checked."""
    lines = ("(a: Message) -> (b: Message)", "(c: Message) -> (d: Message)", 'a.content + d.content == "y"')
    slow = "\n    ".join(('raise "x" if:', *lines)) + "\n"
    hasty = await start_proxy(guardrails={"timeout": 0.05})
    await record(hasty, mine(messages=[{"role": "user", "content": "z"}] * 300), mine("y"))
    _, found = await ask(Browser(session, hasty.url), "try-policy", {"dataset": "demo", "policy": slow})
    assert (found["checked"], found["refused"], found["undecided"]) == (2, 0, 1)
    assert "the check timed out" in found["findings"][0]["failure"]


async def test_the_process_that_tries_starts_light() -> None:
    """It imports what a check needs, and neither the server nor the pages: somebody waits for its start."""
    code = "import sys, gemini_proxy.explorer.pages.trial_batch; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert not {"aiohttp", "jinja2", "pydantic"} & set(output.decode().split())
