"""Edit strings of a JSON text in place: every byte outside the replaced text stays as it was. No I/O.

A parser has already accepted the text: a request body, or one frame of a response with the framing around its object
(``data:`` before lines, a bracket or a comma before an element).
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

import orjson

Path = tuple[str | int, ...]
"""The names and indexes that lead from the outermost object to a value."""

# Possessive: no backtracking, whatever the text holds. A line of an event stream begins with "data:".
_TOKEN: Final = re.compile(rb'"((?:[^"\\]++|\\.)*+)"|([\[\]{},:])|(?:\A|[\r\n])data:', re.DOTALL)
# A non-ASCII character: a pair of escaped surrogates, an escape, a UTF-8 sequence.
_LONG_CHARACTER: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|[\xc0-\xff][\x80-\xbf]*",
    re.DOTALL,
)


class JsonString(NamedTuple):
    """A string value: where it stands in the tree, what it says, and its bytes between the quotes."""

    path: Path
    text: str
    start: int
    end: int


class StringEdit(NamedTuple):
    """The characters from ``start`` to ``end`` of ``string`` are to become ``text``."""

    string: JsonString
    start: int
    end: int
    text: str


def json_strings(raw: bytes) -> Iterator[JsonString]:
    """Yield every string value of the outermost object in ``raw``, in order; the names of fields are no values."""
    path: list[str | int] = []
    kinds: list[bytes] = []
    is_name = False
    for token in _TOKEN.finditer(raw):
        mark = token[2]
        if mark is None:
            if token[1] is None or not kinds:
                continue
            text = orjson.loads(token[0])
            if is_name:
                path[-1] = text
            else:
                yield JsonString(tuple(path), text, token.start(1), token.end(1))
        elif mark == b"{" or (mark == b"[" and kinds):
            kinds.append(mark)
            path.append("" if mark == b"{" else 0)
            is_name = mark == b"{"
        elif not kinds:
            continue
        elif mark in b"}]":
            kinds.pop()
            path.pop()
            is_name = False
        elif mark == b":":
            is_name = False
        elif kinds[-1] == b"{":
            is_name = True
        else:
            last = path[-1]
            assert isinstance(last, int)
            path[-1] = last + 1


class JsonItem(NamedTuple):
    """An object in a list that is a field of the outermost object: where it stands in the tree, and its bytes."""

    path: Path
    start: int
    end: int


def json_items(raw: bytes) -> Iterator[JsonItem]:
    """Yield the objects in the lists that are fields of the outermost object of ``raw``, in order."""
    depth = 0
    name = b""
    index = start = 0
    for token in _TOKEN.finditer(raw):
        mark = token[2]
        if mark is None:
            if depth == 1 and token[1] is not None:
                name = token[0]
        elif mark in b"{[":
            depth += 1
            if depth == 2:
                index = 0 if mark == b"[" else -1
            elif depth == 3 and mark == b"{":
                start = token.start()
        elif mark in b"}]":
            if depth == 3 and mark == b"}" and index >= 0:
                yield JsonItem((orjson.loads(name), index), start, token.end())
            depth -= 1
        elif mark == b"," and depth == 2 and index >= 0:
            index += 1


def without_items(raw: bytes, dropped: Collection[Path]) -> bytes:
    """Return ``raw`` without the items whose paths are dropped, and a comma for each. Of each list one has to stay."""
    pieces: list[bytes] = []
    at = 0
    items = list(json_items(raw))
    kept: str | int | None = None
    for number, item in enumerate(items):
        name = item.path[0]
        if item.path not in dropped:
            kept = name
        else:
            start, end = (items[number - 1].end, item.end) if kept == name else (item.start, items[number + 1].start)
            pieces.append(raw[at:start])
            at = end
    return b"".join([*pieces, raw[at:]])


def edited(raw: bytes, edits: Iterable[StringEdit]) -> bytes:
    """Return ``raw`` with the edits made, which may come in any order and must not overlap."""
    pieces: list[bytes] = []
    at = 0
    for start, end, text in sorted(_in_bytes(raw, edits)):
        pieces += [raw[at:start], orjson.dumps(text)[1:-1]]
        at = end
    return b"".join([*pieces, raw[at:]])


def _in_bytes(raw: bytes, edits: Iterable[StringEdit]) -> Iterator[tuple[int, int, str]]:
    by_string: dict[int, list[StringEdit]] = {}
    for edit in edits:
        by_string.setdefault(edit.string.start, []).append(edit)
    for group in by_string.values():
        wanted = sorted({offset for edit in group for offset in (edit.start, edit.end)})
        within = dict(zip(wanted, _offsets(raw, group[0].string, wanted), strict=True))
        for _, start, end, text in group:
            yield within[start], within[end], text


def _offsets(raw: bytes, string: JsonString, wanted: Iterable[int]) -> Iterator[int]:
    """Yield where the ``wanted`` characters of ``string``, in order, begin in ``raw``."""
    characters, at = 0, string.start
    others = _LONG_CHARACTER.finditer(raw, string.start, string.end)
    other = next(others, None)
    for character in wanted:
        while other is not None and characters + other.start() - at < character:
            characters += other.start() - at + 1
            at = other.end()
            other = next(others, None)
        yield at + character - characters
