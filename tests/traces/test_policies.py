"""The policies of a dataset in the store."""

import asyncio
import uuid

import pytest

from gemini_proxy.traces import policies as bounds
from gemini_proxy.traces.datasets import Dataset, Datasets
from gemini_proxy.traces.errors import DatasetGone, TooMany
from gemini_proxy.traces.policies import Policies
from gemini_proxy.traces.revision import Revisions
from gemini_proxy.traces.store import TraceStore


@pytest.fixture
async def policies(store: TraceStore) -> Policies:
    return Policies(store.database)


@pytest.fixture
async def dataset(store: TraceStore) -> Dataset:
    return await Datasets(store.database).create("ann", "one")


async def test_policies_added_at_once_are_no_more_than_there_may_be(
    policies: Policies, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call counts those that the others added."""
    monkeypatch.setattr(bounds, "MAX_POLICIES", 3)
    added = await asyncio.gather(*(policies.add(dataset, f"p{n}", "") for n in range(8)), return_exceptions=True)
    assert sum(isinstance(one, TooMany) for one in added) == 5
    kept = await policies.of(dataset)
    assert len(kept) == 3
    await policies.remove(dataset, kept[0].id)
    await policies.add(dataset, "another", "")


async def test_a_deleted_dataset_takes_no_policy(store: TraceStore, policies: Policies, dataset: Dataset) -> None:
    """It has none, and gets none."""
    await policies.add(dataset, "p", "")
    await Datasets(store.database).delete("ann", dataset.id)
    with pytest.raises(DatasetGone):
        await policies.add(dataset, "q", "")
    assert await policies.of(dataset) == []


async def test_what_changes_nothing_is_no_change(store: TraceStore, policies: Policies, dataset: Dataset) -> None:
    """Nobody reads anew what is kept in memory because a policy was not there."""
    revisions = Revisions(store.database)
    kept = await policies.add(dataset, "p", "")
    before, nowhere = await revisions.now(), str(uuid.uuid4())
    assert await policies.change(dataset, nowhere, enabled=False) is None
    assert not await policies.remove(dataset, nowhere)
    assert await revisions.now() == before
    await policies.change(dataset, kept.id, enabled=False)
    changed = await revisions.now()
    assert changed > before
    await policies.remove(dataset, kept.id)
    assert await revisions.now() > changed
