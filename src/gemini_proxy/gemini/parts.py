"""Read one part of a content whole: as text, a call, an output, media, or unchecked content."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.fields import JsonObject, a_string, an_object, field, objects, spellings, steers

Chunk = dict[str, Any]
"""One element of a message's content list: ``{"type": "text" | "image_url" | "file", …}``."""

_KINDS = (
    "text",
    "inlineData",
    "fileData",
    "functionCall",
    "functionResponse",
    "executableCode",
    "codeExecutionResult",
    "toolCall",
    "toolResponse",
)
_SIGNATURE = spellings("thoughtSignature")
_PART_CONTROL = spellings("videoMetadata", "mediaResolution") | _SIGNATURE
_MEDIA_CONTROL = spellings("startOffset", "endOffset", "fps", "contentLayers", "level", "numTokens")
"""The fields of ``videoMetadata`` and ``mediaResolution``."""
_KNOWN = spellings(*_KINDS, "thought")

_BLOB = spellings("mimeType", "data")
_REFERENCE = spellings("mimeType", "fileUri")
_OUTPUT_PART = spellings("text", "inlineData", "fileData")
_OUTPUT = spellings("id", "name", "response", "parts")
_OUTPUT_CONTROL = spellings("willContinue", "scheduling")
_FILE = re.compile(
    r"(?:https?://[^/?#]{1,253}/(?:v[a-z0-9]{1,15}/)?)?files/([A-Za-z0-9_-]{1,128})(?::download)?(?:\?alt=media)?"
)
"""A name that the Files API gave, or a URI of it."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)")

_TEXT_TYPES = frozenset(
    {
        "application/json",
        "application/xml",
        "application/javascript",
        "application/x-javascript",
        "application/typescript",
        "application/x-typescript",
        "application/x-python-code",
        "application/x-sh",
        "application/yaml",
        "application/x-yaml",
        "application/toml",
        "application/rtf",
        "application/sql",
        "application/x-ndjson",
        "application/jsonl",
        "application/csv",
    }
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A name in a request for an object that Gemini keeps, such as a ``cache``, a ``file`` or a ``batch``.

    The name is as Gemini gave it (``cachedContents/abc``); it is "" if it is not certain, and then the request is
    refused. ``said`` is the text in the request, such as a file's URI. ``of_requests`` says that it stands for the
    requests of a batch; an unknown one is refused. ``mime_type`` is the type to read a file as, in lower case without
    parameters, or "" if the request leaves it to Gemini.
    """

    kind: str
    name: str
    said: str
    of_requests: bool = False
    mime_type: str = ""


@dataclass(frozen=True, slots=True)
class Unchecked:
    """Content that reaches the model or the client and that no rule can read: its address, and the reason.

    ``reference`` is the name by which the proxy may still know it, None if it has none.
    """

    address: str
    reason: str
    reference: Reference | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """A chunk for an inline blob or a file reference. ``unchecked`` says why rules cannot read it, None if they can.

    The chunk also has the texts beside the data and the type, such as a display name. An image has them as its
    ``text``, which rules read like any other. ``reference`` is that of a file that Gemini keeps.
    """

    chunk: Chunk
    unchecked: str | None
    reference: Reference | None = None

    def unchecked_at(self, address: str) -> list[Unchecked]:
        """Return what rules cannot read of it, which stands at ``address``."""
        return [Unchecked(address, self.unchecked, self.reference)] if self.unchecked else []


