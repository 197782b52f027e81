"""Classify an Explorer's response to a push: delivered, refused for good, or to retry. No I/O."""

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

import orjson

# Statuses for a fault of one trace, which would fail again. Every other failure may be temporary: a key can be renewed,
# an address corrected, a service repaired.
_REJECTIONS: Final = frozenset({400, 409, 413, 422})


class Failure(StrEnum):
    """Why a trace was not delivered this time; a closed set, for it is a label of a metric."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    UNAUTHORIZED = "unauthorized"
    THROTTLED = "throttled"
    SERVER_ERROR = "server_error"
    UNEXPECTED = "unexpected_answer"


@dataclass(frozen=True, slots=True)
class Delivered:
    """The service has the trace."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The service will never take this trace."""

    status: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing is known of the trace. ``retry_after`` is what the service asks for, in seconds."""

    reason: Failure
    retry_after: float | None = None


Answer = Delivered | Rejected | Failed


def read_answer(status: int, retry_after: str | None, body: bytes, now: float) -> Answer:
    """Read an answer; ``now`` is in Unix seconds, for a Retry-After that is a date.

    Success has to name the trace (``{"id": [...]}``): the page that some other server shows for every address must not
    count as a delivery.
    """
    if 200 <= status < 300:
        return Delivered() if _names_trace(body) else Failed(Failure.UNEXPECTED)
    return read_status(status, retry_after, now)


def read_status(status: int, retry_after: str | None, now: float) -> Rejected | Failed:
    """Read an answer that is not a success, as ``read_answer`` does."""
    if status in _REJECTIONS:
        return Rejected(status)
    return Failed(_reason(status), _seconds(retry_after, now))


def _reason(status: int) -> Failure:
    if status in (401, 403):
        return Failure.UNAUTHORIZED
    if status == 429:
        return Failure.THROTTLED
    return Failure.SERVER_ERROR if status >= 500 else Failure.UNEXPECTED


def _names_trace(body: bytes) -> bool:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(answer, dict) and bool(answer.get("id"))


def _seconds(retry_after: str | None, now: float) -> float | None:
    """Read Retry-After (RFC 9110, section 10.2.3): a number of seconds, or a date. Return the seconds from ``now``."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        # OverflowError: a year of twenty digits.
        return None
    return max((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now, 0.0)
