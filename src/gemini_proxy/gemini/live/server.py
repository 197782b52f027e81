"""Translate the frames that a Live server sends in one turn into a single response for rules, hold-back and traces."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.fields import JsonObject, objects
from gemini_proxy.gemini.live.frames import ServerFrame, refusal_frame, sound_in
from gemini_proxy.gemini.parts import strings_in
from gemini_proxy.gemini.refusal import Feedback, Refusal, StreamState
from gemini_proxy.gemini.wire import Payload

_CANDIDATE_FIELDS: Final = frozenset({"groundingMetadata", "urlContextMetadata"})
_NOT_SAID: Final = frozenset(
    "modelTurn outputTranscription inputTranscription interimInputTranscription turnComplete interrupted".split()
) | frozenset("generationComplete waitingForInput turnCompleteReason interactionStatus".split())
_TRANSCRIPTION: Final = frozenset(("text", "finished", "languageCode", "language_code"))
_TIME: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?s|(?:start|end)(?:Offset|_offset)|words?")
"""Times, and the names of fields."""


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
