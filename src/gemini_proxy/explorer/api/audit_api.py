"""Serve the API's route for the audit log."""

from typing import Final

from gemini_proxy.explorer.api.endpoints import ApiCall
from gemini_proxy.explorer.api.response_bodies import AuditEntryView
from gemini_proxy.explorer.app_keys import ACCESS, AUDIT
from gemini_proxy.traces.access import AccessControl
from gemini_proxy.traces.keys import Identity

MAX_ENTRIES_LISTED: Final = 100
"""Entries in one response: each may hold a rule before and after its change."""


async def list_entries(call: ApiCall) -> list[AuditEntryView]:
    """List the changes that concern the key's user, the newest first. The key needs the role operator."""
    call.require_operator()
    limit = call.number("limit", MAX_ENTRIES_LISTED, MAX_ENTRIES_LISTED)
    before = call.number("before", 0, 10**15) or None
    entries = await call.app[AUDIT].latest(limit, before, visible_owner(call.app[ACCESS], call.identity))
    return [AuditEntryView(**entry.described) for entry in entries]  # type: ignore[typeddict-item]


def visible_owner(access: AccessControl, identity: Identity) -> str | None:
    """Return the user whose entries are shown; None for those of all users and of the server, with open access."""
    return None if access.mode == "open" else identity.owner
