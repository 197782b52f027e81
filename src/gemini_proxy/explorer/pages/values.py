"""List the values within a message, in order and with their addresses. No I/O."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gemini_proxy.traces.visible import as_json

_INDEX = re.compile("[0-9]{1,9}")
_DECODED: Final = 500_000
"""Characters of arguments that are decoded: nothing else runs in the meantime."""


@dataclass(frozen=True, slots=True)
class Value:
    """``text`` is None for a structure whose values follow; ``literal`` marks what is not text: a number, true, {}."""

    address: str
    depth: int
    name: str
    text: str | None
    literal: bool = False


def values(value: Any, address: str) -> Iterator[Value]:
    """Yield ``value`` and everything below it."""
    stack: list[tuple[str, int, str, Any]] = [(address, 0, "", value)]
    while stack:
        path, depth, name, item = stack.pop()
        if isinstance(item, Mapping) and item:
            yield Value(path, depth, name, None)
            inner = [(f"{path}.{key}", depth + 1, str(key), below) for key, below in item.items()]
            stack.extend(reversed(inner))
        elif isinstance(item, list) and item:
            yield Value(path, depth, name, None)
            stack.extend((f"{path}.{at}", depth + 1, f"{at}", item[at]) for at in range(len(item) - 1, -1, -1))
        elif isinstance(item, str):
            yield Value(path, depth, name, item)
        else:
            yield Value(path, depth, name, as_json(item), literal=True)


def decoded(arguments: Any) -> Any:
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
