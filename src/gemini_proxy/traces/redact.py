"""Keep keys out of what is stored about an exchange: its URLs, headers and settings, never its messages."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gemini_proxy.gemini_keys import GEMINI_KEY

REDACTED = "[redacted]"

# Google's keys, Invariant's, bearer tokens (of a length that no word after "bearer" has), a key in a query.
_PATTERN = (
    rf"{GEMINI_KEY}"
    r"|inv-[0-9a-f]{32,64}"
    r"|(?<=[Bb]earer )[0-9A-Za-z._~+/=-]{16,}"
    r"|(?<=[?&]key=)[^&#\s\"\\]+"
)
_IN_TEXT = re.compile(_PATTERN)
_IN_BYTES = re.compile(_PATTERN.encode())
# Looked for first: most metadata holds none of them, and a substring search costs a tenth of the pattern; a search for
# one character, the rarest of the substring, a tenth of that.
_SIGNS = (("z", "AIza"), ("Q", "AQ."), ("-", "inv-"), (" ", "earer "), ("=", "key="))
_SECRET_NAMES = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-goog-api-key", "x-api-key", "api_key", "apikey"}
    | {"invariant-authorization", "invariant-guardrails-authorization"}
)


def redact(value: Any, secrets: Iterable[str] = ()) -> Any:
    """Copy a text or JSON value without keys, and without the values of headers that carry one.

    ``secrets`` are further texts to remove wherever they occur, such as the configured keys.
    """
    return _redact(value, tuple(secret for secret in secrets if secret))


def redact_json(document: bytes) -> bytes:
    """Redact a serialized document by the same patterns; it stays valid JSON."""
    # A text is searched in half the time that bytes are, and Latin-1 has a character for each byte.
    text = document.decode("latin-1")
    for character, sign in _SIGNS:
        if character in text and sign in text:
            return _IN_BYTES.sub(REDACTED.encode(), document)
    return document


def _redact(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, REDACTED)
        return _IN_TEXT.sub(REDACTED, value)
    if isinstance(value, Mapping):
        return {
            _redact(name, secrets): REDACTED if _is_secret(name) else _redact(item, secrets)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact(item, secrets) for item in value]
    return value


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and name.lower() in _SECRET_NAMES
