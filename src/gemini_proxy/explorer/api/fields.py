"""What a request names: ids, names, and members of its JSON object, by type.

What is absent and what is null are the same: clients send either.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from gemini_proxy.errors import BadRequest, NotFound

T = TypeVar("T")

_DATASET: Final = re.compile(r"[a-zA-Z0-9_-]+")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MAX_DATASET_NAME: Final = 128
"""Characters of a dataset's name: what the path of a model call may hold."""


def member(given: Mapping[str, Any], name: str, kind: type[T], wrong: str, default: T | None = None) -> T:
    """The member ``name``. Raises BadRequest saying ``wrong`` for another type, and for none without a default."""
    value = given.get(name)
    if value is None:
        value = default
    if type(value) is not kind:
        raise BadRequest(wrong)
    return value


def plain_text(given: Mapping[str, Any], name: str, wrong: str, longest: int, default: str | None = None) -> str:
    """A text without NUL characters, of at most ``longest`` characters. Raises BadRequest."""
    text = member(given, name, str, wrong, default)
    if len(text) > longest:
        raise BadRequest(f"{name} must not be longer than {longest} characters")
    if "\0" in text:
        raise BadRequest(f"{name} must not hold the character NUL")
    return text


def mapping(given: Mapping[str, Any], name: str, wrong: str) -> dict[str, Any]:
    """An object, empty where there is none. Raises BadRequest."""
    value: dict[str, Any] = member(given, name, dict, wrong, {})
    return value


def objects(value: object, wrong: str) -> Sequence[dict[str, Any]]:
    """A list of objects. Raises BadRequest for anything else."""
    if not isinstance(value, list) or any(type(item) is not dict for item in value):
        raise BadRequest(wrong)
    return value


def read_uuid(given: str, missing: str) -> str:
    """A UUID in small letters. Raises NotFound saying ``missing`` for anything else: nothing has that id."""
    folded = given.lower()
    if not _UUID.fullmatch(folded):
        raise NotFound(missing)
    return folded


def is_dataset_name(name: str) -> bool:
    """Whether a dataset may have that name."""
    return len(name) <= MAX_DATASET_NAME and _DATASET.fullmatch(name) is not None


def dataset_name(name: str) -> str:
    """A name that a dataset may have. Raises BadRequest for any other."""
    if not _DATASET.fullmatch(name):
        raise BadRequest("Dataset name can only contain A-Z, a-z, 0-9, - and _")
    if len(name) > MAX_DATASET_NAME:
        raise BadRequest(f"Dataset name must not be longer than {MAX_DATASET_NAME} characters")
    return name
