"""The rules of a dataset, as its owner keeps them in the store."""

import aiohttp
import pytest

from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.policies import Policies
from tests.conftest import StartProxy
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary
from tests.traces.samples import ensured


def forbids(word: str) -> str:
    return f'raise "no {word}" if:\n    (m: Message)\n    "{word}" in m.content\n'


class Client:
    """Calls one dataset of a proxy."""

    def __init__(self, proxy: Proxy, dataset: str = "set", key: str = "inv-1") -> None:
        self._url = proxy.method(prefix=f"/api/v1/gateway/{dataset}/gemini")
        self._headers = {"x-goog-api-key": f"K;invariant-auth={key}"}

    async def ask(self, text: str, policy: str | None = None) -> tuple[int, str]:
        headers = self._headers | ({"Invariant-Guardrails": policy.encode("unicode_escape").decode()} if policy else {})
        async with aiohttp.ClientSession() as session:
            async with session.post(self._url, json=prompt(text), headers=headers) as answer:
                return answer.status, await answer.text()

    async def refuses(self, text: str, policy: str | None = None) -> bool:
        status, body = await self.ask(text, policy)
        assert status == 200 or (status == 400 and "guardrails: no " in body)
        return status == 400


@pytest.fixture(autouse=True)
def _answers(upstream: ScriptedUpstream) -> None:
    upstream.reply(unary(candidate("hello", "STOP")))


async def test_a_change_holds_from_the_next_request_on_in_every_process(start_proxy: StartProxy) -> None:
    """Two proxies share the database; what is changed on one holds on the other as well."""
    first, second = await start_proxy(), await start_proxy()
    clients = (Client(first), Client(second))
    dataset = await ensured(Datasets(first.store.database), "developer", "set")
    kept, elsewhere = Policies(first.store.database), Policies(second.store.database)
    assert [await client.refuses("apples") for client in clients] == [False, False]
    policy = await kept.add(dataset, "fruit", forbids("apples"), action="block")
    assert [await client.refuses("apples") for client in clients] == [True, True]
    await elsewhere.change(dataset, policy.id, content=forbids("pears"))
    assert [await client.refuses("apples") for client in clients] == [False, False]
    assert [await client.refuses("pears") for client in clients] == [True, True]
    await elsewhere.change(dataset, policy.id, enabled=False)
    assert [await client.refuses("pears") for client in clients] == [False, False]
    await kept.change(dataset, policy.id, enabled=True)
    assert [await client.refuses("pears") for client in clients] == [True, True]
    await kept.remove(dataset, policy.id)
    assert [await client.refuses("pears") for client in clients] == [False, False]


