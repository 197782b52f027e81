"""Serve the page of a rule in shadow: its differences from the rule in force, and buttons to promote or end it."""

import re
from typing import Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, Conflict, NotFound
from gemini_proxy.explorer.api.shadow_api import CHANGED, NO_SHADOW
from gemini_proxy.explorer.app_keys import GUARDRAILS, POLICIES, SHADOWS
from gemini_proxy.explorer.pages.rule_pages import SHARE, Draft, editor, shown_difference
from gemini_proxy.explorer.pages.site import DATASET_GONE, PageVisit, dataset_path, page, see
from gemini_proxy.explorer.pages.trials import TRIALS
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.errors import DatasetGone
from gemini_proxy.traces.shadows import StoredShadow, difference_kind

_SHOWN: Final = 50
"""Differences on one page."""


@page
async def shadow(visit: PageVisit) -> web.StreamResponse:
    """Show a shadow: its text beside the rule in force, and how often and in which exchanges they differ."""
    visit.require_operator()
    dataset = await visit.dataset()
    shown = await _shadow(visit, dataset)
    kind = difference_kind(visit.query("kind"))
    listed = await visit.app[SHADOWS].differences(shown.seq, _SHOWN + 1, visit.number("before"), kind)
    in_force = next((rule for rule in await visit.app[POLICIES].of(dataset) if rule.id == shown.policy), None)
    return await visit.show(
        "shadow.html",
        dataset=dataset,
        path=dataset_path(dataset),
        shadow=shown,
        found=shown.found,
        in_force=in_force,
        lines=shown_difference("" if in_force is None else in_force.content, shown.content),
        kind=kind or "",
        differences=listed[:_SHOWN],
        older=listed[_SHOWN - 1].seq if len(listed) > _SHOWN else None,
        off=visit.app[GUARDRAILS]().engine == "off",
    )


@page
async def edit(visit: PageVisit) -> web.StreamResponse:
    """Show a form for the text of a shadow."""
    visit.require_operator()
    dataset = await visit.dataset()
    shown = await _shadow(visit, dataset)
    return await editor(visit, dataset, Draft.of_shadow(shown), share=shown.share, of_shadow=True)


@page
async def start_new(visit: PageVisit) -> web.StreamResponse:
    """Run a new rule in shadow."""
    return await _start(visit, None)


@page
async def start(visit: PageVisit) -> web.StreamResponse:
    """Run another version of a rule in shadow, in place of the current one."""
    return await _start(visit, visit.id("id"))


@page
async def change_share(visit: PageVisit) -> web.StreamResponse:
    """Run a shadow on another share of the conversations."""
    visit.require_operator()
    dataset, policy_id = await visit.dataset(), visit.id("id")
    share = _share((await visit.form()).get("share", ""))
    if await visit.app[SHADOWS].set_share(dataset, policy_id, share, by=visit.identity.named) is None:
        raise NotFound(NO_SHADOW)
    return see(f"{dataset_path(dataset)}/rules/{policy_id}/shadow")


@page
async def promote(visit: PageVisit) -> web.StreamResponse:
    """Make a shadow the rule in force, if it still loads and is unchanged since it was shown."""
    visit.require_operator()
    dataset = await visit.dataset()
    shown, seen = await _shadow(visit, dataset), (await visit.form()).get("shadow", "")
    check = await visit.app[TRIALS].check(visit.user, shown.content)
    if not check.ok:
        place = f"line {check.line}, column {check.column}"
        raise BadRequest(f"The shadow does not load any more: {place}: {check.reason}")
    if seen != str(shown.seq):
        raise Conflict(CHANGED)
    try:
        kept = await visit.app[POLICIES].promote(dataset, shown.policy, shown.seq, by=visit.identity.named)
    except DatasetGone:
        raise NotFound(DATASET_GONE) from None
    if kept is None:
        raise Conflict(CHANGED)
    return see(f"{dataset_path(dataset)}/rules/{shown.policy}/versions")


@page
async def end(visit: PageVisit) -> web.StreamResponse:
    """End a shadow."""
    visit.require_operator()
    dataset = await visit.dataset()
    try:
        ended = await visit.app[SHADOWS].end(dataset, visit.id("id"), by=visit.identity.named)
    except DatasetGone:
        raise NotFound(DATASET_GONE) from None
    if not ended:
        raise NotFound(NO_SHADOW)
    return see(f"{dataset_path(dataset)}/rules")


async def _start(visit: PageVisit, policy_id: str | None) -> web.StreamResponse:
    visit.require_operator()
    dataset, form = await visit.dataset(), await visit.form()
    draft, share = Draft.from_form(form, policy_id or ""), _share(form.get("share", f"{SHARE}"))
    check = await visit.app[TRIALS].check(visit.user, draft.content)
    if draft.wrong_name or not check.ok:
        return await editor(visit, dataset, draft, check, share=share, of_shadow="of_shadow" in form)
    try:
        started = await visit.app[SHADOWS].start(
            dataset, draft.name, draft.content, draft.action, share, policy=policy_id, by=visit.identity.named
        )
    except DatasetGone:
        raise NotFound(DATASET_GONE) from None
    if started is None:
        raise NotFound("There is no such rule")
    return see(f"{dataset_path(dataset)}/rules/{started.policy}/shadow")


async def _shadow(visit: PageVisit, dataset: Dataset) -> StoredShadow:
    found = await visit.app[SHADOWS].of_policy(dataset, visit.id("id"))
    if found is None:
        raise NotFound(NO_SHADOW)
    return found


def _share(text: str) -> int:
    """Return a share of the conversations in percent. Raise BadRequest."""
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > 100:
        raise BadRequest("The share must be a whole number from 0 to 100, in percent")
    return int(text)
