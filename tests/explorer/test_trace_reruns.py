"""A trace once more: the rules in force now on it, and its request sent again."""

from typing import Any

import aiohttp
import pytest

from gemini_proxy.explorer.app_keys import DATABASE
from gemini_proxy.traces.access import DEVELOPER
from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.trace import Annotation
from tests.conftest import StartProxy
from tests.explorer.browsing import Browser, mine, record, rule
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

DUBLIN = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n'
SAID = [
    {"role": "user", "content": [{"type": "text", "text": "Is it Dublin or a secret?"}]},
    {"role": "assistant", "content": "Cork"},
]


async def test_the_rules_in_force_now_are_tried_on_a_trace(
    start_proxy: StartProxy, client: aiohttp.ClientSession
) -> None:
    """Those of the files and of the dataset, each with what it finds, marked in the conversation; nothing is kept."""
    proxy = await start_proxy(policy=DUBLIN, log_policy=DUBLIN.replace("Dublin", "Cork"))
    browser = Browser(client, proxy.url)
    await rule(proxy, "no secrets", action="ask")
    old = Annotation("once", "messages.1.content:0-4", guardrail={"name": "gone", "action": "block"})
    one, other, masked = await record(
        proxy,
        mine(messages=SAID, annotations=(old,)),
        mine(messages=SAID[1:], dataset=None),
        mine(messages=SAID[1:], metadata={"coverage": {"masked_values": 1}}),
    )
    page = await browser.get(f"/explorer/traces/{one.id}/try")
    assert page.status == 200
    for words in ("test policy", "no secrets", "test log policy", "no Dublin", "a secret was asked for", "no Cork"):
        assert words in page.text
    assert "block is the strongest action" in " ".join(page.text.split())
    assert '<mark class="block" data-marks="' in page.body and ">Dublin</mark>" in page.body and "once" not in page.text
    page = await browser.get(f"/explorer/traces/{other.id}/try")
    assert "no secrets" not in page.text and "log is the strongest action" in " ".join(page.text.split())
    assert "Values were masked" in (await browser.get(f"/explorer/traces/{masked.id}/try")).text
    assert (await browser.get(f"/explorer/traces/{one.id}")).text.count("once") == 2
    async with client.get(f"{proxy.url}/api/v1/trace/{one.id}/try") as response:
        told = await response.json()
    assert [(each["guardrail"], each["action"], each["failure"]) for each in told] == [
        ("test policy", "block", None),
        ("no secrets", "ask", None),
        ("test log policy", "log", None),
    ]
    assert [each["violations"][0]["ranges"] for each in told][2] == ["messages.1.content:0-4"]
    (stranger,) = await record(proxy, mine(owner="somebody"))
    assert (await browser.get(f"/explorer/traces/{stranger.id}/try")).status == 404


async def test_a_trial_without_a_verdict_says_so(start_proxy: StartProxy, client: aiohttp.ClientSession) -> None:
    """Such as one that asks a model, of which none is asked here; the others are tried all the same."""
    asks = DUBLIN.replace('"Dublin" in m.content', 'decision("is it so?", m.content)')
    proxy = await start_proxy(policy=f"from invariant.detectors import decision\n{asks}", log_policy=DUBLIN)
    (one,) = await record(proxy, mine(messages=SAID))
    page = await Browser(client, proxy.url).get(f"/explorer/traces/{one.id}/try")
    assert "No verdict of test policy." in page.text and "1 violation" in page.text


