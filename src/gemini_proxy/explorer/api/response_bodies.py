"""Write the JSON that the API responds with, in the shape that Invariant's clients read."""

import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NotRequired

from typing_extensions import TypedDict

from gemini_proxy.explorer.checks import TriedGuardrail
from gemini_proxy.traces.approvals import Approval
from gemini_proxy.traces.catalogue import Outline, StoredAnnotation
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.pinned_tools import Declared, PinnedTool
from gemini_proxy.traces.policies import PolicyVersion, StoredPolicy
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.shadows import Difference, KeptViolation, StoredShadow
from gemini_proxy.traces.trace import Trace

POLICIES_KEY: Final = "policies"
"""The key of a dataset's metadata under which its policies are shown, and which nobody can set."""
_USERS: Final = uuid.UUID("f3b0c5f8-2f43-5d0c-9a27-55c1f4b1f0e6")


class ErrorView(TypedDict):
    """The error in a request, or the reason why it cannot be served now."""

    detail: str


class MessageView(TypedDict):
    """A confirmation."""

    message: str


class IdentityView(TypedDict):
    """The user whom a key belongs to."""

    username: str


class UserView(TypedDict):
    """A user; ``id`` is the same for the same name on every server."""

    id: str
    username: str
    image_url_hash: str


class DatasetView(TypedDict):
    """A dataset. Times are ISO 8601; ``extra_metadata`` has its policies in a response about a single dataset."""

    id: str
    name: str
    extra_metadata: dict[str, Any]
    is_public: bool
    user_id: str
    user: UserView
    time_created: str
    latest_trace_time: str | None


class PolicyView(TypedDict):
    """A rule of a dataset. ``last_updated_time`` is in UTC, without a zone."""

    id: str
    name: str
    content: str
    enabled: bool
    action: Literal["block", "ask", "mask", "log"]
    extra_metadata: dict[str, Any]
    last_updated_time: str


class PolicyVersionView(TypedDict):
    """A rule as ``by`` left it, or with ``removed`` as it was when they removed it."""

    version: int
    time: str
    by: str
    removed: bool
    name: str
    content: str
    enabled: bool
    action: Literal["block", "ask", "mask", "log"]
    extra_metadata: dict[str, Any]


class ShadowView(TypedDict):
    """A rule in shadow. ``id`` belongs to one comparison, which begins again when the rule in force changes.

    Since ``time_since``, ``compared`` exchanges were compared. In ``both`` of them both versions found something; of
    these ``action_differs`` counts those with another action, ``ranges_differ`` those with other ranges.
    ``milliseconds`` is the average time of a check by the shadow; ``failure`` is the reason of the last of the
    ``failed`` checks.
    """

    id: int
    policy_id: str
    name: str
    content: str
    action: Literal["block", "ask", "mask", "log"]
    share: int
    by: str
    time_started: str
    time_since: str
    compared: int
    both: int
    only_old: int
    only_new: int
    action_differs: int
    ranges_differ: int
    failed: int
    skipped: int
    milliseconds: float
    slowest: float
    failure: str


class KeptViolationView(TypedDict):
    """The violations that one version of a rule found."""

    message: str
    action: Literal["block", "ask", "mask", "log"]
    ranges: list[str]


class ShadowDifferenceView(TypedDict):
    """An exchange in which a shadow and the rule in force differ, with the violations of each."""

    id: int
    trace_id: str
    time: str
    kind: Literal["only_old", "only_new", "action", "ranges"]
    old: list[KeptViolationView]
    new: list[KeptViolationView]


class FileRuleView(TypedDict):
    """A rule of the policy files."""

    id: str
    name: str
    content: str
    action: str


class PoliciesView(TypedDict):
    """A dataset's rules; ``files`` are the rules of the policy files that apply beside the enabled ones."""

    policies: list[PolicyView]
    files: list[FileRuleView]
    header_policies: Literal["add", "replace", "off"]


class DeclarationView(TypedDict):
    """A tool's declaration; ``declaration`` is null if it was too long to be kept."""

    digest: str
    declaration: Any
    time: str


class ToolView(TypedDict):
    """A tool as it is pinned, and its later declaration if that differs."""

    name: str
    pinned: DeclarationView
    changed: DeclarationView | None


class ToolsView(TypedDict):
    """Tools, the changed ones first."""

    tools: list[ToolView]


class AnnotationView(TypedDict):
    """An annotation of a trace."""

    id: str
    trace_id: str
    content: str
    address: str
    time_created: str
    extra_metadata: dict[str, Any]
    user: UserView


class TraceHeadView(TypedDict):
    """A trace without its messages; ``index`` is its place in the dataset."""

    id: str
    index: int
    dataset: str | None
    user_id: str
    name: Any
    hierarchy_path: Any
    user: str
    extra_metadata: dict[str, Any]
    time_created: str
    time_last_pushed: str
    annotations: list[AnnotationView]


