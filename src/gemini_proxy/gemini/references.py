"""Put what a request refers to (a cache, a file, an earlier interaction) before its own messages, for every rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.parts import Reference, Unchecked
from gemini_proxy.gemini.request import GeminiRequest


@dataclass(frozen=True, slots=True)
class Earlier:
    """The content of a reference: its messages, and those of their parts that no rule can read.

    Addresses count from the first of these messages. ``unread`` says why the reference also stands for something
    outside them; it is "" if they are complete.
    """

    messages: tuple[Message, ...] = ()
    unchecked: tuple[Unchecked, ...] = ()
    unread: str = ""


def references_of(request: GeminiRequest) -> list[Reference]:
    """Return the references in a request, each once, in their order."""
    found = (unchecked.reference for unchecked in request.unchecked)
    return list(dict.fromkeys(reference for reference in found if reference is not None))


def after_earlier(request: GeminiRequest, known: Mapping[Reference, Earlier]) -> GeminiRequest:
    """Return the request with the content of its references before its own messages.

    Messages behind several references are included once. Addresses of the request's own messages are moved accordingly.
    An unknown reference stays unchecked.
    """
    if not known:
        return request
    before: list[Message] = []
    unread: list[Unchecked] = []
    # References with the same value name the same object.
    for earlier in {id(earlier): earlier for earlier in known.values()}.values():
        unread += [moved(unchecked, len(before)) for unchecked in earlier.unchecked]
        before += earlier.messages
    own = [moved(unchecked, len(before)) for unchecked in _still_unread(request.unchecked, known)]
    return request._replace(
        messages=(*before, *request.messages),
        stored=(*before, *request.stored),
        unchecked=(*unread, *own),
        earlier=len(before),
    )


def _still_unread(unchecked: Sequence[Unchecked], known: Mapping[Reference, Earlier]) -> list[Unchecked]:
    """Return what rules still cannot read of a request whose references are ``known``."""
    left: list[Unchecked] = []
    for one in unchecked:
        earlier = known.get(one.reference) if one.reference is not None else None
        if earlier is None:
            left.append(one)
        elif earlier.unread:
            left.append(replace(one, reason=earlier.unread))
    return left


def moved(unchecked: Unchecked, by: int) -> Unchecked:
    """Return something unchecked whose address is in messages, with ``by`` messages before these."""
    root, _, rest = unchecked.address.partition(".")
    index, dot, within = rest.partition(".")
    if not by or root != "messages" or not index.isdecimal():
        return unchecked
    return replace(unchecked, address=f"messages.{int(index) + by}{dot}{within}")
