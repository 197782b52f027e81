"""Rules in shadow: beside those in force, over real exchanges, without a trace in what the client gets."""

import asyncio
from collections.abc import Callable

import aiohttp
import pytest

from gemini_proxy.explorer.app_keys import DATASETS, POLICIES, SHADOWS
from gemini_proxy.proxy import shadow_runner
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.schema import policy_shadows
from gemini_proxy.traces.shadows import Comparisons, Difference, StoredShadow
from tests.conftest import StartProxy
from tests.server.test_dataset_rules import Client, forbids
from tests.support.proxy import Proxy
from tests.support.upstream import ScriptedUpstream, candidate, unary
from tests.traces.samples import ensured


@pytest.fixture(autouse=True)
def _answers(upstream: ScriptedUpstream) -> None:
    upstream.reply(unary(candidate("hello", "STOP")))


async def dataset(proxy: Proxy) -> Dataset:
    return await ensured(proxy.app[DATASETS], "developer", "set")


async def found(proxy: Proxy, enough: Callable[[Comparisons], bool]) -> tuple[StoredShadow, list[Difference]]:
    """The one shadow, once ``enough`` was counted."""
    async with asyncio.timeout(10):
        while True:
            [shadow] = await proxy.app[SHADOWS].of(await dataset(proxy))
            if enough(shadow.found):
                return shadow, await proxy.app[SHADOWS].differences(shadow.seq, 10)
            await asyncio.sleep(0.02)


def kinds(differences: list[Difference]) -> list[tuple[str, list[tuple[str, str]], list[tuple[str, str]]]]:
    return [
        (
            one.kind,
            [(violation.message, violation.action) for violation in one.old],
            [(violation.message, violation.action) for violation in one.new],
        )
        for one in differences
    ]


async def test_differences_are_counted_and_no_client_notices(start_proxy: StartProxy, database_url: str) -> None:
    """Two proxies share the database: each counts, and once it is promoted the shadow decides in both."""
    first, second = [await start_proxy(traces={"database": database_url}) for _ in range(2)]
    clients, here = (Client(first), Client(second)), await dataset(first)
    rule = await first.app[POLICIES].add(here, "fruit", forbids("apples") + forbids("plums"), action="block")
    text = forbids("plums") + forbids("pears")
    await first.app[SHADOWS].start(here, "fruit", text, "ask", 100, policy=rule.id)
    said = ("apples", "pears", "plums", "nuts")
    for client in clients:
        assert [await client.refuses(text) for text in said] == [True, False, True, False]
    shadow, differences = await found(second, lambda found: found.compared == 8)
    counts = shadow.found
    assert (counts.only_old, counts.only_new, counts.both, counts.action_differs) == (2, 2, 2, 2)
    assert (counts.failed, counts.skipped, counts.slowest > 0, counts.ranges_differ) == (0, 0, True, 0)
    assert sorted(kinds(differences)) == sorted(2 * [
        ("action", [("no plums", "block")], [("no plums", "ask")]),
        ("only_new", [], [("no pears", "ask")]),
        ("only_old", [("no apples", "block")], []),
    ])  # fmt: skip
    traces = [await first.store.get(one.trace) for one in differences if one.kind == "only_new"]
    assert [trace is not None and trace.annotations for trace in traces] == [(), ()]
    kept = await first.app[POLICIES].promote(here, rule.id, shadow.seq)
    assert kept is not None and kept.content == text
    await second.app[POLICIES].change(here, rule.id, action="block")
    assert [await client.refuses("pears") for client in clients] == [True, True]
    assert [await client.refuses("apples") for client in clients] == [False, False]


async def test_a_shadow_reads_what_was_masked(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """And what is kept of its verdict shows no masked value."""
    proxy = await start_proxy()
    here = await dataset(proxy)
    rule = await proxy.app[POLICIES].add(here, "fruit", forbids("apples"), action="mask")
    both = forbids("apples") + forbids("pears")
    await proxy.app[SHADOWS].start(here, "fruit", both, "mask", 100, policy=rule.id)
    assert not await Client(proxy).refuses("apples and pears")
    assert b"apples" not in upstream.calls[-1].body and b"pears" in upstream.calls[-1].body
    shadow, [difference] = await found(proxy, lambda found: found.compared == 1)
    assert (shadow.found.both, difference.kind, len(difference.old), len(difference.new)) == (1, "ranges", 1, 2)
    assert "apples" not in difference.new[0].message and difference.new[1].message == "no pears"
    assert all(":" not in address for one in difference.new for address in one.ranges)


async def test_what_gives_no_verdict_or_comes_too_fast_is_counted(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that would be new is compared with nothing. Its faults are no exchange's."""
    proxy = await start_proxy()
    here = await dataset(proxy)
    started = await proxy.app[SHADOWS].start(here, "fruit", forbids("apples"), "block", 100)
    assert started is not None
    client = Client(proxy)
    assert not await client.refuses("apples")
    await found(proxy, lambda found: found.only_new == 1)
    broken = policy_shadows.update().values(content="raise")
    await here_write(proxy, broken)
    await proxy.app[SHADOWS].set_share(here, started.policy, 99)
    await proxy.app[SHADOWS].set_share(here, started.policy, 100)
    assert not await client.refuses("apples")
    shadow, _ = await found(proxy, lambda found: found.failed == 1)
    assert shadow.found.failure.startswith("line 1: ")
    monkeypatch.setattr(shadow_runner, "MAX_WAITING", 0)
    assert not await client.refuses("apples")
    await found(proxy, lambda found: found.skipped == 1)
    async with aiohttp.ClientSession() as session, session.get(f"{proxy.url}/metrics") as metrics:
        counted = [line for line in (await metrics.text()).splitlines() if "shadow_comparisons_total{" in line]
    assert [line.partition("result=")[2] for line in counted if not line.endswith(" 0.0")] == [
        '"only_new"} 1.0', '"failed"} 1.0', '"skipped"} 1.0'
    ]  # fmt: skip
    await proxy.app[SHADOWS].set_share(here, started.policy, 0)
    assert not await client.refuses("apples")
    assert (await found(proxy, lambda found: True))[0].found.compared == 1


async def here_write(proxy: Proxy, statement: object) -> None:
    await proxy.store.database.write(lambda connection: connection.execute(statement))  # type: ignore[call-overload]
