"""What is said of datasets and neighbours without reading traces, on every kind of database."""

from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.overview import Extent, Neighbours, Overview
from gemini_proxy.traces.policies import Policies
from gemini_proxy.traces.store import TraceStore
from tests.traces.samples import ensured, trace


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
    overview = Overview(store.database)
    assert await overview.extents("a") == {demo.seq: Extent(2, 1, 2, 1), empty.seq: Extent()}
    await datasets.delete("a", demo.id)
    assert await overview.extents("a") == {empty.seq: Extent()}
    assert await overview.extents("nobody") == {}


async def test_neighbours_are_of_the_same_dataset(store: TraceStore) -> None:
    """Over gaps, and none beyond the ends."""
    places = [trace(created=2.0), trace(created=2.0), trace(created=1.0), trace(created=2.0), trace(created=2.0)]
    await store.add([*places[:2], trace(dataset="other"), *places[2:]])
    await store.delete_before(1.5)
    ids = [place.id for place in places]
    overview, dataset = Overview(store.database), await Datasets(store.database).get("", "demo")
    assert dataset is not None
    assert [await overview.neighbours(dataset, place) for place in (0, 1, 2, 3, 4)] == [
        Neighbours(None, ids[1]),
        Neighbours(ids[0], ids[3]),
        Neighbours(ids[1], ids[3]),
        Neighbours(ids[1], ids[4]),
        Neighbours(ids[3], None),
    ]
