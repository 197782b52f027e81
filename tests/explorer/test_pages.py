"""The pages, as a browser without scripts gets them: datasets, traces and errors."""

import asyncio
import json
import re
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest

from gemini_proxy.explorer.app_keys import DATABASE, TRACES
from gemini_proxy.explorer.pages.annotated_text import SHOWN
from gemini_proxy.explorer.pages.conversation import MESSAGES
from gemini_proxy.explorer.pages.listing_pages import PAGE
from gemini_proxy.explorer.pages.templating import clock
from gemini_proxy.guardrails.plugins import load_policy
from gemini_proxy.traces.backtest import Backtest
from gemini_proxy.traces.leases import TERM, take
from gemini_proxy.traces.search import listing
from gemini_proxy.traces.search.indexer import Indexer
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Annotation, Outcome, trace_json
from tests.conftest import StartProxy
from tests.explorer.browsing import Browser, mine, record, rows, rule
from tests.support.proxy import Proxy
from tests.traces.samples import ANNOTATION, GUARDRAIL, execute, trace, url


async def test_the_way_in(browser: Browser) -> None:
    page = await browser.get("/")
    assert (page.status, page.location) == (303, "/explorer")
    assert "No exchange has been recorded yet" in (await browser.get("/explorer")).text


async def test_datasets_are_listed_with_what_they_hold(proxy: Proxy, browser: Browser) -> None:
    """Traces, last activity and rules; and what named no dataset."""
    await record(proxy, mine(), mine(), mine(dataset=None), trace(dataset="other", owner="somebody"))
    await rule(proxy)
    await rule(proxy, action="log")
    await rule(proxy, enabled=False)
    page = await browser.get("/explorer")
    assert re.search(r"demo\s+2\s+2023-11-1\d [\d:]+\s+1 block, 1 log \+ 1 off", page.text)
    assert re.search(r"without a dataset\s+1\s", page.text)
    assert "other" not in page.text
    assert {"/explorer/datasets/demo", "/explorer/traces", "/explorer/datasets/demo/rules"} <= set(page.links())


async def test_the_count_goes_down_with_retention(proxy: Proxy, browser: Browser) -> None:
    """A dataset says how many traces are there, not how many there ever were."""
    await record(proxy, mine(created=1.0), mine(created=2.0), mine())
    await proxy.app[TRACES].delete_before(3.0)
    assert re.search(r"demo\s+1\s", (await browser.get("/explorer")).text)


async def test_a_dataset_is_made(browser: Browser) -> None:
    page = await browser.post("/explorer", name=" My_data-2 ")
    assert (page.status, page.location) == (303, "/explorer/datasets/My_data-2")
    assert "No traces yet" in (await browser.get(page.location)).text


@pytest.mark.parametrize("name", ["", "a b", "ä", "a/b", "<b>", "x" * 129, "a\x00"])
async def test_a_name_that_cannot_be_is_given_back(browser: Browser, name: str) -> None:
    """400, with the name in its field and what is wrong beside it."""
    page = await browser.post("/explorer", name=name)
    assert page.status == 400 and "letters, digits, hyphens" in page.text
    if name == "<b>":
        assert 'value="&lt;b&gt;"' in page.body


async def test_a_name_is_taken_once(browser: Browser) -> None:
    await browser.post("/explorer", name="demo")
    page = await browser.post("/explorer", name="demo")
    assert page.status == 400 and "The dataset demo already exists" in page.text


async def test_a_dataset_is_deleted_after_a_question(proxy: Proxy, browser: Browser) -> None:
    """Asking changes nothing; after it nothing of the dataset is found."""
    (kept,) = await record(proxy, mine())
    await rule(proxy)
    page = await browser.get("/explorer/datasets/demo/delete")
    assert "1 trace and 1 rule" in page.text and (await browser.get("/explorer/datasets/demo")).status == 200
    page = await browser.post("/explorer/datasets/demo/delete")
    assert (page.status, page.location) == (303, "/explorer")
    for path in ("/explorer/datasets/demo", f"/explorer/traces/{kept.id}", f"/explorer/traces/{kept.id}/json"):
        assert (await browser.get(path)).status == 404