class TraceView(TraceHeadView):
    """A trace; ``index`` is its place in the dataset."""

    messages: list[dict[str, Any]]


class TraceOutlineView(TypedDict):
    """A trace in a list: its messages are left out, its annotations counted."""

    id: str
    index: int
    messages: list[dict[str, Any]]
    annotations_by_source: dict[str, int]
    extra_metadata: dict[str, Any]
    name: Any
    hierarchy_path: Any


class SuccessView(TypedDict):
    """The request was carried out."""

    success: bool


class ReplacedView(TypedDict):
    """The numbers of deleted and inserted annotations."""

    deleted: int
    inserted: int


class ApprovalView(TypedDict):
    """An approval that a guardrail asks a person for. Times are in ISO 8601.

    ``shown`` has in ``asked`` the calls with their arguments and the texts that the rule points at, and ``unshown`` if
    it also points at something else. ``trace`` is the id of the exchange's trace, which is written when the exchange
    ends. ``until`` is the end of the time in which exactly the same is allowed; ``for_conversation`` says that it is
    allowed in all of ``conversation``, which is null if it is not known. Without either the approval is for one
    exchange.
    """

    id: str
    state: Literal["waiting", "allowed", "denied", "expired"]
    user: str
    dataset: str | None
    trace: str
    guardrail: str
    message: str
    shown: dict[str, Any]
    time_created: str
    time_expires: str
    time_decided: str | None
    decided_by: str
    reason: str
    until: str | None
    conversation: str | None
    for_conversation: bool


class AuditEntryView(TypedDict):
    """A change, who made it, and what was before and after. ``digest`` covers it and the ``previous`` one's digest."""

    seq: int
    at: float
    by: str
    action: str
    subject: str
    owner: str | None
    before: Any
    after: Any
    previous: str
    digest: str


class MaskedValueView(TypedDict):
    """The value behind a placeholder, null unless it could be ``read``.

    The state is ``not_kept`` if this server has no such value, or no longer has it, and ``unreadable`` if its key is
    missing.
    """

    placeholder: str
    state: Literal["read", "not_kept", "unreadable"]
    value: str | None


class PushView(TypedDict):
    """The ids of the pushed traces, in their order."""

    id: list[str]
    dataset: NotRequired[str]
    username: str


class LoadView(TypedDict):
    """The policy loads."""

    loaded: bool


class ViolationView(TypedDict):
    """A violation: the arguments of ``raise``, and the ranges in messages that it points at."""

    args: list[Any]
    kwargs: dict[str, Any]
    ranges: list[str]


class TriedGuardrailView(TypedDict):
    """A guardrail's violations in a trace. ``failure`` is why part of it has no verdict, null if all has one."""

    guardrail: str
    action: str
    violations: list[ViolationView]
    failure: str | None


class CheckView(TypedDict):
    """The violations of one policy."""

    errors: list[ViolationView]


class BatchEntryView(TypedDict):
    """The violations of one of several policies, or the reason for a missing verdict."""

    errors: list[ViolationView]
    error_message: NotRequired[str]


class BatchView(TypedDict):
    """The violations of each policy, in the order of the policies."""

    result: list[BatchEntryView]


def user_id(owner: str) -> str:
    """Return the id of a user: the same for the same name on every server."""
    return str(uuid.uuid5(_USERS, owner))


def _user_view(owner: str) -> UserView:
    return {"id": user_id(owner), "username": owner, "image_url_hash": ""}


def dataset_view(dataset: Dataset, policies: Iterable[StoredPolicy] | None = None) -> DatasetView:
    """Return a dataset, with its policies in ``extra_metadata`` if they are given. No dataset is public."""
    shown = {} if policies is None else {POLICIES_KEY: [policy_view(policy) for policy in policies]}
    return {
        "id": dataset.id,
        "name": dataset.name,
        "extra_metadata": {**without_policies(dataset.metadata), **shown},
        "is_public": False,
        "user_id": user_id(dataset.owner),
        "user": _user_view(dataset.owner),
        "time_created": iso(dataset.created),
        "latest_trace_time": None if dataset.latest is None else iso(dataset.latest),
    }


