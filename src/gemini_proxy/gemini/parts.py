"""One part of a content, read whole: what of it is text, a call, an output, media, or out of sight."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.fields import JsonObject, a_string, an_object, field, objects, snake_case

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
)
_BESIDE = frozenset({"thought", "thoughtSignature", "videoMetadata", "mediaResolution"})
_KNOWN = {spelling for name in (*_KINDS, *_BESIDE) for spelling in (name, snake_case(name))}

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
class Unseen:
    """Something that reaches the model or the client and that no rule could read: where it is, and why."""

    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class Media:
    """A chunk for an inline blob or a file reference; ``unseen`` says why rules cannot read it, None if they can."""

    chunk: Chunk
    unseen: str | None


def inline_media(blob: JsonObject) -> Media:
    """Read an ``inlineData``. Text types are decoded, so that rules read what the model reads."""
    mime = a_string(field(blob, "mimeType"), "inlineData.mimeType").partition(";")[0].strip().lower()
    data = a_string(field(blob, "data"), "inlineData.data")
    if mime.startswith("image/") and mime != "image/svg+xml":
        return Media({"type": "image_url", "image_url": {"url": f"data:{mime};base64,{data}"}}, f"inline {mime}")
    if not _is_text(mime):
        return Media({"type": "file", "file": {"mime_type": mime, "data": data}}, f"inline {mime or 'data'}")
    raw = _decode(data)
    try:
        return Media({"type": "text", "text": raw.decode()}, None)
    except UnicodeDecodeError:
        return Media({"type": "text", "text": raw.decode("latin-1")}, f"inline {mime} that is not UTF-8")


def file_media(reference: JsonObject) -> Media:
    """Read a ``fileData``: its URI is all that is here to read."""
    uri = a_string(field(reference, "fileUri"), "fileData.fileUri")
    mime = a_string(field(reference, "mimeType"), "fileData.mimeType")
    return Media({"type": "file", "file": {"uri": uri, "mime_type": mime}}, "a file behind a URI")


def unknown_payload(part: JsonObject) -> JsonObject:
    """What a part holds beyond the kinds known here."""
    return {name: value for name, value in part.items() if name not in _KNOWN and value is not None}


def strings_in(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys included, in order. The value's depth is bounded by the reader."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)


def output_content(response: JsonObject) -> Any:
    """The content of a tool message made from a ``functionResponse``.

    ``{"result": "text"}`` (or any other single string) is that text; any other value stays as it is, so that rules read
    its strings unescaped. With ``parts`` it is a list: the response first, then the parts in order.
    """
    value = field(response, "response")
    if isinstance(value, Mapping) and len(value) == 1:
        only = next(iter(value.values()))
        value = only if isinstance(only, str) else value
    return value if isinstance(value, (str, Mapping)) else {"response": value} if value is not None else ""


def output_media(response: JsonObject) -> list[Media]:
    """The media in the ``parts`` of a ``functionResponse``, and whatever else those parts hold as text."""
    found: list[Media] = []
    for part in objects(field(response, "parts"), "functionResponse.parts"):
        blob = an_object(field(part, "inlineData"), "inlineData")
        reference = an_object(field(part, "fileData"), "fileData")
        if blob is not None:
            found.append(inline_media(blob))
        if reference is not None:
            found.append(file_media(reference))
        rest = {name: value for name, value in part.items() if snake_case(name) not in ("inline_data", "file_data")}
        if rest:
            found.append(Media({"type": "text", "text": "\n".join(strings_in(rest))}, None))
    return found


def _is_text(mime: str) -> bool:
    return mime.startswith("text/") or mime in _TEXT_TYPES or mime.endswith(("+json", "+xml", "+yaml"))


def _decode(data: str) -> bytes:
    """Decode either base64 alphabet, padded or not, as Google's parser does."""
    plain = "".join(data.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest('"inlineData.data" is not base64.') from None
