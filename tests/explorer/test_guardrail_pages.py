"""One page says which guardrails hold where, what they found of late, and where nothing is checked."""

import asyncio
import os
import re
import time
from pathlib import Path

import aiohttp
import pytest

from gemini_proxy.config import Config
from gemini_proxy.explorer.app_keys import AUDIT, DATASETS
from gemini_proxy.sections import Guardrails
from gemini_proxy.server.sources import compile_sources, read_sources
from gemini_proxy.traces.access import DEVELOPER
from gemini_proxy.traces.audit import SETTINGS_LOADED, Change, this_server
from gemini_proxy.traces.search import listing
from gemini_proxy.traces.trace import Annotation
from tests.conftest import StartProxy
from tests.explorer.browsing import SECRETIVE, Browser, mine, record, rule
from tests.support.proxy import Proxy
from tests.traces.samples import ensured


async def test_it_says_what_holds_where(
    start_proxy: StartProxy, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset's rule replaces the files' of its action; findings of a day are counted, slow checks named."""
    monkeypatch.setattr(listing, "BUDGET", 10.0)
    proxy = await start_proxy(policy=SECRETIVE)
    browser = Browser(session, proxy.url)
    await ensured(proxy.app[DATASETS], DEVELOPER, "plain")
    await rule(proxy, "house", by="ann <key>")
    await rule(proxy, "spare", action="log", enabled=False)
    found = Annotation("a secret was asked for", "", guardrail={"name": "house", "action": "block"})
    now, metadata = time.time(), {"coverage": {"milliseconds": 1234.5}}
    await record(
        proxy, mine(annotations=(found,), created=now, metadata=metadata), mine(annotations=(found,), created=1.0)
    )
    async with asyncio.timeout(10):
        while not await proxy.app[AUDIT].of_action(SETTINGS_LOADED):
            pass
    page = await browser.get("/explorer/guardrails")
    [name] = re.findall(r"<summary>([^<]*)</summary>", page.body)
    assert re.search(rf"{re.escape(name)}.*\bblock\s+1\s+everywhere but demo\s+loaded \d{{4}}-", page.text, re.DOTALL)
    assert re.search(r"demo\s+An exchange is checked by block house\s", page.text)
    assert re.search(rf"plain\s+An exchange is checked by block {re.escape(name)}\s", page.text)
    assert re.search(r"house\s*block\s*on\s*\d{4}-\d\d-\d\d [\d:]+ by ann <key>\s*1\s", page.text)
    assert "/explorer/datasets/demo?rule=house" in page.links() and re.search(r"spare\s*log\s*off", page.text)
    assert "1.2 s" in page.text and "Not checked" not in page.text
    another = Change(SETTINGS_LOADED, this_server(), "gemini-proxy", after={"policies": {name: "block another"}})
    await proxy.app[AUDIT].append(another)
    assert "loaded" not in (await browser.get("/explorer/guardrails")).text


async def test_it_says_where_nothing_is_checked(proxy: Proxy, browser: Browser) -> None:
    await rule(proxy, action="log")
    page = await browser.get("/explorer/guardrails")
    assert "No policy file blocks, asks or masks" in page.text and "An exchange is checked by nothing" in page.text
    assert re.search(r"Not checked\s+Exchanges with demo have no guardrail", page.text)


async def test_an_engine_that_is_off_is_said_to_be_off(
    start_proxy: StartProxy, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    proxy = await start_proxy(policy=SECRETIVE, guardrails={"engine": "off"})
    page = await Browser(session, proxy.url).get("/explorer/guardrails")
    assert "Nothing is checked: guardrails.engine is" in page.text


def test_a_file_says_when_it_was_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.gr"
    file.write_text(SECRETIVE)
    os.utime(file, (1.0, 1.0))
    sources = read_sources(Config(guardrails=Guardrails(policies=("a.gr",))), tmp_path / "config.toml")
    assert [guardrail.modified for guardrail in compile_sources(sources).blocking] == [1.0]
