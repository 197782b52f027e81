"""Read the frames of the Live API, and write those that the proxy itself sends to the client and to the model.

Each is a JSON object with one message, and comes as text or as binary. A frame with two messages, or with an unknown
one, is refused: the proxy and Google could read it differently.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, cast

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.fields import JsonObject, camel_case, field, objects, spellings
from gemini_proxy.gemini.parts import strings_in
from gemini_proxy.gemini.refusal import ascii_json
from gemini_proxy.gemini.response_fields import counts_in
from gemini_proxy.gemini.strict_json import read_object

ClientKind = Literal["setup", "clientContent", "realtimeInput", "toolResponse", "contextUpdate"]
ServerKind = Literal[
    "setupComplete",
    "serverContent",
    "toolCall",
    "toolCallCancellation",
    "goAway",
    "sessionResumptionUpdate",
    "voiceActivity",
    "voiceActivityDetectionSignal",
    "usageMetadata",
]
_CLIENT: Final = spellings("setup", "clientContent", "realtimeInput", "toolResponse", "contextUpdate")
_SERVER: Final = spellings(
    *"setupComplete serverContent toolCall toolCallCancellation goAway sessionResumptionUpdate".split(),
    *"voiceActivity voiceActivityDetectionSignal".split(),
)
_USAGE: Final = spellings("usageMetadata")
_FIELDS: Final = {
    "clientContent": spellings("turns", "turnComplete"),
    "realtimeInput": spellings(
        *"text audio video mediaChunks audioStreamEnd activityStart activityEnd".split(),
    ),
    "toolResponse": spellings("functionResponses"),
    "contextUpdate": spellings("systemInstruction", "tools"),
}
"""The fields of a client's messages. A setup is read like a request, whatever the names of its fields."""
_FLAGS: Final = frozenset({"turnComplete", "interrupted", "generationComplete", "waitingForInput"})
HEARD: Final = frozenset({"inputTranscription", "interimInputTranscription"})
"""The fields that hold what the model heard: transcriptions of the user's speech."""
_MARKS: Final = _FLAGS | HEARD | {"turnCompleteReason", "interactionStatus"}
"""Fields of a ``serverContent`` in which the model says nothing."""
_TRANSCRIPTION_MARKS: Final = spellings("finished", "languageCode")
"""Fields of a transcription that hold no text."""
_BLOB: Final = spellings("inlineData")
_BLOB_FIELDS: Final = spellings("data", "mimeType")
_MIME: Final = re.compile(r"[a-z0-9]{1,20}/[a-zA-Z0-9.+-]{1,60}(?:; ?[a-z]{1,20}=[a-zA-Z0-9.-]{1,20}){0,4}")
_LONGEST_TOKEN: Final = 4096
_LONGEST_REASON: Final = 123
"""Bytes of a close frame's reason (RFC 6455, section 5.5)."""


@dataclass(frozen=True, slots=True)
class ClientFrame:
    """A message of the client. Its fields are known ones, in either spelling."""

    kind: ClientKind
    message: JsonObject


@dataclass(frozen=True, slots=True)
class FunctionName:
    """The id and name of a function call, which its response repeats."""

    id: str
    name: str


