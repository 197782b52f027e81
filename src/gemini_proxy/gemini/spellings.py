"""One spelling for the names in a response: camelCase, whichever of the two ProtoJSON allows was sent."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gemini_proxy.errors import DecodeError


@lru_cache(maxsize=512)
def camel_case(name: str) -> str:
    """``function_call`` -> ``functionCall``; a name in camelCase stays as it is."""
    first, *rest = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def camel_keys(source: Mapping[str, Any]) -> dict[str, Any]:
    """A shallow copy without nulls, keys in camelCase; raises DecodeError when two keys then are one."""
    found: dict[str, Any] = {}
    for key, value in source.items():
        if value is None:
            continue
        name = camel_case(key)
        if name in found:
            raise DecodeError(f"The upstream sent {name!r} in two spellings")
        found[name] = value
    return found
