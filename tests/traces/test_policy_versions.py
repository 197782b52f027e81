"""What policies have been, in the store."""

import pytest

from gemini_proxy.traces import policies as bounds
from gemini_proxy.traces.datasets import Dataset, Datasets
from gemini_proxy.traces.errors import DatasetGone, TooMany
from gemini_proxy.traces.policies import Policies, PolicyVersions
from gemini_proxy.traces.store import TraceStore


@pytest.fixture
async def policies(store: TraceStore) -> Policies:
    return Policies(store.database)


@pytest.fixture
async def versions(store: TraceStore) -> PolicyVersions:
    return PolicyVersions(store.database)


@pytest.fixture
async def dataset(store: TraceStore) -> Dataset:
    return await Datasets(store.database).create("ann", "one")


async def test_each_save_switch_and_removal_is_a_version(
    policies: Policies, versions: PolicyVersions, dataset: Dataset
) -> None:
    """With who did it; what changes nothing is none, and other datasets see nothing of it."""
    kept = await policies.add(dataset, "p", "# 1", metadata={"a": 1}, by="ann")
    await policies.change(dataset, kept.id, content="# 2", by="bob")
    await policies.change(dataset, kept.id, content="# 2", by="nobody")
    await policies.change(dataset, kept.id, enabled=False, by="cid")
    await policies.remove(dataset, kept.id, by="dan")
    found = await versions.of(dataset, kept.id, 10)
    assert [(one.number, one.by, one.content, one.enabled, one.removed) for one in found] == [
        (4, "dan", "# 2", False, True),
        (3, "cid", "# 2", False, False),
        (2, "bob", "# 2", True, False),
        (1, "ann", "# 1", True, False),
    ]
    assert found[3].metadata == {"a": 1} and found[0].at >= found[3].at
    assert [one.number for one in await versions.of(dataset, kept.id, 2, before=4)] == [3, 2]
    assert [(one.policy, one.name, one.by) for one in await versions.removed(dataset)] == [(kept.id, "p", "dan")]


async def test_a_version_is_brought_back(policies: Policies, versions: PolicyVersions, dataset: Dataset) -> None:
    """As it was in every field, as a new version; and with its id if it was removed."""
    first = await policies.add(dataset, "p", "# 1", action="block", metadata={"a": 1})
    await policies.change(dataset, first.id, name="q", content="# 2", enabled=False, action="log", metadata={})
    [_, version] = await versions.of(dataset, first.id, 10)
    for number in (3, 5):
        restored = await policies.restore(dataset, version, by="eve")
        assert [restored] == await policies.of(dataset)
        assert (restored.id, restored.name, restored.content, restored.action, restored.enabled, restored.metadata) == (
            first.id, "p", "# 1", "block", True, {"a": 1},
        )  # fmt: skip
        [newest] = await versions.of(dataset, first.id, 1)
        assert (newest.number, newest.by, newest.removed) == (number, "eve", False)
        await policies.remove(dataset, first.id)


async def test_there_must_be_room_for_what_comes_back(
    store: TraceStore, policies: Policies, versions: PolicyVersions, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for what is added; nothing comes back to a deleted dataset, which forgets its versions."""
    monkeypatch.setattr(bounds, "MAX_POLICIES", 1)
    gone = await policies.add(dataset, "p", "")
    await policies.remove(dataset, gone.id)
    [version, _] = await versions.of(dataset, gone.id, 2)
    await policies.add(dataset, "q", "")
    with pytest.raises(TooMany):
        await policies.restore(dataset, version)
    await Datasets(store.database).delete("ann", dataset.id)
    with pytest.raises(DatasetGone):
        await policies.restore(dataset, version)
    assert await versions.of(dataset, gone.id, 2) == []


async def test_what_is_kept_is_bounded(
    policies: Policies, versions: PolicyVersions, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest versions of a policy, and the policies that were removed last; those that are there keep theirs."""
    monkeypatch.setattr(bounds, "MAX_VERSIONS", 2)
    monkeypatch.setattr(bounds, "MAX_REMOVED", 1)
    stays = await policies.add(dataset, "stays", "# 0")
    for number in range(1, 4):
        await policies.change(dataset, stays.id, content=f"# {number}")
    assert [one.content for one in await versions.of(dataset, stays.id, 10)] == ["# 3", "# 2"]
    first, second = [await policies.add(dataset, name, "") for name in ("first", "second")]
    await policies.remove(dataset, second.id)
    await policies.remove(dataset, first.id)
    assert [one.name for one in await versions.removed(dataset)] == ["first"]
    assert await versions.of(dataset, second.id, 10) == []
    assert len(await versions.of(dataset, stays.id, 10)) == 2
