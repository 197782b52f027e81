"""Read from responses what Gemini keeps under a name: caches and files. No I/O."""

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.fields import spellings
from gemini_proxy.gemini.strict_json import read_object

_CHANGES: Final = spellings("ttl", "expireTime")
_CACHE_SECONDS: Final = 3_600.0
_LASTS: Final = {"files": 48 * 3_600.0, "batches": 60 * 86_400.0}
"""Seconds for which Google keeps an object without a stated end."""
_NAME: Final = 512
_PLACE: Final = re.compile(r"projects/[^/]{1,60}/locations/[^/]{1,40}/")
"""The prefix of a name on Vertex AI. A project has two, and Google may respond with the other one."""


@dataclass(frozen=True, slots=True)
class KeptObject:
    """An object that Gemini keeps: its name without a prefix, its URI if it has one, and its end, in Unix seconds."""

    name: str
    uri: str
    expires: float


def read_kept(body: bytes) -> KeptObject | None:
    """Read the answer to a call that made or changed something; None for one that names nothing."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if isinstance(answer, dict) and isinstance(answer.get("file"), dict):
        answer = answer["file"]
    name = answer.get("name") if isinstance(answer, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= _NAME:
        return None
    name, uri = _placeless(name), answer.get("uri")
    lasts = _LASTS.get(name.partition("/")[0], _CACHE_SECONDS)
    ends = _seconds(answer.get("expireTime", answer.get("expirationTime")))
    return KeptObject(name, uri if isinstance(uri, str) else "", time.time() + lasts if ends is None else ends)


def read_change(body: bytes) -> bytes:
    """Return the body of a call that changes a cache, which may only say when it ends. Raises BadRequest."""
    changes = {name: value for name, value in read_object(body).items() if name != "name"}
    if not changes.keys() <= _CHANGES or not all(isinstance(value, str) for value in changes.values()):
        raise BadRequest('Only "ttl" and "expireTime" of a cache can be changed')
    return orjson.dumps(changes)


def names_in(body: bytes, collection: str) -> list[str]:
    """Return the names that a page of a listing has, without places. Raises DecodeError if it cannot be read."""
    return [_placeless(name) for item in _items(_page(body), collection) if isinstance(name := item.get("name"), str)]


def page_of(body: bytes, collection: str, names: Collection[str]) -> bytes:
    """Return a page with those of its things alone whose names are given. Raises DecodeError."""
    page = _page(body)
    items = _items(page, collection)
    left = [item for item in items if isinstance(name := item.get("name"), str) and _placeless(name) in names]
    return body if len(left) == len(items) else orjson.dumps({**page, collection: left})


def _placeless(name: str) -> str:
    place = _PLACE.match(name)
    return name[place.end() :] if place else name


def _page(body: bytes) -> dict[str, Any]:
    try:
        page = orjson.loads(body)
    except orjson.JSONDecodeError:
        page = None
    if not isinstance(page, dict):
        raise DecodeError("The upstream's listing cannot be read")
    return page


def _items(page: Mapping[str, Any], collection: str) -> list[Mapping[str, Any]]:
    items = page.get(collection, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DecodeError("The upstream's listing cannot be read")
    return items


def _seconds(said: Any) -> float | None:
    """Read a time in RFC 3339; None for anything else."""
    try:
        return datetime.fromisoformat(said).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
