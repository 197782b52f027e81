"""Serve the page of the user's keys: list, create and revoke them."""

from typing import Final

from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.app_keys import ACCESS, DATABASE, LIMITS
from gemini_proxy.explorer.pages.site import PageVisit, page, see
from gemini_proxy.traces.keys import Keys, Role

PATH: Final = "/explorer/keys"
MAX_KEYS: Final = 100
"""Valid keys of one user up to which its operators make further ones in the pages."""
_MADE_HERE: Final[dict[str, Role]] = {"client": "client", "operator": "operator"}
"""Roles of keys that an operator may make: an approver decides for all users, which the command line alone gives."""


@page
async def keys(visit: PageVisit) -> web.StreamResponse:
    """Show the keys of the user to an operator."""
    visit.require_operator()
    return await _show(visit)


@page
async def add(visit: PageVisit) -> web.StreamResponse:
    """Create a key for the visitor's user and show it, this once."""
    _require_keys(visit)
    role = _MADE_HERE.get((await visit.form()).get("role", ""))
    if role is None:
        raise BadRequest(
            "Keys made in the pages have the role client or operator; make others with gemini-proxy keys add"
        )
    store = Keys(visit.app[DATABASE])
    valid = [record for record in await store.all() if record.owner == visit.user and record.revoked is None]
    if len(valid) >= MAX_KEYS:
        raise BadRequest(f"{visit.user} has {MAX_KEYS} valid keys: revoke some first")
    _, key = await store.add(visit.user, role, by=visit.identity.named)
    return await _show(visit, key)


@page
async def revoke(visit: PageVisit) -> web.StreamResponse:
    """Revoke a key of the visitor's user."""
    _require_keys(visit)
    store, key_id = Keys(visit.app[DATABASE]), visit.request.match_info["id"]
    own = {record.id for record in await store.all() if record.owner == visit.user and record.role in _MADE_HERE}
    if key_id not in own or not await store.revoke(key_id, by=visit.identity.named):
        raise NotFound("You have no valid key with that id")
    return see(PATH)


def _require_keys(visit: PageVisit) -> None:
    """Raise Forbidden or BadRequest for a visitor who may not change keys: with open access, for everyone."""
    visit.require_operator()
    if visit.app[ACCESS].mode == "open":
        raise BadRequest("Without access.mode = keys, keys are made and revoked on the command line only")


async def _show(visit: PageVisit, made: str = "") -> web.StreamResponse:
    found = [record for record in await Keys(visit.app[DATABASE]).all() if record.owner == visit.user]
    limits = visit.app[LIMITS]()
    return await visit.show(
        "keys.html",
        keys=sorted(found, key=lambda record: (record.revoked is not None, -record.created)),
        made=made,
        own=visit.identity.key,
        made_here=list(_MADE_HERE),
        open_access=visit.app[ACCESS].mode == "open",
        limits=[(name.replace("_", " "), value) for name, value in limits.model_dump().items() if value],
    )
