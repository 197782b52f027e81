"""The table of doors: every method of the API that is known, what the proxy does about it, and who reads it.

A door is what the configuration opens and closes, a row one method behind it. What is in no row is not served.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal


class Duty(StrEnum):
    """What the proxy does about a door: check what goes through it, let it through unread, or keep it shut."""

    GUARD = "guard"
    PASS = "pass"  # noqa: S105
    DENY = "deny"


class Method(StrEnum):
    """What a call does. The values are Google's verbs, or ``{resource}.{action}`` where the path has no verb."""

    GENERATE = "generateContent"
    STREAM = "streamGenerateContent"
    COUNT_TOKENS = "countTokens"
    EMBED = "embedContent"
    BATCH_EMBED = "batchEmbedContents"
    LIST_MODELS = "listModels"
    GET_MODEL = "getModel"


@dataclass(frozen=True, slots=True)
class Door:
    """What ``doors.{name}`` in the configuration may be, and is by default."""

    name: str
    about: str
    duties: tuple[Duty, ...]
    default: Duty


_GUARDED: Final = (Duty.GUARD, Duty.DENY)
_PASSED: Final = (Duty.PASS, Duty.DENY)

_DOORS: Final = (
    Door("generate", "what models write", _GUARDED, Duty.GUARD),
    Door("tokens", "counts of tokens", _GUARDED, Duty.GUARD),
    Door("embed", "embeddings", _GUARDED, Duty.GUARD),
    Door("models", "which models there are", _PASSED, Duty.PASS),
)
DOORS: Final[Mapping[str, Door]] = MappingProxyType({door.name: door for door in _DOORS})
DEFAULT_DUTIES: Final[Mapping[str, Duty]] = MappingProxyType({door.name: door.default for door in _DOORS})

Transport = Literal["json", "bytes", "websocket"]


@dataclass(frozen=True, slots=True)
class Row:
    """One method: ``http`` on any of ``paths`` is a call of it, behind ``door``.

    ``wire`` names what reads it (``gemini.wires``). ``generates`` says that the response is checked as well, and
    ``streams`` that it is a stream whatever the body says. ``bare`` is a method with nothing of a user's in it, neither
    checked nor recorded. ``query`` names the parameters that go upstream beside those of every call. ``transport`` says
    what the bodies are: JSON, any bytes, or frames of a WebSocket.

    In a path ``{v}`` is the version, which clients may leave out where it is a step of its own, and any other name in
    braces is one of ``names`` of the call.
    """

    method: Method
    door: str
    http: str
    paths: tuple[str, ...]
    wire: str = "generate"
    generates: bool = False
    streams: bool = False
    bare: bool = False
    query: frozenset[str] = frozenset()
    transport: Transport = "json"


_PAGES: Final = frozenset({"pageSize", "pageToken"})


def _verb(method: Method, *collections: str) -> tuple[str, ...]:
    return tuple(f"/{{v}}/{collection}/{{model}}:{method}" for collection in collections)


_ROWS: Final = (
    Row(
        Method.GENERATE,
        "generate",
        "POST",
        _verb(Method.GENERATE, "models", "tunedModels", "dynamic"),
        generates=True,
    ),
    Row(
        Method.STREAM,
        "generate",
        "POST",
        _verb(Method.STREAM, "models", "tunedModels", "dynamic"),
        generates=True,
        streams=True,
    ),
    Row(Method.COUNT_TOKENS, "tokens", "POST", _verb(Method.COUNT_TOKENS, "models")),
    Row(Method.EMBED, "embed", "POST", _verb(Method.EMBED, "models")),
    Row(Method.BATCH_EMBED, "embed", "POST", _verb(Method.BATCH_EMBED, "models")),
    Row(Method.LIST_MODELS, "models", "GET", ("/{v}/models",), bare=True, query=_PAGES),
    Row(Method.GET_MODEL, "models", "GET", ("/{v}/models/{model}",), bare=True),
)
ROWS: Final[Mapping[Method, Row]] = MappingProxyType({row.method: row for row in _ROWS})

_NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_VERSION: Final = "v1beta1|v1beta|v1alpha|v1"
_ALPHABETS: Final[Mapping[str, str]] = {
    # Built into a host name: no other character may be in it.
    "location": "[a-z0-9-]{1,40}",
    "project": "[a-z0-9][a-z0-9:.-]{0,59}",
    "id": "[A-Za-z0-9_-][A-Za-z0-9._-]{0,511}",
    "file_path": "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,15}",
}
"""What the names in paths are made of. ``%``, ``..`` and ``@`` are in none of them."""

_STEP: Final = re.compile(r"(/?)\{([a-z_]+)\}")
_FIRST: Final = re.compile(rf"(?:/(?:{_VERSION})(?=/))?/([A-Za-z0-9_$.-]+)")


def _pattern(path: str) -> re.Pattern[str]:
    def alphabet(match: re.Match[str]) -> str:
        slash, name = match.groups()
        if name == "v":
            return f"(?:/(?P<v>{_VERSION}))?" if slash else f"(?P<v>{_VERSION})"
        return f"{slash}(?P<{name}>{_ALPHABETS.get(name, _NAME)})"

    pieces = re.split(r"(/?\{[a-z_]+\})", path)
    return re.compile("".join(_STEP.sub(alphabet, piece) if "{" in piece else re.escape(piece) for piece in pieces))


@dataclass(frozen=True, slots=True)
class Match:
    """A path that is one of a row's: ``names`` are what stands in its braces, the version only where it was given."""

    row: Row
    path: str
    names: Mapping[str, str]

    def upstream_path(self, version: str) -> str:
        """Return the path with ``version``, made only of the table and the names."""
        return self.path.format(**{**self.names, "v": version})


def _indexed() -> Mapping[str, list[tuple[Row, str, re.Pattern[str]]]]:
    found: dict[str, list[tuple[Row, str, re.Pattern[str]]]] = {}
    for row in _ROWS:
        for path in row.paths:
            first = path.removeprefix("/{v}").split("/")[1].partition(":")[0]
            found.setdefault(_first_word(first), []).append((row, path, _pattern(path)))
    return found


def _first_word(step: str) -> str:
    return step.partition("{")[0].partition(":")[0]


_BY_FIRST: Final = _indexed()


def matches(path: str) -> Iterator[Match]:
    """Yield the rows that ``path`` is one of, which differ in their HTTP method. The path is without a prefix of ours.

    The raw path is matched: nothing is percent-decoded, so what was matched is what goes upstream.
    """
    first = _FIRST.match(path)
    for row, shape, pattern in _BY_FIRST.get(first[1], ()) if first else ():
        if match := pattern.fullmatch(path):
            yield Match(row, shape, {name: value for name, value in match.groupdict().items() if value is not None})
