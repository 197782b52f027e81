"""Turn marks into addresses in the messages: ``messages.2.content:10-25``, offsets in characters.

The evaluation of a rule leaves marks: a string and the span found in it, or a string as a whole. Only if the rule fires
are they turned into addresses, by finding the same string object in the events of the binding.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gemini_proxy.policy.run.events import RAW_ARGUMENTS, Event
from gemini_proxy.policy.run.normalized import Normalized
from gemini_proxy.policy.run.values import Address, Joined, Piece

# A string, and the start and end of what was found in it; start -1 marks the string as a whole.
Mark = tuple[str, int, int]

# Enough to show: a text with a million matches does not need a million addresses.
MAX_RANGES = 1000


def locate(
    marks: Iterable[Mark], events: Sequence[Event], everywhere: Callable[[], Mapping[int, str]]
) -> tuple[str, ...]:
    """Return the addresses of events and marks, without those that a more exact one replaces.

    ``everywhere`` returns the index of the whole conversation, for strings that none of ``events`` holds.
    """
    addresses: dict[str, None] = {}
    index: Mapping[int, str] | None = None
    for text, start, end in marks:
        root, shift, start, end = _original(text, start, end)
        if isinstance(root, Address):
            addresses[str(root)] = None
            continue
        if not root:
            continue
        if isinstance(root, Joined):
            exact = start >= 0 and shift is not None
            places = root.located(start + (shift or 0), end + (shift or 0)) if exact else root.addresses
            addresses.update(dict.fromkeys(places))
            continue
        index = index if index is not None else index_of(events)
        address = index.get(id(root))
        # Python shares the objects of single characters, so their identity says nothing about their place.
        if address is None and len(root) > 1:
            address = everywhere().get(id(root))
        if address is not None:
            exact = start >= 0 and shift is not None
            addresses[f"{address}:{start + shift}-{end + shift}" if exact and shift is not None else address] = None
        if len(addresses) >= MAX_RANGES:
            break
    found = list(addresses)
    return tuple(_without_covered([event.address for event in events if event.kind != "Input"], found))


def _original(text: str, start: int, end: int) -> tuple[str, int | None, int, int]:
    """Follow a text to the string it was made from. Return that string, the shift in it, and the found start and end.

    The shift is None, and the start -1, if only the string as a whole is known.
    """
    root, shift = (text.root, text.shift) if type(text) is Piece else (text, 0)
    while type(root) is Normalized:
        if start < 0 or shift is None:
            start = end = -1
        else:
            start, end = root.span(start + shift, end + shift)
        source = root.source
        root, shift = (source.root, source.shift) if type(source) is Piece else (source, 0)
    return root, shift, start, end


def _without_covered(events: list[str], found: list[str]) -> list[str]:
    """Event by event the exact addresses within it, or its own if there are none; then those in no event."""
    covered = {parent for address in found for parent in _parents(address)}
    exact = [address for address in found if address not in covered]
    inside: dict[str, list[str]] = {event: [] for event in events}
    for address in exact:
        for parent in (address, *_parents(address)):
            if parent in inside:
                inside[parent].append(address)
    kept = dict.fromkeys(address for event, within in inside.items() for address in within or [event])
    return list(dict.fromkeys((*kept, *exact)))[:MAX_RANGES]


def _parents(address: str) -> list[str]:
    """Return every proper prefix of an address by whole segments, the address without its offsets included."""
    path, colon, _ = address.rpartition(":") if _has_offsets(address) else (address, "", "")
    parents = [path] if colon else []
    while (dot := path.rfind(".")) > 0:
        path = path[:dot]
        parents.append(path)
    return parents


def _has_offsets(address: str) -> bool:
    start, dash, end = address.rpartition(":")[2].partition("-")
    return bool(dash) and start.isdigit() and end.isdigit()


def index_of(events: Sequence[Event]) -> dict[int, str]:
    """Return the addresses of all strings inside events, by the identity of the string object."""
    found: dict[int, str] = {}
    for event in events:
        _add(found, event)
    return found


def _add(found: dict[int, str], event: Event) -> None:
    stack: list[tuple[Any, str]] = [(event.data, event.address)]
    if event.kind == "Input":
        stack = [(event.data["messages"], "messages")]
    if event.kind == "TextChunk" and not event.address.rpartition(".")[2].isdigit():
        stack = [(event.data["text"], event.address)]
    for call in event.calls:
        _add(found, call)
    while stack:
        item, address = stack.pop()
        if isinstance(item, str):
            found.setdefault(id(item), address)
        elif isinstance(item, dict):
            for key, value in item.items():
                whole = key == RAW_ARGUMENTS and len(item) == 1 and address.endswith(".function.arguments")
                stack.append((value, address if whole else f"{address}.{key}"))
        elif isinstance(item, list):
            stack.extend((value, f"{address}.{position}") for position, value in enumerate(item))