async def test_traces_are_listed_newest_first_page_by_page(proxy: Proxy, browser: Browser) -> None:
    """Every trace is on one page, also when others are recorded meanwhile."""
    recorded = await record(proxy, *(mine(created=1_700_000_000.0 + number) for number in range(2 * PAGE + 3)))
    page = await browser.get("/explorer/datasets/demo")
    seen = rows(page)
    while older := [link for link in page.links() if "before=" in link]:
        await record(proxy, mine())
        page = await browser.get(older[0])
        seen += rows(page)
    assert seen == [one.id[:8] for one in reversed(recorded)] and "No older traces" in page.text
    newest = next(link for link in page.links() if link.startswith("/explorer/datasets/demo?"))
    assert len(rows(await browser.get(newest))) == PAGE


async def test_a_row_says_what_happened(proxy: Proxy, browser: Browser) -> None:
    """Time, id, the last question, model, outcome, the first rule's words, and milliseconds."""
    told: dict[str, Any] = {"metadata": {"asked": "tell me"}, "model": "gemini-x", "duration_ms": 1234.5}
    (one,) = await record(proxy, mine(None, outcome=Outcome.REFUSED_RESPONSE, annotations=(ANNOTATION,), **told))
    page = await browser.get("/explorer/datasets/demo")
    assert re.search(rf"{one.id[:8]}\s+tell me\s+gemini-x\s+refused response\s+no secrets\s+1,23\d", page.text)
    assert 'data-outcome="refused_response"' in page.body


async def test_filters_are_the_address(proxy: Proxy, browser: Browser) -> None:
    """A link is the listing: by outcome, rule, model, time and words; what is asked stays in the form."""
    refused = mine("where is the treasure", outcome=Outcome.REFUSED_REQUEST, annotations=(ANNOTATION,), created=2e9)
    other = mine("good day", model="gemini-x", created=1e9)
    await record(proxy, refused, other)
    await Indexer(proxy.app[DATABASE], asyncio.Event()).catch_up()
    for query, found in {
        "": [other, refused],
        "outcome=refused_request": [refused],
        "outcome=failed": [],
        f"rule={quote(str(GUARDRAIL['name']))}": [refused],
        "model=gemini-x": [other],
        "text=treasure": [refused],
        "text=treasure&model=gemini-x": [],
        "since=2020-01-01T00:00": [refused],
        "until=2020-01-01T00:00": [other],
        "since=2020-01-01T00:00&until=2020-01-02": [],
        "outcome=&text=": [other, refused],
    }.items():
        page = await browser.get(f"/explorer/datasets/demo?{query}")
        assert sorted(rows(page)) == sorted(one.id[:8] for one in found), query
        if not found:
            assert "No trace matches" in page.text
    page = await browser.get("/explorer/datasets/demo?text=%22%3Cb%3E&outcome=failed")
    assert 'value="&#34;&lt;b&gt;"' in page.body and '<option value="failed" selected>' in page.body


