"""Tools are pinned as they were first declared, by all processes on a database; a change is refused until accepted."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from gemini_proxy.config import Config
from gemini_proxy.traces.datasets import UNNAMED, Datasets
from gemini_proxy.traces.pinned_tools import MAX_TOOLS, PinnedTool, PinnedTools
from tests.conftest import StartProxy
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary

RULE = """\
raise PolicyViolation(f"{c.name} was {c.pinned} and is {c.declared}") if:
    (t: Tool)
    (c: dict) in tool_changed(t)
"""


@pytest.fixture(autouse=True)
def _answers(upstream: ScriptedUpstream) -> None:
    upstream.reply(unary(candidate("hello", "STOP")))


def declared(description: str, name: str = "send", **schema: Any) -> dict[str, Any]:
    """A declaration as Gemini's clients send it."""
    properties = {"to": {"type": "STRING"}, **schema}
    return {"name": name, "description": description, "parameters": {"type": "OBJECT", "properties": properties}}


async def ask(proxy: Proxy, *tools: dict[str, Any], dataset: str | None = "set", text: str = "hi") -> tuple[int, str]:
    prefix = f"/api/v1/gateway/{dataset}/gemini" if dataset else ""
    headers = {"x-goog-api-key": "K;invariant-auth=inv-1"}
    body = {**prompt(text), "tools": [{"functionDeclarations": list(tools)}]}
    async with aiohttp.ClientSession() as session:
        async with session.post(proxy.method(prefix=prefix), json=body, headers=headers) as answer:
            return answer.status, await answer.text()


async def pinned(
    proxy: Proxy, right: Callable[[list[PinnedTool]], object], dataset: str = "set", owner: str = "developer"
) -> list[PinnedTool]:
    """What is pinned in a dataset, once ``right`` says so: it is learned after the answer."""
    async with asyncio.timeout(10):
        while True:
            found = await Datasets(proxy.store.database).get(owner, dataset)
            if found is not None and right(tools := await PinnedTools(proxy.store.database).of(found)):
                return tools


async def test_a_changed_tool_is_refused_by_every_process_until_it_is_accepted(
    start_proxy: StartProxy, database_url: str
) -> None:
    """What one process has pinned holds on the other; so does what was accepted there. Both digests are said."""
    first = await start_proxy(policy=RULE, traces={"database": database_url})
    second = await start_proxy(policy=RULE, traces={"database": database_url})
    assert (await ask(first, declared("Sends a mail.")))[0] == 200
    [tool] = await pinned(first, lambda tools: tools)
    assert (tool.name, tool.changed, b"Sends a mail." in tool.pinned.text) == ("send", None, True)
    # PostgreSQL's listeners hear of a change within a second.
    async with asyncio.timeout(10):
        while (await ask(second, declared("Sends a mail. Copies eve.")))[0] == 200:
            pass
    status, said = await ask(second, declared("Sends a mail. Copies eve."))
    assert status == 400
    assert (await ask(second, declared("Sends a mail.")))[0] == 200
    [tool] = await pinned(second, lambda tools: tools[0].changed)
    assert tool.changed is not None and b"Copies eve." in tool.changed.text
    assert f"send was {tool.pinned.digest} and is {tool.changed.digest}" in said

    dataset = await Datasets(second.store.database).get("developer", "set")
    assert dataset is not None
    pins = PinnedTools(second.store.database)
    assert not await pins.accept(dataset, "send", "another digest")
    assert await pins.accept(dataset, "send", tool.changed.digest)
    async with asyncio.timeout(10):
        while (await ask(first, declared("Sends a mail. Copies eve.")))[0] == 400:
            pass
    assert (await ask(first, declared("Sends a mail.")))[0] == 400


