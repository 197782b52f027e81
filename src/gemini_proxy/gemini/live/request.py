"""Read a Live API client's messages as rules see them: the setup, turns, realtime input, outputs of functions."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.fields import JsonObject, a_string, an_object, field, objects, spellings
from gemini_proxy.gemini.live.frames import ClientFrame
from gemini_proxy.gemini.messages import MessageList
from gemini_proxy.gemini.parts import Reference, Unchecked
from gemini_proxy.gemini.request import (
    GeminiRequest,
    add_settings,
    control_fields,
    request_of,
    request_without_settings,
)

_SESSION_FIELDS: Final = spellings(
    *"sessionResumption contextWindowCompression realtimeInputConfig inputAudioTranscription".split(),
    *"outputAudioTranscription proactivity historyConfig avatarConfig explicitVadSignal".split(),
)
_CONTROL: Final = control_fields(
    """
    sessionResumption.transparent explicitVadSignal proactivity.proactiveAudio
    historyConfig.initialHistoryInClientContent
    contextWindowCompression.triggerTokens contextWindowCompression.slidingWindow.targetTokens
    realtimeInputConfig.activityHandling realtimeInputConfig.turnCoverage
    realtimeInputConfig.automaticActivityDetection.disabled
    realtimeInputConfig.automaticActivityDetection.startOfSpeechSensitivity
    realtimeInputConfig.automaticActivityDetection.endOfSpeechSensitivity
    realtimeInputConfig.automaticActivityDetection.prefixPaddingMs
    realtimeInputConfig.automaticActivityDetection.silenceDurationMs
    inputAudioTranscription.languageCodes outputAudioTranscription.languageCodes
    avatarConfig.avatarName avatarConfig.audioBitrateBps avatarConfig.videoBitrateBps
    """
)
"""Fields of a setup that steer the session and carry no text to the model."""
_BLOB: Final = spellings("data", "mimeType")
_NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_MODEL: Final = re.compile(
    # The location becomes part of a host name, so no other character is allowed.
    r"(?:(?:projects/(?P<project>[a-z0-9][a-z0-9:.-]{0,59})/locations/(?P<location>[a-z0-9-]{1,40})/)?publishers/google/)?"
    rf"models/(?P<model>{_NAME})"
)
_OPENING: Final = re.compile(rb'\s*\{\s*"setup"\s*:\s*\{')


def read_setup(call: ModelCall, frame: ClientFrame) -> GeminiRequest:
    """Read the setup of a session as the beginning of its conversation. Raises BadRequest.

    A handle of an earlier session is a reference to the conversation so far.
    """
    setup = frame.message
    request = request_of(call, {name: value for name, value in setup.items() if name not in _SESSION_FIELDS})
    session = {name: value for name, value in setup.items() if name in _SESSION_FIELDS}
    unchecked = list(request.unchecked)
    resumption = an_object(field(setup, "sessionResumption"), "sessionResumption")
    if resumption is not None:
        if handle := a_string(field(resumption, "handle"), "sessionResumption.handle"):
            unchecked.append(_continued(handle))
        rest = {name: value for name, value in resumption.items() if name != "handle"}
        session = {name: rest if value is resumption else value for name, value in session.items()}
    said = MessageList()
    add_settings(said, "request", session, _CONTROL)
    for name in _SESSION_FIELDS & setup.keys():
        field(setup, name)
    return request._replace(
        messages=(*request.messages, *said.messages),
        stored=(*request.stored, *said.messages),
        settings={**request.settings, **session},
        unchecked=(*unchecked, *said.unchecked),
        streams=True,
    )


def session_name(handle: str) -> str:
    """Return the name under which a handle is stored; a reader of it cannot continue the session."""
    return hashlib.sha256(handle.encode()).hexdigest()


def _continued(handle: str) -> Unchecked:
    address = "sessionResumption.handle"
    reference = Reference("session", session_name(handle), address)
    return Unchecked(f"request.{address}", "the session that this one continues", reference)


def names_in(frame: ClientFrame) -> Mapping[str, str]:
    """Return the model that a setup names, and its project and location if it does. Raises BadRequest if it does not.

    Other calls have these names in their path.
    """
    match = _MODEL.fullmatch(a_string(field(frame.message, "model"), "setup.model"))
    if match is None:
        raise BadRequest('"setup.model" must name a model, such as "models/gemini-live-2.5-flash"')
    return {name: value for name, value in match.groupdict().items() if value is not None}


def transcribes(frame: ClientFrame) -> bool:
    """Return whether a setup asks for transcriptions of the model's speech."""
    return field(frame.message, "outputAudioTranscription") is not None


