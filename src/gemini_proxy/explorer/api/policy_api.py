"""A dataset's policies: what is kept loads, and holds from the next request to the dataset on."""

from collections.abc import Mapping
from typing import Any, Final, cast

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.dataset_api import NO_DATASET, dataset_by_id, dataset_by_name
from gemini_proxy.explorer.api.endpoints import Call
from gemini_proxy.explorer.api.models import dataset_json, mapping, member, plain_text, policy_json
from gemini_proxy.explorer.app_keys import COMPILING, FILE_RULES, GUARDRAILS, POLICIES
from gemini_proxy.guardrails.rules import Action, Guardrail, compile_guardrail, is_brief
from gemini_proxy.policy import PolicyError
from gemini_proxy.traces.dataset_rules import files_in_force
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.errors import DatasetGone
from gemini_proxy.traces.rows import dump

MAX_POLICY: Final = 65_536
"""Characters of one policy: below half a second to compile, whatever is in it."""
MAX_POLICY_NAME: Final = 256
MAX_POLICY_METADATA_BYTES: Final = 16_384
"""What else may be said of one policy, as JSON: it is read with its dataset's policies."""
_NO_POLICY: Final = "Policy not found"
_EMPTY: Final = "Request should not be empty"


async def listed(call: Call) -> object:
    """``GET /api/v1/dataset/byuser/{user}/{dataset}/policy``: all of them, at most 100, the oldest first.

    ``files`` are the rules of the policy files that hold beside those that are enabled, ``header_policies`` says what a
    client's own are worth. Neither is in the old contract, whose clients read ``policies`` alone.
    """
    policies = await call.app[POLICIES].of(await dataset_by_name(call))
    files = files_in_force(policies, call.app[FILE_RULES]())
    return {
        "policies": [policy_json(policy) for policy in policies],
        "files": [rule.described for rule in (*files.blocking, *files.logging)],
        "header_policies": call.app[GUARDRAILS]().header_policies,
    }


async def create(call: Call) -> object:
    """``POST /api/v1/dataset/{dataset_id}/policy``: the dataset with its policies.

    400 for a policy that does not load, with line and reason.
    """
    dataset = await dataset_by_id(call)
    given = await call.json()
    if not given:
        raise BadRequest(_EMPTY)
    name = _name(given, "Name must be provided and non-empty")
    content = _content(given, "Policy content must be provided and non-empty")
    enabled = member(given, "enabled", bool, "enabled must be a boolean", True)
    action = _action(given) or "log"
    metadata = _metadata(given)
    await require_loads(call, name, content)
    try:
        await call.app[POLICIES].add(dataset, name, content, enabled=enabled, action=action, metadata=metadata)
    except DatasetGone:
        raise NotFound(NO_DATASET) from None
    return await _shown(call, dataset)


async def update(call: Call) -> object:
    """``PUT /api/v1/dataset/{dataset_id}/policy/{policy_id}``: what is given changes; the dataset with its policies."""
    dataset = await dataset_by_id(call)
    policy_id = call.id("policy_id", "Policy to update not found")
    given = await call.json()
    if not given:
        raise BadRequest(_EMPTY)
    before = next((policy for policy in await call.app[POLICIES].of(dataset) if policy.id == policy_id), None)
    if before is None:
        raise NotFound("Policy to update not found")
    name = _name(given, "Name must be non-empty if provided") if "name" in given else None
    content = _content(given, "Policy must be non-empty if provided") if "policy" in given else None
    enabled = None if given.get("enabled") is None else member(given, "enabled", bool, "enabled must be a boolean")
    metadata = None if given.get("extra_metadata") is None else _metadata(given)
    if content is not None:
        await require_loads(call, name or before.name, content)
    changed = await call.app[POLICIES].change(
        dataset, policy_id, name=name, content=content, enabled=enabled, action=_action(given), metadata=metadata
    )
    if changed is None:
        raise NotFound("Policy to update not found")
    return await _shown(call, dataset)


async def remove(call: Call) -> object:
    """``DELETE /api/v1/dataset/{dataset_id}/policy/{policy_id}``: the dataset with the policies it has left."""
    dataset = await dataset_by_id(call)
    if not await call.app[POLICIES].remove(dataset, call.id("policy_id", _NO_POLICY)):
        raise NotFound(_NO_POLICY)
    return await _shown(call, dataset)


async def compiled(call: Call, name: str, content: str) -> Guardrail:
    """A policy that the caller brings: a long one when it is their turn. Raises PolicyError, and Unavailable."""
    if is_brief(name, content):
        return await compile_guardrail(name, content, "block")
    async with call.app[COMPILING].hold(call.user):
        return await compile_guardrail(name, content, "block")


async def require_loads(call: Call, name: str, content: str) -> None:
    """Raise BadRequest for a policy that does not load, with the line and the reason."""
    try:
        await compiled(call, name, content)
    except PolicyError as error:
        raise BadRequest(f"Invalid Policy string: {why(error)}") from None


def why(error: PolicyError) -> str:
    """Where and why a policy does not load, and what may be meant."""
    hint = f" ({error.suggestion})" if error.suggestion else ""
    return f"line {error.line}, column {error.column}: {error.reason}{hint}"


async def _shown(call: Call, dataset: Dataset) -> dict[str, Any]:
    return dataset_json(dataset, await call.app[POLICIES].of(dataset))


def _name(given: Mapping[str, Any], missing: str) -> str:
    name = plain_text(given, "name", missing, MAX_POLICY_NAME)
    if not name.strip():
        raise BadRequest(missing)
    return name


def _content(given: Mapping[str, Any], missing: str) -> str:
    content = plain_text(given, "policy", missing, MAX_POLICY)
    if not content.strip():
        raise BadRequest(missing)
    return content


def _metadata(given: Mapping[str, Any]) -> dict[str, Any]:
    metadata = mapping(given, "extra_metadata", "extra_metadata must be a dictionary")
    if len(dump(metadata)) > MAX_POLICY_METADATA_BYTES:
        raise BadRequest(f"extra_metadata must not be larger than {MAX_POLICY_METADATA_BYTES} bytes")
    return metadata


def _action(given: Mapping[str, Any]) -> Action | None:
    action = given.get("action")
    if action not in (None, "block", "log"):
        raise BadRequest('action must be "block" or "log"')
    return cast("Action | None", action)