async def test_all_traffic_is_one_list(proxy: Proxy, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces of every dataset and of none, with what the upstream said; outcomes are counted, filters are links."""
    monkeypatch.setattr(listing, "BUDGET", 10.0)
    monkeypatch.setattr(listing, "_READING", 10.0)
    quota = {
        "asked": "weather",
        "upstream_status": 429,
        "upstream_error": {"status": "RESOURCE_EXHAUSTED", "message": "No quota is left."},
    }
    refused = mine("treasure", outcome=Outcome.REFUSED_REQUEST, annotations=(ANNOTATION,), created=4.0)
    failed = mine("weather", outcome=Outcome.UPSTREAM_ERROR, metadata=quota, dataset=None, created=3.0)
    done = mine("apples", dataset="other", created=2.0)
    await record(proxy, done, failed, refused, trace(owner="somebody"))
    await Indexer(proxy.app[DATABASE], asyncio.Event()).catch_up()
    page = await browser.get("/explorer/traffic")
    assert rows(page) == [one.id[:8] for one in (refused, failed, done)]
    assert re.search(r"weather\s+none\s+gemini-2.5-flash\s+upstream error 429\s+No quota is left\.", page.text)
    assert re.search(r"all 3\s+completed 1\s+refused 1\s+errors 1\s", page.text)
    assert "/explorer/traffic?outcome=errors" in page.links()
    for query, found in {
        "outcome=refused": [refused],
        "outcome=errors": [failed],
        "status=429": [failed],
        "status=200": [],
        "rule=no%20secrets": [refused],
        "dataset=other": [done],
        "dataset=-": [failed],
        "text=appl*": [done],
    }.items():
        assert rows(await browser.get(f"/explorer/traffic?{query}")) == [one.id[:8] for one in found], query
    assert '<mark class="hit">apples</mark>' in (await browser.get("/explorer/traffic?text=appl*")).body
    assert [(await browser.get(f"/explorer/traffic?{one}")).status for one in ("dataset=no", "status=x")] == [404, 400]


async def test_a_list_says_what_is_not_found_yet(
    start_proxy: StartProxy, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Traces of an older version are not found by newer filters before they are indexed again."""
    address = url(tmp_path / "old.db")
    store = await TraceStore.open(address)

    async def hold() -> None:
        # Another process does what one does for all, and does not come to it.
        assert await store.database.write(lambda connection: take(connection, "background", "another", TERM))

    await hold()
    proxy = await start_proxy(traces={"database": address})
    browser = Browser(session, proxy.url)
    await record(proxy, mine(created=1_700_000_000.0), mine(created=1_700_000_060.0))
    await hold()
    await execute(address, "INSERT INTO progress (name, seq) VALUES ('index again', 2)")
    page = await browser.get("/explorer/traffic?tool=send")
    assert f"Exchanges before {clock(1_700_000_060.0)} were recorded by an older version" in " ".join(page.text.split())
    assert "older version" not in (await browser.get("/explorer/traffic?outcome=completed")).text
    await store.close()


async def test_what_is_filtered_is_exported(proxy: Proxy, browser: Browser) -> None:
    """Whole traces as JSON, or the list as CSV in which no cell is a formula."""
    kept = mine("=1+1", created=4.0, outcome=Outcome.REFUSED_REQUEST, annotations=(ANNOTATION,))
    await record(proxy, mine(), kept)
    page = await browser.get("/explorer/traffic/export?format=jsonl&outcome=refused")
    assert [json.loads(line) for line in page.body.splitlines()] == [trace_json(kept)]
    assert page.headers["content-disposition"].endswith('.jsonl"')
    page = await browser.get("/explorer/datasets/demo/export?format=csv&rule=no+secrets")
    head, line = page.body.splitlines()
    assert head.startswith("id,created,") and line.startswith(f"{kept.id},1970-01-01T00:00:04.000+00:00,demo,")
    assert ",secrets,no secrets,'=1+1," in line
    assert (await browser.get("/explorer/traffic/export?format=xml")).status == 400


@pytest.mark.parametrize(
    "query",
    [
        "before=x",
        "before=-1",
        "before=" + "9" * 5000,
        "outcome=nothing",
        "since=yesterday",
        "until=9999-99-99",
        "since=0001-01-01",
        "since=+1234",
        "from=1.5",
    ],
)
async def test_a_wrong_address_is_said_to_be_wrong(proxy: Proxy, browser: Browser, query: str) -> None:
    """400 as a page, never a 500."""
    (one,) = await record(proxy, mine())
    path = f"/explorer/traces/{one.id}" if query.startswith("from") else "/explorer/datasets/demo"
    page = await browser.get(f"{path}?{query}")
    assert page.status in (200, 400) and page.headers["content-type"].startswith("text/html")
    assert page.status == 400 or query == "since=0001-01-01"


@pytest.mark.parametrize(
    "query", ["text=%00", "text=%ff%fe", "text=%F0%9F%98%80", "text=" + "a" * 5000, "rule=%00", "%00=1"]
)
async def test_anything_can_be_searched_for(proxy: Proxy, browser: Browser, query: str) -> None:
    await record(proxy, mine())
    assert (await browser.get(f"/explorer/datasets/demo?{query}")).status in (200, 400)


async def test_a_trace_shows_the_marked_words_with_their_rule(proxy: Proxy, browser: Browser) -> None:
    """The very words, the rule's message and name, whether it blocked; and the link that stays."""
    mail = Annotation("mail leaves", "messages.0.content:0-4", guardrail={"name": "mail", "action": "log"})
    (one,) = await record(proxy, mine(annotations=(ANNOTATION, mail), outcome=Outcome.REFUSED_RESPONSE))
    page = await browser.get(f"/explorer/traces/{one.id}")
    assert re.findall(r"<mark[^>]*>([^<]*)</mark>", page.body) == ["tell", "secret"]
    assert re.search(r'<mark class="block"[^>]*>secret</mark>', page.body)
    assert re.search(r'<mark class="log"[^>]*>tell</mark>', page.body)
    assert re.search(r"1\s+blocked\s+secrets\s+no secrets\s+messages.1.content:4-10", page.text)
    assert re.search(r"2\s+logged\s+mail\s+mail leaves\s+messages.0.content:0-4", page.text)
    assert {f"/explorer/traces/{one.id}", f"/explorer/traces/{one.id}/json", "#a1", "#a2"} <= set(page.links())
    assert 'id="a1"' in page.body and 'id="a2"' in page.body


async def test_a_large_trace_as_json_is_the_whole_of_it(proxy: Proxy, browser: Browser) -> None:
    """With what only escapes can say, in its messages and beside them."""
    messages = [{"role": "user", "content": f"é {number} \ud800"} for number in range(10_000)]
    (one,) = await record(proxy, mine(messages=messages, metadata={"odd": ["\udfff"]}, annotations=(ANNOTATION,)))
    page = await browser.get(f"/explorer/traces/{one.id}/json")
    assert json.loads(page.body) == trace_json(one)


async def test_a_trace_as_json_is_the_whole_of_it(proxy: Proxy, browser: Browser) -> None:
    """As ``traces show --json`` prints it, and never as anything a browser runs."""
    (one,) = await record(proxy, mine("<script>", annotations=(ANNOTATION,)))
    page = await browser.get(f"/explorer/traces/{one.id}/json")
    assert orjson.loads(page.body) == orjson.loads(orjson.dumps(trace_json(one)))
    assert page.headers["content-type"] == "application/json"
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in page.headers["content-security-policy"]


async def test_one_goes_from_trace_to_trace(proxy: Proxy, browser: Browser) -> None:
    """Through the dataset, over gaps, and stops at its ends."""
    first, gone, last = await record(proxy, mine(created=3.0), mine(created=1.0), mine(created=3.0))
    await record(proxy, mine(dataset="other"))
    page = await browser.get(f"/explorer/traces/{gone.id}")
    assert {f"/explorer/traces/{first.id}", f"/explorer/traces/{last.id}"} <= set(page.links())
    page = await browser.get(f"/explorer/traces/{last.id}")
    assert f"/explorer/traces/{gone.id}" in page.links() and 'rel="prev"' not in page.body
    page = await browser.get(f"/explorer/traces/{first.id}")
    assert 'rel="next"' not in page.body


async def test_what_is_not_plain_text_is_shown_too(proxy: Proxy, browser: Browser) -> None:
    """Thoughts, calls with their arguments, outputs, images, files, tools, candidates and strange roles."""
    messages = [
        {"tools": [{"name": "lookup", "description": "looks up", "parameters": {"type": "object"}}]},
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}],
        },
        {
            "role": "user",
            "content": [{"type": "file", "file": {"uri": "gs://b/f.pdf", "mime_type": "application/pdf"}}],
        },
        {"role": "assistant", "content": "pondering", "thought": True},
        {
            "role": "assistant",
            "content": "",
            "candidate": 1,
            "tool_calls": [{"id": "c9", "function": {"name": "lookup", "arguments": {"deep": {"list": [1, "two"]}}}}],
        },
        {"role": "tool", "tool_call_id": "c9", "name": "lookup", "content": {"result": {"found": True}}},
        {"role": "clown", "content": None, "extra": "honk"},
        "no message at all",
    ]
    (one,) = await record(proxy, mine(messages=messages))
    page = await browser.get(f"/explorer/traces/{one.id}")
    for words in ("lookup", "looks up", "be brief", "gs://b/f.pdf", "pondering", "candidate 1", "two", "c9", "clown"):
        assert words in page.text, words
    assert '<img src="data:image/png;base64,iVBORw0KGgo="' in page.body
    assert '<details class="thoughts">' in page.body and "honk" in page.text and "no message at all" in page.text


