"""Serve the API's routes for rules in shadow, which run beside those in force and decide nothing, to operators."""

from typing import Final

from gemini_proxy.errors import BadRequest, Conflict, NotFound
from gemini_proxy.explorer.api.dataset_api import NO_DATASET, dataset_by_id, dataset_with_policies
from gemini_proxy.explorer.api.endpoints import ApiCall
from gemini_proxy.explorer.api.policy_api import require_loads
from gemini_proxy.explorer.api.request_bodies import ShadowPromotion, ShadowShare, ShadowStart, read_uuid
from gemini_proxy.explorer.api.response_bodies import (
    DatasetView,
    MessageView,
    ShadowDifferenceView,
    ShadowView,
    shadow_difference_view,
    shadow_view,
)
from gemini_proxy.explorer.app_keys import POLICIES, SHADOWS
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.errors import DatasetGone
from gemini_proxy.traces.shadows import StoredShadow, difference_kind

MAX_DIFFERENCES_LISTED: Final = 100
"""Differences in one response; each has the violations of both versions."""
NO_SHADOW: Final = "The rule has no shadow"
CHANGED: Final = "The shadow or the rule in force has changed since you loaded it: load it again"
_NO_POLICY: Final = "Policy not found"


async def list_shadows(call: ApiCall) -> list[ShadowView]:
    """List a dataset's rules in shadow, the oldest first, with how often they and the rules in force fired."""
    call.require_operator()
    return [shadow_view(shadow) for shadow in await call.app[SHADOWS].of(await dataset_by_id(call))]


async def start_shadow(call: ApiCall) -> ShadowView:
    """Run a new version of a rule beside the one in force, or a new rule.

    A rule has one shadow: this one replaces it. 400 with line and reason for a policy that does not load.
    """
    call.require_operator()
    dataset = await dataset_by_id(call)
    start = await call.body(ShadowStart)
    policy = None if start.policy_id is None else read_uuid(start.policy_id, _NO_POLICY)
    before = next((rule for rule in await call.app[POLICIES].of(dataset) if rule.id == policy), None)
    name, action = start.name or (before.name if before else ""), start.action or (before.action if before else "log")
    if not name:
        raise BadRequest(ShadowStart.messages_of_faults["name"])
    await require_loads(call, name, start.policy)
    try:
        started = await call.app[SHADOWS].start(
            dataset, name, start.policy, action, start.share, policy=policy, by=call.identity.named
        )
    except DatasetGone:
        raise NotFound(NO_DATASET) from None
    if started is None:
        raise NotFound(_NO_POLICY)
    return shadow_view(started)


async def change_share(call: ApiCall) -> ShadowView:
    """Run a shadow on another share of the conversations, in percent; 0 pauses it."""
    call.require_operator()
    dataset = await dataset_by_id(call)
    share, policy = (await call.body(ShadowShare)).share, call.id("policy_id", NO_SHADOW)
    changed = await call.app[SHADOWS].set_share(dataset, policy, share, by=call.identity.named)
    if changed is None:
        raise NotFound(NO_SHADOW)
    return shadow_view(changed)


async def list_differences(call: ApiCall) -> list[ShadowDifferenceView]:
    """List exchanges in which a shadow and the rule in force differ, the newest first."""
    call.require_operator()
    shadow = await _running(call, await dataset_by_id(call), call.id("policy_id", NO_SHADOW))
    kind = difference_kind(call.request.query.get("kind"))
    limit = call.number("limit", MAX_DIFFERENCES_LISTED, MAX_DIFFERENCES_LISTED)
    before = call.number("before", 0, 10**15) or None
    found = await call.app[SHADOWS].differences(shadow.seq, limit, before, kind)
    return [shadow_difference_view(difference) for difference in found]


async def promote_shadow(call: ApiCall) -> DatasetView:
    """Make a shadow the rule in force, enabled, and end it. Show the dataset with its policies.

    409 if ``id`` is no longer the shadow's: it or the rule in force has changed. 400 if it no longer loads.
    """
    call.require_operator()
    dataset = await dataset_by_id(call)
    policy, promotion = call.id("policy_id", NO_SHADOW), await call.body(ShadowPromotion)
    shadow = await _running(call, dataset, policy)
    await require_loads(call, shadow.name, shadow.content)
    try:
        kept = await call.app[POLICIES].promote(dataset, policy, promotion.id, by=call.identity.named)
    except DatasetGone:
        raise NotFound(NO_DATASET) from None
    if kept is None:
        raise Conflict(CHANGED)
    return await dataset_with_policies(call, dataset)


async def end_shadow(call: ApiCall) -> MessageView:
    """End a shadow. Its figures stay in the audit log."""
    call.require_operator()
    dataset, policy = await dataset_by_id(call), call.id("policy_id", NO_SHADOW)
    try:
        ended = await call.app[SHADOWS].end(dataset, policy, by=call.identity.named)
    except DatasetGone:
        raise NotFound(NO_DATASET) from None
    if not ended:
        raise NotFound(NO_SHADOW)
    return {"message": "The shadow has ended"}


async def _running(call: ApiCall, dataset: Dataset, policy: str) -> StoredShadow:
    """Return the shadow of a policy. Raise NotFound."""
    found = await call.app[SHADOWS].of_policy(dataset, policy)
    if found is None:
        raise NotFound(NO_SHADOW)
    return found
