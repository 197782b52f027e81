"""The page of what a rule has been."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.explorer.app_keys import DATABASE, POLICIES
from gemini_proxy.explorer.pages.rule_pages import DiffLine, differing
from gemini_proxy.traces.schema import policy_versions
from tests.explorer.browsing import SECRETIVE, Browser, dataset, rule, rules
from tests.support.proxy import Proxy

SECRETLESS = SECRETIVE.replace("secret", "<b>key</b>")


async def test_versions_are_shown_with_their_difference_and_brought_back(proxy: Proxy, browser: Browser) -> None:
    """What was added and removed is said in words too; the current version has no button."""
    kept = await rule(proxy, by="ann <key>")
    path = f"/explorer/datasets/demo/rules/{kept.id}"
    await browser.post(path, name="renamed", content=SECRETLESS, action="log")
    page = await browser.get(f"{path}/versions")
    assert (page.status, re.findall(r"<h2[^>]*>(Version.*?)</h2>", page.body)) == (200, ["Version 2", "Version 1"])
    for said in ("off, current", "renamed from “no secrets”, block → log, disabled", "by ann <key>"):
        assert said in page.text
    assert [re.sub("<[^>]*>", "", one) for one in re.findall(r"<(?:ins|del)>.*?</(?:ins|del)>", page.body)] == [
        "- removed: raise &#34;a secret was asked for&#34; if:",
        "+ added: raise &#34;a &lt;b&gt;key&lt;/b&gt; was asked for&#34; if:",
        "- removed:     any(find(&#34;secret&#34;, m.content))",
        "+ added:     any(find(&#34;&lt;b&gt;key&lt;/b&gt;&#34;, m.content))",
    ]
    assert re.findall(r'action="([^"]*versions/\d+)"', page.body) == [f"{path}/versions/1"]
    back = await browser.post(f"{path}/versions/1")
    assert (back.status, back.location) == (303, f"{path}/versions")
    assert await rules(proxy) == [("no secrets", "block", True, SECRETIVE)]


async def test_a_deleted_rule_is_found_and_brought_back(proxy: Proxy, browser: Browser) -> None:
    """From the list of rules, where it stands until then."""
    kept = await rule(proxy)
    path = f"/explorer/datasets/demo/rules/{kept.id}"
    await browser.post(f"{path}/delete")
    listed = await browser.get("/explorer/datasets/demo/rules")
    assert "Deleted rules (1)" in listed.text and f"{path}/versions" in listed.links()
    assert "The rule is deleted and does not apply" in (await browser.get(f"{path}/versions")).text
    assert (await browser.post(f"{path}/versions/1")).status == 303
    assert [name for name, *_ in await rules(proxy)] == ["no secrets"]
    assert "Deleted rules" not in (await browser.get("/explorer/datasets/demo/rules")).text
    assert "brought back" in (await browser.get(f"{path}/versions")).text


async def test_many_versions_are_shown_in_pages(proxy: Proxy, browser: Browser) -> None:
    """The last on a page is compared with the first of the next."""
    kept = await rule(proxy)
    for number in range(2, 13):
        await proxy.app[POLICIES].change(await dataset(proxy), kept.id, content=f"# {number}\n{SECRETIVE}")
    path = f"/explorer/datasets/demo/rules/{kept.id}/versions"
    page = await browser.get(path)
    assert page.body.count("<ins>") == 10 and f"{path}?before=3" in page.links()
    older = await browser.get(f"{path}?before=3")
    assert re.findall(r"<h2[^>]*>(Version.*?)</h2>", older.body) == ["Version 2", "Version 1"]
    assert "current" not in re.sub("Make current|make a version current", "", older.text)


async def test_what_is_no_version_or_does_not_load_is_not_brought_back(proxy: Proxy, browser: Browser) -> None:
    """404 and 400 with the place; and only our own forms may ask."""
    kept = await rule(proxy)
    path = f"/explorer/datasets/demo/rules/{kept.id}/versions"
    for wrong in ("2", "0", "x"):
        assert (await browser.post(f"{path}/{wrong}")).status == 404
    other = "/explorer/datasets/demo/rules/00000000-0000-0000-0000-000000000000/versions"
    assert (await browser.get(other)).status == 404
    assert (await browser.post(f"{path}/1", {"origin": "http://evil.example"})).status == 403
    await proxy.app[DATABASE].write(
        lambda connection: connection.execute(policy_versions.update().values(content="raise"))
    )
    refused = await browser.post(f"{path}/1")
    assert refused.status == 400 and "Version 1 does not load any more: line 1, column 6" in refused.text
    assert await rules(proxy) == [("no secrets", "block", True, SECRETIVE)]


TEXTS = st.lists(st.sampled_from("ab\u2028c"), max_size=6).map("\n".join)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS)
def test_a_difference_leads_from_one_text_to_the_other(old: str, new: str) -> None:
    """Of short texts that differ all lines are there, and nothing of those that do not."""
    lines = [line for line in differing(old, new) if line.kind != "gap"]
    if old == new:
        assert lines == []
        return
    for text, kinds in ((old, ("same", "removed")), (new, ("same", "added"))):
        shown = "\n".join(line.text for line in lines if line.kind in kinds)
        assert shown in text


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ("a\nb", "a\nc", ["same", "removed", "added"]),
        ("1\n2\n3\n4\n5\n6\n7\n8\n9", "x\n2\n3\n4\n5\n6\n7\n8\ny",
         ["removed", "added", *["same"] * 3, "gap", *["same"] * 3, "removed", "added"]),
        ("a\n" * 600, "a\n" * 599, ["removed"] * 601 + ["added"] * 600),
    ],
)  # fmt: skip
def test_lines_around_a_difference_are_shown(old: str, new: str, kinds: list[str]) -> None:
    """Three of them; texts too long to compare are shown whole."""
    assert [line.kind for line in differing(old, new)] == kinds
    assert all(isinstance(line, DiffLine) for line in differing(old, new))
