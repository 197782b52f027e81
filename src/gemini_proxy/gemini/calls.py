"""Reads the model call that a request target names, by an allow-list.

The raw path is matched: nothing is percent-decoded, so what was matched is what goes upstream. Any ``%``, ``..``, ``@``
or second colon is outside the alphabet of model names and is a 404.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from gemini_proxy.errors import BadRequest, MethodNotAllowed, NotFound

DEFAULT_VERSION = "v1beta"
"""The version that clients mean that leave it out (litellm)."""

SUPPORTED = (
    "supported are generateContent and streamGenerateContent on models/, tunedModels/ and dynamic/; "
    "countTokens, embedContent and batchEmbedContents on models/; GET models and GET models/{model}"
)

_PATH = re.compile(
    r"(?:(?:/api/v1/gateway)?(?:/(?P<dataset>[A-Za-z0-9_-]{1,128}))?/gemini)?"
    r"(?:/(?P<version>v1beta1|v1beta|v1alpha|v1))?"
    r"/(?P<collection>models|tunedModels|dynamic)"
    r"(?:/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,127})(?::(?P<verb>[A-Za-z]+))?)?"
)
_SLASHES = re.compile("/{2,}")


class Method(StrEnum):
    """What a call does. The values are Gemini's verbs."""

    GENERATE = "generateContent"
    STREAM = "streamGenerateContent"
    COUNT_TOKENS = "countTokens"
    EMBED = "embedContent"
    BATCH_EMBED = "batchEmbedContents"
    LIST_MODELS = "listModels"
    GET_MODEL = "getModel"


GENERATING = frozenset({Method.GENERATE, Method.STREAM})
_VERBS = {
    ("models", "generateContent"): Method.GENERATE,
    ("models", "streamGenerateContent"): Method.STREAM,
    ("tunedModels", "generateContent"): Method.GENERATE,
    ("tunedModels", "streamGenerateContent"): Method.STREAM,
    ("dynamic", "generateContent"): Method.GENERATE,
    ("dynamic", "streamGenerateContent"): Method.STREAM,
    ("models", "countTokens"): Method.COUNT_TOKENS,
    ("models", "embedContent"): Method.EMBED,
    ("models", "batchEmbedContents"): Method.BATCH_EMBED,
}

_HIDING = frozenset(
    {"fields", "callback", "jsonp", "$.xgafv", "$httpmethod", "$method", "$req", "$ct", "uploadtype", "upload_protocol"}
)
"""Parameters that change what the body or the response means: a guard that reads JSON could see nothing."""
_FOREIGN_CREDENTIALS = frozenset({"access_token", "oauth_token", "bearer_token"})
_PAGING = frozenset({"pageSize", "pageToken"})


@dataclass(frozen=True, slots=True)
class Query:
    """The query parameters that count. ``key`` is a credential and never goes upstream as a parameter."""

    alt: Literal["json", "sse"] | None = None
    int_enums: bool = False
    paging: tuple[tuple[str, str], ...] = ()
    key: str | None = None

    def __repr__(self) -> str:
        return f"Query(alt={self.alt!r}, int_enums={self.int_enums!r}, key={'***' if self.key else None})"


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A call that the proxy serves. ``resource`` is ``models``, ``models/{name}`` or the like."""

    method: Method
    version: str
    resource: str
    dataset: str | None
    query: Query

    @property
    def http_method(self) -> str:
        return "GET" if self.method in (Method.LIST_MODELS, Method.GET_MODEL) else "POST"

    @property
    def model(self) -> str | None:
        """The model's name without its collection, None for a listing."""
        return self.resource.partition("/")[2] or None

    @property
    def generates(self) -> bool:
        """True if the response holds candidates and is checked as well."""
        return self.method in GENERATING

    @property
    def streams(self) -> bool:
        return self.method is Method.STREAM

    @property
    def upstream_target(self) -> str:
        """The path and query for the upstream, made only of what was matched."""
        verb = f":{self.method}" if self.http_method == "POST" else ""
        pairs = list(self.query.paging)
        if self.query.alt:
            pairs.append(("alt", self.query.alt))
        if self.query.int_enums:
            pairs.append(("$alt", "json;enum-encoding=int"))
        query = f"?{urlencode(pairs)}" if pairs else ""
        return f"/{self.version}/{self.resource}{verb}{query}"