async def test_a_long_text_has_its_rest_elsewhere(proxy: Proxy, browser: Browser) -> None:
    """What is marked beyond the cut is on the page; the rest is a link away, with its marks."""
    text = "x" * (2 * SHOWN) + "needle" + "y" * SHOWN
    needle = Annotation("found", f"messages.0.content:{2 * SHOWN}-{2 * SHOWN + 6}", guardrail=GUARDRAIL)
    (one,) = await record(proxy, mine(text, annotations=(needle,)))
    page = await browser.get(f"/explorer/traces/{one.id}")
    assert ">needle</mark>" in page.body and len(page.body) < 3 * SHOWN
    gap = next(link for link in page.links() if "/text?" in link)
    page = await browser.get(gap)
    assert page.status == 200 and f"of {len(text):,}" in page.text
    after = next(link for link in page.links() if f"from={2 * SHOWN}" in link)
    assert ">needle</mark>" in (await browser.get(after)).body
    for wrong in (f"at=messages.0.content&from={10**9}", "at=messages.7.content", "at=", "at=%00", "at=" + "a." * 3000):
        assert (await browser.get(f"/explorer/traces/{one.id}/text?{wrong}")).status == 404


async def test_a_long_conversation_is_several_pages(proxy: Proxy, browser: Browser) -> None:
    """A finding on a later page leads there."""
    messages = [{"role": "user", "content": f"number {number}!"} for number in range(MESSAGES + 2)]
    late = Annotation("late", f"messages.{MESSAGES + 1}.content:0-6", guardrail=GUARDRAIL)
    (one,) = await record(proxy, mine(messages=messages, annotations=(late,)))
    page = await browser.get(f"/explorer/traces/{one.id}")
    assert f"number {MESSAGES - 1}!" in page.text and f"number {MESSAGES}!" not in page.text
    link = f"/explorer/traces/{one.id}?from="
    assert {f"{link}{MESSAGES + 1}#a1", f"{link}{MESSAGES}#conversation", f"{link}2#conversation"} <= set(page.links())
    page = await browser.get(f"{link}{MESSAGES}")
    assert f"number {MESSAGES}!" in page.text
    assert {f"/explorer/traces/{one.id}#conversation", f"{link}0#conversation"} <= set(page.links())
    assert ">number</mark>" in (await browser.get(f"{link}{MESSAGES + 1}")).body


