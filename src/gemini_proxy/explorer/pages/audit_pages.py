"""Serve the page of the audit log."""

import json
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web

from gemini_proxy.explorer.api.audit_api import visible_owner
from gemini_proxy.explorer.app_keys import ACCESS, AUDIT
from gemini_proxy.explorer.pages.site import PageVisit, page
from gemini_proxy.explorer.pages.templating import spelled_out
from gemini_proxy.traces.audit import AuditEntry
from gemini_proxy.traces.rows import load

PATH: Final = "/explorer/audit"
_SHOWN: Final = 50


@page
async def audit(visit: PageVisit) -> web.StreamResponse:
    """Show the changes, the newest first, to a key with the role operator."""
    visit.require_operator()
    owner = visible_owner(visit.app[ACCESS], visit.identity)
    entries = await visit.app[AUDIT].latest(_SHOWN + 1, visit.number("before"), owner)
    older = entries[_SHOWN - 1].seq if len(entries) > _SHOWN else None
    return await visit.show("audit.html", entries=entries[:_SHOWN], sides=_sides, older=older, all_users=owner is None)


def _sides(entry: AuditEntry) -> Sequence[tuple[str, str]]:
    """Return the values before and after a change that exist, as text with invisible characters spelled out."""
    details = load(entry.details)
    return [(side, spelled_out(_pretty(details[side]))) for side in ("before", "after") if details[side] is not None]


def _pretty(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        rest = {name: item for name, item in value.items() if name != "content"}
        return f"{json.dumps(rest, indent=2, ensure_ascii=False)}\n{value['content']}"
    return json.dumps(value, indent=2, ensure_ascii=False)
