"""Serve the API's routes for approvals: list and show what guardrails ask a person for, and take the decision."""

from typing import Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, Conflict, Forbidden, NotFound
from gemini_proxy.explorer.api.endpoints import ApiCall
from gemini_proxy.explorer.api.request_bodies import ApprovalDecision
from gemini_proxy.explorer.api.response_bodies import ApprovalView, approval_view
from gemini_proxy.explorer.app_keys import ACCESS, APPROVALS
from gemini_proxy.traces.approvals import Approval
from gemini_proxy.traces.keys import Identity

MAX_APPROVALS_LISTED: Final = 100
"""Approvals in one response: each holds up to some thousand characters of the request for approval."""
STATES: Final = ("any", "waiting")
_MISSING: Final = "Approval not found"


async def list_approvals(call: ApiCall) -> list[ApprovalView]:
    """List approvals, the newest first: of all users for a key with the role approver, of its own user for another."""
    state = call.request.query.get("state", "any")
    if state not in STATES:
        raise BadRequest(f"state must be one of {', '.join(STATES)}")
    limit = call.number("limit", MAX_APPROVALS_LISTED, MAX_APPROVALS_LISTED)
    waiting = True if state == "waiting" else None
    found = await call.app[APPROVALS].latest(limit, visible_owner(call.identity), waiting=waiting)
    return [approval_view(approval) for approval in found]


async def show_approval(call: ApiCall) -> ApprovalView:
    """Show an approval."""
    approval = await call.app[APPROVALS].get(call.name("approval_id"))
    if approval is None or visible_owner(call.identity) not in (None, approval.request.owner):
        raise NotFound(_MISSING)
    return approval_view(approval)


async def decide_approval(call: ApiCall) -> ApprovalView:
    """Allow or deny what an approval asks for, with a key of the role approver. Show the approval.

    403 for a key of another role, and for every key if access is open; 409 if the approval no longer waits.
    """
    _require_approver(call.app, call.identity)
    decision = await call.body(ApprovalDecision)
    return approval_view(await decide(call.app, call.identity, call.name("approval_id"), decision))


def visible_owner(identity: Identity) -> str | None:
    """Return the user whose approvals a key may see; None if it may see those of all users."""
    return None if identity.role == "approver" else identity.owner


def _require_approver(app: web.Application, identity: Identity) -> None:
    """Raise Forbidden, with what to do instead, for everyone but a key with the role approver."""
    if app[ACCESS].mode == "open":
        raise Forbidden(
            "Every program on this machine reaches this server without a key, so approvals are decided on the command "
            "line: gemini-proxy approvals allow ID, or deny ID"
        )
    if identity.role != "approver":
        raise Forbidden(
            f"This key has the role {identity.role}: only a key with the role approver, which makes no model calls, "
            "decides approvals"
        )


async def decide(app: web.Application, identity: Identity, approval_id: str, decision: ApprovalDecision) -> Approval:
    """Decide a waiting approval. Raise Forbidden, NotFound, and Conflict if it no longer waits."""
    _require_approver(app, identity)
    decided = await app[APPROVALS].decide(
        approval_id,
        allow=decision.decision == "allow",
        by=identity.named,
        reason=decision.reason or "",
        seconds=decision.seconds or 0,
        for_conversation=decision.conversation,
    )
    if decided is not None:
        return decided
    found = await app[APPROVALS].get(approval_id)
    if found is None:
        raise NotFound(_MISSING)
    raise Conflict(f"The approval is no longer pending: it is {found.state}")