async def test_rules_that_block_replace_those_of_files_and_a_headers_are_added(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(policy=forbids("files"))
    client = Client(proxy)
    assert await client.refuses("files")
    dataset = await ensured(Datasets(proxy.store.database), "developer", "set")
    policy = await Policies(proxy.store.database).add(dataset, "own", forbids("own"), action="block")
    assert not await client.refuses("files")
    assert await client.refuses("own", forbids("header"))
    assert await client.refuses("header", forbids("header"))
    # Without a rule of its own in force it has those of the files again: nothing is unchecked by an oversight.
    await Policies(proxy.store.database).change(dataset, policy.id, enabled=False)
    assert await client.refuses("files")
    assert await Client(proxy, "another").refuses("files")


async def test_a_logging_rule_annotates_the_trace(start_proxy: StartProxy) -> None:
    proxy = await start_proxy()
    dataset = await ensured(Datasets(proxy.store.database), "developer", "set")
    policy = await Policies(proxy.store.database).add(dataset, "fruit", forbids("apples"), action="log")
    assert not await Client(proxy).refuses("apples")
    trace = await proxy.eventually(lambda trace: trace.annotations)
    [annotation] = trace.annotations
    assert (annotation.content, annotation.guardrail["id"]) == ("no apples", policy.id)
    assert annotation.guardrail["action"] == "log"


async def test_a_masking_rule_takes_the_place_of_those_that_mask(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy(policy=forbids("files"), mask_policy=forbids("pears"))
    dataset = await ensured(Datasets(proxy.store.database), "developer", "set")
    await Policies(proxy.store.database).add(dataset, "fruit", forbids("apples"), action="mask")
    client = Client(proxy)
    assert await client.refuses("files")
    assert not await client.refuses("apples and pears")
    assert b" and pears" in upstream.calls[-1].body
    assert b"apples" not in upstream.calls[-1].body
    trace = await proxy.trace()
    assert [annotation.guardrail["action"] for annotation in trace.annotations] == ["mask"]


async def test_a_rule_that_only_logs_leaves_those_of_files_that_block(start_proxy: StartProxy) -> None:
    """Of the files' logging rules it takes the place; with one that blocks as well, both places are taken."""
    proxy = await start_proxy(policy=forbids("files"), log_policy=forbids("logged"))
    client, policies = Client(proxy), Policies(proxy.store.database)
    assert await client.refuses("files")
    dataset = await ensured(Datasets(proxy.store.database), "developer", "set")
    await policies.add(dataset, "own", forbids("apples"), action="log")
    assert await client.refuses("files")
    assert await client.refuses("files", forbids("header"))
    assert await client.refuses("header", forbids("header"))
    assert not await client.refuses("apples and logged")
    assert await found(proxy) == ["no apples"]
    await policies.add(dataset, "blocks", forbids("pears"), action="block")
    assert await client.refuses("pears")
    assert not await client.refuses("files and apples")


async def test_a_rule_that_blocks_leaves_those_of_files_that_log(start_proxy: StartProxy) -> None:
    """What they find is in the trace of an exchange with the dataset."""
    proxy = await start_proxy(policy=forbids("files"), log_policy=forbids("logged"))
    policies = Policies(proxy.store.database)
    dataset = await ensured(Datasets(proxy.store.database), "developer", "set")
    blocks = await policies.add(dataset, "own", forbids("pears"), action="block")
    assert not await Client(proxy).refuses("files and logged")
    assert await found(proxy) == ["no logged"]
    logs = await policies.add(dataset, "own", forbids("apples"), action="log")
    await policies.change(dataset, blocks.id, enabled=False)
    assert await Client(proxy).refuses("files")
    await policies.change(dataset, logs.id, enabled=False)
    assert not await Client(proxy).refuses("apples and logged")
    assert await found(proxy) == ["no logged"]


async def test_a_header_in_the_files_place_leaves_the_datasets_logging_rules(start_proxy: StartProxy) -> None:
    """``header_policies = "replace"`` is about what blocks, wherever that comes from."""
    proxy = await start_proxy(policy=forbids("files"), guardrails={"header_policies": "replace"})
    dataset = await ensured(Datasets(proxy.store.database), "developer", "set")
    await Policies(proxy.store.database).add(dataset, "own", forbids("apples"), action="log")
    assert await Client(proxy).refuses("header", forbids("header"))
    assert not await Client(proxy).refuses("files and apples", forbids("header"))
    assert await found(proxy) == ["no apples"]


async def found(proxy: Proxy) -> list[str]:
    """What logging rules have said of the newest trace."""
    trace = await proxy.eventually(lambda trace: trace.annotations)
    return [annotation.content for annotation in trace.annotations]


async def test_each_users_dataset_has_its_own_rules(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(access={"mode": "keys"})
    keys = Keys(proxy.store.database)
    clients = {user: Client(proxy, "set", (await keys.add(user))[1]) for user in ("ann", "bob")}
    for user, word in (("ann", "apples"), ("bob", "pears")):
        dataset = await ensured(Datasets(proxy.store.database), user, "set")
        await Policies(proxy.store.database).add(dataset, "own", forbids(word), action="block")
    assert [await clients[user].refuses("apples") for user in ("ann", "bob")] == [True, False]
    assert [await clients[user].refuses("pears") for user in ("ann", "bob")] == [False, True]


async def test_a_policy_that_loads_no_more_lets_nothing_pass(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy()
    dataset = await ensured(Datasets(proxy.store.database), "developer", "set")
    policy = await Policies(proxy.store.database).add(dataset, "broken", "raise if", action="block")
    status, body = await Client(proxy).ask("hi")
    assert status == 503 and "policy broken does not load" in body
    assert upstream.calls == []
    await Policies(proxy.store.database).remove(dataset, policy.id)
    assert (await Client(proxy).ask("hi"))[0] == 200


async def test_a_deleted_datasets_rules_are_gone_and_so_are_its_traces(start_proxy: StartProxy) -> None:
    proxy = await start_proxy()
    datasets = Datasets(proxy.store.database)
    dataset = await ensured(datasets, "developer", "set")
    await Policies(proxy.store.database).add(dataset, "fruit", forbids("apples"), action="block")
    assert await Client(proxy).refuses("apples")
    [refused] = await proxy.store.recent(1, dataset="set")
    assert await datasets.delete("developer", dataset.id)
    assert await proxy.store.get(refused.id) is None
    assert not await Client(proxy).refuses("apples")
    assert await proxy.store.empty_deleted(step=1) in (0, 1)
    assert [summary.position for summary in await proxy.store.recent(10, dataset="set")] == [0]
