"""Read the text of a response outside its parts. Every string is text, except in a few control fields.

The fields are Google's own (v1beta ``GenerateContentResponse``, and what google-genai knows beyond it). A field that is
not listed is text as a whole, its names included. A value of an unexpected type hides nothing: its strings are text as
well, and it is named as unchecked content.
"""

import base64
import binascii
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from gemini_proxy.gemini.fields import camel_case
from gemini_proxy.gemini.parts import Unchecked

# Values of control fields. Anything else in such a field is text.
_ENUM: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
WORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
NUMBER: Final = re.compile(r"[0-9.eE+-]{0,32}|NaN|-?Infinity")
TIME: Final = re.compile(r"[0-9TZ:.+-]{0,40}")
ID: Final = re.compile(r"[A-Za-z0-9_.:/+=@-]{0,256}")
TOKEN: Final = re.compile(r"[A-Za-z0-9_.:/+=-]*")

TEXT: Final = "text"
_ENCODED: Final = "base64"
ANYTHING: Final = "anything"


Texts = Mapping[str, Collection[str]]
"""The texts of fields, in order."""


@dataclass(frozen=True, slots=True)
class Apart:
    """Text that is kept under ``name``, not with the field in which it stands."""

    name: str
    shape: Any


# The shape of a field is a leaf as above (of which a pattern matches what is no text), a dict with the fields of an
# object, a tuple with the shape of a list's elements, or Apart.
def _texts(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, TEXT)


_RATINGS: Final = (
    dict.fromkeys(("category", "probability", "severity", "overwrittenThreshold"), _ENUM)
    | dict.fromkeys(("blocked", "probabilityScore", "severityScore"), NUMBER),
)
_COUNTS: Final = ({"modality": _ENUM, "tokenCount": NUMBER},)
_USAGE_KINDS: Final = ("prompt", "cachedContent", "candidates", "toolUsePrompt", "thoughts", "response", "total")
_DETAIL_KINDS: Final = ("prompt", "cache", "candidates", "toolUsePrompt", "response")

RESPONSE: Final[dict[str, Any]] = {
    "responseId": ID,
    "modelVersion": ID,
    "createTime": TIME,
    "usageMetadata": {f"{kind}TokenCount": NUMBER for kind in _USAGE_KINDS}
    | {f"{kind}TokensDetails": _COUNTS for kind in _DETAIL_KINDS}
    | {"trafficType": _ENUM, "serviceTier": WORD},
    "promptFeedback": {"blockReason": _ENUM, "blockReasonMessage": TEXT, "safetyRatings": _RATINGS},
    "modelStatus": {"modelStage": _ENUM, "message": TEXT, "retirementTime": TIME},
    "continuationToken": TOKEN,
    "error": {"code": NUMBER, "message": TEXT, "status": _ENUM, "details": ANYTHING},
}
"""The fields of a response beside ``candidates``."""

_SNIPPETS: Final = (
    _texts("flagContentUri", "googleMapsUri", "relativePublishTimeDescription", "review", "reviewId", "title")
    | {"authorAttribution": _texts("displayName", "photoUri", "uri")},
)
_MAPS: Final = _texts("placeId", "text", "title", "uri") | {
    "placeAnswerSources": {"flagContentUri": TEXT, "reviewSnippet": _SNIPPETS, "reviewSnippets": _SNIPPETS},
    "route": {"distanceMeters": NUMBER, "duration": TEXT, "encodedPolyline": TEXT},
}
_RETRIEVED: Final = _texts("documentName", "fileSearchStore", "mediaId", "text", "title", "uri") | {
    "pageNumber": NUMBER,
    "ragChunk": _texts("text", "chunkId", "fileId") | {"pageSpan": {"firstPage": NUMBER, "lastPage": NUMBER}},
    "customMetadata": (
        _texts("key", "stringValue") | {"numericValue": NUMBER, "stringListValue": {"values": (TEXT,)}},
    ),
}
_SEGMENT: Final = {"startIndex": NUMBER, "endIndex": NUMBER, "partIndex": NUMBER, "text": TEXT}
_GROUNDING: Final[dict[str, Any]] = {
    "webSearchQueries": Apart("groundingMetadata.webSearchQueries", (TEXT,)),
    "imageSearchQueries": Apart("groundingMetadata.imageSearchQueries", (TEXT,)),
    "retrievalQueries": Apart("groundingMetadata.retrievalQueries", (TEXT,)),
    "searchEntryPoint": {"renderedContent": TEXT, "sdkBlob": _ENCODED},
    "groundingChunks": (
        {
            "web": _texts("domain", "title", "uri"),
            "image": _texts("domain", "imageUri", "sourceUri", "title"),
            "maps": Apart("groundingMetadata.maps", _MAPS),
            "retrievedContext": Apart("groundingMetadata.retrievedContext", _RETRIEVED),
        },
    ),
    "groundingSupports": (
        {
            "confidenceScores": (NUMBER,),
            "groundingChunkIndices": (NUMBER,),
            "renderedParts": (NUMBER,),
            "segment": Apart("groundingMetadata.groundingSupports", _SEGMENT),
        },
    ),
    "retrievalMetadata": {"googleSearchDynamicRetrievalScore": NUMBER},
    "googleMapsWidgetContextToken": TOKEN,
    "sourceFlaggingUris": (Apart("groundingMetadata.maps", _texts("flagContentUri", "sourceId")),),
}
_CITATIONS: Final = (
    _texts("license", "title", "uri")
    | {"startIndex": NUMBER, "endIndex": NUMBER}
    | {"publicationDate": dict.fromkeys(("year", "month", "day"), NUMBER)},
)
# Single tokens are not texts: TokenTexts joins them.
_LOGPROB: Final = {"token": re.compile(r"(?s).*"), "tokenId": NUMBER, "logProbability": NUMBER}

