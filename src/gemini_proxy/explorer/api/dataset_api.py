"""Datasets: create, read, list, delete, and what is said of them."""

from collections.abc import Mapping
from typing import Any, Final

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.endpoints import Call
from gemini_proxy.explorer.api.models import (
    POLICIES_KEY,
    dataset_json,
    dataset_name,
    is_dataset_name,
    mapping,
    member,
    without_policies,
)
from gemini_proxy.explorer.app_keys import DATASETS, POLICIES
from gemini_proxy.policy import readable_parameters
from gemini_proxy.traces.datasets import UNNAMED, Dataset
from gemini_proxy.traces.errors import NameTaken
from gemini_proxy.traces.rows import dump

NO_DATASET: Final = "Dataset not found"
MAX_METADATA_BYTES: Final = 262_144
"""What may be said of one dataset, as JSON: it is read whenever the dataset is."""
MAX_DATASETS_LISTED: Final = 1_000
_KINDS: Final = ("private", "any", "public", "homepage")


async def create(call: Call) -> object:
    """``POST /api/v1/dataset/create``: 400 for a name that is missing, malformed or taken, and for wrong labels.

    ``is_public`` is read and has no effect: a dataset is its owner's alone, and its answer says so.
    """
    given = await call.json()
    if given.get("name") is None:
        raise BadRequest("name must be provided")
    name = dataset_name(member(given, "name", str, "name must be a string"))
    metadata = within_bounds(without_policies(mapping(given, "metadata", "metadata must be a dictionary")))
    member(given, "is_public", bool, "is_public must be a boolean", False)
    try:
        return dataset_json(await call.app[DATASETS].create(call.user, name, metadata))
    except NameTaken:
        raise BadRequest("Dataset with the same name already exists") from None


async def listed(call: Call) -> object:
    """``GET /api/v1/dataset/list?kind=&q=&limit=``: the caller's, those with the newest traces first, without policies.

    ``kind`` is ``private`` or ``any``, which is the default; nothing is ``public`` or on the ``homepage``. ``q`` is
    looked for in names. ``limit`` is at most 1,000, and that where it is not given.
    """
    kind = call.request.query.get("kind", "any")
    if kind not in _KINDS:
        raise BadRequest(f"kind must be one of {', '.join(_KINDS)}")
    limit = call.number("limit", MAX_DATASETS_LISTED, MAX_DATASETS_LISTED)
    if kind in ("public", "homepage"):
        return []
    wanted = call.request.query.get("q", "").lower()
    found = await call.app[DATASETS].all(call.user)
    named = [dataset for dataset in found if dataset.name != UNNAMED and wanted in dataset.name.lower()]
    return [dataset_json(dataset) for dataset in named[:limit]]


async def by_id(call: Call) -> object:
    """``GET /api/v1/dataset/byid/{id}``, with its policies."""
    return await _whole(call, await dataset_by_id(call))


async def by_name(call: Call) -> object:
    """``GET /api/v1/dataset/byuser/{user}/{dataset}``, with its policies."""
    return await _whole(call, await dataset_by_name(call))


async def delete_by_id(call: Call) -> object:
    """``DELETE /api/v1/dataset/byid/{id}``: with its traces and policies."""
    return await _deleted(call, await dataset_by_id(call))


async def delete_by_name(call: Call) -> object:
    """``DELETE /api/v1/dataset/byuser/{user}/{dataset}``: with its traces and policies."""
    return await _deleted(call, await dataset_by_name(call))


async def metadata(call: Call) -> object:
    """``GET /api/v1/dataset/metadata/{dataset}?owner_username=`` (or ``owner=``): no policies; 404 for another's."""
    for name in ("owner_username", "owner"):
        if call.request.query.get(name, call.user) != call.user:
            raise NotFound(NO_DATASET)
    return without_policies((await owned_dataset(call, call.name("dataset"))).metadata)


async def update_metadata(call: Call) -> object:
    """``PUT /api/v1/dataset/metadata/{dataset}``: adds to the metadata, or with ``replace_all`` replaces it.

    A member that is null changes nothing. Objects are merged member by member. Answers with the metadata as it is then.
    ``tool_labels`` are labels of tools, which hold from the next request on: 400 for what are none.
    """
    given = await call.json()
    wanted = mapping(given, "metadata", "metadata must be a dictionary")
    replace_all = member(given, "replace_all", bool, "replace_all must be a boolean", False)
    if POLICIES_KEY in wanted:
        raise BadRequest("policies cannot be updated via the /metadata API")
    said = {key: value for key, value in wanted.items() if value is not None}

    def change(before: Mapping[str, Any]) -> Mapping[str, Any]:
        return within_bounds(said if replace_all else merged(without_policies(before), said))

    dataset = await owned_dataset(call, call.name("dataset"))
    changed = await call.app[DATASETS].change_metadata(call.user, dataset.name, change)
    if changed is None:
        raise NotFound(NO_DATASET)
    return without_policies(changed.metadata)


def merged(before: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """``before`` with the members of ``added``; where both have an object, that is merged likewise."""
    after = dict(before)
    for key, value in added.items():
        inner = after.get(key)
        after[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return after


async def dataset_by_id(call: Call) -> Dataset:
    """The caller's dataset that the path names by its id. Raises NotFound."""
    return _found(await call.app[DATASETS].by_id(call.user, call.id("dataset_id", NO_DATASET)))


async def dataset_by_name(call: Call) -> Dataset:
    """The caller's dataset that the path names by user and name. Raises NotFound."""
    call.only_user("user", NO_DATASET)
    return await owned_dataset(call, call.name("dataset"))


async def owned_dataset(call: Call, name: str) -> Dataset:
    """The caller's dataset of that name. Raises NotFound, for a name that none can have as well."""
    if not is_dataset_name(name):
        raise NotFound(NO_DATASET)
    return _found(await call.app[DATASETS].get(call.user, name))


async def _whole(call: Call, dataset: Dataset) -> dict[str, Any]:
    return dataset_json(dataset, await call.app[POLICIES].of(dataset))


async def _deleted(call: Call, dataset: Dataset) -> dict[str, str]:
    if not await call.app[DATASETS].delete(call.user, dataset.id):
        raise NotFound(NO_DATASET)
    return {"message": "Deleted"}


def _found(dataset: Dataset | None) -> Dataset:
    if dataset is None or dataset.name == UNNAMED:
        raise NotFound(NO_DATASET)
    return dataset


def within_bounds(described: dict[str, Any]) -> dict[str, Any]:
    if len(dump(described)) > MAX_METADATA_BYTES:
        raise BadRequest(f"metadata must not be larger than {MAX_METADATA_BYTES} bytes")
    try:
        readable_parameters(described)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    return described
