"""Bring back the content of a request's references before its check, and remember the objects that an exchange made."""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from gemini_proxy.errors import BadRequest, NotFound, Unavailable
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.parts import Reference, Unchecked, is_text_type
from gemini_proxy.gemini.references import Earlier, references_of
from gemini_proxy.proxy.credentials import Credentials, account_of
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.handles import MOST_AT_ONCE, ForeignHandle, Handle, Handles, Holder, Kind, Recalled

log = logging.getLogger(__name__)

_VERTEX: Final = "vertex"
"""The account of all that is kept on Vertex AI: tokens change every hour, and names there are told apart without it."""
INTERACTIONS: Final = "interactions/"
"""The start of an interaction's name."""
_ANOTHER_TYPE: Final = "a file that is read as another type than it was checked as"
_OWNED: Final = (Kind.OPERATION, Kind.SESSION)
"""Kinds of handles that users who share the operator's key may use only if the handle is known to be theirs."""
_AT_GOOGLE: Final = re.compile(r"https?://generativelanguage(?:\.mtls)?\.googleapis\.com(?::443)?/", re.IGNORECASE)
"""The start of a Google file's URI, in any of its spellings."""


class HandleKeeper:
    """Look up and remember handles. ``configured`` is the operator's own Gemini key."""

    def __init__(
        self, handles: Handles, configured: str | None, *, restores: bool = True, keeps_values: bool = False
    ) -> None:
        """``restores``: masked values are put back into responses; ``keeps_values``: into later ones as well."""
        self._handles = handles
        self._configured = configured
        self._restores = restores
        self._keeps_values = keeps_values

    def holder(self, call: ModelCall, credentials: Credentials, owner: str) -> Holder:
        """Return whose the handles are that a user makes by such a call with these keys."""
        return Holder(_VERTEX if call.host == "vertex" else account_of(credentials, self._configured), owner)

    def _holder_of(self, exchange: Exchange) -> Holder:
        return self.holder(exchange.call, exchange.credentials, exchange.owner)

    async def bring_back(self, exchange: Exchange) -> Mapping[Reference, Earlier]:
        """Return the known content of an exchange's references; the exchange joins the conversation of its interaction.

        Raises NotFound for a reference that is another user's or was refused, Unavailable if that cannot be determined,
        and BadRequest for more references than are looked up.
        """
        references = references_of(exchange.checked_request)
        if not references:
            return {}
        if len(references) > MOST_AT_ONCE:
            raise BadRequest(f"The request names more than {MOST_AT_ONCE} caches and files")
        holder = self._holder_of(exchange)
        try:
            found = await self._handles.find_all(
                holder,
                [(Kind(reference.kind), reference.name) for reference in references],
            )
            known = {
                reference: handle
                for reference in references
                if (handle := found.get((Kind(reference.kind), reference.name))) and _is_meant(reference, handle)
            }
            for handle in known.values():
                if handle.kind is Kind.INTERACTION:
                    lost = self._restores and not (self._keeps_values and handle.details.get("kept"))
                    _refuse_going_on(exchange, handle, lost=lost)
                elif handle.refused:
                    raise ForeignHandle
            if len(known) < len(references) and (asked := exchange.call.names.get("id")):
                await self.admit(holder, Kind.INTERACTION, f"{INTERACTIONS}{asked}")
            if not holder.account and any(one.kind in _OWNED for one in references if one not in known):
                raise ForeignHandle
            recalled = await self._handles.recall([*known.values()])
            joined = _conversation(known.values(), recalled)
            exchange.origins = _origins(known.values(), joined)
            exchange.conversation = exchange.conversation or joined
        except ForeignHandle:
            raise NotFound(
                "The request names a cache, file, operation, interaction or session that does not exist"
            ) from None
        except StoreError:
            raise _cannot_tell() from None
        return _known(known, recalled, exchange.call.names.get("id"))

    async def admit(self, holder: Holder, kind: Kind, name: str) -> Handle | None:
        """Return the handle of that name, None if it is not known.

        Raises NotFound for a handle that the holder may not have: another user's, one that was refused, and, if users
        share the operator's key, an unknown one. Raises Unavailable if that cannot be determined.
        """
        try:
            found = await self._handles.find(holder, kind, name)
        except ForeignHandle:
            raise _no_such(name) from None
        except StoreError:
            raise _cannot_tell() from None
        if found.refused if found is not None else not holder.account:
            raise _no_such(name)
        return found

    async def visible(self, holder: Holder, kind: Kind, names: Sequence[str]) -> frozenset[str]:
        """Return those names that ``admit`` would let the holder have. Raises Unavailable where that cannot be told."""
        theirs: dict[str, bool] = {}
        try:
            for start in range(0, len(names), MOST_AT_ONCE):
                theirs |= await self._handles.whose(holder, kind, names[start : start + MOST_AT_ONCE])
        except StoreError:
            raise _cannot_tell() from None
        return frozenset(name for name in names if theirs.get(name, bool(holder.account)))

    async def lasts(self, handle: Handle, expires: float) -> None:
        """Keep a handle until another time."""
        with _not_kept():
            await self._handles.remember(replace(handle, expires=expires))

    async def forget(self, handle: Handle) -> None:
        """Forget a handle that was deleted at Google."""
        with _not_kept():
            await self._handles.forget(handle.holder, handle.kind, handle.name)

    async def remember(self, exchange: Exchange) -> None:
        """Remember what an exchange made. What the database does not take is unchecked where it is used."""
        holder = self._holder_of(exchange)
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
                details={**made.details, **({"kept": True} if self._keeps_values and exchange.is_of_user else {})},
            )
            with _not_kept():
                await self._handles.remember(handle)


