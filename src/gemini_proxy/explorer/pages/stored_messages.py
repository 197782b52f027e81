"""Read a trace's messages, and texts in them, from stored JSON; decode only the requested ones. No I/O.

A decoder holds the interpreter for a whole document, and so does freeing its result: with twenty megabytes nothing else
runs for a second. Here no step takes more than a few milliseconds, so that it can run in a thread.
"""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import orjson

from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.visible import as_json

_AT_ONCE: Final = 65_536
"""Bytes of JSON that are decoded in one go: a few hundred microseconds."""
_MOST: Final = 1_000_000
"""Bytes of one message that are decoded, long texts not counted: more than a page can hold."""
_DEEPEST: Final = 100
"""Levels of nested large structures that are entered."""
_TEXT_AT_ONCE: Final = 1_000_000
_WALKED: Final = 100_000
"""Items, or members, among which the next step of an address is looked for."""
_DECODED: Final = 500_000
"""Characters of arguments that are decoded: nothing else runs in the meantime."""

_CUT_OFF: Final = "the messages of a trace are cut off"

_INDEX = re.compile("[0-9]{1,9}")
_QUOTE, _OPEN, _CLOSE = b'"'[0], b"[{", b"]}"
# Each match is of bounded length, and possessive: it never goes back.
_RUN = re.compile(rb'[^"\[\]{}]{0,8192}+(?:"[^"\\]{0,512}+"[^"\[\]{}]{0,512}+){0,32}+')
# A match never ends within an escape.
_TEXT = re.compile(rb'(?:[^"\\]{1,1024}+|\\(?:u[0-9a-fA-F]{4}|.)?+){0,256}+', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]}\s]*+")
_BETWEEN = re.compile(rb"[\s,:]*+")
# Two escapes for one character.
_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


@dataclass(frozen=True, slots=True)
class Reading:
    """A message; ``whole`` is False if the end of a very large one was left out."""

    value: Any
    whole: bool


class StoredMessages:
    """The messages of a trace, from the JSON list of them. Raise StoreError if it is not a list."""

    def __init__(self, document: bytes) -> None:
        self._document = document
        try:
            self._starts = array("Q", (start for start, _ in _items(document, 0)))
        except IndexError:
            raise StoreError(_CUT_OFF) from None

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> Reading:
        """Return one message, with as much of it as a page can hold; texts are whole, whatever their length."""
        reader = _ValueReader(self._document, self._starts[index])
        return Reading(reader.value(), reader.whole)

    def text_at(self, address: str) -> str | None:
        """Return the text at an address, or None if there is none."""
        place, rest = message_index(address), address.split(".", 2)[2:]
        if place is None or place >= len(self):
            return None
        return _text_at(self._document, self._starts[place], rest[0] if rest else "")


def decoded_arguments(arguments: Any) -> Any:
    """Return a call's arguments: the object that they are the JSON text of, as rules read it; long ones stay text."""
    if not isinstance(arguments, str) or len(arguments) > _DECODED or not arguments.lstrip().startswith("{"):
        return arguments
    try:
        return orjson.loads(arguments)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return arguments


def message_index(address: str) -> int | None:
    """Return the number of the message that an address is in; None if it is in none."""
    head, *rest = address.split(".", 2)
    return int(rest[0]) if head == "messages" and rest and _INDEX.fullmatch(rest[0]) else None