class ServerFrame(NamedTuple):
    """A message of the server, its own fields in camelCase, and the ``usage`` beside it.

    A frame with usage alone has the kind ``usageMetadata`` and an empty message.
    """

    kind: ServerKind
    message: JsonObject
    usage: JsonObject | None = None

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> "ServerFrame":
        """Return the frame whose ``payload`` this is."""
        usage = payload.get("usageMetadata")
        for kind, message in payload.items():
            if kind != "usageMetadata":
                return cls(cast("ServerKind", kind), message, usage)
        return cls("usageMetadata", {}, usage)

    @property
    def payload(self) -> Mapping[str, Any]:
        """Return the frame as one JSON object, its own fields in camelCase."""
        payload: dict[str, Any] = {} if self.kind == "usageMetadata" else {self.kind: self.message}
        if self.usage is not None:
            payload["usageMetadata"] = self.usage
        return payload

    @property
    def says(self) -> bool:
        """True if the model says something in it, or calls a function."""
        return self.kind == "toolCall" or (self.kind == "serverContent" and not self.message.keys() <= _MARKS)

    @property
    def turn_complete(self) -> bool:
        return self.kind == "serverContent" and bool(self.message.get("turnComplete"))

    @property
    def interrupted(self) -> bool:
        return self.kind == "serverContent" and bool(self.message.get("interrupted"))

    @property
    def ends(self) -> bool:
        """True if the model waits after it: its turn is over, was interrupted, or needs outputs of functions."""
        return self.kind == "toolCall" or self.turn_complete or self.interrupted

    @property
    def handle(self) -> str:
        """Return the handle with which another session can continue from here; "" if the frame gives none."""
        handle = self.message.get("newHandle") if self.kind == "sessionResumptionUpdate" else None
        return str(handle) if handle else ""

    @property
    def heard(self) -> str:
        """Return the user's speech, as far as this frame transcribes it."""
        transcription = self.message.get("inputTranscription") if self.kind == "serverContent" else None
        return transcription.get("text") or "" if isinstance(transcription, dict) else ""

    @property
    def sound(self) -> str:
        """Return the type of the sound or video in the frame; "" if there is none."""
        turn = self.message.get("modelTurn")
        parts = turn.get("parts") if type(turn) is dict else None
        for part in parts if type(parts) is list else (parts,):
            if (found := sound_in(part)) is not None:
                return found.mime.partition(";")[0]
        return ""

    @property
    def only_sound(self) -> bool:
        """True if there is nothing but sound or moving pictures in it, so that no rule has anything to read."""
        if self.kind != "serverContent" or self.usage is not None or self.message.keys() != {"modelTurn"}:
            return False
        turn = self.message["modelTurn"]
        parts = turn.get("parts") if type(turn) is dict and turn.keys() <= {"parts", "role"} else None
        if type(parts) is not list:
            return False
        found = [(part, sound_in(part)) for part in parts]
        return all(sound is not None and not sound.beside and len(part) == 1 for part, sound in found)

    def unread(self, *, transcribed: bool) -> Mapping[str, str]:
        """Return the fields that no rule reads, by their paths, with the reasons.

        ``transcribed`` says that the server was asked for transcriptions of the model's speech.
        """
        if self.kind != "serverContent":
            return {}
        unread = {}
        if sound := self.sound:
            unread["modelTurn"] = f"inline {sound}{', of which rules read the transcription' if transcribed else ''}"
        if "interimInputTranscription" in self.message:
            unread["interimInputTranscription"] = "speech of the user, half heard"
        if not self.message.get("inputTranscription", {}).keys() <= {"text", "finished"}:
            unread["inputTranscription"] = "times and speakers of a transcription"
        return unread

    @property
    def tokens(self) -> JsonObject:
        """Return the counts of ``usage``, under their names in ``generateContent``."""
        counts = counts_in(self.usage or {})
        said = counts.pop("responseTokenCount", None)
        return counts if said is None else {**counts, "candidatesTokenCount": said}

    @property
    def calls(self) -> tuple[FunctionName, ...]:
        """Return the functions that the frame calls."""
        return _functions(self.message.get("functionCalls")) if self.kind == "toolCall" else ()


class Sound(NamedTuple):
    """Sound or video: the field of a part that holds it, its type, and the other fields of the blob in ``beside``."""

    field: str
    mime: str
    beside: Mapping[str, Any]


def sound_in(part: Any) -> Sound | None:
    """Return the sound or video that a part of the model's turn holds."""
    if type(part) is dict and not _BLOB.isdisjoint(part):
        for name in part.keys() & _BLOB:
            blob = part[name]
            mime = (blob.get("mimeType") or blob.get("mime_type")) if type(blob) is dict else None
            if type(mime) is str and mime.startswith(("audio/", "video/")):
                return Sound(name, mime, {key: value for key, value in blob.items() if not _is_blob(key, value)})
    return None


def _is_blob(name: str, value: Any) -> bool:
    """Return whether a field of a sound blob is its data or its type. Rules read any other text in it."""
    if type(value) is not str or name not in _BLOB_FIELDS:
        return False
    return name == "data" or _MIME.fullmatch(value) is not None


def read_client_frame(data: bytes) -> ClientFrame:
    """Read a client's frame. Raises BadRequest unless it holds one known message with known fields."""
    root = _read(data)
    if len(root) != 1 or not root.keys() <= _CLIENT:
        raise BadRequest(
            "A frame must hold exactly one of setup, clientContent, realtimeInput, toolResponse and contextUpdate"
        )
    name, message = next(iter(root.items()))
    kind = cast("ClientKind", camel_case(name))
    if type(message) is not dict:
        raise BadRequest(f'"{kind}" must be an object')
    if kind in _FIELDS and not message.keys() <= _FIELDS[kind]:
        raise BadRequest(f'"{kind}" has a field that the proxy does not know')
    return ClientFrame(kind, message)


def answered_functions(frame: ClientFrame) -> tuple[FunctionName, ...]:
    """Return the functions whose outputs a ``toolResponse`` holds. Raises BadRequest as its reader does."""
    return _functions(field(frame.message, "functionResponses"))


