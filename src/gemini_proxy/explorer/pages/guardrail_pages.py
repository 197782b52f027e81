"""Serve the page of all guardrails: origin, action, datasets and recent findings of each."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from gemini_proxy.explorer.app_keys import (
    AUDIT,
    DATASETS,
    FILE_RULES,
    GUARDRAILS,
    POLICIES,
    POLICY_VERSIONS,
    READ_DATABASE,
    TRACES,
)
from gemini_proxy.explorer.pages.site import PageVisit, dataset_path, page
from gemini_proxy.guardrails.rules import HEADER_NAME, Guardrail, GuardrailSet, nothing_checked
from gemini_proxy.traces.audit import SETTINGS_LOADED, AuditLog, this_server
from gemini_proxy.traces.dataset_rules import files_in_force
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.policies import StoredPolicy
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.search.listing import Listing, TraceCount, TraceQuery
from gemini_proxy.traces.trace import Trace

PATH: Final = "/explorer/guardrails"
_DAY: Final = 86_400.0
_DATASETS: Final = 100
"""Datasets that are shown, those with the newest traces."""
_COUNTED: Final = 60
"""Guardrails whose findings are counted, those of the files first."""
_COUNTING: Final = 0.2
"""Seconds after which those of no more datasets are counted: each may take a tenth of a second."""
_LOADS: Final = 100
"""Changes of the settings that are looked through for the one that loaded a file as it is."""
_TIMED, _SLOWEST = 100, 5
"""Newest exchanges among which the slowest checks are looked for, and how many of them are shown."""


@dataclass(frozen=True, slots=True)
class FileGuardrail:
    """A guardrail of the policy files. ``replaced`` are the datasets in which it does not hold, ``since`` is when this
    server loaded it as it is (a Unix time), None if that is not known."""

    guardrail: Guardrail
    replaced: tuple[Dataset, ...]
    hits: TraceCount | None
    since: float | None

    @property
    def actions(self) -> tuple[str, ...]:
        """Return what its rules may do, its own action first."""
        stronger = sorted(action for action in self.guardrail.actions if action != self.guardrail.action)
        return (self.guardrail.action, *stronger)


@dataclass(frozen=True, slots=True)
class DatasetGuardrail:
    """A guardrail of a dataset. ``by`` is the last user who changed it, "" if the visitor may not know."""

    policy: StoredPolicy
    hits: TraceCount | None
    by: str


@dataclass(frozen=True, slots=True)
class DatasetChecks:
    """The guardrails of a dataset's exchanges: its own and, in ``files``, those of the policy files."""

    dataset: Dataset
    path: str
    own: tuple[DatasetGuardrail, ...]
    files: tuple[Guardrail, ...]

    @property
    def deciding(self) -> list[tuple[str, str]]:
        """Return the guardrails that check an exchange before it continues: action and name of each."""
        own = [(guardrail.policy.action, guardrail.policy.name) for guardrail in self.own if guardrail.policy.enabled]
        found = [*own, *((guardrail.action, guardrail.name) for guardrail in self.files)]
        return [(action, name) for action, name in found if action != "log"]


@dataclass(frozen=True, slots=True)
class SlowCheck:
    """An exchange whose checks took long, in milliseconds."""

    trace: Trace
    took: float


@page
async def guardrails(visit: PageVisit) -> web.StreamResponse:
    """Show every guardrail that applies to exchanges of the user."""
    files, settings = visit.app[FILE_RULES](), visit.app[GUARDRAILS]()
    datasets = (await visit.app[DATASETS].all(visit.user))[:_DATASETS]
    policies = {dataset.seq: await visit.app[POLICIES].of(dataset) for dataset in datasets}
    hits, slowest = await asyncio.gather(_hits(visit, datasets, files, policies), _slowest(visit, datasets))
    operates = visit.identity.role == "operator"
    by = await visit.app[POLICY_VERSIONS].last_by(policies) if operates else {}
    since = await _loaded_since(visit.app[AUDIT], files) if operates else {}
    views = [_view(dataset, policies[dataset.seq], files, hits, by) for dataset in datasets]
    return await visit.show(
        "guardrails.html",
        files=[_file(guardrail, datasets, policies, hits, since.get(guardrail.name)) for guardrail in files.all],
        views=views,
        more=max(0, len(await visit.app[DATASETS].all(visit.user)) - len(datasets)),
        nothing=nothing_checked(files, settings.engine),
        unchecked=[view for view in views if not view.deciding],
        header=HEADER_NAME,
        header_mode=settings.header_policies,
        slowest=slowest,
        timed=_TIMED,
    )


