"""Serve the page of approvals: those that wait for a person, and the last decisions."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from gemini_proxy.errors import BadRequest
from gemini_proxy.explorer.api.approval_api import decide as decide_approval
from gemini_proxy.explorer.api.approval_api import visible_owner
from gemini_proxy.explorer.api.request_bodies import MAX_REASON, ApprovalDecision
from gemini_proxy.explorer.app_keys import ACCESS, APPROVALS, CATALOGUE
from gemini_proxy.explorer.pages.site import PageVisit, page, see
from gemini_proxy.explorer.pages.templating import spelled_out
from gemini_proxy.traces.approvals import Approval

PATH: Final = "/explorer/approvals"
_WAITING_SHOWN: Final = 50
_DECIDED_SHOWN: Final = 20
_HOUR: Final = 3600
_DECISIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "once": {"decision": "allow"},
    "conversation": {"decision": "allow", "conversation": True},
    "hour": {"decision": "allow", "seconds": _HOUR},
    "deny": {"decision": "deny"},
}


@dataclass(frozen=True, slots=True)
class AskedItem:
    """A call or a text that needs the approval. Invisible characters are spelled out in ``text``."""

    kind: str
    name: str
    text: str


@page
async def approvals(visit: PageVisit) -> web.StreamResponse:
    """Show the approvals that wait, the first to expire at the top, and below them the last decisions."""
    store, owner = visit.app[APPROVALS], visible_owner(visit.identity)
    waiting = await store.latest(_WAITING_SHOWN, owner, waiting=True)
    decided = await store.latest(_DECIDED_SHOWN, owner, waiting=False)
    traced = await visit.app[CATALOGUE].existing(
        visit.user, {approval.request.trace for approval in (*waiting, *decided)}
    )
    return await visit.show(
        "approvals.html",
        queue=sorted(waiting, key=lambda approval: approval.expires),
        decided=decided,
        asked=lambda approval: list(_asked_items(approval)),
        traced=traced,
        open_access=visit.app[ACCESS].mode == "open",
        role=visit.identity.role,
        longest_reason=MAX_REASON,
    )


@page
async def decide(visit: PageVisit) -> web.StreamResponse:
    """Decide an approval that waits."""
    form = await visit.form()
    decision = _DECISIONS.get(form.get("decision", ""))
    if decision is None:
        raise BadRequest("The decision must be to allow once, for the conversation or for an hour, or to deny")
    read = ApprovalDecision.read({**decision, "reason": form.get("reason", "").strip()})
    await decide_approval(visit.app, visit.identity, visit.request.match_info["id"], read)
    return see(PATH)


def _asked_items(approval: Approval) -> Iterator[AskedItem]:
    for asked in approval.request.shown.get("asked", ()):
        if "tool" in asked:
            yield AskedItem("call", spelled_out(str(asked["tool"])), spelled_out(_pretty(asked.get("arguments"))))
        else:
            yield AskedItem(
                "text", str(asked.get("role", "")), spelled_out("\n".join(map(str, asked.get("texts", ()))))
            )


def _pretty(arguments: Any) -> str:
    # Not orjson: integers over 64 bits and lone surrogates occur.
    return arguments if isinstance(arguments, str) else json.dumps(arguments, indent=2, ensure_ascii=False)
