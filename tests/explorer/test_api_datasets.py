"""Identity, datasets and their metadata, from outside."""

import asyncio

import pytest

from gemini_proxy.traces import datasets as bounds
from tests.explorer.api import OPEN_USER, SECRETIVE, Api


async def test_a_key_is_told_whose_it_is(api: Api, alice: Api) -> None:
    """Where access is open every key is the developer's; elsewhere a key is its owner's."""
    assert await api.get("/user/identity") == {"username": OPEN_USER}
    assert await alice.get("/user/identity") == {"username": "alice"}


async def test_a_dataset_is_made_and_found_by_name_and_id(api: Api) -> None:
    """What create answers is what both ways of reading answer, policies aside."""
    made = await api.post("/dataset/create", {"name": "runs-1_A", "metadata": {"topic": "travel"}, "is_public": True})
    assert set(made) >= {
        "id",
        "name",
        "extra_metadata",
        "is_public",
        "user_id",
        "time_created",
        "latest_trace_time",
    }
    assert (made["name"], made["extra_metadata"]) == ("runs-1_A", {"topic": "travel"})
    assert (made["is_public"], made["latest_trace_time"]) == (False, None)
    expected = {**made, "extra_metadata": {"topic": "travel", "policies": []}}
    assert await api.get(f"/dataset/byid/{made['id']}") == expected
    assert await api.get(api.at("runs-1_A")) == expected


async def test_a_name_is_taken_once(api: Api) -> None:
    """A second dataset of a name is refused, be it made at the same moment."""
    answers = await asyncio.gather(*(api.call("POST", "/dataset/create", {"name": "same"}) for _ in range(6)))
    assert sorted(status for status, _ in answers) == [200, 400, 400, 400, 400, 400]
    refused = await api.refused("POST", "/dataset/create", {"name": "same"})
    assert refused == (400, "Dataset with the same name already exists")


NOT_MADE: list[tuple[object, str]] = [
    ({}, "name must be provided"),
    ({"name": None}, "name must be provided"),
    ({"name": 7}, "name must be a string"),
    ({"name": ""}, "Dataset name can only contain A-Z, a-z, 0-9, - and _"),
    ({"name": "a b"}, "Dataset name can only contain A-Z, a-z, 0-9, - and _"),
    ({"name": "a\n"}, "Dataset name can only contain A-Z, a-z, 0-9, - and _"),
    ({"name": "a\0"}, "Dataset name can only contain A-Z, a-z, 0-9, - and _"),
    ({"name": "é"}, "Dataset name can only contain A-Z, a-z, 0-9, - and _"),
    ({"name": "a" * 129}, "Dataset name must not be longer than 128 characters"),
    ({"name": "a", "metadata": []}, "metadata must be a dictionary"),
    ({"name": "a", "is_public": "yes"}, "is_public must be a boolean"),
    ({"name": "a", "metadata": {"x": "y" * 262_144}}, "metadata must not be larger than 262144 bytes"),
]


async def test_create_refuses_in_the_contracts_words(api: Api) -> None:
    """A dataset that cannot be made is 400 with the reason."""
    for body, detail in NOT_MADE:
        assert await api.refused("POST", "/dataset/create", body) == (400, detail)


async def test_a_dataset_too_many_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it would be made; what is there goes on taking traces."""
    monkeypatch.setattr(bounds, "MAX_DATASETS", 1)
    await api.push(dataset="first")
    too_many = (400, "A user must not have more than 1 datasets")
    assert await api.refused("POST", "/dataset/create", {"name": "second"}) == too_many
    assert await api.refused("POST", "/push/trace", {"messages": [[]], "dataset": "second"}) == too_many
    await api.push(dataset="first")
    await api.push()
    assert [one["name"] for one in await api.get("/dataset/list")] == ["first"]


async def test_more_metadata_than_a_user_may_have_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all of the datasets together; nothing changes."""
    monkeypatch.setattr(bounds, "MAX_ALL_METADATA_BYTES", 100)
    for name in ("first", "second"):
        await api.dataset(name)
    await api.put("/dataset/metadata/first", {"metadata": {"a": "x" * 60}})
    refused = await api.refused("PUT", "/dataset/metadata/second", {"metadata": {"a": "x" * 60}})
    assert refused == (400, "The metadata of a user's datasets must not be larger than 100 bytes")
    assert await api.get("/dataset/metadata/second") == {}


