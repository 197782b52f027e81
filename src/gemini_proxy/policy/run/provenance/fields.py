"""Read the fields of a tool's output: data as it is, or a text that is one YAML or JSON document with names as keys.

Dumped data quotes or indents a stranger's text, so that nothing within a field can pass for a field. A text of another
form, or without keys, has no fields.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import yaml

from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.values import Address, Content, Piece, is_text_chunk

_LOOKS_LIKE_DATA = re.compile(r"\s*(?:-\s+)*(?:[\w-]+['\"]?\s*:(?:\s|$)|[\[{\"'-])")
# A key is one word, or a few that name something; a sentence before a colon is not a key.
_KEY = re.compile(r"\S{1,100}|[A-Za-z_][\w-]*(?: [\w-]+){0,2}")
_NAME = re.compile(r"[A-Za-z_][\w -]*")
_DEEPEST = 50
# Keys whose value is the whole output as a text.
_WRAPPERS = ("result", "output", "response")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Field:
    """``value`` under ``key``, which is empty at the top, stands in ``text`` from ``start`` to ``end``.

    ``record`` is the number of the record that the field describes, 0 if there is none. A record is a mapping with
    everything in it, except the mappings of a list, each of which is a record of its own.
    """

    key: str
    value: str
    text: str
    start: int
    end: int
    record: int = 0


def fields_of(content: Any, address: str, meter: Meter) -> list[Field] | None:
    """Return every scalar of an output with its key, None for a text that is not data."""
    records = count(1)
    if type(content) is Content:
        if content.chunked:
            chunks = content.value
            return _of_text(content.text, records, meter) if all(map(is_text_chunk, chunks)) else None
        content = content.value
    if isinstance(content, str):
        return _of_text(content, records, meter)
    read = {id(text): fields for text in _wrapped(content) if (fields := _of_text(text, records, meter)) is not None}
    others = (field for field in _of_data(content, address, records) if id(field.text) not in read)
    return [*(field for fields in read.values() for field in fields), *others]


def _wrapped(value: Any) -> list[str]:
    """Return the texts that an output only wraps, as function responses and MCP's results do."""
    if not isinstance(value, dict):
        return []
    chunks = value.get("content")
    texts = [chunk.get("text") for chunk in chunks if is_text_chunk(chunk)] if isinstance(chunks, list) else []
    return [text for text in (*texts, *(value.get(key) for key in _WRAPPERS)) if isinstance(text, str)]


def _of_data(value: Any, address: str, records: Iterator[int]) -> Iterator[Field]:
    stack: list[tuple[str, Any, str, int]] = [("", value, address, 0)]
    while stack:
        key, item, where, record = stack.pop()
        if isinstance(item, dict):
            record = record or next(records)
            for name, inner in reversed(item.items()):
                stack.append((str(name), inner, f"{where}.{name}", record))
                if not _is_name(str(name)):
                    stack.append(("", Piece(str(name), Address(where), None), where, record))
        elif isinstance(item, list | tuple):
            for index in range(len(item) - 1, -1, -1):
                within = 0 if isinstance(item[index], dict) else record
                stack.append((key, item[index], f"{where}.{index}", within))
        elif isinstance(item, str):
            yield Field(key, str(item), item, 0, len(item), record)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield Field(key, str(item), Piece(str(item), Address(where), None), 0, len(str(item)), record)


@dataclass(slots=True)
class _Open:
    """A sequence or mapping that is read: ``key`` is what it stands under, or of a mapping what comes next."""

    record: int
    mapping: bool
    key: str | None

    def take(self) -> str:
        """Return the key under which the next value stands; a mapping then waits for another."""
        key = self.key
        if self.mapping:
            self.key = None
        return key or ""


def _of_text(text: str, records: Iterator[int], meter: Meter) -> list[Field] | None:
    if _LOOKS_LIKE_DATA.match(text) is None:
        return None
    meter.charge(len(text) >> 3)
    found: list[Field] = []
    open_: list[_Open] = []
    try:
        for event in yaml.parse(str(text), _Loader):
            meter.charge(8)
            top = open_[-1] if open_ else None
            if isinstance(event, yaml.SequenceStartEvent):
                open_.append(_Open(top.record if top else 0, False, top.take() if top else ""))
            elif isinstance(event, yaml.MappingStartEvent):
                if top:
                    top.take()
                open_.append(_Open(top.record if top and top.mapping else next(records), True, None))
            elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                open_.pop()
            elif isinstance(event, yaml.AliasEvent):
                return None
            elif isinstance(event, yaml.ScalarEvent):
                if top is None:
                    return None
                if top.mapping and top.key is None:
                    if _KEY.fullmatch(event.value) is None:
                        return None
                    top.key = event.value
                    if not _is_name(event.value):
                        found.append(_field("", event, text, top.record))
                    continue
                found.append(_field(top.take(), event, text, top.record))
            if len(open_) > _DEEPEST:
                return None
    except (yaml.YAMLError, ValueError):
        return None
    return found


def _field(key: str, event: yaml.ScalarEvent, text: str, record: int) -> Field:
    return Field(key, event.value, text, _offset(event.start_mark), _offset(event.end_mark), record)


def _offset(mark: Any) -> int:
    offset: int = mark.index
    return offset


def _is_name(key: str) -> bool:
    """Return whether a key names a field. One that does not is data, such as the address of a person."""
    return _NAME.fullmatch(key) is not None
