"""The API's JSON: datasets, policies, traces, annotations and users, in the shape that Invariant's clients read."""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.traces.catalogue import Outline, StoredAnnotation
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.policies import StoredPolicy
from gemini_proxy.traces.trace import Trace

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


POLICIES_KEY: Final = "policies"
"""The key of a dataset's metadata under which its policies are shown, and which nobody can set."""
_USERS: Final = uuid.UUID("f3b0c5f8-2f43-5d0c-9a27-55c1f4b1f0e6")


def user_id(owner: str) -> str:
    """The id of a user: the same for the same name on every server."""
    return str(uuid.uuid5(_USERS, owner))


def user_json(owner: str) -> dict[str, str]:
    return {"id": user_id(owner), "username": owner, "image_url_hash": ""}


def dataset_json(dataset: Dataset, policies: Iterable[StoredPolicy] | None = None) -> dict[str, Any]:
    """A dataset; with its policies in ``extra_metadata`` where they are given. Nothing here is public."""
    shown = {} if policies is None else {POLICIES_KEY: [policy_json(policy) for policy in policies]}
    return {
        "id": dataset.id,
        "name": dataset.name,
        "extra_metadata": {**without_policies(dataset.metadata), **shown},
        "is_public": False,
        "user_id": user_id(dataset.owner),
        "user": user_json(dataset.owner),
        "time_created": iso(dataset.created),
        "latest_trace_time": None if dataset.latest is None else iso(dataset.latest),
    }


def without_policies(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's metadata as it may be read and set."""
    return {key: value for key, value in metadata.items() if key != POLICIES_KEY}


def policy_json(policy: StoredPolicy) -> dict[str, Any]:
    """A policy; its time is in UTC, as the old service's was, without saying so."""
    return {
        "id": policy.id,
        "name": policy.name,
        "content": policy.content,
        "enabled": policy.enabled,
        "action": policy.action,
        "extra_metadata": dict(policy.metadata),
        "last_updated_time": datetime.fromtimestamp(policy.updated, UTC).strftime("%Y-%m-%d %H:%M:%S"),
    }


def trace_json(trace: Trace, dataset_id: str | None, annotations: Iterable[StoredAnnotation]) -> dict[str, Any]:
    """A whole trace but for its messages."""
    return {
        "id": trace.id,
        "index": trace.position,
        "dataset": dataset_id,
        "user_id": user_id(trace.owner),
        "name": trace.metadata.get("name"),
        "hierarchy_path": trace.metadata.get("hierarchy_path") or [],
        "user": trace.owner,
        "extra_metadata": dict(trace.metadata),
        "time_created": iso(trace.created),
        "time_last_pushed": iso(trace.created if trace.updated is None else trace.updated),
        "annotations": annotations_json(trace.id, trace.owner, annotations),
    }


def outline_json(outline: Outline) -> dict[str, Any]:
    """A trace in a listing, which shows no messages."""
    return {
        "id": outline.id,
        "index": outline.position,
        "messages": [],
        "annotations_by_source": {source or "user": count for source, count in outline.annotations.items()},
        "extra_metadata": dict(outline.metadata),
        "name": outline.metadata.get("name"),
        "hierarchy_path": outline.metadata.get("hierarchy_path") or [],
    }


def annotations_json(trace_id: str, owner: str, annotations: Iterable[StoredAnnotation]) -> list[dict[str, Any]]:
    """The annotations of a trace; all are its owner's, who alone can write them."""
    user = user_json(owner)
    return [
        {
            "id": stored.id,
            "trace_id": trace_id,
            "content": stored.annotation.content,
            "address": stored.annotation.address,
            "time_created": iso(stored.created),
            "extra_metadata": stored.annotation.extra_metadata,
            "user": user,
        }
        for stored in annotations
    ]


def iso(seconds: float) -> str:
    """A Unix time as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