async def test_a_trace_is_whole_text_however_strange(proxy: Proxy, browser: Browser) -> None:
    """Control characters are shown, half characters replaced; nothing breaks the page."""
    (one,) = await record(proxy, mine("a\x00\x1b[31m\ud800 \u202eb", metadata={"big": 2**80, "\ud800": "\ud800"}))
    page = await browser.get(f"/explorer/traces/{one.id}")
    assert page.status == 200 and "a␀␛[31m� �b" in page.text
    assert (await browser.get(f"/explorer/traces/{one.id}/json")).status == 200


@pytest.mark.parametrize("identity", ["x", "0" * 32, "00000000-0000-0000-0000-00000000000g", "%00", "..", "a" * 5000])
async def test_what_is_no_id_is_not_found(browser: Browser, identity: str) -> None:
    for path in ("", "/json", "/text?at=messages.0.content"):
        assert (await browser.get(f"/explorer/traces/{identity}{path}")).status == 404
    assert (await browser.get(f"/explorer/traces/{uuid.uuid4()}")).status == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods_are_refused_as_pages(browser: Browser, method: str) -> None:
    for path in ("/explorer", "/explorer/live", "/explorer/nothing"):
        page = await browser.ask(method, path, headers={"origin": browser.url})
        assert page.status == 405 and page.headers["content-type"].startswith("text/html")