Key = tuple[int, str]
"""The number of a dataset, 0 for all, and the name of a guardrail."""


async def _hits(
    visit: PageVisit,
    datasets: Sequence[Dataset],
    files: GuardrailSet,
    policies: Mapping[int, Sequence[StoredPolicy]],
) -> dict[Key, TraceCount]:
    """Count the traces of the last day that each guardrail annotated, for as many guardrails as there is time for."""
    listing, since = Listing(visit.app[READ_DATABASE]), time.time() - _DAY
    names = [guardrail.name for guardrail in files.all][:_COUNTED]
    queries = [TraceQuery(rule=name, since=since) for name in names]
    hits: dict[Key, TraceCount] = dict(
        zip(((0, name) for name in names), await listing.counts(datasets, queries), strict=True)
    )
    ends = time.monotonic() + _COUNTING
    for dataset in datasets:
        if time.monotonic() > ends:
            break
        own = [policy.name for policy in policies[dataset.seq]][: max(0, _COUNTED - len(hits))]
        if own:
            queries = [TraceQuery(rule=name, since=since) for name in own]
            counts = await listing.counts([dataset], queries)
            hits.update(zip(((dataset.seq, name) for name in own), counts, strict=True))
    return hits


async def _slowest(visit: PageVisit, datasets: Sequence[Dataset]) -> list[SlowCheck]:
    """Return the newest exchanges whose checks took longest, the slowest first."""
    listed = await Listing(visit.app[READ_DATABASE]).over(datasets, TraceQuery(), _TIMED)
    found = await visit.app[TRACES].outlined([summary.seq for summary in listed.traces])
    timed = [SlowCheck(trace, took) for trace in found if (took := _took(trace.metadata)) is not None]
    return sorted(timed, key=lambda one: one.took, reverse=True)[:_SLOWEST]


async def _loaded_since(audit: AuditLog, files: GuardrailSet) -> dict[str, float]:
    """Return the times at which this server loaded the current guardrails of the files, by their names."""
    since: dict[str, float] = {}
    waiting = {guardrail.name: guardrail.loaded for guardrail in files.all}
    for entry in await audit.newest(SETTINGS_LOADED, this_server(), _LOADS):
        loaded = load(entry.details)["after"]["policies"]
        waiting = {name: how for name, how in waiting.items() if loaded.get(name) == how}
        since.update(dict.fromkeys(waiting, entry.at))
    return since


def _took(metadata: Mapping[str, Any]) -> float | None:
    coverage = metadata.get("coverage")
    took = coverage.get("milliseconds") if isinstance(coverage, Mapping) else None
    return float(took) if isinstance(took, int | float) and 0 < took < 1e9 else None


def _file(
    guardrail: Guardrail,
    datasets: Sequence[Dataset],
    policies: Mapping[int, Sequence[StoredPolicy]],
    hits: Mapping[Key, TraceCount],
    since: float | None,
) -> FileGuardrail:
    replaced = tuple(
        dataset
        for dataset in datasets
        if any(policy.enabled and policy.action == guardrail.action for policy in policies[dataset.seq])
    )
    return FileGuardrail(guardrail, replaced, hits.get((0, guardrail.name)), since)


def _view(
    dataset: Dataset,
    policies: Sequence[StoredPolicy],
    files: GuardrailSet,
    hits: Mapping[Key, TraceCount],
    by: Mapping[str, str],
) -> DatasetChecks:
    own = tuple(
        DatasetGuardrail(policy, hits.get((dataset.seq, policy.name)), by.get(policy.id, "")) for policy in policies
    )
    return DatasetChecks(dataset, dataset_path(dataset), own, tuple(files_in_force(policies, files).all))
