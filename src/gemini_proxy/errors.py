"""Define the proxy's own errors, each with the HTTP status and the Google status word that its client sees.

    ProxyError                      500 INTERNAL
    ├── BadRequest                  400 INVALID_ARGUMENT
    │   ├── PayloadTooLarge         413 INVALID_ARGUMENT
    │   └── UnsupportedMediaType    415 INVALID_ARGUMENT
    ├── Unauthenticated             401 UNAUTHENTICATED
    ├── Forbidden                   403 PERMISSION_DENIED
    ├── NotFound                    404 NOT_FOUND
    ├── MethodNotAllowed            405 UNIMPLEMENTED
    ├── Conflict                    409 ABORTED
    ├── LimitExceeded               429 RESOURCE_EXHAUSTED
    ├── Unavailable                 503 UNAVAILABLE
    ├── VersionNotSupported         505 UNIMPLEMENTED
    ├── UpstreamError               502 UNAVAILABLE
    │   ├── UpstreamTimeout         504 DEADLINE_EXCEEDED
    │   ├── UpstreamCut             502 UNAVAILABLE
    │   └── DecodeError             502 UNAVAILABLE
    └── EngineUnavailable           503 UNAVAILABLE

Messages are written for the client and never hold a secret.
"""

import math
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final


class ProxyError(Exception):
    """Something the proxy answers by itself; ``message`` goes to the client as it is."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL"
    retry_after: int | None = None
    """Seconds after which the same request may succeed; None where that is not known."""
    headers: Mapping[str, str] = MappingProxyType({})
    """Headers that the answer has besides."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(ProxyError):
    """The client's request cannot be read, or can be read two ways."""

    status = 400
    code = "INVALID_ARGUMENT"


class PayloadTooLarge(BadRequest):
    """The body is over the configured limit, as sent or after decompression."""

    status = 413


class UnsupportedMediaType(BadRequest):
    """A content type, charset or content encoding the proxy does not read."""

    status = 415


class Unauthenticated(ProxyError):
    """No key, or one that this server does not know."""

    status = 401
    code = "UNAUTHENTICATED"


class Forbidden(ProxyError):
    """The key is valid and its role does not allow this."""

    status = 403
    code = "PERMISSION_DENIED"


class NotFound(ProxyError):
    """A path, method, version or model form outside the allow-list."""

    status = 404
    code = "NOT_FOUND"


class MethodNotAllowed(ProxyError):
    """A known path with an HTTP method it does not take."""

    status = 405
    code = "UNIMPLEMENTED"


class Conflict(ProxyError):
    """The request is too late: its object has changed meanwhile."""

    status = 409
    code = "ABORTED"


class LimitExceeded(ProxyError):
    """The client has used what ``[limits]`` gives it; ``kind`` names the limit, ``retry_after`` is in seconds."""

    status = 429
    code = "RESOURCE_EXHAUSTED"
    retry_after: int

    def __init__(self, message: str, kind: str, retry_after: float) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = max(1, math.ceil(retry_after))


class Unavailable(ProxyError):
    """The proxy cannot take the request now: draining, or a required trace cannot be written."""

    status = 503
    code = "UNAVAILABLE"
    retry_after = 1


class VersionNotSupported(ProxyError):
    """A major version of HTTP in the request line that this server does not speak (RFC 9110, section 15.6.6)."""

    status = 505
    code = "UNIMPLEMENTED"


class UpstreamError(ProxyError):
    """The upstream could not be reached, or its answer is not one."""

    status = 502
    code = "UNAVAILABLE"


class UpstreamTimeout(UpstreamError):
    """The upstream did not answer, or fell silent, within its time."""

    status = 504
    code = "DEADLINE_EXCEEDED"


class UpstreamCut(UpstreamError):
    """The upstream's body broke off before its end."""


class DecodeError(UpstreamError):
    """Upstream bytes that cannot be read; what cannot be read cannot be checked and is not passed on."""


class EngineUnavailable(ProxyError):
    """A check gave no verdict: over its budget, past its deadline, or broken."""

    status = 503
    code = "UNAVAILABLE"


_FRAMES: Final = 30
"""Calls of a traceback that are shown, the innermost: the rest of an endless recursion tells nothing new."""
_CAUSES: Final = 5


def origin_of(error: BaseException) -> str:
    """Return the traceback and class of an error, after those of the errors that caused it.

    The error's text is left out: that of a foreign exception may quote a client's data.
    """
    return "".join(_origin_lines(error, _CAUSES)).rstrip()


def _origin_lines(error: BaseException, causes: int) -> list[str]:
    lines = []
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and causes:
        lines += [*_origin_lines(earlier, causes - 1), "which led to:\n"]
    lines += [*traceback.format_tb(error.__traceback__, -_FRAMES), f"{type(error).__qualname__}\n"]
    for member in error.exceptions if isinstance(error, BaseExceptionGroup) and causes else ():
        lines += ["with:\n", *_origin_lines(member, causes - 1)]
    return lines
