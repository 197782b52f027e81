"""Bodies with one canary in one place."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.fields.google_lists import Place, Step

CANARY = "zqcanaryqz"

_BESIDE: dict[str, dict[str, Any]] = {
    "functionCall": {"name": "f"},
    "partialArgs": {"jsonPath": "$.a", "stringValue": "v"},
    "functionResponse": {"name": "f"},
    "functionDeclarations": {"name": "f"},
}
"""What an object of this name needs to be read at all."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A body, the path of the canary in it, and the string that was put there."""

    path: str
    body: dict[str, Any]
    value: str


def planted(place: Place, spell: Callable[[str], str] = str) -> Iterator[Planted]:
    """The canary as the field's value; in a map as a key too, in open JSON as a key and at depth.

    ``spell`` writes the fields' names another way.
    """
    value = base64.b64encode(CANARY.encode()).decode() if place.kind == "bytes" else CANARY

    def body(leaf: Any, key: str = "k") -> dict[str, Any]:
        return _body(place.steps, leaf, key, spell)

    if place.kind == "open":
        yield Planted(f"{place.path}.*", body({"k": value}), value)
        yield Planted(f"{place.path}.*.*", body({"k": [{"k": value}]}), value)
        yield Planted(f"{place.path}.{{key}}", body({value: 1}), value)
        return
    yield Planted(place.path, body(value), value)
    if place.steps[-1].wrap == "map":
        yield Planted(f"{place.path.removesuffix('.*')}.{{key}}", body("v", value), value)


def _body(steps: tuple[Step, ...], leaf: Any, key: str, spell: Callable[[str], str]) -> dict[str, Any]:
    value = leaf
    for step in reversed(steps):
        if value is not leaf:
            value = {**{spell(name): given for name, given in _BESIDE.get(step.name, {}).items()}, **value}
        if step.wrap == "list":
            value = [value]
        elif step.wrap == "map":
            value = {key: value}
        value = {spell(step.name): value}
    assert isinstance(value, dict)
    return value
