"""Speak the resumable protocol of file uploads, and read a file's content as rules do. No I/O.

A file is text if its bytes are, whatever its sender declares: then rules read all of it. Of any other file only the
names are read. A file whose declaration does not match its bytes is refused, since someone would read it as declared.
"""

import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.batches import MAX_REQUESTS, with_requests
from gemini_proxy.gemini.fields import JsonObject, a_string, an_object, field
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.parts import Unchecked, is_text_type, strings_in
from gemini_proxy.gemini.request import GeminiRequest, request_without_settings
from gemini_proxy.gemini.strict_json import read_object

STATUS: Final = "x-goog-upload-status"
UPLOAD_URL: Final = "x-goog-upload-url"
GRANULARITY: Final = 262_144
"""Bytes of which every chunk but the last is a multiple, as at Google."""
SEEN_BY_DIGEST: Final = "a file seen only by digest"

_PROTOCOL: Final = "x-goog-upload-protocol"
_COMMAND: Final = "x-goog-upload-command"
_OFFSET: Final = "x-goog-upload-offset"
_LENGTH: Final = "x-goog-upload-header-content-length"
_TYPE: Final = "x-goog-upload-header-content-type"
_NAME: Final = "x-goog-upload-file-name"
_HEADER_NAME: Final = "X-Goog-Upload-File-Name"
_COMMANDS: Final = frozenset({"upload", "finalize", "upload, finalize", "query", "cancel"})
_SIZE: Final = frozenset({"size_bytes", "sizeBytes"})
_CONTROL: Final = _SIZE | {"mime_type", "mimeType"}
_MIME: Final = re.compile(r"[\w!#$&^.+-]{1,100}(?:/[\w!#$&^.+-]{1,100})?(?:\s*;[\x20-\x7e]{0,200})?", re.ASCII)
_CHARSET: Final = re.compile(r";\s*charset\s*=\s*[\"']?(?!(?:utf-?8|us-ascii|ascii)[\"']?\s*(?:;|$))", re.IGNORECASE)
"""A character set in which the bytes say something else than in UTF-8."""
_MARKS: Final = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Marks at the start of a text, the longer ones first: one of them begins with a shorter one."""
_LONGEST_MARK: Final = 4
_NO_TEXT: Final = re.compile(r"(?:image|audio|video|font)/.*")
_LINES: Final = frozenset({"jsonl", "application/jsonl", "application/x-jsonl", "application/x-ndjson", "text/jsonl"})
_SHOWN: Final = 100
"""Characters of a name that an error repeats."""
_FAULT: Final = "Line {} of the file is not a request of a batch"


@dataclass(frozen=True, slots=True)
class Announced:
    """A file as its upload is begun: its type as declared, its size, and the ``names`` that stand beside it."""

    mime_type: str
    size: int
    names: Mapping[str, str]

    @property
    def is_batch(self) -> bool:
        """True if it is declared to hold a request a line."""
        return self._kind in _LINES

    @property
    def is_document(self) -> bool:
        """True if more than its bytes' text may be read from it: a PDF may be all ASCII."""
        return self._kind == "application/pdf"

    @property
    def _kind(self) -> str:
        return self.mime_type.partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file that was received completely: its announcement, the ``start`` request in JSON that holds it, and its
    ``data``.

    ``data`` is None for a file that is not text.
    """

    announced: Announced
    start: bytes
    data: bytes | None

    def changed(self, data: bytes | None, change: Callable[[str], str]) -> "UploadedFile":
        """Return the file with other bytes and their size, and with ``change`` applied to its names.

        The file's name at Gemini stays the same.
        """
        size = self.announced.size if data is None else len(data)
        start, names = self.start, dict(self.announced.names)
        if start.strip():
            root = read_object(start)
            if isinstance(file := root.get("file"), Mapping):
                file = {name: _changed_field(name, value, size, change) for name, value in file.items()}
                start, names = orjson.dumps({**root, "file": file}), _names(file)
        if _HEADER_NAME in self.announced.names:
            names[_HEADER_NAME] = change(self.announced.names[_HEADER_NAME])
        return UploadedFile(replace(self.announced, size=size, names=names), start, data)


def _changed_field(name: str, value: Any, size: int, change: Callable[[str], str]) -> Any:
    if name in _SIZE:
        return str(size) if isinstance(value, str) else size
    return value if name in _CONTROL or name == "name" else _changed(value, change)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(inner, change) for name, inner in value.items()}
    return [_changed(inner, change) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Chunk:
    """The command of a request to an upload: take bytes, finish, or report the offset."""

    command: str
    offset: int

    @property
    def takes_bytes(self) -> bool:
        return self.command.startswith("upload")

    @property
    def finalizes(self) -> bool:
        return self.command.endswith("finalize")


def read_start(headers: Mapping[str, str], body: bytes) -> Announced:
    """Read how an upload begins. Raises BadRequest for another protocol, and for what is said two ways."""
    if (
        headers.get(_PROTOCOL, "").strip().lower() != "resumable"
        or headers.get(_COMMAND, "").strip().lower() != "start"
    ):
        raise BadRequest(
            'Files can only be uploaded by the resumable protocol: begin with "X-Goog-Upload-Command: start"'
        )
    root = read_object(body) if body.strip() else {}
    if unknown := root.keys() - {"file"}:
        raise BadRequest(f'An upload begins with "file" alone, not with {sorted(unknown)[0][:_SHOWN]!r}')
    file = an_object(root.get("file"), "file") or {}
    mime_type = _same(headers.get(_TYPE), field(file, "mimeType"), "type")
    if not _MIME.fullmatch(mime_type):
        raise BadRequest("The type of the file must be declared, such as text/plain")
    size = _same(headers.get(_LENGTH), field(file, "sizeBytes"), "size")
    if not size.isascii() or not size.isdigit() or len(size) > 15:
        raise BadRequest("The size of the file must be declared in X-Goog-Upload-Header-Content-Length")
    names = _names(file)
    if headers.get(_NAME):
        names[_HEADER_NAME] = headers[_NAME]
    return Announced(mime_type, int(size), names)


def read_chunk(headers: Mapping[str, str]) -> Chunk:
    """Read what a request of an upload under way asks for. Raises BadRequest."""
    words = [word.strip().lower() for word in headers.get(_COMMAND, "").split(",")]
    command, offset = ", ".join(words), headers.get(_OFFSET, "0").strip()
    if command not in _COMMANDS:
        raise BadRequest('X-Goog-Upload-Command must be "upload", "upload, finalize", "finalize", "query" or "cancel"')
    if not offset.isascii() or not offset.isdigit() or len(offset) > 15:
        raise BadRequest("X-Goog-Upload-Offset must be a number of bytes")
    return Chunk(command, int(offset))


class TextTest:
    """Tell from the bytes of a file, as they come, whether it is text, in UTF-8 or in the encoding of its byte order
    mark.

    ``encoding`` is "" for bytes that are not text, such as those with a null character.
    """

    def __init__(self) -> None:
        self.encoding = "utf-8"
        self._start = b""
        self._decode: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Take the next bytes, with ``final`` the last."""
        if not self.encoding:
            return
        if self._decode is None:
            data, self._start = self._start + data, self._start + data
            if len(data) < _LONGEST_MARK and not final:
                return
            self.encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
            self._decode = codecs.getincrementaldecoder(self.encoding)("strict")
        try:
            text = self._decode.decode(data, final)
        except UnicodeDecodeError:
            self.encoding = ""
        else:
            self.encoding = "" if "\0" in text else self.encoding


