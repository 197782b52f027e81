"""Read the keys of a request: for Gemini's quota, for rules and traces, and for a guardrails service. No I/O."""

import functools
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from multidict import CIMultiDict, CIMultiDictProxy

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.calls import ModelCall

INVARIANT_HEADER = "invariant-authorization"
GUARDRAILS_HEADER = "invariant-guardrails-authorization"
_FORMAT = "Invalid API Key format"
_SUFFIX = re.compile(r";\s*invariant-auth\s*=\s*", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")
_BEARER = re.compile(r"bearer\b", re.IGNORECASE)
_INVARIANT = re.compile("invariant", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Credentials:
    """``gemini`` goes upstream and nowhere else; ``invariant`` never does. ``guardrails`` is for a service that checks
    (``engine = "remote"``), in place of any other key. A repr shows none of them. ``bearer`` says that ``gemini`` came
    only as ``Authorization: Bearer``, as an OAuth token does.
    """

    gemini: str | None
    invariant: str | None
    guardrails: str | None = None
    bearer: bool = False

    def __repr__(self) -> str:
        names = ("gemini", "invariant", "guardrails")
        hidden = (f"{name}={'***' if getattr(self, name) else None}" for name in names)
        return f"Credentials({', '.join(hidden)})"


_SALT = os.urandom(16)


def own_key(credentials: Credentials, configured: str | None) -> str | None:
    """Return the Gemini key if it is the client's. ``configured`` is the operator's, which names nobody."""
    return credentials.gemini if credentials.gemini != configured else None


def goes_as_token(credentials: Credentials, call: ModelCall) -> bool:
    """Return whether the client's key is a token of OAuth, which goes upstream as one: on Vertex AI alone."""
    return credentials.bearer and call.host == "vertex"


def goes_as_bearer(credentials: Credentials, call: ModelCall) -> bool:
    """Return whether the client's key goes upstream as ``Authorization: Bearer``."""
    return call.row.bearer or goes_as_token(credentials, call)


def client_of(credentials: Credentials, configured: str | None, address: str | None) -> str:
    """Return a digest that tells clients apart for fair turns: of their key, else of their address.

    It is valid for the life of this process. ``configured`` is as for ``own_key``.
    """
    key = credentials.invariant or own_key(credentials, configured)
    return _client_digest(f"key {key}" if key else f"address {address}")


# Cached, since few clients send most requests.
@functools.lru_cache(maxsize=256)
def _client_digest(said: str) -> str:
    return hashlib.blake2b(said.encode(), key=_SALT, digest_size=16).hexdigest()


def account_of(credentials: Credentials, configured: str | None) -> str:
    """Return a digest of a client's Gemini key, the same on every machine; "" for the operator's key.

    ``configured`` is as for ``own_key``.
    """
    key = own_key(credentials, configured)
    return hmac.digest(b"gemini-proxy account", key.encode(), "sha256").hex() if key else ""


def read_credentials(
    headers: CIMultiDictProxy[str] | CIMultiDict[str],
    query_key: str | None,
    configured: str | None,
    dataset: str | None,
) -> Credentials:
    """Find the keys of a request. ``configured`` is the operator's own Gemini key, used if the client has none.

    The Gemini key is that of ``x-goog-api-key``, else of ``Authorization: Bearer``, else of ``?key=``; an authorization
    of another kind beside a key is ignored. An Invariant key in one of those places counts as an Invariant key and
    never goes upstream, so a client without a Gemini key that can set no other header can identify itself. Raises
    BadRequest for a repeated header, a malformed pair of keys, two different keys for one purpose (the upstream might
    use the other one), or a missing key.
    """
    given = [tuple(headers.getall(name, ())) for name in _CARRIERS]
    return _read_credentials(*given, query_key, configured, dataset)


_CARRIERS = ("x-goog-api-key", "authorization", INVARIANT_HEADER, GUARDRAILS_HEADER)
"""Headers that carry keys."""


# Cached, since few clients send most requests, each with the same headers.
@functools.lru_cache(maxsize=256)
def _read_credentials(
    keys: tuple[str, ...],
    authorizations: tuple[str, ...],
    invariants: tuple[str, ...],
    for_guardrails: tuple[str, ...],
    query_key: str | None,
    configured: str | None,
    dataset: str | None,
) -> Credentials:
    """Read the values of each of ``_CARRIERS`` as ``read_credentials`` does."""
    named = _single("x-goog-api-key", keys), _single("authorization", authorizations)
    sources = [(_split(value), bearer) for value, bearer in _gemini_sources(*named, query_key)]
    pairs = [pair for pair, _ in sources]
    gemini = _only("Gemini", [given for given, _ in pairs]) or configured
    header = _bearer(_single(INVARIANT_HEADER, invariants))
    invariant = _only("Invariant", [header, *(paired for _, paired in pairs)])
    if dataset is not None and not invariant:
        raise BadRequest("Missing invariant api key" if gemini else "Missing LLM Provider API Key")
    if not gemini:
        raise BadRequest("Missing LLM Provider API Key")
    guardrails = _bearer(_single(GUARDRAILS_HEADER, for_guardrails))
    for key in filter(None, (gemini, invariant, guardrails)):
        if not _KEY.fullmatch(key):
            raise BadRequest(_FORMAT)
    carried = [bearer for (given, _), bearer in sources if given]
    return Credentials(gemini, invariant or None, guardrails or None, bearer=bool(carried) and all(carried))


def _gemini_sources(key: str, authorization: str, query_key: str | None) -> Iterator[tuple[str, bool]]:
    """Yield what may be a Gemini key, and whether it came as ``Authorization: Bearer``."""
    if key:
        yield key, False
    if authorization and (not (key or query_key) or _BEARER.match(authorization)):
        yield _bearer(authorization), True
    if query_key:
        yield query_key, False


def _only(owner: str, keys: Iterable[str]) -> str:
    """Return the only key among ``keys``; the same key given twice counts once."""
    different = set(filter(None, keys))
    if len(different) > 1:
        raise BadRequest(f"The request has two different {owner} API keys")
    return next(iter(different), "")


def _single(name: str, values: Sequence[str]) -> str:
    """Return the value of a header, "" if it is not given. Raises BadRequest for several."""
    if len(values) > 1:
        raise BadRequest(f"The header {name} is given more than once")
    return values[0].strip() if values else ""


def _bearer(value: str) -> str:
    if not value:
        return ""
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise BadRequest(_FORMAT)
    return token.strip()


def _split(value: str) -> tuple[str, str]:
    """Part ``{gemini key};invariant-auth={key}``; both halves are needed where there is a semicolon."""
    if ";" not in value and not _INVARIANT.search(value):
        return ("", value) if _is_invariant(value) else (value, "")
    halves = _SUFFIX.split(value)
    if len(halves) != 2 or not all(half.strip() for half in halves):
        raise BadRequest(_FORMAT)
    gemini, invariant = (half.strip() for half in halves)
    if ";" in gemini + invariant or _INVARIANT.search(gemini) or _is_invariant(gemini):
        raise BadRequest(_FORMAT)
    return gemini, invariant


def _is_invariant(key: str) -> bool:
    return key.startswith("inv-")
