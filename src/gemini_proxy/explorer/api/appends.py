"""Messages appended to a trace: in the order of their timestamps among those that are there."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from gemini_proxy.errors import BadRequest
from gemini_proxy.traces.trace import Annotation

_MESSAGE = re.compile(r"messages\.([0-9]+)(?=[.:]|$)")
_DIGITS = 9
_MALFORMED = "Invalid messages format - expected a non-empty list of dictionaries"


def read_messages(value: object, now: float) -> list[dict[str, Any]]:
    """New messages, each with a timestamp in UTC: its own, read as UTC where it names no zone, or else ``now``.

    Raises BadRequest for what is no list of objects, an empty one, and a timestamp that is not ISO 8601.
    """
    if not isinstance(value, list) or not value or any(type(message) is not dict for message in value):
        raise BadRequest(_MALFORMED)
    arrived = datetime.fromtimestamp(now, UTC).isoformat()
    return [{**message, "timestamp": _timestamp(message.get("timestamp"), arrived)} for message in value]


@dataclass(frozen=True, slots=True)
class Merged:
    """``places`` are the indexes at which the messages that were there are now."""

    messages: Sequence[Mapping[str, Any]]
    places: Sequence[int]

    def moved(self, annotation: Annotation) -> Annotation:
        """An annotation of a message that was there, with the address that the message has now."""
        found = _MESSAGE.match(annotation.address)
        if found is None or len(found[1]) > _DIGITS or int(found[1]) >= len(self.places):
            return annotation
        address = f"messages.{self.places[int(found[1])]}{annotation.address[found.end() :]}"
        return replace(annotation, address=address)


def merge(before: Sequence[Mapping[str, Any]], added: Sequence[Mapping[str, Any]], created: float) -> Merged:
    """Both lists in one, in the order of time; each keeps its own order, and what is there goes first at one moment.

    A message that is there without a readable timestamp is from the moment of ``created``.
    """
    merged: list[Mapping[str, Any]] = []
    places: list[int] = []
    times = [_moment(message.get("timestamp"), created) for message in before]

    def take() -> None:
        merged.append(before[len(places)])
        places.append(len(merged) - 1)

    for message in added:
        moment = _moment(message.get("timestamp"), created)
        while len(places) < len(before) and times[len(places)] <= moment:
            take()
        merged.append(message)
    while len(places) < len(before):
        take()
    return Merged(merged, places)


def _timestamp(given: object, arrived: str) -> str:
    if given is None:
        return arrived
    moment = _read(given)
    if moment is None:
        raise BadRequest(
            "Invalid timestamp format in message. Expected format: ISO 8601, e.g., 2025-01-23T10:30:00+00:00"
        )
    return moment.isoformat()


def _moment(given: object, created: float) -> datetime:
    return _read(given) or datetime.fromtimestamp(created, UTC)


def _read(given: object) -> datetime | None:
    """A moment in UTC; None for what is no text of one, or lies outside the years that can be written."""
    if not isinstance(given, str):
        return None
    try:
        moment = datetime.fromisoformat(given)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