async def test_an_unknown_page_is_said_to_be_unknown(browser: Browser) -> None:
    for path in ("/explorer/", "/explorer/nothing", "/explorer/datasets", "/explorer/datasets/a/b", "/explorer//"):
        page = await browser.get(path)
        assert page.status == 404 and "Not found" in page.text and "/explorer" in page.links()


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"name=%ff", "application/x-www-form-urlencoded", 400),
        (b"\xff", "application/x-www-form-urlencoded", 400),
        (b"name=a&name=b", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"f%d=1" % number for number in range(100)), "application/x-www-form-urlencoded", 400),
        (b"name=" + b"a" * 600_000, "application/x-www-form-urlencoded", 413),
        (b"{}", "application/json", 415),
        (b"name=x", "multipart/form-data", 415),
        (b"", "application/x-www-form-urlencoded", 400),
    ],
)
async def test_a_form_that_cannot_be_read(browser: Browser, body: bytes, content_type: str, status: int) -> None:
    """An error page, and no dataset."""
    headers = {"origin": browser.url, "content-type": content_type}
    page = await browser.ask("POST", "/explorer", headers=headers, data=body)
    assert page.status == status and page.headers["content-type"].startswith("text/html")


async def test_a_store_that_fails_is_said_to_fail(proxy: Proxy, browser: Browser) -> None:
    """503 as a page, with a word when to come back, and without the database's own words."""
    (one,) = await record(proxy, mine())
    await execute(proxy.database, "ALTER TABLE datasets RENAME TO elsewhere")
    for path in ("/explorer", "/explorer/datasets/demo", f"/explorer/traces/{one.id}", "/explorer/dashboard"):
        page = await browser.get(path)
        assert (page.status, page.headers["retry-after"]) == (503, "1")
        assert "cannot be reached" in page.text and "sql" not in page.text.lower()
    assert (await browser.post("/explorer", name="new")).status == 503


EARLIER = [
    {"role": "user", "content": "read my notes"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "read", "arguments": {"path": "a"}}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "name": "read", "content": "the secret"},
    {"role": "assistant", "content": "there is one"},
]
"""What versions before this shape of messages stored."""


async def test_traces_of_earlier_versions_are_shown_and_checked(proxy: Proxy, browser: Browser) -> None:
    """With the name of the tool, and the output linked to its call."""
    flow = 'raise "leak" if:\n    (c: ToolCall) -> (o: ToolOutput)\n    o is tool:read\n    "secret" in o.content\n'
    found = Backtest(load_policy(flow, "leak"), {}, "check", 5.0).run(trace(messages=EARLIER))
    assert found is not None and found.failure is None
    assert "messages.2.content:4-10" in [one.address for one in found.violations[0].excerpts]
    note = Annotation("leak", "messages.2.content:4-10", "guardrails-error", GUARDRAIL)
    await record(proxy, earlier := mine(messages=EARLIER, annotations=(note,)))
    page = await browser.get(f"/explorer/traces/{earlier.id}")
    assert page.status == 200
    assert re.search(r"result\s+read\s+answers call_1", page.text)
    assert all(text in page.text for text in ("read my notes", "the secret", "there is one"))
    assert "Elsewhere" not in page.text