async def test_a_request_is_sent_again(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """With the key that was typed in, through every check; the new trace is shown, and the key is nowhere in it."""
    proxy = await start_proxy(policy=DUBLIN)
    upstream.reply(stream(*sse(candidate("fine", "STOP"))))
    async with client.post(proxy.stream, json={**prompt("hi"), "generationConfig": {"temperature": 0.5}}) as response:
        await response.read()
    first = await proxy.trace()
    browser, here = Browser(client, proxy.url), f"/explorer/traces/{first.id}/replay"
    assert "Gemini key" in (await browser.get(here)).text
    upstream.reply(stream(*sse(candidate("Dublin", "STOP"))))
    answer = await browser.post(here, key="AIzaTyped")
    second = await proxy.trace()
    assert (answer.status, answer.location) == (303, f"/explorer/traces/{second.id}")
    assert second.id != first.id and second.outcome == "refused_response" and second.stream
    call = upstream.calls[-1]
    assert call.headers["x-goog-api-key"] == "AIzaTyped"
    assert call.json == {**prompt("hi"), "generationConfig": {"temperature": 0.5}}
    assert second.metadata["conversation"].startswith(f"replay-{first.id[:8]}-")
    assert "AIzaTyped" not in str(second) + str(answer.headers)
    calls = len(upstream.calls)
    for wrong in ("", "a\r\nb", "é"):
        answer = await browser.post(here, key=wrong)
        assert answer.status == 400 and "visible characters" in answer.text
    assert (await browser.post(here, {"origin": "https://evil.example"}, key="AIzaTyped")).status == 403
    assert len(upstream.calls) == calls


CANNOT: list[tuple[dict[str, Any], str]] = [
    ({"method": "countTokens"}, "Only calls of generateContent"),
    ({"coverage": {"masked_values": 2}}, "Values in it were masked"),
    ({"earlier": [{"kind": "cache", "name": "c", "messages": 1}]}, "something that Gemini keeps"),
    ({"vertex": {"project": "p"}}, "Vertex AI"),
    ({"request_messages": 0}, "does not hold what was asked"),
]


async def test_what_cannot_be_sent_again_says_why(proxy: Proxy, browser: Browser, upstream: ScriptedUpstream) -> None:
    given = {"method": "generateContent"}
    traces = await record(proxy, *(mine(messages=SAID, metadata={**given, **metadata}) for metadata, _ in CANNOT))
    for one, (_, words) in zip(traces, CANNOT, strict=True):
        page = await browser.get(f"/explorer/traces/{one.id}/replay")
        assert words in page.text and 'name="key"' not in page.body
        answer = await browser.post(f"/explorer/traces/{one.id}/replay", key="AIzaTyped", own_key="inv-1")
        assert answer.status == 400 and words in answer.text
    assert not upstream.calls


@pytest.mark.parametrize("dataset", ["demo", None])
async def test_it_becomes_the_visitors_trace(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, dataset: str | None
) -> None:
    """A key of this server says whose trace it is; with another user's the page says that it cannot be seen."""
    proxy = await start_proxy(access={"mode": "keys"})
    keys = {name: (await Keys(proxy.app[DATABASE]).add(name))[1] for name in (DEVELOPER, "ann")}
    upstream.reply(unary(candidate("fine", "STOP")))
    (one,) = await record(proxy, mine(messages=SAID, dataset=dataset, metadata={"method": "generateContent"}))
    browser = Browser(client, proxy.url)
    await browser.post("/explorer/sign-in", key=keys[DEVELOPER])
    here = f"/explorer/traces/{one.id}/replay"
    assert "Key of this server" in (await browser.get(here)).text
    answer = await browser.post(here, key="AIzaTyped", own_key=keys[DEVELOPER])
    assert answer.location == f"/explorer/traces/{(await proxy.trace()).id}"
    assert (await proxy.trace()).dataset == dataset
    answer = await browser.post(here, key="AIzaTyped", own_key=keys["ann"])
    assert answer.status == 400 and "no trace that you can see" in answer.text
    answer = await browser.post(here, key="AIzaTyped", own_key="inv-wrong")
    assert answer.status == 400 and "answered 401" in answer.text
    calls = len(upstream.calls)
    _, key = await Keys(proxy.app[DATABASE]).add(DEVELOPER, "client")
    await browser.post("/explorer/sign-in", key=key)
    assert here not in (await browser.get(f"/explorer/traces/{one.id}")).links()
    assert (await browser.post(here, key="AIzaTyped", own_key=key)).status == 403
    assert len(upstream.calls) == calls
