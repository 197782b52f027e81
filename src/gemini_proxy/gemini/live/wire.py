"""Read and write the wire of the Live API: WebSocket frames. Those of the model's turn make up one response."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.fields import JsonObject, camel_case, objects
from gemini_proxy.gemini.framing.frames import Frame, Framing
from gemini_proxy.gemini.generate_wire import GENERATE
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.live.frames import (
    HEARD,
    ServerFrame,
    read_client_frame,
    read_server_frame,
    refusal_frame,
    sound_in,
)
from gemini_proxy.gemini.live.request import read_input, read_setup
from gemini_proxy.gemini.parts import strings_in
from gemini_proxy.gemini.refusal import Feedback, Refusal, StreamState, error_body, error_refusal
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.gemini.wire import Payload, ResponseReader, Run

FRAMES_TYPE: Final = "application/x-live-frames"
"""The content type by which an exchange knows that its response comes in frames of a live session."""
FRAME_END: Final = b"\x1e"
"""The separator after each frame in a body of several: no JSON text holds this byte."""
_SPEECH: Final = (0, "speech")
_OPAQUE: Final = frozenset(("data", "thoughtSignature"))
_CANDIDATE_FIELDS: Final = frozenset({"groundingMetadata", "urlContextMetadata"})
_NOT_SAID: Final = frozenset(
    "modelTurn outputTranscription inputTranscription interimInputTranscription turnComplete interrupted".split()
) | frozenset("generationComplete waitingForInput turnCompleteReason interactionStatus".split())
_TRANSCRIPTION: Final = frozenset(("text", "finished", "languageCode", "language_code"))
_TIME: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?s|(?:start|end)(?:Offset|_offset)|words?")
"""Times, and the names of fields."""


class FrameSequence:
    """Split a body into its frames, each of which ends with ``FRAME_END``."""

    def __init__(self, read: Callable[[bytes], ServerFrame] = read_server_frame) -> None:
        self._read = read
        self._begun: list[bytes] = []

    def feed(self, data: bytes) -> list[Frame]:
        if self._begun:
            data = b"".join((*self._begun, data))
            self._begun.clear()
        if data and data.find(FRAME_END) == len(data) - 1:
            # Nearly always there is only one frame.
            return [Frame(data, self._read(data[:-1]).payload)]
        *frames, rest = data.split(FRAME_END)
        if rest:
            self._begun.append(rest)
        return [Frame(frame + FRAME_END, self._read(frame).payload) for frame in frames]

    def end(self) -> list[Frame]:
        if self._begun:
            raise DecodeError("The upstream sent an incomplete frame")
        return []


class TurnReader:
    """Give the payload of a ``GenerateContentResponse`` for each frame of one turn of the model.

    Written text and the transcription of speech are separate texts: a turn with both has two candidates, so that
    neither interrupts the other. Sound and video are left out, since they are far larger than all text and no rule
    reads them; ``ServerFrame.unread`` names them.
    """

    carried_call = False
    has_open_call = False

    def __init__(self) -> None:
        self._indexes: dict[str, int] = {}
        self._seen = {0}

    def read(self, payload: Payload) -> Iterable[Payload]:
        """Return the content of a frame. Raises DecodeError for a form in which text might stay unread."""
        frame = ServerFrame.of(payload)
        said: dict[str, Any] = {}
        if frame.usage is not None:
            said["usageMetadata"] = frame.tokens
        candidates = list(self._candidates(frame))
        if frame.ends:
            reason = _finish_reason(frame)
            candidates += [{"index": index, "finishReason": reason} for index in sorted(self._seen)]
        if candidates:
            said["candidates"] = candidates
        return (said,)

    def end(self) -> Iterable[Payload]:
        return ()

    def refusal_events(
        self, refusal: Refusal, state: StreamState, feedback: Feedback, framing: str, left: int
    ) -> bytes:
        return refusal_frame(refusal.text, completes=True)

    def error_events(self, body: Payload, framing: str) -> bytes:
        """Return nothing: a session that fails is closed, with the reason."""
        return b""

    def _candidates(self, frame: ServerFrame) -> Iterator[JsonObject]:
        message = frame.message
        if frame.kind == "toolCall":
            calls = objects(message.get("functionCalls"), "functionCalls")
            yield self._candidate(0, [{"functionCall": call} for call in calls])
        if frame.kind != "serverContent":
            return
        if "modelTurn" in message:
            yield self._model_turn(message["modelTurn"])
        if "outputTranscription" in message:
            yield self._speech(message["outputTranscription"])
        if not message.keys() <= _NOT_SAID:
            fields = {name: value for name, value in message.items() if name not in _NOT_SAID}
            known = {name: value for name, value in fields.items() if name in _CANDIDATE_FIELDS}
            # No field of a candidate has this name, so rules read all of it as text.
            other = {f"serverContent.{name}": value for name, value in fields.items() if name not in _CANDIDATE_FIELDS}
            yield {"index": 0, **known, **other}

    def _model_turn(self, content: Any) -> JsonObject:
        if not isinstance(content, Mapping):
            raise DecodeError("The upstream sent a modelTurn that is not an object")
        parts = content.get("parts") or []
        parts = [_without_sound(part) for part in (parts if isinstance(parts, list) else [parts])]
        writes = any(isinstance(part, Mapping) and part.get("text") and not part.get("thought") for part in parts)
        index = self._index("text") if writes else self._indexes.get("text", 0)
        return self._candidate(index, [part for part in parts if part], content)

    def _speech(self, transcription: Mapping[str, Any]) -> JsonObject:
        text = transcription.get("text") or ""
        parts: list[JsonObject] = [{"text": text}] if text else []
        # The words a second time, and their speakers.
        beside = {name: value for name, value in transcription.items() if name not in _TRANSCRIPTION}
        again = [said for said in strings_in(beside) if not _TIME.fullmatch(said)]
        candidate = self._candidate(self._index("speech"), parts)
        return {**candidate, "serverContent.outputTranscription": again} if again else candidate

    def _candidate(self, index: int, parts: list[Any], content: Mapping[str, Any] | None = None) -> JsonObject:
        self._seen.add(index)
        rest = {name: value for name, value in (content or {}).items() if name not in ("parts", "role")}
        return {"index": index, "content": {"role": "model", **rest, "parts": parts}}

    def _index(self, kind: str) -> int:
        """Return the candidate for a kind of text. The first kind shares its candidate with calls and thoughts."""
        return self._indexes.setdefault(kind, len(self._indexes))


class LivePlaces:
    """The texts of a server's frames: in parts of the model's turn, and in transcriptions of its speech."""

    def texts(self, payload: Payload) -> Iterator[str]:
        content = payload.get("serverContent") or {}
        for said in (*_parts(content), content.get("outputTranscription")):
            if isinstance(said, Mapping) and isinstance(text := said.get("text"), str):
                yield text

    def run_of(self, path: Path, payload: Payload) -> Run | None:
        match _camel(path):
            case ("serverContent", "outputTranscription", "text"):
                return _SPEECH
            case ("serverContent", "modelTurn", "parts", *place, "text") if len(place) < 2:
                part = _parts(payload["serverContent"])[place[0] if place and isinstance(place[0], int) else 0]
                return (0, "text", isinstance(part, Mapping) and bool(part.get("thought")))
        return None

    def ends(self, run: Run, payload: Payload) -> bool:
        """Return whether a text ends: by its own mark or the turn's, or because something else follows.

        Sound comes between the pieces of a text, and its transcription may come after everything was generated.
        """
        content = payload.get("serverContent")
        if content is None:
            return "toolCall" in payload
        if content.get("turnComplete") or content.get("interrupted"):
            return True
        if run == _SPEECH:
            return bool((content.get("outputTranscription") or {}).get("finished"))
        parts = [part for part in _parts(content) if isinstance(part, Mapping) and sound_in(part) is None]
        return bool(content.get("generationComplete")) or (bool(parts) and "text" not in parts[-1])

    def is_opaque(self, path: Path) -> bool:
        """Return whether a string is none of the model's: media, ids and marks, and what the user was heard to say."""
        names = _camel(path)
        if names[0] == "toolCall":
            return names[-1] == "id" and "args" not in names
        return names[0] != "serverContent" or names[1] in HEARD or names[-1] in _OPAQUE

    def is_json(self, path: Path) -> bool:
        return False


