"""Brings back what the references of a request stand for before it is checked, and remembers what an exchange made."""

import logging
from collections.abc import Mapping

from gemini_proxy.errors import BadRequest, NotFound, Unavailable
from gemini_proxy.gemini.earlier import Earlier, references_of
from gemini_proxy.gemini.parts import Reference, Unchecked
from gemini_proxy.proxy.credentials import account_of
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.handles import MOST_AT_ONCE, ForeignHandle, Handle, Handles, Holder, Kind, Recalled

log = logging.getLogger(__name__)


class HandleKeeper:
    """Looks up and remembers handles. ``configured`` is the operator's own Gemini key."""

    def __init__(self, handles: Handles, configured: str | None) -> None:
        self._handles = handles
        self._configured = configured

    def holder(self, exchange: Exchange) -> Holder:
        """Return whose the handles of an exchange are."""
        return Holder(account_of(exchange.credentials, self._configured), exchange.owner)

    async def bring_back(self, exchange: Exchange) -> Mapping[Reference, Earlier]:
        """Return what is known of the references in an exchange's request.

        Raises NotFound for one that is another user's or was refused, Unavailable where that cannot be told, BadRequest
        for a request with more references than are looked up.
        """
        references = references_of(exchange.checked_request)
        if not references:
            return {}
        if len(references) > MOST_AT_ONCE:
            raise BadRequest(f"The request names more than {MOST_AT_ONCE} caches and files")
        try:
            found = await self._handles.find_all(
                self.holder(exchange), [(Kind(reference.kind), reference.name) for reference in references]
            )
            known = {
                reference: handle
                for reference in references
                if (handle := found.get((Kind(reference.kind), reference.name))) and _is_meant(reference, handle)
            }
            if any(handle.refused for handle in known.values()):
                raise ForeignHandle
            recalled = await self._handles.recall([*known.values()])
        except ForeignHandle:
            raise NotFound("The request names a cache, file or interaction that does not exist") from None
        except StoreError:
            raise Unavailable("What the request refers to cannot be looked up now") from None
        return _known(known, recalled)

    async def remember(self, exchange: Exchange) -> None:
        """Remember what an exchange made. What the database does not take is unchecked where it is used."""
        holder = self.holder(exchange)
        passed = exchange.unchecked is None and exchange.refusal is None
        for made in exchange.made:
            handle = Handle(
                made.kind,
                made.name,
                holder,
                made.expires,
                dataset=exchange.call.dataset,
                trace=exchange.id,
                guardrails=exchange.rules.digest if passed else "",
                unchecked=made.unchecked,
                refused=made.refused,
                digest=made.digest,
                details=made.details,
            )
            try:
                await self._handles.remember(handle)
            except StoreError as error:
                log.warning("what an exchange made is not remembered, and unchecked where it is used: %s", error)


def _is_meant(reference: Reference, handle: Handle) -> bool:
    """Return whether what stands in the request is that handle: an address of a file may be of another server's."""
    return handle.kind is not Kind.FILE or reference.said in (handle.name, handle.details.get("uri"))


def _known(handles: Mapping[Reference, Handle], recalled: Mapping[str, Recalled]) -> dict[Reference, Earlier]:
    """Return what is known of references; of one whose trace is gone only what else is unread of it."""
    placed = {
        trace: Earlier(one.messages, tuple(Unchecked(address, reason) for address, reason in one.unread))
        for trace, one in recalled.items()
    }
    known: dict[Reference, Earlier] = {}
    for reference, handle in handles.items():
        earlier = placed.get(handle.trace)
        if handle.unchecked:
            known[reference] = Earlier(unread=handle.unchecked)
        elif earlier is not None:
            known[reference] = earlier
    return known