def inline_media(blob: JsonObject) -> Media:
    """Read an ``inlineData``. Text types are decoded, so that rules read what the model reads."""
    content_type = a_string(field(blob, "mimeType"), "inlineData.mimeType").lower()
    mime = content_type.partition(";")[0].strip()
    data = a_string(field(blob, "data"), "inlineData.data")
    name = text_beside(blob, _BLOB)
    if mime.startswith("image/") and mime != "image/svg+xml":
        image = {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{data}"}}
        return Media({**image, "text": name} if name else image, f"inline {mime}")
    if not is_text_type(mime):
        file = {"mime_type": mime, "data": data}
        return Media({"type": "file", "file": {**file, "name": name} if name else file}, f"inline {mime or 'data'}")
    text, readable = _text(_decode(data), content_type)
    unchecked = None if readable else f"inline {mime} that is not UTF-8"
    return Media({"type": "text", "text": f"{name}\n{text}" if name else text}, unchecked)


def file_media(reference: JsonObject) -> Media:
    """Read a ``fileData``, of which only the URI is here."""
    uri = a_string(field(reference, "fileUri"), "fileData.fileUri")
    file = {"uri": uri, "mime_type": a_string(field(reference, "mimeType"), "fileData.mimeType")}
    if name := text_beside(reference, _REFERENCE):
        file["name"] = name
    return Media({"type": "file", "file": file}, "a file behind a URI", _file_reference(uri, file["mime_type"]))


def _file_reference(uri: str, mime_type: str) -> Reference | None:
    """Return the reference to a file that Gemini keeps; without its name if the URI can be read in several ways.

    Any other URI is for something that Gemini does not keep.
    """
    if named := _FILE.fullmatch(uri):
        essence = mime_type.partition(";")[0].strip().lower()
        return Reference("file", f"files/{named[1]}", uri, mime_type=essence)
    folded = unquote(uri).strip().lower()
    may_be_one = "generativelanguage" in folded or ("files/" in folded and not _SCHEME.match(folded))
    return Reference("file", "", uri) if may_be_one else None


def unknown_payload(part: JsonObject) -> JsonObject:
    """Return the fields of a part beyond the kinds known here."""
    if _KNOWN.issuperset(part):
        return {}
    return saying({name: value for name, value in part.items() if name not in _KNOWN}, _PART_CONTROL)


def saying(source: JsonObject, control: Set[str]) -> JsonObject:
    """Return the fields of ``source`` that are not null, without those of ``control`` that hold what they are for."""
    return {
        name: value
        for name, value in source.items()
        if value is not None and not (name in control and _is_control(name, value))
    }


def _is_control(name: str, value: Any) -> bool:
    if name in _SIGNATURE:
        return isinstance(value, str)
    if isinstance(value, Mapping):
        return value.keys() <= _MEDIA_CONTROL and all(map(steers, value.values()))
    return steers(value)


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string, key and number of a JSON value, in order. The reader has bounded the value's depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)


def text_beside(source: JsonObject, known: Set[str], control: Set[str] = frozenset()) -> str:
    """Return the strings of the fields of ``source`` whose names are not ``known``, a line each.

    Fields named in ``control`` are left out if their values have the expected form.
    """
    if source.keys() <= known:
        return ""
    return "\n".join(strings_in([value for name, value in saying(source, control).items() if name not in known]))


def output_content(response: JsonObject, plain: str) -> Any:
    """Return the content of a tool message for a ``functionResponse`` or the like.

    If the response has only the key ``plain``, the content is that key's text, list or object. Any other response is
    the content as it is, so that rules read its strings unescaped.
    """
    value = field(response, "response")
    if isinstance(value, Mapping) and len(value) == 1 and isinstance(only := value.get(plain), (str, list, Mapping)):
        return only
    return value if isinstance(value, (str, Mapping)) else {"response": value} if value is not None else ""


def output_media(response: JsonObject) -> list[Media]:
    """Return the media in the ``parts`` of a ``functionResponse``, and as text whatever else is in them or beside."""
    media: list[Media] = []
    for part in objects(field(response, "parts"), "functionResponse.parts"):
        blob = an_object(field(part, "inlineData"), "inlineData")
        reference = an_object(field(part, "fileData"), "fileData")
        if blob is not None:
            media.append(inline_media(blob))
        if reference is not None:
            media.append(file_media(reference))
        texts = [a_string(field(part, "text"), "text"), text_beside(part, _OUTPUT_PART, _PART_CONTROL)]
        media.extend(Media({"type": "text", "text": text}, None) for text in texts if text)
    if text := text_beside(response, _OUTPUT, _OUTPUT_CONTROL):
        media.append(Media({"type": "text", "text": text}, None))
    return media


def is_text_type(mime: str) -> bool:
    """Return whether a media type without parameters, in lower case, is of text."""
    return mime.startswith("text/") or mime in _TEXT_TYPES or mime.endswith(("+json", "+xml", "+yaml"))


def _text(raw: bytes, mime: str) -> tuple[str, bool]:
    """Return the text, and whether readers of ``mime`` read the same: UTF-16 may look like UTF-8 full of NULs."""
    charset = _CHARSET.search(mime)
    foreign = charset is not None and charset[1] not in ("utf-8", "utf8", "us-ascii", "ascii")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1"), False
    return text, not foreign and "\0" not in text


def _decode(data: str) -> bytes:
    """Decode either base64 alphabet, padded or not, as Google's parser does."""
    plain = "".join(data.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest('"inlineData.data" is not base64') from None
