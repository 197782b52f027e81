"""Read Google's errors: an HTTP error's body, or an error event within a stream."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

_MOST: Final = 65_536
"""Bytes of a body that are read as an error; Google's have a few hundred."""
_LONGEST: Final = 1_000
"""Characters of a message that are kept."""


@dataclass(frozen=True, slots=True)
class UpstreamFault:
    """``status`` is Google's word for the kind of error, such as ``RESOURCE_EXHAUSTED``, "" where it gives none."""

    status: str
    message: str

    @property
    def described(self) -> dict[str, str]:
        """Return it as a trace keeps it."""
        return {"status": self.status, "message": self.message}


def fault_in(body: bytes) -> UpstreamFault | None:
    """Read the body of an error response, an object or a list of one. Return None for anything else."""
    document = error_in(body)
    return read_fault(document["error"]) if document is not None else None


def error_in(body: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object of an error response, which has a member ``error``. Return None for anything else."""
    if len(body) > _MOST:
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if isinstance(document, list) and document:
        document = document[0]
    return document if isinstance(document, Mapping) and "error" in document else None


def read_fault(error: Any) -> UpstreamFault | None:
    """Read the member ``error`` of a response. Return None where it says nothing."""
    if not isinstance(error, Mapping):
        return None
    status, message = (error.get(name) for name in ("status", "message"))
    status = status[:_LONGEST] if isinstance(status, str) else ""
    message = message[:_LONGEST] if isinstance(message, str) else ""
    return UpstreamFault(status, message) if status or message else None
