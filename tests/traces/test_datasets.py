"""How many datasets a user may have, and how much may be said of them."""

import asyncio

import pytest

from gemini_proxy.errors import BadRequest
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.traces import datasets as bounds
from gemini_proxy.traces.dataset_rules import DatasetRules
from gemini_proxy.traces.datasets import Datasets, Extent
from gemini_proxy.traces.errors import NameTaken, TooMany
from gemini_proxy.traces.policies import Policies
from gemini_proxy.traces.revision import Revisions
from gemini_proxy.traces.store import TraceStore
from tests.traces.samples import ensured, trace


@pytest.fixture
async def datasets(store: TraceStore) -> Datasets:
    return Datasets(store.database)


async def names(datasets: Datasets, owner: str = "ann") -> list[str]:
    return sorted(dataset.name for dataset in await datasets.all(owner))


async def test_a_user_has_no_more_datasets_than_there_may_be(
    datasets: Datasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are made at once; one that is deleted makes room, and other users have room of their own."""
    monkeypatch.setattr(bounds, "MAX_DATASETS", 3)
    made = await asyncio.gather(*(datasets.create("ann", f"d{n}") for n in range(8)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in made) == ["Dataset"] * 3 + ["TooMany"] * 5
    with pytest.raises(TooMany, match="A user must not have more than 3 datasets"):
        await datasets.ensure("ann", "another")
    with pytest.raises(NameTaken):
        await datasets.create("ann", (await names(datasets))[0])
    await datasets.create("bob", "another")
    await datasets.delete("ann", (await datasets.all("ann"))[0].id)
    await datasets.create("ann", "another")
    assert len(await names(datasets)) == 3


async def test_exchanges_without_a_dataset_take_no_room(
    store: TraceStore, datasets: Datasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps them is not one that a user made."""
    monkeypatch.setattr(bounds, "MAX_DATASETS", 1)
    await store.add([trace(owner="ann", dataset=None)])
    await datasets.create("ann", "one")
    assert await names(datasets) == ["", "one"]


async def test_an_exchange_that_is_over_is_kept_all_the_same(
    store: TraceStore, datasets: Datasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dataset is made beyond the bound: no trace is lost for it."""
    monkeypatch.setattr(bounds, "MAX_DATASETS", 1)
    await store.add([trace(owner="ann", dataset=name) for name in ("one", "two")])
    assert await names(datasets) == ["one", "two"]


async def test_a_dataset_is_made_once_by_whoever_needs_it(datasets: Datasets) -> None:
    """At the same moment too; one that is there stays as it is."""
    await asyncio.gather(*(datasets.ensure("ann", "one") for _ in range(6)))
    [made] = await datasets.all("ann")
    await datasets.ensure("ann", "one")
    assert await datasets.all("ann") == [made]


async def test_what_is_said_of_all_datasets_is_bounded(datasets: Datasets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one is made and where it is changed; saying less is always possible."""
    monkeypatch.setattr(bounds, "MAX_ALL_METADATA_BYTES", 100)
    await datasets.create("ann", "one", {"a": "x" * 60})
    with pytest.raises(TooMany, match="metadata"):
        await datasets.create("ann", "two", {"a": "x" * 60})
    await datasets.create("ann", "two")
    with pytest.raises(TooMany, match="metadata"):
        await datasets.change_metadata("ann", "two", lambda _: {"a": "x" * 60})
    assert await names(datasets) == ["one", "two"]
    await datasets.change_metadata("ann", "one", lambda _: {"a": "x" * 80})
    await datasets.change_metadata("ann", "one", lambda _: {})
    await datasets.change_metadata("ann", "two", lambda _: {"a": "x" * 60})
    await datasets.create("bob", "one", {"a": "x" * 60})


async def test_an_exchange_with_a_dataset_too_many_is_refused(
    store: TraceStore, datasets: Datasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it begins; exchanges with those that are there go on, and once there is room this one as well."""
    monkeypatch.setattr(bounds, "MAX_DATASETS", 1)
    rules, files = DatasetRules(store.database, Revisions(store.database)), GuardrailSet()
    made = await datasets.create("ann", "one")
    assert await rules.of("ann", "one", files) == files
    with pytest.raises(BadRequest, match="more than 1 datasets"):
        await rules.of("ann", "two", files)
    assert await rules.of("bob", "two", files) == files
    await datasets.delete("ann", made.id)
    assert await rules.of("ann", "two", files) == files


async def test_extents_are_of_ones_own_datasets(store: TraceStore) -> None:
    """Traces that are there, and policies by what they do."""
    await store.add([trace(owner="a", created=1.0), trace(owner="a"), trace(owner="a"), trace(owner="b")])
    await store.delete_before(2.0)
    datasets, policies = Datasets(store.database), Policies(store.database)
    demo, empty = await ensured(datasets, "a", "demo"), await datasets.create("a", "empty")
    await policies.add(demo, "x", "x", action="block")
    await policies.add(demo, "y", "y", action="log")
    await policies.add(demo, "z", "z", action="log")
    await policies.add(demo, "off", "off", action="block", enabled=False)
    assert await datasets.extents("a") == {demo.seq: Extent(2, blocking=1, logging=2, disabled=1), empty.seq: Extent()}
    await datasets.delete("a", demo.id)
    assert await datasets.extents("a") == {empty.seq: Extent()}
    assert await datasets.extents("nobody") == {}
