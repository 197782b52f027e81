"""Remember interactions that Gemini stores, and decide which clients may continue them."""

from typing import Final

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.gemini.doors import Method
from gemini_proxy.gemini.earlier import Earlier
from gemini_proxy.gemini.interactions.request import INTERACTION_ID
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.proxy.exchange import Exchange, Made
from gemini_proxy.sections import Guardrails
from gemini_proxy.traces.handles import Handle, Kind
from gemini_proxy.traces.trace import REFUSED, Outcome

COLLECTION: Final = "interactions/"
_KEPT_SECONDS: Final = 55 * 86_400.0
"""The longest time for which Google stores an interaction."""
_GOES_ON: Final = frozenset(("IN_PROGRESS", "QUEUED"))
_READ: Final = (Outcome.COMPLETED, Outcome.UNCHECKED)
_UNREAD: Final = "the response of an earlier interaction, which was not read whole"
_SETTINGS: Final = {
    "request.agent": "agents",
    "request.environment": "environments",
    "request.environment_id": "environments",
}
"""Fields of a request that name what runs at Google, and the settings that allow them."""


def refuse_unopened(request: GeminiRequest, guardrails: Guardrails) -> None:
    """Raise BadRequest for a request that names an agent or an environment where the settings do not allow it."""
    for unchecked in request.unchecked:
        setting = _SETTINGS.get(unchecked.address)
        if setting is not None and getattr(guardrails, setting) == "refuse":
            name = unchecked.address.removeprefix("request.")
            raise BadRequest(
                f'The field "{name}" makes Gemini run something that the proxy cannot see; '
                f'this server accepts it only with guardrails.{setting} = "allow"'
            )


def refuse_going_on(exchange: Exchange, handle: Handle, *, lost: bool) -> None:
    """Raise the error for a request that may not continue or read an interaction.

    A refused interaction is not found and cannot be continued. ``lost`` says that its masked values were not stored, so
    that only the original call could restore them in the response.
    """
    reads = handle.name == f"{COLLECTION}{exchange.call.names.get('id')}"
    if handle.refused and reads:
        raise NotFound("There is no such interaction here")
    if handle.refused:
        raise BadRequest("The earlier interaction was refused; send the rest of the conversation as input")
    if lost and handle.details.get("masked"):
        what = "be read again" if reads else "be continued"
        raise BadRequest(
            f"An interaction with masked values cannot {what}, because the values were not kept; "
            "send the conversation as input"
        )


def asked_before(handle: Handle, recalled: Earlier) -> Earlier:
    """Return the request's part of an interaction's known content: the response that reads it has the rest."""
    count = handle.details.get("request", 0)
    asked = tuple(one for one in recalled.unchecked if not _is_behind(one.address, count))
    return Earlier(recalled.messages[:count], asked)


def made_interactions(exchange: Exchange) -> list[Made]:
    """Return the interaction that Gemini stores for an exchange, nothing if none is known to be stored.

    A refused interaction is remembered as refused, and one whose response was not read to its end as unread. One that
    the request asked for is remembered again with its new response, if it was known before.
    """
    call, request = exchange.call, exchange.request
    if call.row.wire != "interactions" or request is None or not exchange.call.generates:
        return []
    name = call.names.get("id") or exchange.merger.response_id or ""
    if (exchange.upstream_status or 500) >= 400 or not INTERACTION_ID.fullmatch(name):
        return []
    refused = exchange.outcome in REFUSED
    creates = call.method is Method.CREATE_INTERACTION
    if not refused and (request.settings.get("store") is False or not (creates or exchange.earlier)):
        return []
    if not refused and any(one.address == "request.last_event_id" for one in request.unchecked):
        return []
    finished = [candidate.finish_reason for candidate in exchange.merger.candidates]
    read = exchange.outcome in _READ and bool(finished) and _GOES_ON.isdisjoint(map(str, finished))
    return [
        Made(
            Kind.INTERACTION,
            f"{COLLECTION}{name}",
            exchange.created + _KEPT_SECONDS,
            unchecked="" if read else _UNREAD,
            refused=refused,
            details={"request": len(request.messages), "masked": exchange.restoring is not None},
        )
    ]


def _is_behind(address: str, count: int) -> bool:
    """Return whether an address is in a message from the one of index ``count`` on."""
    root, _, rest = address.partition(".")
    index = rest.partition(".")[0]
    return root == "messages" and index.isdecimal() and int(index) >= count