def without_policies(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataset's metadata without the key for its policies, which no request can set."""
    return {key: value for key, value in metadata.items() if key != POLICIES_KEY}


def policy_view(policy: StoredPolicy) -> PolicyView:
    return {
        "id": policy.id,
        "name": policy.name,
        "content": policy.content,
        "enabled": policy.enabled,
        "action": policy.action,
        "extra_metadata": dict(policy.metadata),
        "last_updated_time": datetime.fromtimestamp(policy.updated, UTC).strftime("%Y-%m-%d %H:%M:%S"),
    }


def policy_version_view(version: PolicyVersion) -> PolicyVersionView:
    return {
        "version": version.number,
        "time": iso(version.at),
        "by": version.by,
        "removed": version.removed,
        "name": version.name,
        "content": version.content,
        "enabled": version.enabled,
        "action": version.action,
        "extra_metadata": dict(version.metadata),
    }


def shadow_view(shadow: StoredShadow) -> ShadowView:
    found = shadow.found
    return {
        "id": shadow.seq,
        "policy_id": shadow.policy,
        "name": shadow.name,
        "content": shadow.content,
        "action": shadow.action,
        "share": shadow.share,
        "by": shadow.by,
        "time_started": iso(shadow.started),
        "time_since": iso(shadow.since),
        "compared": found.compared,
        "both": found.both,
        "only_old": found.only_old,
        "only_new": found.only_new,
        "action_differs": found.action_differs,
        "ranges_differ": found.ranges_differ,
        "failed": found.failed,
        "skipped": found.skipped,
        "milliseconds": round(found.average, 3),
        "slowest": round(found.slowest, 3),
        "failure": found.failure,
    }


def shadow_difference_view(difference: Difference) -> ShadowDifferenceView:
    return {
        "id": difference.seq,
        "trace_id": difference.trace,
        "time": iso(difference.at),
        "kind": difference.kind,
        "old": [_violation_view(violation) for violation in difference.old],
        "new": [_violation_view(violation) for violation in difference.new],
    }


def _violation_view(violation: KeptViolation) -> KeptViolationView:
    return {"message": violation.message, "action": violation.action, "ranges": list(violation.ranges)}


def approval_view(approval: Approval) -> ApprovalView:
    request = approval.request
    return {
        "id": approval.id,
        "state": approval.state,
        "user": request.owner,
        "dataset": request.dataset,
        "trace": request.trace,
        "guardrail": request.guardrail,
        "message": request.message,
        "shown": dict(request.shown),
        "time_created": iso(approval.created),
        "time_expires": iso(approval.expires),
        "time_decided": None if approval.decided_at is None else iso(approval.decided_at),
        "decided_by": approval.decided_by,
        "reason": approval.reason,
        "until": iso(approval.until) if approval.until else None,
        "conversation": request.conversation or None,
        "for_conversation": approval.for_conversation,
    }


def tool_view(tool: PinnedTool) -> ToolView:
    return {
        "name": tool.name,
        "pinned": _declaration_view(tool.pinned),
        "changed": None if tool.changed is None else _declaration_view(tool.changed),
    }


def _declaration_view(declared: Declared) -> DeclarationView:
    declaration = load(declared.text) if declared.text else None
    return {"digest": declared.digest, "declaration": declaration, "time": iso(declared.at)}


def trace_head_view(trace: Trace, dataset_id: str | None, annotations: Iterable[StoredAnnotation]) -> TraceHeadView:
    return {
        "id": trace.id,
        "index": trace.position,
        "dataset": dataset_id,
        "user_id": user_id(trace.owner),
        "name": trace.metadata.get("name"),
        "hierarchy_path": trace.metadata.get("hierarchy_path") or [],
        "user": trace.owner,
        "extra_metadata": dict(trace.metadata),
        "time_created": iso(trace.created),
        "time_last_pushed": iso(trace.created if trace.updated is None else trace.updated),
        "annotations": annotation_views(trace.id, trace.owner, annotations),
    }


def trace_outline_view(outline: Outline) -> TraceOutlineView:
    return {
        "id": outline.id,
        "index": outline.position,
        "messages": [],
        "annotations_by_source": {source or "user": count for source, count in outline.annotations.items()},
        "extra_metadata": dict(outline.metadata),
        "name": outline.metadata.get("name"),
        "hierarchy_path": outline.metadata.get("hierarchy_path") or [],
    }


def annotation_views(trace_id: str, owner: str, annotations: Iterable[StoredAnnotation]) -> list[AnnotationView]:
    """Return the annotations of a trace; all are its owner's, who alone can write them."""
    user = _user_view(owner)
    return [
        {
            "id": stored.id,
            "trace_id": trace_id,
            "content": stored.annotation.content,
            "address": stored.annotation.address,
            "time_created": iso(stored.created),
            "extra_metadata": stored.annotation.extra_metadata,
            "user": user,
        }
        for stored in annotations
    ]


def iso(seconds: float) -> str:
    """Return a Unix time as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def tried_guardrail_view(tried: TriedGuardrail) -> TriedGuardrailView:
    violations: list[ViolationView] = [
        {"args": list(violation.args), "kwargs": dict(violation.kwargs), "ranges": list(violation.ranges)}
        for violation in tried.violations
    ]
    guardrail = tried.guardrail
    return {
        "guardrail": guardrail.name,
        "action": guardrail.action,
        "violations": violations,
        "failure": tried.failure or None,
    }