CANDIDATE: Final[dict[str, Any]] = {
    "content": {},
    "index": NUMBER,
    "finishReason": _ENUM,
    "finishMessage": TEXT,
    "tokenCount": NUMBER,
    "avgLogprobs": NUMBER,
    "safetyRatings": _RATINGS,
    "citationMetadata": {"citationSources": _CITATIONS, "citations": _CITATIONS},
    "groundingMetadata": _GROUNDING,
    "groundingAttributions": ANYTHING,
    "continuationToken": TOKEN,
    "urlContextMetadata": {
        "urlMetadata": ({"retrievedUrl": Apart("urlContextMetadata.retrievedUrl", TEXT), "urlRetrievalStatus": _ENUM},)
    },
    "logprobsResult": {
        "chosenCandidates": (_LOGPROB,),
        "topCandidates": ({"candidates": (_LOGPROB,)},),
        "logProbabilitySum": NUMBER,
    },
}
"""The fields of a candidate, without its content's parts."""

_NAME: Final = re.compile(r"[A-Za-z_$@][A-Za-z0-9_.@]{0,63}")
_MAX_DEPTH: Final = 64


class FieldTexts:
    """Gather the texts in the fields of one object over all its events: each string once, in order.

    A string stays even if a later event replaces the field: clients have read the earlier event. ``size`` grows with
    every text and every piece of unchecked content.
    """

    __slots__ = ("_said", "_shape", "_too_deep", "_unchecked", "last", "size")

    def __init__(self, shape: Mapping[str, Any]) -> None:
        # Most responses have none of either, and many are open at a time.
        self._said: dict[str, dict[str, None]] | None = None
        self._shape = shape
        self.last: dict[str, Any] = {}
        self._unchecked: dict[str, str] | None = None
        self.size = 0
        self._too_deep = False

    def add(self, key: str, value: Any) -> None:
        """Add a field of an event, its name in either spelling. A value equal to that in ``last`` may be left out."""
        last = self.last.get(key)
        self.last[key] = value
        if _is_control(self._shape.get(key), value):
            return
        if type(value) is dict and type(last) is dict:
            # Most fields come with every event, and hardly anything but counts changes in them.
            value = {
                name: inner
                for name, inner in value.items()
                if (known := last.get(name)) != inner and not (type(known) is type(inner) is int)
            }
            if not value:
                return
        name = camel_case(key)
        shape = self._shape.get(name)
        if shape is None:
            self._unknown(name, name, key, value)
        else:
            self._read(name, name, shape, value)
        if self._too_deep:
            # Comparing it would exceed Python's stack.
            del self.last[key]
            self._too_deep = False

    @property
    def said(self) -> Texts:
        """Return the texts, by field."""
        return self._said or {}

    def declare(self, path: str, reason: str) -> None:
        """Name something as unchecked content."""
        if self._unchecked is None:
            self._unchecked = {}
        if path not in self._unchecked:
            self._unchecked[path] = reason
            self.size += 1

    def say(self, field: str, text: str) -> None:
        """Add a text of a field."""
        if self._said is None:
            self._said = {}
        texts = self._said.setdefault(field, {})
        if text and text not in texts:
            texts[text] = None
            self.size += 1

    @property
    def has_unchecked(self) -> bool:
        """True where something cannot be checked."""
        return self._unchecked is not None

    def unchecked(self, prefix: str) -> list[Unchecked]:
        """Return what cannot be checked, addressed by its path behind ``prefix``."""
        return [Unchecked(f"{prefix}.{path}", reason) for path, reason in (self._unchecked or {}).items()]

    def _read(self, field: str, path: str, shape: Any, value: Any) -> None:
        if value is None:
            return
        if type(shape) is Apart:
            field, shape = shape.name, shape.shape
        if type(shape) is dict:
            self._read_object(field, path, shape, value)
        elif type(shape) is tuple:
            for item in value if type(value) is list else (value,):
                self._read(field, path, shape[0], item)
        elif shape is ANYTHING:
            self._read_anything(field, path, value)
        elif type(value) is str:
            self._read_string(field, path, shape, value)
        elif shape is TEXT or shape is _ENCODED or type(value) is dict or type(value) is list:
            self._misread(field, path, value)

    def _read_object(self, field: str, path: str, shape: dict[str, Any], value: Any) -> None:
        if type(value) is not dict:
            self._misread(field, path, value)
            return
        for key, inner in value.items():
            known = shape.get(key)
            if (type(inner) is int and known is NUMBER) or _is_control(known, inner):
                continue
            name = camel_case(key)
            known = shape.get(name)
            if known is not None:
                self._read(field, f"{path}.{name}", known, inner)
            elif inner is not None:
                self._unknown(field, f"{path}.{name}", key, inner)

    def _read_string(self, field: str, path: str, shape: Any, value: str) -> None:
        if shape is _ENCODED:
            decoded = _decoded(value)
            if decoded is None:
                self._misread(field, path, value)
            else:
                self.say(field, decoded)
        elif shape is TEXT or shape.fullmatch(value) is None:
            self.say(field, value)

    def _misread(self, field: str, path: str, value: Any) -> None:
        """Read a value of another type than the field's."""
        self.declare(path, f"{path.rpartition('.')[2]} of an unknown type")
        self._read_anything(field, path, value)

    def _unknown(self, field: str, path: str, key: str, value: Any) -> None:
        """Read a field that is not listed. Its name is text, unless it looks like one and the value holds no string."""
        if self._read_anything(field, path, value) or not _NAME.fullmatch(key):
            self.say(field, key)

    def _read_anything(self, field: str, path: str, value: Any, depth: int = _MAX_DEPTH) -> bool:
        """Say every string and key in ``value``. Return whether it holds any."""
        if type(value) is str:
            self.say(field, value)
            return True
        if type(value) is not dict and type(value) is not list:
            return False
        if not depth:
            self.declare(path, "JSON that is nested too deeply")
            self._too_deep = True
            return True
        if type(value) is dict:
            for key in value:
                self.say(field, key)
            value = list(value.values())
        hold_any = [self._read_anything(field, path, inner, depth - 1) for inner in value]
        return any(hold_any) or bool(value)