class _ValueReader:
    """Decode a value piece by piece."""

    def __init__(self, document: bytes, at: int) -> None:
        self.whole = True
        self._document = document
        self._at = at
        self._left = _MOST

    def value(self, depth: int = 0) -> Any:
        document, start = self._document, self._at
        end = _value_end(document, start, start + _AT_ONCE)
        if end >= 0:
            self._at = end
            self._left -= end - start
            return _decoded(document[start:end])
        if document[start] == _QUOTE:
            self._at = _text_end(document, start + 1, len(document))
            return _long_text(document, start + 1, self._at - 1)
        if depth >= _DEEPEST:
            self.whole = False
        self._at += 1
        return self._list(depth) if document[start] == _OPEN[0] else self._object(depth)

    def _list(self, depth: int) -> list[Any]:
        items: list[Any] = []
        while self._more():
            items.append(self.value(depth + 1))
        return items

    def _object(self, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        while self._more():
            name, self._at = _name(self._document, self._at)
            members[name] = self.value(depth + 1)
        return members

    def _more(self) -> bool:
        """Return whether another member follows, and there is room for it."""
        self._at = _behind(_BETWEEN, self._document, self._at)
        if self.whole and self._document[self._at] in _CLOSE:
            self._at += 1
            return False
        self.whole = self.whole and self._left > 0
        return self.whole


def _text_at(document: bytes, at: int, path: str) -> str | None:
    """Follow ``path``, whose names may have dots in them: of several that fit, the longest."""
    while path:
        first = document[at]
        if first == _OPEN[0]:
            index, _, path = path.partition(".")
            items = islice(_items(document, at), _WALKED)
            below = next((start for start, place in items if f"{place}" == index), None)
        elif first == _OPEN[1]:
            members = islice(_members(document, at), _WALKED)
            fitting = {name: start for name, start in members if f"{path}.".startswith(f"{name}.")}
            name = max(fitting, key=len, default="")
            below, path = fitting.get(name), path[len(name) + 1 :]
        else:
            inner = decoded_arguments(_text_at(document, at, "")) if first == _QUOTE else None
            # The structure in the text of a call's arguments.
            return _text_at(as_json(inner).encode(), 0, path) if isinstance(inner, dict) else None
        if below is None:
            return None
        at = below
    if document[at] in _OPEN:
        return None
    value = _ValueReader(document, at).value()
    return value if isinstance(value, str) else as_json(value)


def _items(document: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Yield where the items of the list at ``at`` begin, each with its index."""
    if document[at : at + 1] != b"[":
        raise StoreError("the messages of a trace are not a list")
    at, place = _behind(_BETWEEN, document, at + 1), 0
    while document[at] not in _CLOSE:
        yield at, place
        at = _behind(_BETWEEN, document, _value_end(document, at, len(document)))
        place += 1


def _members(document: bytes, at: int) -> Iterator[tuple[str, int]]:
    """Yield the names of the object at ``at``, and where their values begin."""
    at = _behind(_BETWEEN, document, at + 1)
    while document[at] not in _CLOSE:
        name, at = _name(document, at)
        yield name, at
        at = _behind(_BETWEEN, document, _value_end(document, at, len(document)))


def _name(document: bytes, at: int) -> tuple[str, int]:
    """Return the name at ``at``, and where its value begins."""
    end = _text_end(document, at + 1, len(document))
    return _decoded(document[at:end]), _behind(_BETWEEN, document, end)


def _value_end(document: bytes, at: int, limit: int) -> int:
    """Return where the value at ``at`` ends; -1 if that is not before ``limit``."""
    first = document[at]
    if first == _QUOTE:
        return _text_end(document, at + 1, limit)
    if first not in _OPEN:
        return _behind(_SCALAR, document, at)
    depth, limit = 0, min(limit, len(document))
    while 0 <= at < limit:
        byte = document[at]
        if byte in _OPEN:
            depth, at = depth + 1, at + 1
        elif byte in _CLOSE:
            depth, at = depth - 1, at + 1
            if not depth:
                return at
        elif (end := _behind(_RUN, document, at)) > at:
            at = end
        else:
            at = _text_end(document, at + 1, limit)
    return _unended(document, limit)


def _text_end(document: bytes, at: int, limit: int) -> int:
    """Return the index behind the quote that ends the text around ``at``; -1 if that is not before ``limit``."""
    limit = min(limit, len(document))
    while at < limit:
        if document[at] == _QUOTE:
            return at + 1
        at = _behind(_TEXT, document, at)
    return _unended(document, limit)


def _unended(document: bytes, limit: int) -> int:
    if limit >= len(document):
        raise StoreError(_CUT_OFF)
    return -1


def _behind(pattern: re.Pattern[bytes], document: bytes, at: int) -> int:
    match = pattern.match(document, at)
    assert match is not None, "the pattern also matches nothing"
    return match.end()


def _long_text(document: bytes, start: int, end: int) -> str:
    """Decode the text between two quotes, in pieces."""
    pieces: list[str] = []
    while start < end:
        stop = _cut(document, start, end)
        pieces.append(_decoded(b'"%b"' % document[start:stop]))
        start = stop
    return "".join(pieces)


def _cut(document: bytes, start: int, end: int) -> int:
    """Return where a piece of the text ends: never within an escape or a character."""
    stop = start
    while stop < end and stop - start < _TEXT_AT_ONCE:
        stop = _behind(_TEXT, document, stop)
    while stop < end and 0x80 <= document[stop] < 0xC0:
        stop += 1
    return stop + 6 if _PAIR.match(document, max(start, stop - 6)) else stop


def _decoded(piece: bytes) -> Any:
    try:
        return load(piece)
    except ValueError:
        raise StoreError("the messages of a trace are damaged") from None
