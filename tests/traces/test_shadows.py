"""Policies in shadow, in the store: how they begin and end, and what is kept of their comparisons."""

import pytest

from gemini_proxy.traces import shadows as bounds
from gemini_proxy.traces.audit import AuditLog
from gemini_proxy.traces.datasets import Dataset, Datasets
from gemini_proxy.traces.errors import DatasetGone, TooMany
from gemini_proxy.traces.policies import Policies
from gemini_proxy.traces.shadows import Comparisons, Difference, KeptViolation, Results, Shadows
from gemini_proxy.traces.store import TraceStore

NEW = (KeptViolation("found", "block", ("messages.0.content:0-5",)),)


@pytest.fixture
async def shadows(store: TraceStore) -> Shadows:
    return Shadows(store.database)


@pytest.fixture
async def dataset(store: TraceStore) -> Dataset:
    return await Datasets(store.database).create("ann", "one")


def differing(trace: str, at: float = 1.0, seq: int = 0) -> Difference:
    return Difference(trace, at, "only_new", (), NEW, seq)


def results(found: Comparisons, *differences: Difference) -> Results:
    return Results(found, list(differences))


async def test_a_shadow_is_started_changed_and_promoted(store: TraceStore, shadows: Shadows, dataset: Dataset) -> None:
    """With an entry in the audit log for each step; a rule that is promoted twice, or has changed, is not there."""
    policies = Policies(store.database)
    kept = await policies.add(dataset, "p", "# 1", enabled=False, action="log", metadata={"a": 1}, by="ann")
    started = await shadows.start(dataset, "q", "# 2", "block", 10, policy=kept.id, by="ann")
    changed = await shadows.set_share(dataset, kept.id, 50, by="bob")
    assert started is not None and changed is not None
    assert [changed] == await shadows.of(dataset)
    assert (changed.seq, changed.policy, changed.share, changed.by, changed.content) == (
        started.seq, kept.id, 50, "ann", "# 2",
    )  # fmt: skip
    await shadows.add({started.seq: results(Comparisons(3, only_new=2))})
    assert await policies.promote(dataset, kept.id, started.seq + 1, by="cid") is None
    promoted = await policies.promote(dataset, kept.id, started.seq, by="cid")
    assert promoted is not None and [promoted] == await policies.of(dataset)
    assert (promoted.name, promoted.content, promoted.enabled, promoted.action, promoted.metadata) == (
        "q", "# 2", True, "block", {"a": 1},
    )  # fmt: skip
    assert await policies.promote(dataset, kept.id, started.seq) is None
    assert await shadows.set_share(dataset, kept.id, 1) is None and not await shadows.end(dataset, kept.id)
    entries = [entry.described for entry in await AuditLog(store.database).latest(4)]
    assert [(one["action"], one["by"]) for one in entries] == [
        ("rule.changed", "cid"), ("shadow.promoted", "cid"), ("shadow.changed", "bob"), ("shadow.started", "ann"),
    ]  # fmt: skip
    assert entries[1]["before"]["found"]["only_new"] == 2 and entries[2]["after"] == {"share": 50}


async def test_a_rule_that_would_be_new_gets_its_id_with_its_shadow(
    store: TraceStore, shadows: Shadows, dataset: Dataset
) -> None:
    """Its text may be replaced before it is promoted; a dataset that is deleted takes it along."""
    policies = Policies(store.database)
    first = await shadows.start(dataset, "p", "# 1", "mask", 100)
    assert first is not None
    second = await shadows.start(dataset, "p", "# 2", "mask", 100, policy=first.policy)
    assert second is not None and [second] == await shadows.of(dataset) and second.seq > first.seq
    made = await policies.promote(dataset, first.policy, second.seq)
    assert made is not None and (made.id, made.content) == (first.policy, "# 2")
    assert await shadows.start(dataset, "p", "", "log", 1, policy="00000000-0000-0000-0000-000000000000") is None
    await shadows.start(dataset, "p", "", "log", 1, policy=made.id)
    await Datasets(store.database).delete("ann", dataset.id)
    assert await shadows.of(dataset) == []
    with pytest.raises(DatasetGone):
        await shadows.start(dataset, "p", "", "log", 1)


async def test_a_comparison_begins_again_when_the_rule_in_force_changes(
    store: TraceStore, shadows: Shadows, dataset: Dataset
) -> None:
    """What another process still has to say of the old one is forgotten; a new name changes nothing."""
    policies = Policies(store.database)
    kept = await policies.add(dataset, "p", "# 1")
    started = await shadows.start(dataset, "p", "# 2", "log", 10, policy=kept.id)
    assert started is not None
    await shadows.add({started.seq: results(Comparisons(1, only_new=1), differing("t"))})
    await policies.change(dataset, kept.id, name="q")
    [same] = await shadows.of(dataset)
    assert (same.seq, same.found.only_new) == (started.seq, 1)
    await policies.change(dataset, kept.id, content="# 3")
    [again] = await shadows.of(dataset)
    assert again.seq > started.seq and again.since > started.since and again.started == started.started
    await shadows.add(
        {started.seq: results(Comparisons(1), differing("u")), again.seq: results(Comparisons(2, failed=1))}
    )
    [counted] = await shadows.of(dataset)
    assert (counted.found.compared, counted.found.failed) == (2, 1)
    assert await shadows.differences(again.seq, 10) == [] == await shadows.of_trace(dataset, "t")
    await policies.remove(dataset, kept.id, by="dan")
    assert await shadows.of(dataset) == []
    assert [entry.action for entry in await AuditLog(store.database).latest(2)] == ["rule.removed", "shadow.ended"]


async def test_what_is_kept_is_bounded(
    store: TraceStore, shadows: Shadows, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest differences, until their traces' time is over; and so many shadows of a dataset."""
    monkeypatch.setattr(bounds, "MAX_DIFFERENCES", 3)
    monkeypatch.setattr(bounds, "MAX_SHADOWS", 1)
    started = await shadows.start(dataset, "p", "", "log", 10)
    assert started is not None
    for number in range(2):
        first = 2 * number
        await shadows.add(
            {started.seq: results(Comparisons(2), *(differing(f"{at}", at) for at in (first, first + 1)))}
        )
    kept = await shadows.differences(started.seq, 10, kind="only_new")
    assert [(one.trace, one.new) for one in kept] == [("3", NEW), ("2", NEW), ("1", NEW)]
    assert await shadows.differences(started.seq, 1, before=kept[1].seq) == [kept[2]]
    assert await shadows.differences(started.seq, 10, kind="action") == []
    [shown] = await shadows.of_trace(dataset, "3")
    assert (shown.policy, shown.name, shown.difference) == (started.policy, "p", kept[0])
    await store.delete_before(2.0)
    assert [one.trace for one in await shadows.differences(started.seq, 10)] == ["3", "2"]
    with pytest.raises(TooMany):
        await shadows.start(dataset, "q", "", "log", 10)