def _is_control(shape: Any, value: Any) -> bool:
    """Return whether a value is plainly what its field controls, as most are: then no text is in it."""
    if type(value) is str:
        return type(shape) is re.Pattern and shape.fullmatch(value) is not None
    return shape is NUMBER and type(value) is int


class TokenTexts:
    """Join the tokens of ``logprobsResult`` to texts: the response again, and the alternatives to its tokens."""

    __slots__ = ("_chosen", "_ranks", "size")

    def __init__(self) -> None:
        self.size = 0
        self._chosen: list[str] = []
        self._ranks: list[list[str]] = []

    def add(self, result: Any) -> None:
        """Add the ``logprobsResult`` of an event."""
        for token in _tokens(_elements(result, "chosenCandidates")):
            self._chosen.append(token)
            self.size += 1
        for position in _elements(result, "topCandidates"):
            for rank, token in enumerate(_tokens(_elements(position, "candidates"))):
                if rank == len(self._ranks):
                    self._ranks.append([])
                self._ranks[rank].append(token)
                self.size += 1

    @property
    def said(self) -> "Texts":
        """Return the tokens that were chosen as one text, and those of each rank as another, by field."""
        if not self.size:
            return {}
        return {
            "logprobsResult.chosenCandidates": ["".join(self._chosen)] if self._chosen else [],
            "logprobsResult.topCandidates": ["".join(tokens) for tokens in self._ranks],
        }


def _elements(source: Any, name: str) -> Iterator[Any]:
    """Yield the values of a repeated field, one or a list; nothing if there is no object."""
    if type(source) is dict:
        for key, value in source.items():
            if camel_case(key) == name:
                yield from value if type(value) is list else (value,)


def _tokens(candidates: Iterator[Any]) -> Iterator[str]:
    for candidate in candidates:
        for token in _elements(candidate, "token"):
            if type(token) is str:
                yield token


def counts_in(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of a ``usageMetadata``: what in it is not text for rules."""
    return {name: count for name, count in usage.items() if type(count) is int and _NAME.fullmatch(name)}


def is_id(value: Any) -> TypeGuard[str]:
    """Return whether a value is a model's version or a response's id, and not text for rules."""
    return type(value) is str and bool(value) and ID.fullmatch(value) is not None


def _decoded(data: str) -> str | None:
    """Decode text from base64. Return None if ``data`` is not that."""
    plain = data.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
