"""Read the model call that a request target names, by the table of doors.

The raw path is matched: nothing is percent-decoded, so what was matched is what goes upstream. Any ``%``, ``..``, ``@``
or second colon is outside the alphabet of model names and is a 404.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, Literal
from urllib.parse import parse_qsl, urlencode

from gemini_proxy.errors import BadRequest, MethodNotAllowed, NotFound
from gemini_proxy.gemini.doors import DEFAULT_DUTIES, DOORS, Duty, Host, Match, Method, Row, matches

_DEFAULT_VERSIONS: Final[Mapping[Host, str]] = {"gemini": "v1beta", "vertex": "v1beta1"}
"""The versions that clients mean that leave theirs out (litellm)."""

NOT_SERVED: Final = (
    "The proxy does not serve this path; it serves generateContent and streamGenerateContent on models/, tunedModels/ "
    "and dynamic/, GET models, and the other paths listed in docs/doors.md"
)
"""The message of the 404 for a target that is not in the table of doors."""

_PREFIX = re.compile(r"(?:/api/v1/gateway)?(?:/(?P<dataset>[A-Za-z0-9_-]{1,128}))?/gemini(?=/)")
_SLASHES = re.compile("/{2,}")
_TWO_VERSIONS = re.compile(r"(?:/v1(?:beta1?|alpha)?){2,}(?:/|$)")

_HIDING = frozenset(
    {"fields", "callback", "jsonp", "$.xgafv", "$httpmethod", "$method", "$req", "$ct", "uploadtype", "upload_protocol"}
)
"""Parameters that change what the body or the response means: a guard that reads JSON could see nothing."""
_FOREIGN_CREDENTIALS = frozenset({"access_token", "oauth_token", "bearer_token"})


Alt = Literal["json", "sse", "media"]


@dataclass(frozen=True, slots=True)
class Query:
    """The query parameters that matter. ``key`` is a credential and never goes upstream as a parameter.

    ``passed`` holds the further parameters that the method takes.
    """

    alt: Alt | None = None
    int_enums: bool = False
    passed: tuple[tuple[str, str], ...] = ()
    key: str | None = None

    def __repr__(self) -> str:
        return f"Query(alt={self.alt!r}, int_enums={self.int_enums!r}, key={'***' if self.key else None})"


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A call that the proxy serves, with its ``row`` in the table of doors.

    ``path`` is the path at the upstream; ``names`` holds the values of the braces in its shape. ``host`` is the API
    that serves it: the Gemini API, or Vertex AI in the call's ``location``.
    """

    row: Row
    version: str
    path: str
    names: Mapping[str, str]
    dataset: str | None
    query: Query
    host: Host = "gemini"
    duty: Duty = Duty.GUARD
    method: Method = field(init=False, repr=False, compare=False)
    model: str | None = field(init=False, repr=False, compare=False)
    """The model's name without its collection, None where the path names none."""
    guarded: bool = field(init=False, repr=False, compare=False)
    """True if what goes through is checked, and recorded: not for a door that is passed or carries nothing."""
    generates: bool = field(init=False, repr=False, compare=False)
    """True if the response is what a model wrote, and is checked as well."""
    streams: bool = field(init=False, repr=False, compare=False)
    """True if the path alone says that the response is a stream."""
    upstream_target: str = field(init=False, repr=False, compare=False)
    """The path and query for the upstream, made only of what was matched."""

    def __post_init__(self) -> None:
        # Most calls are read once and made many times (``_plain_call``).
        object.__setattr__(self, "method", self.row.method)
        object.__setattr__(self, "model", self.names.get("model") or self.names.get("endpoint"))
        object.__setattr__(self, "guarded", self.duty is Duty.GUARD and not self.row.bare)
        object.__setattr__(self, "generates", self.row.generates and self.duty is Duty.GUARD)
        object.__setattr__(self, "streams", self.row.streams)
        object.__setattr__(self, "upstream_target", _target(self.path, self.query))

    @property
    def http_method(self) -> str:
        return self.row.http

    @property
    def location(self) -> str | None:
        """Return the location of Vertex AI that the path names; None for the global one."""
        return self.names.get("location")