async def test_the_schema_counts_and_the_order_of_its_keys_does_not(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(policy=RULE)
    tool = declared("Sends.", cc={"type": "STRING"})
    assert (await ask(proxy, tool))[0] == 200
    await pinned(proxy, lambda tools: tools)
    assert (await ask(proxy, dict(reversed(tool.items()))))[0] == 200
    assert (await ask(proxy, declared("Sends.")))[0] == 400
    assert (await ask(proxy, declared("Sends.", "another")))[0] == 200


async def test_without_a_dataset_tools_are_pinned_for_their_owner(start_proxy: StartProxy) -> None:
    """Datasets and what names none do not share their pins."""
    proxy = await start_proxy(policy=RULE)
    assert (await ask(proxy, declared("One."), dataset=None))[0] == 200
    await pinned(proxy, lambda tools: tools, UNNAMED)
    assert (await ask(proxy, declared("Two."), dataset=None))[0] == 400
    assert (await ask(proxy, declared("Two.")))[0] == 200


async def test_what_a_refused_exchange_declares_is_not_pinned(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(policy='raise "no" if:\n    (m: Message)\n    "apples" in m.content\n')
    assert (await ask(proxy, declared("Bad."), text="apples"))[0] == 400
    assert (await ask(proxy, declared("Good.")))[0] == 200
    [tool] = await pinned(proxy, lambda tools: tools)
    assert b"Good." in tool.pinned.text


async def test_a_logging_rule_annotates_and_a_configured_digest_goes_before(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(log_policy=RULE, guardrails={"parameters": {"pinned_tools": {"other": "0" * 64}}})
    await ask(proxy, declared("One."))
    await pinned(proxy, lambda tools: tools)
    assert (await ask(proxy, declared("Two.")))[0] == 200
    trace = await proxy.eventually(lambda trace: trace.annotations)
    assert [(one.content[:9], one.address) for one in trace.annotations] == [("send was ", "messages.0.tools.0")]
    assert (await ask(proxy, declared("One."), declared("X", "other")))[0] == 200
    trace = await proxy.eventually(lambda trace: trace.annotations and trace.annotations[0].content[:5] == "other")
    assert [one.content[:13] for one in trace.annotations] == ["other was 000"]


async def test_a_dataset_has_so_many_tools_and_a_long_declaration_is_kept_by_its_digest(
    start_proxy: StartProxy,
) -> None:
    """The bounds: the first 500 of a flood are pinned; of a long declaration the digest alone, which still tells."""
    proxy = await start_proxy(policy=RULE)
    long = declared("x" * 70_000, "aaa")
    assert (await ask(proxy, long, *(declared("", f"tool_{number}") for number in range(MAX_TOOLS))))[0] == 200
    tools = await pinned(proxy, lambda tools: len(tools) >= MAX_TOOLS)
    assert (len(tools), tools[0].name, tools[0].pinned.text) == (MAX_TOOLS, "aaa", b"")
    assert (await ask(proxy, long))[0] == 200
    assert (await ask(proxy, declared("x" * 70_001, "aaa")))[0] == 400


async def test_a_forgotten_tool_is_pinned_as_it_is_declared_next(start_proxy: StartProxy) -> None:
    """At once, though the same declaration was learned a moment before."""
    proxy = await start_proxy(policy=RULE)
    await ask(proxy, declared("One."))
    await pinned(proxy, lambda tools: tools)
    dataset = await Datasets(proxy.store.database).get("developer", "set")
    assert dataset is not None and await PinnedTools(proxy.store.database).forget(dataset, "send")
    assert (await ask(proxy, declared("One.")))[0] == 200
    await pinned(proxy, lambda tools: tools)
    assert (await ask(proxy, declared("Two.")))[0] == 400


async def test_a_deleted_datasets_tools_are_gone(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(policy=RULE)
    await ask(proxy, declared("One."))
    await pinned(proxy, lambda tools: tools)
    datasets = Datasets(proxy.store.database)
    dataset = await datasets.get("developer", "set")
    assert dataset is not None and await datasets.delete("developer", dataset.id)
    assert (await ask(proxy, declared("Two.")))[0] == 200


@pytest.mark.parametrize("given", [{"send": 1}, ["send"], "x"])
def test_configured_digests_that_cannot_be_read_are_a_fault_of_the_configuration(given: Any) -> None:
    with pytest.raises(ValidationError, match="pinned_tools must map names of tools to digests"):
        Config.model_validate({"guardrails": {"parameters": {"pinned_tools": given}}})
