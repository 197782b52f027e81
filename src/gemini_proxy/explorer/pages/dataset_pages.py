"""Serve the pages of datasets: list, create and delete them."""

from typing import Final

from aiohttp import web

from gemini_proxy.errors import NotFound
from gemini_proxy.explorer.api.request_bodies import is_dataset_name
from gemini_proxy.explorer.app_keys import DATASETS, FILE_RULES
from gemini_proxy.explorer.pages.site import PageVisit, dataset_path, page, see
from gemini_proxy.traces.datasets import Dataset, Extent
from gemini_proxy.traces.errors import NameTaken

_SHOWN: Final = 500
"""Datasets of one page, those with the newest traces."""


@page
async def home(visit: PageVisit) -> web.StreamResponse:
    """Redirect to the first page."""
    return see("/explorer")


@page
async def datasets(visit: PageVisit) -> web.StreamResponse:
    """List the datasets of the user."""
    return await _datasets(visit)


@page
async def create(visit: PageVisit) -> web.StreamResponse:
    """Create a dataset and redirect to it; show the list again with what is wrong with the name."""
    name = (await visit.form()).get("name", "").strip()
    if not is_dataset_name(name):
        return await _datasets(
            visit, name, "A dataset's name must be 1 to 128 letters, digits, hyphens and underscores"
        )
    try:
        dataset = await visit.app[DATASETS].create(visit.user, name)
    except NameTaken:
        return await _datasets(visit, name, f"The dataset {name} already exists")
    return see(dataset_path(dataset))


@page
async def ask_delete(visit: PageVisit) -> web.StreamResponse:
    """Ask whether to delete a dataset with its traces and rules."""
    dataset = await _named(visit)
    extents = await visit.app[DATASETS].extents(visit.user)
    return await visit.show("delete_dataset.html", dataset=dataset, extent=extents.get(dataset.seq, Extent()))


@page
async def delete(visit: PageVisit) -> web.StreamResponse:
    """Delete a dataset with its traces and rules."""
    visit.require_operator()
    await visit.app[DATASETS].delete(visit.user, (await _named(visit)).id, by=visit.identity.named)
    return see("/explorer")


async def _named(visit: PageVisit) -> Dataset:
    dataset = await visit.dataset()
    if not dataset.name:
        raise NotFound("Exchanges without a dataset cannot be deleted together")
    return dataset


async def _datasets(visit: PageVisit, name: str = "", wrong: str = "") -> web.StreamResponse:
    datasets = await visit.app[DATASETS].all(visit.user)
    extents = await visit.app[DATASETS].extents(visit.user)
    return await visit.show(
        "datasets.html",
        400 if wrong else 200,
        datasets=[
            (dataset, extents.get(dataset.seq, Extent()), dataset_path(dataset)) for dataset in datasets[:_SHOWN]
        ],
        more=max(0, len(datasets) - _SHOWN),
        files=visit.app[FILE_RULES](),
        name=name,
        wrong=wrong,
    )