def _refuse_going_on(exchange: Exchange, handle: Handle, *, lost: bool) -> None:
    """Raise the error for a request that may not continue or read an interaction.

    A refused interaction is not found and cannot be continued. ``lost`` says that its masked values were not stored, so
    that only the original call could restore them in the response.
    """
    reads = handle.name == f"{INTERACTIONS}{exchange.call.names.get('id')}"
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


def _origins(handles: Iterable[Handle], joined: str) -> tuple[str, ...]:
    """Return the conversations under which the masked values of the handles' contents are kept.

    A live session also gives handles between its turns. No trace names these: they belong to its conversation.
    """
    of_session = [joined for handle in handles if handle.kind is Kind.SESSION and joined]
    return tuple(dict.fromkeys([*(handle.trace for handle in handles if handle.trace), *of_session]))


def _conversation(handles: Iterable[Handle], recalled: Mapping[str, Recalled]) -> str:
    """Return the conversation of the interaction or session that a request continues, "" if there is none."""
    traces = [handle.trace for handle in handles if handle.kind in (Kind.INTERACTION, Kind.SESSION)]
    return next((recalled[trace].conversation for trace in traces if trace in recalled), "")


def _no_such(name: str) -> NotFound:
    return NotFound(f"There is no {name} here")


def _cannot_tell() -> Unavailable:
    return Unavailable("What the request names cannot be looked up now; try again later")


@contextlib.contextmanager
def _not_kept() -> Iterator[None]:
    """Log that the database did not take what is to be remembered: it is unchecked where it is used."""
    try:
        yield
    except StoreError as error:
        log.warning("handles of what Gemini keeps cannot be stored, so requests that use them are unchecked: %s", error)


def _is_meant(reference: Reference, handle: Handle) -> bool:
    """Return whether what stands in the request is that handle: an address of a file may be of another server's."""
    if reference.of_requests and not handle.details.get("batch"):
        return False
    if handle.kind is not Kind.FILE or _AT_GOOGLE.match(reference.said):
        return True
    return reference.said in (handle.name, handle.details.get("uri"))


def _read_otherwise(reference: Reference, handle: Handle) -> str:
    """Return why a check of a file says nothing of what it is read as, "" if it does: a PDF of letters says more."""
    declared = str(handle.details.get("mime_type", "")).partition(";")[0].strip().lower()
    wanted = reference.mime_type
    return "" if not declared or wanted in ("", declared) or is_text_type(wanted) else _ANOTHER_TYPE


def _known(
    handles: Mapping[Reference, Handle], recalled: Mapping[str, Recalled], asked: str | None
) -> dict[Reference, Earlier]:
    """Return the known content of references; for one whose trace is gone, only the reason why it is unread.

    ``asked`` is the id of the interaction that the request asks for.
    """
    placed = {
        trace: Earlier(one.messages, tuple(Unchecked(address, reason) for address, reason in one.unread))
        for trace, one in recalled.items()
    }
    known: dict[Reference, Earlier] = {}
    for reference, handle in handles.items():
        earlier = placed.get(handle.trace)
        reads = asked is not None and handle.name == f"{INTERACTIONS}{asked}"
        if earlier is not None and (reads or handle.kind is Kind.OPERATION):
            known[reference] = _asked_before(handle, earlier)
        elif unread := handle.unchecked or _read_otherwise(reference, handle):
            known[reference] = Earlier(earlier.messages if earlier else (), unread=unread)
        elif earlier is not None:
            known[reference] = earlier
    return known


def _asked_before(handle: Handle, recalled: Earlier) -> Earlier:
    """Return the request's part of an interaction's known content: the response that reads it has the rest."""
    count = handle.details.get("request", 0)
    asked = tuple(one for one in recalled.unchecked if not _is_behind(one.address, count))
    return Earlier(recalled.messages[:count], asked)


def _is_behind(address: str, count: int) -> bool:
    """Return whether an address is in a message from the one of index ``count`` on."""
    root, _, rest = address.partition(".")
    index = rest.partition(".")[0]
    return root == "messages" and index.isdecimal() and int(index) >= count
