"""Serve the API's routes for a dataset's policies. Each stored one loads, and applies from the next request on."""

from typing import Any, Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.dataset_api import NO_DATASET, dataset_by_id, dataset_by_name, dataset_with_policies
from gemini_proxy.explorer.api.endpoints import ApiCall
from gemini_proxy.explorer.api.request_bodies import PolicyChange, PolicyCreation
from gemini_proxy.explorer.api.response_bodies import (
    DatasetView,
    FileRuleView,
    PoliciesView,
    PolicyVersionView,
    policy_version_view,
    policy_view,
)
from gemini_proxy.explorer.app_keys import COMPILING, FILE_RULES, GUARDRAILS, POLICIES, POLICY_VERSIONS
from gemini_proxy.guardrails.rules import Guardrail, compile_guardrail, is_brief
from gemini_proxy.policy import PolicyError
from gemini_proxy.traces.dataset_rules import files_in_force
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.errors import DatasetGone
from gemini_proxy.traces.policies import PolicyVersion
from gemini_proxy.traces.rows import dump

MAX_POLICY_METADATA_BYTES: Final = 16_384
"""Bytes of one policy's metadata as JSON: it is read with its dataset's policies."""
_NO_POLICY: Final = "Policy not found"
_NO_VERSION: Final = "There is no such version"
MAX_VERSIONS_LISTED: Final = 20
"""Versions in one response: each has the rule's whole text."""
_NO_POLICY_TO_UPDATE: Final = "Policy to update not found"


async def list_policies(call: ApiCall) -> PoliciesView:
    """List a dataset's policies, the oldest first, and the other rules that apply to its exchanges.

    ``files`` are the rules of the policy files that apply beside the enabled policies, and ``header_policies`` is the
    effect of policies in a client's header. Neither is in Invariant's API, whose clients read only ``policies``.
    """
    policies = await call.app[POLICIES].of(await dataset_by_name(call))
    files = files_in_force(policies, call.app[FILE_RULES]())
    return {
        "policies": [policy_view(policy) for policy in policies],
        "files": [_file_rule_view(rule) for rule in files.all],
        "header_policies": call.app[GUARDRAILS]().header_policies,
    }


async def add_policy(call: ApiCall) -> DatasetView:
    """Add a policy to a dataset. Show the dataset with its policies.

    400 with line and reason for a policy that does not load.
    """
    call.require_operator()
    dataset = await dataset_by_id(call)
    creation = await call.body(PolicyCreation)
    metadata = _checked_metadata(creation.extra_metadata or {})
    await require_loads(call, creation.name, creation.policy)
    enabled = creation.enabled is not False
    action = creation.action or "log"
    try:
        await call.app[POLICIES].add(
            dataset,
            creation.name,
            creation.policy,
            enabled=enabled,
            action=action,
            metadata=metadata,
            by=call.identity.named,
        )
    except DatasetGone:
        raise NotFound(NO_DATASET) from None
    return await dataset_with_policies(call, dataset)


async def change_policy(call: ApiCall) -> DatasetView:
    """Change the given members of a policy. Show the dataset with its policies."""
    call.require_operator()
    dataset = await dataset_by_id(call)
    policy_id = call.id("policy_id", _NO_POLICY_TO_UPDATE)
    change = await call.body(PolicyChange)
    before = next((policy for policy in await call.app[POLICIES].of(dataset) if policy.id == policy_id), None)
    if before is None:
        raise NotFound(_NO_POLICY_TO_UPDATE)
    metadata = None if change.extra_metadata is None else _checked_metadata(change.extra_metadata)
    if change.policy:
        await require_loads(call, change.name or before.name, change.policy)
    changed = await call.app[POLICIES].change(
        dataset,
        policy_id,
        name=change.name or None,
        content=change.policy or None,
        enabled=change.enabled,
        action=change.action,
        metadata=metadata,
        by=call.identity.named,
    )
    if changed is None:
        raise NotFound(_NO_POLICY_TO_UPDATE)
    return await dataset_with_policies(call, dataset)


async def remove_policy(call: ApiCall) -> DatasetView:
    """Remove a policy. Show the dataset with its other policies."""
    call.require_operator()
    dataset = await dataset_by_id(call)
    if not await call.app[POLICIES].remove(dataset, call.id("policy_id", _NO_POLICY), by=call.identity.named):
        raise NotFound(_NO_POLICY)
    return await dataset_with_policies(call, dataset)


async def list_versions(call: ApiCall) -> list[PolicyVersionView]:
    """List the versions of a policy, the newest first, even if it was removed. The key needs the role operator."""
    call.require_operator()
    dataset = await dataset_by_id(call)
    policy_id, limit = call.id("policy_id", _NO_POLICY), call.number("limit", MAX_VERSIONS_LISTED, MAX_VERSIONS_LISTED)
    before = call.number("before", 0, 10**9) or None
    found = await call.app[POLICY_VERSIONS].of(dataset, policy_id, limit, before)
    if not found and before is None and limit:
        raise NotFound(_NO_POLICY)
    return [policy_version_view(version) for version in found]


async def restore_version(call: ApiCall) -> DatasetView:
    """Make a version of a policy the current one, even if it was removed. Show the dataset with its policies.

    400 with line and reason for a version that no longer loads.
    """
    call.require_operator()
    dataset = await dataset_by_id(call)
    policy_id = call.id("policy_id", _NO_POLICY)
    version = await version_of(call.app, dataset, policy_id, call.request.match_info["version"])
    await require_loads(call, version.name, version.content)
    try:
        await call.app[POLICIES].restore(dataset, version, by=call.identity.named)
    except DatasetGone:
        raise NotFound(NO_DATASET) from None
    return await dataset_with_policies(call, dataset)


async def version_of(app: web.Application, dataset: Dataset, policy_id: str, written: str) -> PolicyVersion:
    """Return the version of a policy with the number in the path. Raise NotFound."""
    if written.isascii() and written.isdecimal() and len(written) <= 9:
        number = int(written)
        for version in await app[POLICY_VERSIONS].of(dataset, policy_id, 1, number + 1):
            if version.number == number:
                return version
    raise NotFound(_NO_VERSION)


async def compiled(call: ApiCall, name: str, content: str) -> Guardrail:
    """Compile a policy of the caller's, a long one when it is the caller's turn. Raise PolicyError and Unavailable."""
    if is_brief(name, content):
        return await compile_guardrail(name, content, "block")
    async with call.app[COMPILING].hold(call.user):
        return await compile_guardrail(name, content, "block")


def why(error: PolicyError) -> str:
    """Return line, column and reason of a fault in a policy, with the suggestion if there is one."""
    hint = f" ({error.suggestion})" if error.suggestion else ""
    return f"line {error.line}, column {error.column}: {error.reason}{hint}"


async def require_loads(call: ApiCall, name: str, content: str) -> None:
    """Raise BadRequest for a policy that does not load, with the line and the reason."""
    try:
        await compiled(call, name, content)
    except PolicyError as error:
        raise BadRequest(f"Invalid Policy string: {why(error)}") from None


def _checked_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(dump(metadata)) > MAX_POLICY_METADATA_BYTES:
        raise BadRequest(f"extra_metadata must not be larger than {MAX_POLICY_METADATA_BYTES} bytes")
    return metadata


def _file_rule_view(rule: Guardrail) -> FileRuleView:
    return {"id": rule.id, "name": rule.name, "content": rule.policy.text, "action": rule.action}
