"""The dashboard and the live view, as a browser without scripts gets them."""

import asyncio
import re
import time
from html import unescape
from typing import Any

import pytest

from gemini_proxy.explorer.app_keys import DATABASE
from gemini_proxy.traces.search.indexer import Indexer
from gemini_proxy.traces.trace import Outcome
from tests.explorer.browsing import Browser, dataset, mine, record
from tests.support.proxy import Proxy
from tests.traces.samples import ANNOTATION


async def test_the_dashboard_counts_what_happened(proxy: Proxy, browser: Browser) -> None:
    """Requests, refusals by rule, latency and first events, as plots and as tables; of one dataset or of all."""
    now = time.time()
    refused: dict[str, Any] = {"outcome": Outcome.REFUSED_REQUEST, "annotations": (ANNOTATION,)}
    timed: dict[str, Any] = {
        "duration_ms": 200.0,
        "metadata": {"latencies_ms": {"first_byte": 50.0}, "usage": {"promptTokenCount": 7}},
    }
    await record(
        proxy, mine(created=now - 60, **timed), mine(created=now - 60, **refused), mine(created=now - 60, dataset=None)
    )
    await Indexer(proxy.app[DATABASE], asyncio.Event()).catch_up()
    for query, count in {
        "": 3,
        "?dataset=demo": 2,
        "?dataset=-": 1,
        "?range=1h": 3,
        "?range=30d": 3,
        "?range=x": 3,
    }.items():
        page = await browser.get(f"/explorer/dashboard{query}")
        assert page.status == 200
        assert re.search(rf"Requests\s*{count}\s", page.text), query
    page = await browser.get("/explorer/dashboard?range=1h&dataset=demo")
    assert page.body.count("<svg viewBox") == 5 and page.body.count("As a table") == 4
    assert re.search(r"Refused\s*1\s+50.0", page.text) and "secrets" in page.text
    assert re.search(r"<title>[^<]*: completed 1, refused 1</title>", page.body)


async def test_a_point_leads_to_its_traces(proxy: Proxy, browser: Browser) -> None:
    """Of the dataset shown, in that time, and only the refused ones from the plot of refusals."""
    now = time.time()
    refused: dict[str, Any] = {"outcome": Outcome.REFUSED_REQUEST, "annotations": (ANNOTATION,)}
    traces = await record(proxy, mine(created=now), mine(created=now, **refused), mine(created=now, dataset=None))
    await Indexer(proxy.app[DATABASE], asyncio.Event()).catch_up()
    page = await browser.get("/explorer/dashboard?range=1h&dataset=demo")
    plots = page.body.split('<section class="plot"')[1:3]
    shown = []
    for plot in plots:
        table = plot.split("<table")[1]
        (link,) = [unescape(link) for link in re.findall(r'href="(/explorer/traffic[^"]*)"', table)]
        listed = (await browser.get(link)).body
        shown.append([trace.id in listed for trace in traces])
    assert shown == [[True, True, False], [False, True, False]]


async def test_a_dashboard_is_asked_for_again_when_that_is_wished(browser: Browser) -> None:
    for refresh, header in {"30": "30", "": None, "0": None, "1;url=//evil": None}.items():
        page = await browser.get(f"/explorer/dashboard?refresh={refresh}")
        assert page.headers.get("refresh") == header


@pytest.mark.parametrize("name", ["none", "%00", "a" * 5000, "%f0%9f%98%80", "<b>"])
async def test_a_dashboard_of_nothing_is_not_found(browser: Browser, name: str) -> None:
    assert (await browser.get(f"/explorer/dashboard?dataset={name}")).status == 404


async def test_the_live_view_has_what_its_script_expects(proxy: Proxy, browser: Browser) -> None:
    await dataset(proxy)
    page = await browser.get("/explorer/live")
    for name in ("live", "live-state", "live-pause", "live-refused", "live-dataset"):
        assert page.body.count(f'id="{name}"') == 1
    assert "<option>demo</option>" in page.body and "live.js" in page.body