def _target(path: str, query: Query) -> str:
    pairs = list(query.passed)
    if query.alt:
        pairs.append(("alt", query.alt))
    if query.int_enums:
        pairs.append(("$alt", "json;enum-encoding=int"))
    return f"{path}?{urlencode(pairs)}" if pairs else path


def read_call(http_method: str, target: str, duties: Mapping[str, Duty] = DEFAULT_DUTIES) -> ModelCall:
    """Read ``target``, the request target as it came (path and query, undecoded). ``duties`` are by door.

    Raises NotFound for a path outside the table or behind a closed door, MethodNotAllowed for a known path with another
    HTTP method, and BadRequest for query parameters that are refused.
    """
    path, _, raw_query = target.partition("?")
    read = _plain_call if raw_query in _PLAIN_QUERIES else _call
    call = read(http_method, path, raw_query)
    door = call.row.door
    duty = duties[door]
    if duty is Duty.DENY:
        raise NotFound(_closed(door))
    if call.host == "vertex" and duties["vertex"] is Duty.DENY:
        raise NotFound(_closed("vertex"))
    return call if duty is call.duty else replace(call, duty=duty)


def _call(http_method: str, path: str, raw_query: str) -> ModelCall:
    collapsed = _SLASHES.sub("/", path)
    prefix = _PREFIX.match(collapsed)
    within = collapsed[prefix.end() :] if prefix else collapsed
    match = _match(http_method, within)
    version = match.names.get("v", _DEFAULT_VERSIONS[match.host])
    return ModelCall(
        row=match.row,
        version=version,
        path=match.upstream_path(version),
        names={name: value for name, value in match.names.items() if name != "v"},
        dataset=prefix["dataset"] if prefix else None,
        query=read_query(raw_query, match.row.query, media=match.row.media),
        host=match.host,
    )


# Queries without a key: targets with any other query are not cached.
_PLAIN_QUERIES: Final = frozenset(("", "alt=sse"))
_plain_call = lru_cache(maxsize=256)(_call)


def _match(http_method: str, path: str) -> Match:
    """Return the row of the table that the path is. Raises NotFound and MethodNotAllowed."""
    found = list(matches(path))
    for match in found:
        if match.row.http == http_method:
            return match
    if found:
        raise MethodNotAllowed(f"This path takes {' and '.join(match.row.http for match in found)} only")
    if _TWO_VERSIONS.match(path):
        raise NotFound("The path contains the version twice; give the client a base URL without the version")
    raise NotFound(NOT_SERVED)


def _closed(door: str) -> str:
    """Say how a door is opened, where it can be."""
    opening = [duty for duty in DOORS[door].duties if duty is not Duty.DENY]
    if not opening:
        return f'This path is behind the door "{door}", which the proxy cannot guard and keeps shut'
    unchecked = ", unchecked" if opening[0] is Duty.PASS else ""
    setting = f'doors.{door} = "{opening[0]}"'
    return f'This path is behind the door "{door}", which is shut; the setting {setting} opens it{unchecked}'


def read_query(raw: str, passed: frozenset[str] = frozenset(), *, media: bool = False) -> Query:
    """Read the query string, of which the parameters ``passed`` go upstream as well.

    ``media`` lets ``alt=media`` ask for bytes. Raises BadRequest for parameters that hide content, are repeated, or
    contradict each other.
    """
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
    alt, int_enums = _alt(values.get("alt"), values.get("$alt"), media)
    taken = tuple(pair for pair in pairs if pair[0] in passed)
    if "invariant" in "".join(value for _, value in taken).lower():
        raise BadRequest("A listing does not take an Invariant key as a query parameter; send it in a header")
    return Query(alt, int_enums, taken, values.get("key") or None)


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


def _alt(alt: str | None, system_alt: str | None, media: bool) -> tuple[Alt | None, bool]:
    if alt == "media" and media and not system_alt:
        return "media", False
    if alt not in (None, "json", "sse") or system_alt not in (None, "json", "sse", "json;enum-encoding=int"):
        raise BadRequest('The query parameters alt and $alt take "json" and "sse", $alt also "json;enum-encoding=int"')
    if alt and system_alt:
        raise BadRequest("The query parameters alt and $alt contradict each other; give one")
    chosen = alt or system_alt
    if chosen == "sse":
        return "sse", False
    return ("json" if chosen == "json" else None), chosen == "json;enum-encoding=int"
