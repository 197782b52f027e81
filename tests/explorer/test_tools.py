"""The tools of a dataset, over the API and in its page: what is pinned, what differs, and the accepting of it."""

import re

import pytest

from gemini_proxy.explorer.pages.tool_pages import DiffSpan, differences
from gemini_proxy.policy import tool_digest
from gemini_proxy.traces.datasets import UNNAMED
from tests.explorer.api import Api
from tests.explorer.browsing import Browser, declare, tool
from tests.support.proxy import Proxy


async def test_tools_are_listed_accepted_and_forgotten_over_the_api(proxy: Proxy, checker: Api) -> None:
    await declare(proxy, tool("Sends a mail."), tool("Lists.", "list"))
    dataset = await declare(proxy, tool("Sends a mail to eve."))
    found = (await checker.get(f"{checker.at('demo')}/tools"))["tools"]
    assert [one["name"] for one in found] == ["send", "list"]
    assert found[1]["changed"] is None and found[1]["pinned"]["digest"] == tool_digest(tool("Lists.", "list"))
    assert found[0]["pinned"]["declaration"]["description"] == "Sends a mail."
    assert found[0]["changed"]["declaration"]["description"] == "Sends a mail to eve."
    path = f"/dataset/{dataset.id}/tools"
    wrong = {"name": "send", "digest": "0" * 64}
    assert await checker.refused("POST", f"{path}/accept", wrong) == (404, "The tool's declaration has changed again")
    assert await checker.refused("POST", f"{path}/accept", {"name": "send"}) == (400, "digest must be a string")
    await checker.post(f"{path}/accept", {"name": "send", "digest": found[0]["changed"]["digest"]})
    found = (await checker.get(f"{checker.at('demo')}/tools"))["tools"]
    assert [(one["name"], one["changed"]) for one in found] == [("list", None), ("send", None)]
    assert found[1]["pinned"]["declaration"]["description"] == "Sends a mail to eve."
    await checker.post(f"{path}/forget", {"name": "send"})
    assert await checker.refused("POST", f"{path}/forget", {"name": "send"}) == (404, "Tool not found")


async def test_another_users_tools_are_not_found(closed: Proxy, alice: Api, bob: Api) -> None:
    dataset = await declare(closed, tool("Sends."), owner="alice")
    assert (await alice.get(f"{alice.at('demo')}/tools"))["tools"]
    assert (await bob.refused("GET", f"{alice.at('demo')}/tools"))[0] == 404
    assert (await bob.refused("POST", f"/dataset/{dataset.id}/tools/forget", {"name": "send"}))[0] == 404


@pytest.mark.parametrize(("name", "path"), [("demo", "/explorer/datasets/demo"), (UNNAMED, "/explorer/traces")])
async def test_a_page_shows_the_difference_and_accepts_it(proxy: Proxy, browser: Browser, name: str, path: str) -> None:
    """Both declarations side by side, what differs marked, what nobody sees spelled out, markup as text."""
    await declare(proxy, tool("Sends a mail."), dataset=name)
    page = await browser.get(f"{path}/tools")
    assert "Sends a mail." in page.text and "Accept" not in page.text
    assert f"{path}/tools" in (await browser.get(path)).links()
    await declare(proxy, tool("Sends a <b>mail.\u200b"), dataset=name)
    page = await browser.get(f"{path}/tools")
    assert re.findall(r'<mark class="block">(.*?)</mark>', page.body) == ["&lt;b&gt;", "\\u200b"]
    [changed] = re.findall(r'name="digest" value="(\w+)"', page.body)
    fields = {"name": "send", "digest": changed}
    foreign = await browser.post(f"{path}/tools/accept", {"origin": "https://evil.example"}, **fields)
    assert foreign.status == 403
    assert (await browser.post(f"{path}/tools/accept", name="send", digest="0")).status == 404
    assert (await browser.post(f"{path}/tools/accept", **fields)).location == f"{path}/tools"
    page = await browser.get(f"{path}/tools")
    assert "Accept" not in page.text and "Sends a <b>mail.\\u200b" in page.text
    await declare(proxy, {**tool("Sends a <b>mail.\u200b"), "annotations": {"readOnlyHint": True}}, dataset=name)
    page = await browser.get(f"{path}/tools")
    [marked] = re.findall("<mark.*?</mark>", page.body, re.DOTALL)
    assert "readOnlyHint" in marked and "properties" not in marked
    assert (await browser.post(f"{path}/tools/forget", name="send")).status == 303
    assert "No tools yet." in (await browser.get(f"{path}/tools")).text