def read_call(http_method: str, target: str) -> ModelCall:
    """Read ``target``, the request target as it came (path and query, undecoded).

    Raises NotFound for a path outside the allow-list, MethodNotAllowed for a known path with another HTTP method,
    BadRequest for query parameters that are refused.
    """
    path, _, raw_query = target.partition("?")
    call = _plain_call(path, raw_query) if raw_query in _PLAIN_QUERIES else _call(path, raw_query)
    if http_method != call.http_method:
        raise MethodNotAllowed(f"This path takes {call.http_method} only")
    return call


def _call(path: str, raw_query: str) -> ModelCall:
    match = _PATH.fullmatch(_SLASHES.sub("/", path))
    method = _method(match)
    if match is None or method is None:
        raise NotFound(f"This path is not served by the proxy; {SUPPORTED}")
    name = match["name"]
    return ModelCall(
        method=method,
        version=match["version"] or DEFAULT_VERSION,
        resource=f"{match['collection']}/{name}" if name else match["collection"],
        dataset=match["dataset"],
        query=read_query(raw_query),
    )


# Without the queries that may hold a key.
_PLAIN_QUERIES = frozenset(("", "alt=sse"))
_plain_call = lru_cache(maxsize=256)(_call)


def _method(match: re.Match[str] | None) -> Method | None:
    if match is None:
        return None
    if match["verb"]:
        return _VERBS.get((match["collection"], match["verb"]))
    if match["collection"] != "models":
        return None
    return Method.GET_MODEL if match["name"] else Method.LIST_MODELS


def read_query(raw: str) -> Query:
    """Read the query string. Raises BadRequest for parameters that hide content, repeat or contradict."""
    if not raw:
        return Query()
    if raw == "alt=sse":
        return _SSE
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=32)
    except ValueError:
        raise BadRequest("The query string cannot be read") from None
    _refuse_hiding(pairs)
    values = {name: value for name, value in pairs if name in ("alt", "$alt", "key")}
    if sum(name in values for name, _ in pairs) != len(values):
        raise BadRequest("The query parameters alt, $alt and key may each be given once")
    alt, int_enums = _alt(values.get("alt"), values.get("$alt"))
    paging = tuple(pair for pair in pairs if pair[0] in _PAGING)
    if "invariant" in "".join(value for _, value in paging).lower():
        raise BadRequest("The query parameters of a listing are not the place for an Invariant key")
    return Query(alt, int_enums, paging, values.get("key") or None)


_SSE = Query(alt="sse")


def _refuse_hiding(pairs: list[tuple[str, str]]) -> None:
    for name, _ in pairs:
        folded = name.lower()
        if folded in _HIDING or folded.removeprefix("$") in _HIDING:
            raise BadRequest(
                "A query parameter that changes what can be checked is not supported; only alt and $alt are"
            )
        if folded.removeprefix("$") in _FOREIGN_CREDENTIALS:
            raise BadRequest("Send the key as x-goog-api-key, as Authorization: Bearer or as ?key=")
        if folded in ("alt", "$alt", "key") and name != folded:
            raise BadRequest("The query parameters are alt, $alt and key, in lower case")


def _alt(alt: str | None, system_alt: str | None) -> tuple[Literal["json", "sse"] | None, bool]:
    if alt not in (None, "json", "sse") or system_alt not in (None, "json", "sse", "json;enum-encoding=int"):
        raise BadRequest('The query parameters alt and $alt take "json" and "sse", $alt also "json;enum-encoding=int"')
    if alt and system_alt:
        raise BadRequest("The query parameters alt and $alt contradict each other; give one")
    chosen = alt or system_alt
    if chosen == "sse":
        return "sse", False
    return ("json" if chosen == "json" else None), chosen == "json;enum-encoding=int"
