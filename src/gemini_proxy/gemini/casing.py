"""The two spellings of a field's name, camelCase and snake_case, of which ProtoJSON accepts either."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gemini_proxy.errors import DecodeError

_HUMP = re.compile(r"(?<=[a-z0-9])([A-Z])")


@lru_cache(maxsize=512)
def snake_case(name: str) -> str:
    """Convert ``systemInstruction`` to ``system_instruction``; a name in snake_case stays as it is."""
    return _HUMP.sub(r"_\1", name).lower()


@lru_cache(maxsize=512)
def camel_case(name: str) -> str:
    """Convert ``function_call`` to ``functionCall``; a name in camelCase stays as it is."""
    first, *rest = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def spellings(*names: str) -> frozenset[str]:
    """Return each of the camelCase ``names`` in both spellings. Any other casing is another, unknown field."""
    return frozenset(spelling for name in names for spelling in (name, snake_case(name)))


def camel_keys(source: Mapping[str, Any]) -> dict[str, Any]:
    """Copy ``source`` without nulls, its own keys in camelCase. Raises DecodeError when two keys become one."""
    renamed: dict[str, Any] = {}
    for key, value in source.items():
        if value is None:
            continue
        name = camel_case(key)
        if name in renamed:
            raise DecodeError(f"The upstream sent {name!r} in two spellings")
        renamed[name] = value
    return renamed