def read_server_frame(data: bytes) -> ServerFrame:
    """Read a server's frame. Raises DecodeError unless it holds one known message, with usage beside it or without."""
    try:
        root = _read(data)
    except BadRequest as error:
        raise DecodeError(f"The upstream sent a frame that cannot be read: {error.message}") from None
    usage = None
    for name in root.keys() & _USAGE:
        usage = _camel(_object(name, root.pop(name)))
        _check_control("usageMetadata", usage)
    if not root and usage is not None:
        return ServerFrame("usageMetadata", {}, usage)
    if len(root) != 1 or not root.keys() <= _SERVER:
        raise DecodeError("The upstream sent a frame that does not hold exactly one known message")
    name, message = next(iter(root.items()))
    kind = cast("ServerKind", camel_case(name))
    fields = _camel(_object(name, message))
    if kind == "serverContent":
        _check_marks(fields)
    elif kind == "toolCall":
        _check_calls(fields)
    else:
        _check_control(kind, fields)
    return ServerFrame(kind, fields, usage)


def refusal_frame(text: str, *, completes: bool) -> bytes:
    """Return a turn of the model that says ``text``, which every client shows, or a piece of such a turn."""
    content: dict[str, Any] = {"modelTurn": {"role": "model", "parts": [{"text": text}]}}
    if completes:
        content["turnComplete"] = True
    return ascii_json({"serverContent": content})


def tool_errors(functions: Iterable[FunctionName], text: str) -> bytes:
    """Return the outputs of ``functions`` as errors: a model whose call is never answered waits for ever."""
    responses = []
    for function in functions:
        response: dict[str, Any] = {"id": function.id} if function.id else {}
        responses.append({**response, "name": function.name, "response": {"error": text}})
    return ascii_json({"toolResponse": {"functionResponses": responses}})


def go_away(seconds: float) -> bytes:
    """Return the notice that the session ends in this many seconds; clients then open another one."""
    return ascii_json({"goAway": {"timeLeft": f"{seconds:g}s"}})


def close_reason(text: str) -> bytes:
    """Return ``text`` as the reason of a close frame, shortened to fit."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= _LONGEST_REASON:
        return raw
    return raw[: _LONGEST_REASON - 3].decode("utf-8", "ignore").encode() + b"..."


def _read(data: bytes) -> dict[str, Any]:
    try:
        return read_object(data)
    except BadRequest as error:
        raise BadRequest(error.message.replace("request body", "frame")) from None


def _object(name: str, value: Any) -> JsonObject:
    if type(value) is not dict:
        raise DecodeError(f"The upstream sent {name} that is not an object")
    return value


def _camel(message: JsonObject) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in message.items():
        camel = camel_case(name)
        if camel in fields:
            raise DecodeError("The upstream sent a field in two spellings")
        if value is not None:
            fields[camel] = value
    return fields


def _check_marks(content: JsonObject) -> None:
    """Refuse marks with unexpected values: no rule reads them."""
    for name in content.keys() & _FLAGS:
        if type(content[name]) is not bool:
            raise DecodeError(f"The upstream sent {name} that is neither true nor false")
    for name in content.keys() & (HEARD | {"outputTranscription"}):
        text = _object(name, content[name]).get("text")
        if text is not None and type(text) is not str:
            raise DecodeError(f"The upstream sent {name} whose text is not a string")
        for mark in content[name].keys() & _TRANSCRIPTION_MARKS:
            _check_control(f"{name}.{mark}", content[name][mark])
    if type(turn := content.get("modelTurn")) is dict:
        _check_control("modelTurn.role", turn.get("role"))
    for name in ("turnCompleteReason", "interactionStatus"):
        _check_control(name, content.get(name, ""))


def _check_calls(message: JsonObject) -> None:
    if not message.keys() <= {"functionCalls"}:
        raise DecodeError("The upstream sent a toolCall with a field that the proxy does not know")
    try:
        calls = objects(message.get("functionCalls"), "functionCalls")
        _functions(calls)
    except BadRequest as error:
        raise DecodeError(f"The upstream sent a toolCall that cannot be read: {error.message}") from None
    for call in calls:
        if any(call.get(name) for name in spellings("partialArgs", "willContinue")):
            raise DecodeError("The upstream sent a function call in pieces, which a live session cannot check")


def _check_control(kind: str, value: Any) -> None:
    """Refuse text where only names, ids and times belong: no rule would read it."""
    for text in strings_in(value):
        if len(text) > _LONGEST_TOKEN or any(character.isspace() for character in text):
            raise DecodeError(f"The upstream sent {kind} with text in it")


def _functions(values: Any) -> tuple[FunctionName, ...]:
    functions = objects(values, "functions")
    if not all(isinstance(function.get(name, ""), str | None) for function in functions for name in ("id", "name")):
        raise BadRequest("The id and the name of a function must be strings")
    return tuple(FunctionName(function.get("id") or "", function.get("name") or "") for function in functions)