async def test_many_tools_are_shown_page_by_page(proxy: Proxy, browser: Browser, checker: Api) -> None:
    """The changed ones first, whatever their names."""
    await declare(proxy, *(tool("Reads.", f"tool_{number:02}") for number in range(30)))
    await declare(proxy, tool("Writes.", "tool_29"))
    page = await browser.get("/explorer/datasets/demo/tools")
    names = re.findall(r"<h2>(\w+)</h2>", page.body)
    assert (len(names), names[0]) == (20, "tool_29")
    [following] = [link for link in page.links() if "from=" in link]
    names += re.findall(r"<h2>(\w+)</h2>", (await browser.get(following)).body)
    assert len(set(names)) == len(names) == 30
    listed = await checker.get(f"{checker.at('demo')}/tools?limit=3&offset=1")
    assert [one["name"] for one in listed["tools"]] == ["tool_00", "tool_01", "tool_02"]


def test_differences_are_marked_by_words_and_bounded() -> None:
    old, new = differences("a b c", "a x c")
    assert old == [DiffSpan("a "), DiffSpan("b", True), DiffSpan(" c")]
    assert new == [DiffSpan("a "), DiffSpan("x", True), DiffSpan(" c")]
    assert differences("same", "same") == ([DiffSpan("same")], [DiffSpan("same")])
    old, new = differences(f"a {'b ' * 5_000}c", f"a {'x y ' * 5_000}c")
    assert [span.marked for span in old] == [span.marked for span in new] == [False, True, False]


async def test_labels_are_set_in_the_page_and_over_the_api(proxy: Proxy, browser: Browser, checker: Api) -> None:
    """Both say the same; what are no labels is refused; other metadata stays."""
    await declare(proxy, tool("Sends."))
    await checker.put("/dataset/metadata/demo", {"metadata": {"team": "x"}})
    path = "/explorer/datasets/demo/tools"
    trusted = "get_contacts\r\n read_* \r\n\r\n"
    page = await browser.post(f"{path}/labels", trusted=trusted, reads="", acts="", free="note.text")
    assert page.location == path
    labels = {"trusted": ["get_contacts", "read_*"], "free": ["note.text"]}
    assert await checker.get("/dataset/metadata/demo") == {"team": "x", "tool_labels": labels}
    assert "get_contacts\nread_*</textarea>" in (await browser.get(path)).body
    wrong = {"metadata": {"tool_labels": {"trust": ["x"]}}}
    status, said = await checker.refused("PUT", "/dataset/metadata/demo", wrong)
    assert (status, said) == (400, "tool_labels can only have the lists trusted, reads, acts, free, private")
    await browser.post(f"{path}/labels", trusted="", reads="", acts="", free="")
    assert await checker.get("/dataset/metadata/demo") == {"team": "x"}
    assert (await browser.post("/explorer/traces/tools/labels", trusted="x")).status == 404


async def test_a_rule_is_tried_with_the_datasets_labels(proxy: Proxy, checker: Api) -> None:
    called = {"type": "function", "function": {"name": "zap", "arguments": {}}}
    await checker.push([{"role": "assistant", "content": "", "tool_calls": [called]}], dataset="demo")
    given = {"policy": 'raise "acts" if:\n    (c: ToolCall)\n    acts(c)\n', "dataset": "demo"}
    url = f"{checker.url}/explorer/api/try-policy"

    async def refused() -> int:
        async with checker.session.post(url, json=given) as answer:
            return len((await answer.json())["findings"])

    assert await refused() == 1
    await checker.put("/dataset/metadata/demo", {"metadata": {"tool_labels": {"reads": ["zap"]}}})
    assert await refused() == 0