def with_transcriptions(data: bytes, frame: ClientFrame) -> bytes:
    """Return the setup with a request for transcriptions of both sides' speech. All other bytes stay as they were.

    Raises BadRequest for bytes in which there is no safe place to insert the request.
    """
    names = ("inputAudioTranscription", "outputAudioTranscription")
    added = [name for name in names if field(frame.message, name) is None]
    if not added:
        return data
    opening = _OPENING.match(data)
    if opening is None or any(frame.message.keys() & spellings(name) for name in added):
        raise BadRequest(
            'Write the setup as {"setup": {...}}, without escapes in names and without null transcriptions'
        )
    asked = b",".join(b'"%s":{}' % name.encode() for name in added)
    return data[: opening.end()] + asked + (b"," if frame.message else b"") + data[opening.end() :]


def read_input(call: ModelCall, frame: ClientFrame) -> GeminiRequest:
    """Read any frame but a setup: the messages that it adds, and its content that no rule can read.

    Raises BadRequest.
    """
    media: list[Unchecked] = []
    root = _ROOTS[frame.kind](frame.message, media)
    # Audio frames, which come fifty times a second, have no contents to read.
    request = request_of(call, root) if any(root.values()) else request_without_settings()
    return request._replace(unchecked=(*request.unchecked, *dict.fromkeys(media)))


def _turns(message: JsonObject, media: list[Unchecked]) -> JsonObject:
    return {"contents": field(message, "turns") or []}


def _realtime(message: JsonObject, media: list[Unchecked]) -> JsonObject:
    """Return realtime input as contents. Name sound and pictures as unchecked: they never end, so none are kept."""
    parts: list[JsonObject] = []
    text = a_string(field(message, "text"), "realtimeInput.text")
    if text:
        parts.append({"text": text})
    for name in ("audio", "video", "mediaChunks"):
        for blob in objects(field(message, name), f"realtimeInput.{name}"):
            kind = a_string(field(blob, "mimeType"), "mimeType").partition("/")[0].strip().lower()
            if kind not in ("audio", "video", "image"):
                parts.append({"inlineData": blob})
            elif blob.keys() <= _BLOB and isinstance(blob.get("data", ""), str):
                media.append(Unchecked(f"realtimeInput.{name}", f"realtime {kind}"))
            else:
                raise BadRequest(f'"realtimeInput.{name}" has a field that the proxy does not know')
    for name in ("activityStart", "activityEnd"):
        if an_object(field(message, name), f"realtimeInput.{name}"):
            raise BadRequest(f'"realtimeInput.{name}" has no fields')
    if not isinstance(field(message, "audioStreamEnd"), bool | None):
        raise BadRequest('"realtimeInput.audioStreamEnd" must be true or false')
    return {"contents": [{"role": "user", "parts": parts}] if parts else []}


def _outputs(message: JsonObject, media: list[Unchecked]) -> JsonObject:
    responses = objects(field(message, "functionResponses"), "functionResponses")
    return {"contents": [{"role": "user", "parts": [{"functionResponse": response} for response in responses]}]}


def _context(message: JsonObject, media: list[Unchecked]) -> JsonObject:
    tools = field(message, "tools")
    if isinstance(tools, Mapping) and tools.keys() == {"tools"}:
        tools = tools["tools"]
    return {"systemInstruction": field(message, "systemInstruction"), "tools": tools}


_ROOTS: Final[dict[str, Any]] = {
    "clientContent": _turns,
    "realtimeInput": _realtime,
    "toolResponse": _outputs,
    "contextUpdate": _context,
}
