"""Read Gemini's JSON as Google's parser does: camelCase or snake_case, one object where a list is meant.

Source: the ProtoJSON specification (both spellings of a name are accepted) and the behavior of Google's parser, which
takes a single element in place of a list, flattens nested lists and skips nulls in them.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from gemini_proxy.errors import BadRequest, DecodeError

JsonObject = Mapping[str, Any]
_HUMP = re.compile(r"(?<=[a-z0-9])([A-Z])")
_WORD = re.compile(r"[\w.:/+-]{0,256}", re.ASCII)


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


def field(source: JsonObject, name: str) -> Any:
    """Return the value of ``name`` (camelCase) in either spelling, None if absent. Raises BadRequest if both are there.

    A name of one word has only one spelling: use ``source.get`` for it.
    """
    value = source.get(name)
    other = snake_case(name)
    if other != name and other in source:
        if name in source:
            raise BadRequest(f'The request gives "{name}" in two spellings; it can be read two ways')
        return source[other]
    return value


def objects(value: Any, where: str) -> list[JsonObject]:
    """Return the objects of a repeated field. Raises BadRequest for anything but an object or a list of them."""
    if type(value) is list:
        for item in value:
            if type(item) is not dict:
                break
        else:
            return value
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, list):
        raise BadRequest(f'"{where}" must be an object or a list of objects')
    return [inner for item in value for inner in objects(item, where)]


def objects_in(value: Any) -> Iterator[JsonObject]:
    """Yield the objects in a list, and nothing if it is none."""
    return (item for item in value if isinstance(item, Mapping)) if isinstance(value, list) else iter(())


def an_object(value: Any, where: str) -> JsonObject | None:
    """Return the object of a single field, None if absent. Raises BadRequest for anything else."""
    if value is None or type(value) is dict or isinstance(value, Mapping):
        return value
    raise BadRequest(f'"{where}" must be an object')


def a_string(value: Any, where: str) -> str:
    """Return the string of a field, empty if absent. Raises BadRequest for anything else."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise BadRequest(f'"{where}" must be a string')


def steers(value: Any) -> bool:
    """Return whether a value can steer a call: it is made of numbers, truth values and words. All else is text."""
    if type(value) is str:
        return _WORD.fullmatch(value) is not None
    if type(value) is list:
        return all(steers(item) for item in value)
    return type(value) is not dict
