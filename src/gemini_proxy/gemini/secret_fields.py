"""Find the credentials that Gemini's servers use elsewhere: header values, keys, tokens. Traces omit them."""

import re
from collections.abc import Set
from functools import lru_cache
from typing import Any, Final

from gemini_proxy.gemini.fields import JsonObject, snake_case, spellings

_MASK: Final = "[redacted]"
_SECRET = re.compile(
    r"(?:.*[_-])?(?:headers?|cookies?|(?:api)?key|key_string|token|secret|password|passwd|authorization|credentials?"
    r"|env|transform)"
)
"""Names, in snake_case, of fields that hold a secret or several."""
_OTHER = spellings(
    *"contents content systemInstruction functionDeclarations generationConfig labels".split(),
    *"cachedContent continuationToken".split(),
)
"""Fields of a request for the model or for Gemini alone, whatever the names in them."""
_IN_URL = re.compile(r"(://)([^/?#\s@]+)(?=@)|([?&](?:[^=&#\s]*=)?)([^&#\s]+)")
"""Matches a user name with its password, and each value of a query."""


_SHORTEST: Final = 8
"""Characters of the shortest secret that is looked for: shorter ones occur in texts by chance."""


def without_secrets(request: JsonObject, others: Set[str] = _OTHER) -> tuple[JsonObject, tuple[str, ...]]:
    """Return the request as a trace may keep it, and its secrets, each also split into words.

    A mask is as long as its secret, so that addresses of the text around it stay valid. A request without secrets is
    returned itself. Fields named in ``others`` hold no secrets, whatever the names in them.
    """
    if not _may_hold_secrets(request, others):
        return request, ()
    secrets: list[str] = []
    bare = _bare(request, secrets, others)
    words = [word for secret in secrets for word in (secret, *secret.split()) if len(word) >= _SHORTEST]
    return (bare if secrets else request), tuple(dict.fromkeys(words))


def _may_hold_secrets(value: Any, others: Set[str]) -> bool:
    """Return whether ``value`` has a name or an address that ``_bare`` would examine."""
    if type(value) is dict:
        for name, inner in value.items():
            if name not in others and (_is_secret(name) or _may_hold_secrets(inner, others)):
                return True
    elif type(value) is list:
        for item in value:
            if _may_hold_secrets(item, others):
                return True
    return type(value) is str and "://" in value


def _bare(value: Any, secrets: list[str], others: Set[str]) -> Any:
    if type(value) is dict:
        return {
            name: inner if name in others else _field(name, inner, secrets, others) for name, inner in value.items()
        }
    if type(value) is list:
        return [_bare(item, secrets, others) for item in value]
    if type(value) is str and "://" in value:
        return _IN_URL.sub(lambda part: f"{part[1] or part[3]}{_masked(part[2] or part[4], secrets)}", value)
    return value


def _field(name: str, value: Any, secrets: list[str], others: Set[str]) -> Any:
    return _hidden(value, secrets) if _is_secret(name) else _bare(value, secrets, others)


@lru_cache(maxsize=512)
def _is_secret(name: str) -> bool:
    return _SECRET.fullmatch(snake_case(name)) is not None


def _hidden(value: Any, secrets: list[str]) -> Any:
    if type(value) is dict:
        return {name: _hidden(inner, secrets) for name, inner in value.items()}
    if type(value) is list:
        return [_hidden(item, secrets) for item in value]
    return value if value is None or type(value) is bool else _masked(str(value), secrets)


def _masked(secret: str, secrets: list[str]) -> str:
    secrets.append(secret)
    return _MASK.ljust(len(secret), "*") if len(secret) >= len(_MASK) else "*" * len(secret)
