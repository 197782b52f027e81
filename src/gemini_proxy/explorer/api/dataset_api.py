"""Serve the API's routes for datasets: create, read, list, delete, and their metadata."""

from collections.abc import Mapping
from typing import Any, Final

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.endpoints import ApiCall
from gemini_proxy.explorer.api.request_bodies import DatasetCreation, MetadataChange, is_dataset_name
from gemini_proxy.explorer.api.response_bodies import (
    POLICIES_KEY,
    DatasetView,
    MessageView,
    dataset_view,
    without_policies,
)
from gemini_proxy.explorer.app_keys import DATASETS, POLICIES
from gemini_proxy.policy import readable_parameters
from gemini_proxy.traces.datasets import UNNAMED, Dataset, labels_of
from gemini_proxy.traces.errors import NameTaken
from gemini_proxy.traces.rows import dump

NO_DATASET: Final = "Dataset not found"
MAX_METADATA_BYTES: Final = 262_144
"""Bytes of one dataset's metadata as JSON: it is read whenever the dataset is."""
MAX_DATASETS_LISTED: Final = 1_000
DATASET_KINDS: Final = ("private", "any", "public", "homepage")


async def create_dataset(call: ApiCall) -> DatasetView:
    """Create a dataset.

    400 for a name that is missing, malformed or taken, and for metadata whose ``tool_labels`` are not labels.
    """
    creation = await call.body(DatasetCreation)
    metadata = checked_metadata(without_policies(creation.metadata or {}))
    if labels_of(metadata):
        call.require_operator()
    try:
        return dataset_view(await call.app[DATASETS].create(call.user, creation.name, metadata, by=call.identity.named))
    except NameTaken:
        raise BadRequest("Dataset with the same name already exists") from None


async def list_datasets(call: ApiCall) -> list[DatasetView]:
    """List the caller's datasets without their policies, those with the newest traces first.

    No dataset is ``public`` or on the ``homepage``.
    """
    kind = call.request.query.get("kind", "any")
    if kind not in DATASET_KINDS:
        raise BadRequest(f"kind must be one of {', '.join(DATASET_KINDS)}")
    limit = call.number("limit", MAX_DATASETS_LISTED, MAX_DATASETS_LISTED)
    if kind in ("public", "homepage"):
        return []
    wanted = call.request.query.get("q", "").lower()
    datasets = await call.app[DATASETS].all(call.user)
    named = [dataset for dataset in datasets if dataset.name != UNNAMED and wanted in dataset.name.lower()]
    return [dataset_view(dataset) for dataset in named[:limit]]


async def show_dataset_by_id(call: ApiCall) -> DatasetView:
    """Show a dataset with its policies."""
    return await dataset_with_policies(call, await dataset_by_id(call))


async def show_dataset_by_name(call: ApiCall) -> DatasetView:
    """Show a dataset with its policies."""
    return await dataset_with_policies(call, await dataset_by_name(call))


async def delete_dataset_by_id(call: ApiCall) -> MessageView:
    """Delete a dataset with its traces and policies."""
    return await _delete(call, await dataset_by_id(call))


async def delete_dataset_by_name(call: ApiCall) -> MessageView:
    """Delete a dataset with its traces and policies."""
    return await _delete(call, await dataset_by_name(call))


async def show_metadata(call: ApiCall) -> dict[str, Any]:
    """Show a dataset's metadata, without its policies."""
    for name in ("owner_username", "owner"):
        if call.request.query.get(name, call.user) != call.user:
            raise NotFound(NO_DATASET)
    return without_policies((await _owned_dataset(call, call.name("dataset"))).metadata)


async def change_metadata(call: ApiCall) -> dict[str, Any]:
    """Merge into a dataset's metadata, or with ``replace_all`` replace it. Show the new metadata.

    A member that is null changes nothing; objects are merged member by member. ``tool_labels`` holds the labels of the
    dataset's tools from the next request on: 400 if they are not labels.
    """
    call.require_operator()
    requested = await call.body(MetadataChange)
    metadata = requested.metadata or {}
    if POLICIES_KEY in metadata:
        raise BadRequest("policies cannot be updated via the /metadata API")
    added = {key: value for key, value in metadata.items() if value is not None}

    def change(before: Mapping[str, Any]) -> Mapping[str, Any]:
        return checked_metadata(added if requested.replace_all else _merged(without_policies(before), added))

    dataset = await _owned_dataset(call, call.name("dataset"))
    changed = await call.app[DATASETS].change_metadata(call.user, dataset.name, change, by=call.identity.named)
    if changed is None:
        raise NotFound(NO_DATASET)
    return without_policies(changed.metadata)


async def dataset_by_id(call: ApiCall) -> Dataset:
    """Return the caller's dataset that the path names by its id. Raise NotFound."""
    return _named(await call.app[DATASETS].by_id(call.user, call.id("dataset_id", NO_DATASET)))


async def dataset_by_name(call: ApiCall) -> Dataset:
    """Return the caller's dataset that the path names by user and name. Raise NotFound."""
    call.only_user("user", NO_DATASET)
    return await _owned_dataset(call, call.name("dataset"))


async def _owned_dataset(call: ApiCall, name: str) -> Dataset:
    """Return the caller's dataset of that name. Raise NotFound, also for a name that no dataset can have."""
    if not is_dataset_name(name):
        raise NotFound(NO_DATASET)
    return _named(await call.app[DATASETS].get(call.user, name))


async def dataset_with_policies(call: ApiCall, dataset: Dataset) -> DatasetView:
    """Return the JSON of a dataset with its policies as they are now."""
    return dataset_view(dataset, await call.app[POLICIES].of(dataset))


def checked_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return a dataset's new metadata. Raise BadRequest if it is too large or its ``tool_labels`` are not labels."""
    if len(dump(metadata)) > MAX_METADATA_BYTES:
        raise BadRequest(f"metadata must not be larger than {MAX_METADATA_BYTES} bytes")
    try:
        readable_parameters(metadata)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    return metadata


async def _delete(call: ApiCall, dataset: Dataset) -> MessageView:
    call.require_operator()
    if not await call.app[DATASETS].delete(call.user, dataset.id, by=call.identity.named):
        raise NotFound(NO_DATASET)
    return {"message": "Deleted"}


def _named(dataset: Dataset | None) -> Dataset:
    if dataset is None or dataset.name == UNNAMED:
        raise NotFound(NO_DATASET)
    return dataset


def _merged(before: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``before`` with the members of ``added``; where both have an object, merge that likewise."""
    after = dict(before)
    for key, value in added.items():
        inner = after.get(key)
        after[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return after