async def test_the_list_has_the_newest_first(api: Api) -> None:
    """The dataset with the newest trace comes first; exchanges without a dataset are none."""
    for name in ("first", "second", "third"):
        await api.dataset(name)
    await api.push(dataset="second")
    await api.push()
    names = [dataset["name"] for dataset in await api.get("/dataset/list?kind=any")]
    assert names == ["second", "third", "first"]
    assert [one["name"] for one in await api.get("/dataset/list?kind=private&q=IR&limit=1")] == ["third"]
    assert await api.get("/dataset/list?kind=public") == []
    assert (await api.refused("GET", "/dataset/list?kind=all"))[0] == 400
    assert (await api.refused("GET", "/dataset/list?limit=-1"))[0] == 400


@pytest.mark.parametrize("way", ["byid", "byuser"])
async def test_a_deleted_dataset_is_gone_at_once(api: Api, way: str) -> None:
    """With its traces and policies; its name can be taken anew, and the new one is empty."""
    made = await api.dataset("short-lived")
    await api.post(f"/dataset/{made['id']}/policy", {"name": "p", "policy": SECRETIVE})
    [trace] = await api.push(dataset="short-lived")
    path = f"/dataset/byid/{made['id']}" if way == "byid" else api.at("short-lived")
    assert await api.delete(path) == {"message": "Deleted"}
    for gone in (path, api.at("short-lived"), f"{api.at('short-lived')}/traces", f"{api.at('short-lived')}/policy"):
        assert await api.refused("GET", gone) == (404, "Dataset not found")
    assert await api.refused("DELETE", path) == (404, "Dataset not found")
    assert await api.refused("GET", f"/trace/{trace}") == (404, "Trace not found")
    await api.dataset("short-lived")
    assert await api.get(f"{api.at('short-lived')}/traces") == []


async def test_metadata_is_added_or_replaced(api: Api) -> None:
    """Objects are merged, nulls change nothing, and ``replace_all`` leaves only what is given."""
    await api.dataset("m")
    path = "/dataset/metadata/m"
    first = {"benchmark": "b", "invariant.test_results": {"num_tests": 2}, "accuracy": 1}
    assert await api.put(path, {"metadata": first}) == first
    added = {"metadata": {"accuracy": 0.5, "benchmark": None, "invariant.test_results": {"num_passed": 1}}}
    both = {"benchmark": "b", "accuracy": 0.5, "invariant.test_results": {"num_tests": 2, "num_passed": 1}}
    assert await api.put(path, added) == both
    assert await api.get(path) == both
    assert await api.put(path, {"metadata": {"name": "n"}, "replace_all": True}) == {"name": "n"}
    assert await api.get(f"{path}?owner_username={api.user}&owner={api.user}") == {"name": "n"}


async def test_metadata_never_shows_or_takes_policies(api: Api) -> None:
    """Not those of the dataset, and none that are made up."""
    made = await api.post("/dataset/create", {"name": "m", "metadata": {"policies": ["made up"], "a": 1}})
    await api.post(f"/dataset/{made['id']}/policy", {"name": "p", "policy": SECRETIVE})
    assert await api.get("/dataset/metadata/m") == {"a": 1}
    assert (await api.refused("PUT", "/dataset/metadata/m", {"metadata": {"policies": []}}))[0] == 400
    await api.put("/dataset/metadata/m", {"metadata": {}, "replace_all": True})
    assert len((await api.get(f"{api.at('m')}/policy"))["policies"]) == 1


async def test_metadata_keeps_any_json(api: Api) -> None:
    """Numbers beyond 64 bits, NUL characters and text in every script come back as JSON that says the same."""
    await api.dataset("m")
    odd = {"n": 1.5e300, "large": 2**63 - 1, "nul": "a\0b", "script": "日本語 😀", "": {"": [None, True]}}
    assert await api.put("/dataset/metadata/m", {"metadata": odd}) == odd
    beyond = await api.put("/dataset/metadata/m", {"metadata": {"n": 2**80}, "replace_all": True})
    assert beyond == {"n": float(2**80)}