def require_as_declared(announced: Announced, encoding: str) -> None:
    """Raise BadRequest if a file is not of the kind that it is declared as. ``encoding`` is as in ``TextTest``."""
    mime_type = announced.mime_type.partition(";")[0].strip().lower()
    is_text = encoding == "utf-8"
    if encoding and not is_text:
        raise BadRequest(f"The file is text in {encoding.upper()}; send it in UTF-8")
    if is_text and _NO_TEXT.fullmatch(mime_type) and not is_text_type(mime_type):
        raise BadRequest(f"The file is text but declared as {mime_type}; declare it as text/plain")
    if is_text and _CHARSET.search(announced.mime_type):
        raise BadRequest("The file is declared in a character set other than UTF-8; send it in UTF-8")
    if not is_text and (is_text_type(mime_type) or announced.is_batch):
        raise BadRequest(f"The file is declared as {mime_type} but is not text in UTF-8; send it in UTF-8")


def _names(file: JsonObject) -> dict[str, str]:
    return {f"file.{name}": text for name, value in file.items() if name not in _CONTROL and (text := _text(value))}


def read_file(file: UploadedFile) -> GeminiRequest:
    """Read a file as a request: its names, then its text.

    A file of a batch is read as the requests in it. Raises BadRequest if its lines are not requests.
    """
    announced, data = file.announced, file.data
    named = [_user(text, field=name) for name, text in announced.names.items()]
    if data is None:
        return request_without_settings(named, [Unchecked("request.file", SEEN_BY_DIGEST)])
    if announced.is_batch:
        return with_requests(request_without_settings(named), _lines(data), _FAULT)
    unread = [Unchecked("request.file", SEEN_BY_DIGEST)] if announced.is_document else []
    return request_without_settings([*named, _user(data.decode("utf-8-sig"))], unread)


def _user(text: str, **mark: str) -> Message:
    return {"role": "user", "content": [{"type": "text", "text": text, **mark}]}


def _lines(data: bytes) -> Iterator[tuple[int, JsonObject]]:
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        if number > MAX_REQUESTS:
            raise BadRequest(f"The file has more than {MAX_REQUESTS} lines; send several files")
        try:
            yield number, read_object(line)
        except BadRequest as error:
            raise _of_line(number, error) from None


def _of_line(number: int, error: BadRequest) -> BadRequest:
    return BadRequest(f"{_FAULT.format(number)}: {error.message}")


def _same(header: str | None, said: Any, what: str) -> str:
    """Return a value that header and body agree on, or that only one of them has. Raises BadRequest."""
    values = {str(value).strip() for value in (header, said) if value is not None}
    if len(values) > 1:
        raise BadRequest(f"The request has two different values for the {what} of the file")
    return next(iter(values), "")


def _text(value: Any) -> str:
    return "\n".join(strings_in(value)) if not isinstance(value, str) else a_string(value, "file")


def start_headers(announced: Announced) -> dict[str, str]:
    """Return the headers with which an upload begins at Google."""
    named = {_NAME: announced.names[_HEADER_NAME]} if _HEADER_NAME in announced.names else {}
    return {
        _PROTOCOL: "resumable",
        _COMMAND: "start",
        _LENGTH: str(announced.size),
        _TYPE: announced.mime_type,
        **named,
    }


def chunk_headers(offset: int, *, final: bool) -> dict[str, str]:
    """Return the headers of a chunk for Google."""
    return {_COMMAND: "upload, finalize" if final else "upload", _OFFSET: str(offset)}
