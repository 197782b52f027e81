"""The fields of a tool's output: data as it is, and text that is one YAML or JSON document with names for its keys.

A dump of data quotes or indents what a stranger wrote, so that nothing within a field becomes a field. A text of
another form, and one that names no keys, has none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.values import Address, Content, Piece, is_text_chunk

_LOOKS_LIKE_DATA = re.compile(r"\s*(?:-\s+)*(?:[\w-]+['\"]?\s*:(?:\s|$)|[\[{\"'-])")
# A key is one word, or a few that name something; a sentence before a colon is none.
_KEY = re.compile(r"\S{1,100}|[A-Za-z_][\w-]*(?: [\w-]+){0,2}")
_NAME = re.compile(r"[A-Za-z_][\w -]*")
_DEEPEST = 50
# Keys under which an output is handed over as a text.
_WRAPPERS = ("result", "output", "response")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Field:
    """``value`` under ``key``, which is empty at the top, stands in ``text`` from ``start`` to ``end``."""

    key: str
    value: str
    text: str
    start: int
    end: int


def fields_of(content: Any, address: str, meter: Meter) -> list[Field] | None:
    """Return every scalar of an output with its key, None for a text that is not data."""
    if type(content) is Content:
        if content.chunked:
            chunks = content.value
            return _of_text(content.text, meter) if all(map(is_text_chunk, chunks)) else None
        content = content.value
    if isinstance(content, str):
        return _of_text(content, meter)
    read = {id(text): fields for text in _wrapped(content) if (fields := _of_text(text, meter)) is not None}
    others = (field for field in _of_data(content, address) if id(field.text) not in read)
    return [*(field for fields in read.values() for field in fields), *others]


def _wrapped(value: Any) -> list[str]:
    """Return the texts that an output only wraps, as function responses and MCP's results do."""
    if not isinstance(value, dict):
        return []
    chunks = value.get("content")
    texts = [chunk.get("text") for chunk in chunks if is_text_chunk(chunk)] if isinstance(chunks, list) else []
    return [text for text in (*texts, *(value.get(key) for key in _WRAPPERS)) if isinstance(text, str)]


def _of_data(value: Any, address: str) -> Iterator[Field]:
    stack: list[tuple[str, Any, str]] = [("", value, address)]
    while stack:
        key, item, where = stack.pop()
        if isinstance(item, dict):
            for name, inner in reversed(item.items()):
                stack.append((str(name), inner, f"{where}.{name}"))
                if not _is_name(str(name)):
                    stack.append(("", Piece(str(name), Address(where), None), where))
        elif isinstance(item, list | tuple):
            stack.extend((key, item[index], f"{where}.{index}") for index in range(len(item) - 1, -1, -1))
        elif isinstance(item, str):
            yield Field(key, str(item), item, 0, len(item))
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield Field(key, str(item), Piece(str(item), Address(where), None), 0, len(str(item)))


def _of_text(text: str, meter: Meter) -> list[Field] | None:
    if _LOOKS_LIKE_DATA.match(text) is None:
        return None
    meter.charge(len(text) >> 3)
    found: list[Field] = []
    # What is open: of a sequence the key that it stands under, of a mapping "" and the key that comes next.
    open_: list[list[str | None]] = []
    try:
        for event in yaml.parse(str(text), _Loader):
            meter.charge(8)
            if isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                under = _taken(open_)
                open_.append([under] if isinstance(event, yaml.SequenceStartEvent) else [under, None])
                if len(open_) > _DEEPEST:
                    return None
            elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                open_.pop()
            elif isinstance(event, yaml.AliasEvent):
                return None
            elif isinstance(event, yaml.ScalarEvent):
                if not open_:
                    return None
                if len(open_[-1]) == 2 and open_[-1][1] is None:
                    if _KEY.fullmatch(event.value) is None:
                        return None
                    open_[-1][1] = event.value
                    if not _is_name(event.value):
                        found.append(_field("", event, text))
                    continue
                found.append(_field(_taken(open_), event, text))
    except (yaml.YAMLError, ValueError):
        return None
    return found


def _taken(open_: list[list[str | None]]) -> str:
    """Return the key under which the next value stands; a mapping then waits for another."""
    if not open_:
        return ""
    top = open_[-1]
    if len(top) == 1:
        return top[0] or ""
    key, top[1] = top[1], None
    return key or ""


def _field(key: str, event: yaml.ScalarEvent, text: str) -> Field:
    return Field(key, event.value, text, _offset(event.start_mark), _offset(event.end_mark))


def _offset(mark: Any) -> int:
    offset: int = mark.index
    return offset


def _is_name(key: str) -> bool:
    """Return whether a key names a field. One that does not is data, such as the address of a person."""
    return _NAME.fullmatch(key) is not None