class LiveWire:
    """Frames of a client as requests, of which each adds to a conversation, and those of a server as responses."""

    places = LivePlaces()
    refuses_by_event = True

    def read_request(self, call: ModelCall, body: bytes) -> GeminiRequest:
        frame = read_client_frame(body)
        return read_setup(call, frame) if frame.kind == "setup" else read_input(call, frame)

    def contents_of_messages(self, call: ModelCall, body: bytes) -> tuple[int | None, ...]:
        """Return nothing: earlier text has gone upstream, and cannot be changed any more."""
        return ()

    def content_of(self, path: Path) -> int | None:
        return None

    def is_request_text(self, path: Path) -> bool:
        within = _in_a_request(path)
        return bool(within) and GENERATE.is_request_text(within)

    def stream_type(self, call: ModelCall) -> str:
        return FRAMES_TYPE

    def new_framing(self, content_type: str, *, streams: bool) -> Framing:
        return FrameSequence()

    def new_reader(self, call: ModelCall) -> ResponseReader:
        return TurnReader()

    def error_body(self, status: int, message: str, code: str, details: Sequence[Payload] = ()) -> Payload:
        return error_body(status, message, code, details)

    def refusal_body(self, refusal: Refusal, code: str) -> Payload:
        return error_refusal(refusal, code)


LIVE: Final = LiveWire()


def _in_a_request(path: Path) -> Path:
    """Return where a request of ``generateContent`` has what a client's frame has at ``path``; () where it has none."""
    match _camel(path):
        case ("setup" | "contextUpdate", *within):
            return tuple(within)
        case ("clientContent", "turns", *within):
            return ("contents", *within)
        case ("realtimeInput", "text"):
            return ("contents", "parts", "text")
        case ("toolResponse", "functionResponses", int(), *within) | ("toolResponse", "functionResponses", *within):
            return ("contents", "parts", "functionResponse", *within)
    return ()


def _camel(path: Path) -> Path:
    """Return a path whose first names, which are those of messages and their fields, are in camelCase."""
    return tuple([camel_case(step) if isinstance(step, str) else step for step in path])


def _parts(content: Mapping[str, Any]) -> Sequence[Any]:
    turn = content.get("modelTurn")
    parts = turn.get("parts") if isinstance(turn, Mapping) else None
    return parts if isinstance(parts, list) else [parts]


def _without_sound(part: Any) -> Any:
    sound = sound_in(part)
    if sound is None:
        return part
    rest = {key: value for key, value in part.items() if key != sound.field}
    # No field of a part has this name, so rules read all of it as text, as with fields beside a candidate.
    return {**rest, "inlineData.fields": sound.beside} if sound.beside else rest


def _finish_reason(frame: ServerFrame) -> str:
    if frame.interrupted:
        return "INTERRUPTED"
    reason = frame.message.get("turnCompleteReason")
    return reason if isinstance(reason, str) and reason and not reason.endswith("UNSPECIFIED") else "STOP"
