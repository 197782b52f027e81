"""Build one bounded text of a trace for the search index, from every string in its messages. No I/O.

Left out are roles, the kinds of things, names of fields, the ids of calls, declarations of tools, and what is not text,
such as images.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gemini_proxy.traces.rows import load
from gemini_proxy.traces.search.query import may_have_longer

# Characters of a trace that can be found: a long book chapter. Beyond, the index would grow with the longest traces.
MAX_TEXT: Final = 64 * 1024
# Bytes of messages that are read as JSON. Above, only strings are picked out: parsing keeps the interpreter to itself.
LARGE: Final = 1024 * 1024
# What is picked out of larger ones ends after this many strings, or bytes.
MAX_STRINGS: Final = 20_000
MAX_READ: Final = 16 * 1024 * 1024

_SKIPPED: Final = frozenset({"role", "type", "id", "tool_call_id", "tools", "field"})
_CHUNKS: Final = frozenset({"text", "image_url", "file"})
# Base64, in a data URL or not: longer than any word that someone looks for.
_ENCODED = re.compile(r"(?:data:[\w.+/;=-]{0,100},)?[A-Za-z0-9+/_-]{256,}={0,2}")
_LONG: Final = 256
_BACKSLASH: Final = ord("\\")
# All of the text that is kept, in the longest form that JSON has for a character.
_MOST_BYTES: Final = 6 * MAX_TEXT


def text_of(messages: bytes) -> str:
    """Return the strings in a list of messages, given as JSON, a line each, at most MAX_TEXT characters."""
    pieces: list[str] = []
    left = MAX_TEXT
    for string in _strings(messages):
        piece = _readable(string[: left + _LONG])[:left]
        if piece:
            pieces.append(piece)
            left -= len(piece) + 1
        if left <= 0:
            break
    return "\n".join(pieces)


def _strings(messages: bytes) -> Iterator[str]:
    if len(messages) > LARGE:
        return _picked(messages)
    try:
        return _leaves(load(messages))
    except (RecursionError, ValueError):
        # Written where there was a little more room for the depth, or cut off.
        return _picked(messages)


def _readable(text: str) -> str:
    """Remove encoded contents, and what a database does not accept in a text."""
    if may_have_longer(text, _LONG - 1) and max(map(len, text.split()), default=0) >= _LONG:
        text = _ENCODED.sub(" ", text)
    return text.replace("\0", " ") if text.isascii() else text.encode(errors="replace").decode().replace("\0", " ")


def _leaves(messages: Any) -> Iterator[str]:
    """Yield the strings in document order, except for those in known places: a tool's arguments may have an id, too."""
    stack: list[tuple[Any, bool]] = [(messages, True)]
    while stack:
        value, framed = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            stack += [(item, framed) for item in reversed(value)]
        elif isinstance(value, dict) and framed:
            kept = [(item, _is_frame(name, item)) for name, item in value.items() if name not in _SKIPPED]
            stack += reversed(kept)
        elif isinstance(value, dict):
            stack += [(item, False) for item in reversed(value.values())]


def _is_frame(name: str, value: Any) -> bool:
    """Return whether what is below a key belongs to the format: content other than a list of chunks is a tool's."""
    if name == "content":
        return isinstance(value, list) and all([isinstance(item, dict) and _is_chunk(item) for item in value])
    return name in ("tool_calls", "function")


def _is_chunk(item: Mapping[str, Any]) -> bool:
    kind = item.get("type")
    return isinstance(kind, str) and kind in _CHUNKS and kind in item


def _picked(messages: bytes) -> Iterator[str]:
    """Yield the strings of a large document that are no keys, found without reading what lies between them."""
    place = 0
    for _ in range(MAX_STRINGS):
        start = messages.find(b'"', place, MAX_READ) + 1
        if not start:
            return
        # No further than what is kept, at first: a text that is mostly quotation marks takes a while to get through.
        end = _end_of_string(messages, start, start + _MOST_BYTES)
        if end < 0:
            yield _decoded(_uncut(messages[start : min(start + _MOST_BYTES, MAX_READ)]))
            end = _end_of_string(messages, start, MAX_READ)
        elif messages[end + 1 : end + 2] != b":":
            yield _decoded(messages[start:end])
        if end < 0:
            return
        place = end + 1


def _end_of_string(document: bytes, start: int, most: int) -> int:
    """Return where the closing quotation mark stands, -1 where there is none before ``most``."""
    place = start
    while (end := document.find(b'"', place, min(most, MAX_READ))) >= 0:
        if _backslashes(document, start, end) % 2 == 0:
            return end
        place = end + 1
    return -1


def _backslashes(document: bytes, start: int, end: int) -> int:
    """Return how many there are just before ``end``."""
    count = 0
    while end - count > start and document[end - count - 1] == _BACKSLASH:
        count += 1
    return count


def _uncut(piece: bytes) -> bytes:
    """Return the beginning of a string without half an escape at its end; six bytes make up the longest."""
    escape = piece.rfind(b"\\", max(0, len(piece) - 6))
    if escape < 0:
        return piece
    return piece[: escape - _backslashes(piece, 0, escape) % 2]


def _decoded(piece: bytes) -> str:
    try:
        return str(json.loads(f'"{piece.decode(errors="ignore")}"', strict=False))
    except json.JSONDecodeError:
        # Not written by us, or cut short at MAX_READ.
        return ""
