"""Read a JSON object only if every parser reads it in the same way.

Google's front end concatenates repeated keys where other parsers keep the last one, so a body with a repeated key means
two things and is refused. UTF-8 only; no byte order mark, no NaN, no lone surrogates, no trailing bytes.
"""

import json
from typing import Any

import orjson

from gemini_proxy.errors import BadRequest

MAX_DEPTH = 64
"""Deeper than any request of a real client; keeps every later walk within Python's stack."""
_SMALL = 65_536
"""Bytes of a body up to which writing its JSON again is cheaper than walking through it."""


def read_object(body: bytes, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Read one JSON object. Raises BadRequest for anything else, for repeated keys and for depth over ``max_depth``."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequest("The request body is not valid JSON in UTF-8") from None
    if type(value) is not dict:
        raise BadRequest("The request body must be a JSON object")
    # Every key has one colon outside strings. If the text has as many colons as the keys and strings that were read, no
    # key was lost to a repetition. An escaped colon could hide the loss of one: then a slower, exact pass decides.
    if _colons(value, body, max_depth) != body.count(b":") or (
        b"\\" in body and (b"\\u003a" in body or b"\\u003A" in body)
    ):
        _refuse_repeated_keys(body, max_depth)
    return value


def _colons(root: dict[str, Any], body: bytes, max_depth: int) -> int:
    """Count the colons that writing ``root`` takes. Refuse what is nested too deeply."""
    if len(body) < _SMALL and body.count(b"{") + body.count(b"[") <= max_depth:
        return orjson.dumps(root).count(b":")
    return _count_colons(root, max_depth)


def _count_colons(root: dict[str, Any], max_depth: int) -> int:
    count, depth = 0, 0
    level: list[Any] = [root]
    while level:
        depth += 1
        if depth > max_depth:
            raise BadRequest(f"The request body is nested more than {max_depth} levels deep")
        inner: list[Any] = []
        for container in level:
            if type(container) is dict:
                count += len(container)
                for key in container:
                    if ":" in key:
                        count += key.count(":")
                values: Any = container.values()
            else:
                values = container
            for value in values:
                if type(value) is str:
                    if ":" in value:
                        count += value.count(":")
                elif type(value) is dict or type(value) is list:
                    inner.append(value)
        level = inner
    return count


def _refuse_repeated_keys(body: bytes, max_depth: int) -> None:
    def pairs_once(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) != len(pairs):
            raise BadRequest("The request body repeats a key within one object; it can be read two ways")

    try:
        json.loads(body, object_pairs_hook=pairs_once)
    except RecursionError:
        # The depth of the result was bounded above; the value of a repeated key, which is not in it, may be deeper.
        raise BadRequest(f"The request body is nested more than {max_depth} levels deep") from None
