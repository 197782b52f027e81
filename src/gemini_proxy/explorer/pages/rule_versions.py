"""The page of what a rule has been: who changed it, when, with the difference, and a way back."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, Literal

from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.policy_api import version_of
from gemini_proxy.explorer.app_keys import POLICIES, POLICY_VERSIONS
from gemini_proxy.explorer.pages.site import DATASET_GONE, PageVisit, dataset_path, page, see
from gemini_proxy.explorer.pages.trials import TRIALS
from gemini_proxy.traces.errors import DatasetGone
from gemini_proxy.traces.policy_versions import PolicyVersion

_SHOWN: Final = 10
"""Versions on one page: each may differ in a long text."""
_MAX_COMPARED: Final = 250_000
"""Pairs of lines that are compared, which takes some 50 ms at worst; of longer texts all lines are shown as changed."""
_MAX_LINES: Final = 400
"""Lines of a difference that are shown."""
_AROUND: Final = 3


@dataclass(frozen=True, slots=True)
class DiffLine:
    """A line of both texts, of the new one, of the old one, or in place of lines that are left out."""

    kind: Literal["same", "added", "removed", "gap"]
    text: str


@dataclass(frozen=True, slots=True)
class ShownVersion:
    """A version with what was changed in it: ``facts`` in words, ``lines`` of the text."""

    version: PolicyVersion
    facts: Sequence[str]
    lines: Sequence[DiffLine]


@page
async def versions(visit: PageVisit) -> web.StreamResponse:
    """Show the versions of a rule, also of one that was deleted, to a key with the role operator."""
    visit.require_operator()
    dataset, policy_id = await visit.dataset(), visit.id("id")
    found = await visit.app[POLICY_VERSIONS].of(dataset, policy_id, _SHOWN + 1, visit.number("before"))
    newest = found[:1] if visit.number("before") is None else await visit.app[POLICY_VERSIONS].of(dataset, policy_id, 1)
    if not newest:
        raise NotFound("There is no such rule")
    return await visit.show(
        "rule_versions.html",
        dataset=dataset,
        path=dataset_path(dataset),
        current=newest[0],
        found=found[:_SHOWN],
        shown=lambda at: shown_version(found[at], found[at + 1] if at + 1 < len(found) else None),
        older=found[_SHOWN - 1].number if len(found) > _SHOWN else None,
    )


@page
async def restore(visit: PageVisit) -> web.StreamResponse:
    """Make a version the current one, if it still loads."""
    visit.require_operator()
    dataset, policy_id = await visit.dataset(), visit.id("id")
    version = await version_of(visit.app, dataset, policy_id, visit.request.match_info["version"])
    check = await visit.app[TRIALS].check(visit.user, version.content)
    if not check.ok:
        place = f"line {check.line}, column {check.column}"
        raise BadRequest(f"Version {version.number} does not load any more: {place}: {check.reason}")
    try:
        await visit.app[POLICIES].restore(dataset, version, by=visit.identity.named)
    except DatasetGone:
        raise NotFound(DATASET_GONE) from None
    return see(f"{dataset_path(dataset)}/rules/{policy_id}/versions")


def shown_version(version: PolicyVersion, before: PolicyVersion | None) -> ShownVersion:
    """Compare a version with the one before it, if that is known."""
    if before is None:
        return ShownVersion(version, (), ())
    return ShownVersion(version, tuple(_facts(before, version)), shown_difference(before.content, version.content))


def shown_difference(old: str, new: str) -> tuple[DiffLine, ...]:
    """Compare two texts, leaving out what is too long to show."""
    return tuple(_cut(differing(old, new)))


def differing(old: str, new: str) -> Iterator[DiffLine]:
    """Yield the lines in which two texts differ, with some around them."""
    before, after = old.split("\n"), new.split("\n")
    if len(before) * len(after) > _MAX_COMPARED:
        yield from (DiffLine("removed", line) for line in before)
        yield from (DiffLine("added", line) for line in after)
        return
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for number, group in enumerate(matcher.get_grouped_opcodes(_AROUND)):
        if number:
            yield DiffLine("gap", "…")
        for step, first, last, start, stop in group:
            if step == "equal":
                yield from (DiffLine("same", line) for line in before[first:last])
                continue
            yield from (DiffLine("removed", line) for line in before[first:last])
            yield from (DiffLine("added", line) for line in after[start:stop])


def _cut(lines: Iterator[DiffLine]) -> Iterator[DiffLine]:
    for number, line in enumerate(lines):
        if number == _MAX_LINES:
            more = sum(1 for _ in chain([line], lines))
            yield DiffLine("gap", f"… and {more:,} more lines")
            return
        yield line


def _facts(before: PolicyVersion, after: PolicyVersion) -> Iterator[str]:
    """Say what changed beside the text."""
    if after.removed:
        yield "deleted"
    elif before.removed:
        yield "brought back"
    if before.name != after.name:
        yield f"renamed from “{before.name}”"
    if before.action != after.action:
        yield f"{before.action} → {after.action}"
    if before.enabled != after.enabled:
        yield "enabled" if after.enabled else "disabled"
    if before.metadata != after.metadata:
        yield "metadata changed"
