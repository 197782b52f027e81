"""Read the responses of the Interactions API: whole interactions, and the events of a stream of steps.

Either becomes payloads of a ``GenerateContentResponse`` with one candidate, whose parts are the steps.

A refusal within a stream has the form that clients show and do not resume. Open steps are stopped, and a step of the
model says why: clients that show text show it. An ``error`` event follows for programs: google-genai yields it, and
Google's agent kit turns it into an error of the turn; it would take ``interaction.completed`` for a successful end. A
refusal before the first byte is HTTP 400, as in the rest of the API.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.candidates import Candidate
from gemini_proxy.gemini.fields import a_string, an_object
from gemini_proxy.gemini.interactions.steps import (
    Part,
    annotation_parts,
    beside,
    call_fields,
    call_part,
    content_parts,
    contents_parts,
    input_parts,
    is_client_call,
    is_content,
    step_parts,
    step_type,
    texts_beside,
)
from gemini_proxy.gemini.parts import strings_in
from gemini_proxy.gemini.refusal import Feedback, Refusal, StreamState, ascii_json
from gemini_proxy.gemini.response_fields import ANYTHING, ID, NUMBER, TEXT, TIME, TOKEN, WORD, is_id
from gemini_proxy.gemini.strict_json import read_object
from gemini_proxy.gemini.wire import Payload

_TOKENS: Final = ({"modality": WORD, "tokens": NUMBER},)
_USAGE: Final = {f"{kind}TokensByModality": _TOKENS for kind in ("cached", "input", "output", "toolUse")} | {
    "groundingToolCount": ({"type": WORD, "count": NUMBER},)
}
_COUNTS: Final = {
    "total_input_tokens": "promptTokenCount",
    "total_output_tokens": "candidatesTokenCount",
    "total_thought_tokens": "thoughtsTokenCount",
    "total_cached_tokens": "cachedContentTokenCount",
    "total_tool_use_tokens": "toolUsePromptTokenCount",
    "total_tokens": "totalTokenCount",
}
_EVENT: Final = {
    "eventType": ID,
    "eventId": ID,
    "index": NUMBER,
    "interactionId": ID,
    "status": WORD,
    "continuationToken": TOKEN,
    "usage": _USAGE,
    "stepUsage": _USAGE,
    "metadata": {"totalUsage": _USAGE},
}
"""The fields of an event beside what it is about."""
_INTERACTION: Final = {
    "status": WORD,
    "object": WORD,
    "role": WORD,
    "serviceTier": WORD,
    "created": TIME,
    "updated": TIME,
    "continuationToken": TOKEN,
    "usage": _USAGE,
    "errors": ({"code": TEXT, "message": TEXT},),
    "responseModalities": (WORD,),
    "generationConfig": ANYTHING,
    "systemInstruction": TEXT,
    "tools": ANYTHING,
} | dict.fromkeys(
    ("id", "model", "agent", "previousInteractionId", "cachedContent", "environmentId", "continuationIds"), ID
)
"""The fields of an interaction beside its steps."""
_FINISHED: Final = {"completed": "STOP", "requires_action": "STOP"}
_OUTPUTS: Final = ("output_audio", "output_image", "output_video")
_READ: Final = frozenset(("input", "steps", "output_text", *_OUTPUTS))
_MEDIA: Final = frozenset(("inlineData", "fileData"))
_OF_STEPS: Final = frozenset(("event_type", "index", "event_id"))
_BLOCKED: Final = "content_blocked"
"""The code of Google's own refusals on this API."""
_DONE: Final = b"event: done\ndata: [DONE]\n\n"
_LIFE: Final = frozenset(("interaction.created", "interaction.completed", "interaction.status_update"))


@dataclass(slots=True)
class _StreamedStep:
    """A step of a stream: its initial ``head``, and the ``parts`` received for it.

    ``fragments`` holds the arguments so far of a call for the client, and is None for any other step. ``told`` says
    that the call of a provider was passed to the merger.
    """

    kind: str
    head: Mapping[str, Any]
    fragments: list[str] | None = None
    told: bool = False
    parts: list[Part] = field(default_factory=list)


class InteractionReader:
    """Read the frames of one response in order, as ``wire.ResponseReader`` says.

    A call for the client is passed on once its step has stopped. Content that an interaction repeats at the end of its
    stream is passed on again only where it differs from what came before.
    """

    def __init__(self) -> None:
        self.carried_call = False
        self._steps: dict[int, _StreamedStep] = {}
        self._marks: list[tuple[int, int, bool]] = []
        """For each step that begins (True) or stops (False): the number of its frame, and its index."""
        self._frames = 0
        self._echoes: list[str] = []
        self._open: set[int] = set()
        """The steps that are calls for the client whose arguments are not all there."""
        self._compared = False
        """What an interaction repeats was compared with what came before, which is done once: it takes that long."""

    @property
    def has_open_call(self) -> bool:
        """True while a call for the client has begun whose arguments are not all there."""
        return bool(self._open)

    def read(self, payload: Payload) -> Iterable[Payload]:
        """Return the content of a frame. Raises DecodeError for a form in which some of it might go unread."""
        self._frames += 1
        self.carried_call = False
        try:
            if "event_type" not in payload and not payload.keys().isdisjoint(("step", "delta")):
                raise DecodeError("The upstream sent an event that does not say its type")
            told = self._event(payload) if "event_type" in payload else self._interaction(payload, whole=True)
        except BadRequest as error:
            raise DecodeError(f"The upstream's response cannot be read: {error.message}") from None
        if self._echoes:
            told["interaction.userInput"] = self._echoes
            self._echoes = []
        return (told,) if told else ()

    def end(self) -> Iterable[Payload]:
        """Return nothing: all was told. Raises DecodeError for a call that broke off, which no rule can read."""
        if self.has_open_call:
            raise DecodeError("The upstream's stream ended inside the arguments of a function call")
        return ()

    def refusal_events(
        self, refusal: Refusal, state: StreamState, feedback: Feedback, framing: str, left: int
    ) -> bytes:
        """Return the events that end a refused stream of which ``left`` frames have left.

        With ``feedback = "none"`` there is no ``error`` event: the stream ends as an incomplete interaction.
        """
        opened, following = self._steps_left(left)
        events = [_event_bytes("step.stop", index=index) for index in opened]
        events += [
            _event_bytes("step.start", index=following, step={"type": "model_output"}),
            _event_bytes("step.delta", index=following, delta={"type": "text", "text": refusal.text}),
            _event_bytes("step.stop", index=following),
        ]
        if feedback == "none":
            ended = {
                "id": state.response_id or refusal.trace_id,
                "status": "incomplete",
                "model": state.model_version,
            }
            events.append(_event_bytes("interaction.completed", interaction=ended))
        else:
            guardrails = {"errors": list(refusal.errors)}
            events.append(
                _event_bytes("error", error={"code": _BLOCKED, "message": refusal.text}, guardrails=guardrails)
            )
        return b"".join([*events, _DONE])

    def error_events(self, body: Payload, framing: str) -> bytes:
        """Return the events of a stream that consists of an error."""
        error = body.get("error")
        told = error if isinstance(error, Mapping) else {}
        code = str(told.get("status") or told.get("code") or "error").lower()
        return _event_bytes("error", error={"code": code, "message": str(told.get("message") or "")}) + _DONE

    def _steps_left(self, frames: int) -> tuple[Sequence[int], int]:
        """Return which steps were open after the first ``frames`` frames, and the first index that was not used."""
        opened: dict[int, None] = {}
        following = 0
        for frame, index, begins in self._marks:
            if frame > frames:
                break
            following = max(following, index + 1)
            if begins:
                opened[index] = None
            else:
                opened.pop(index, None)
        return tuple(opened), following

    def _event(self, event: Payload) -> dict[str, Any]:
        match event["event_type"]:
            case "step.delta":
                return self._about_step(event, "delta", self._delta(_index(event), _object(event, "delta")))
            case "step.start":
                return self._about_step(event, "step", self._start(_index(event), _object(event, "step")))
            case "step.stop":
                return self._about_step(event, "", self._stop(_index(event)))
            case str(kind) if kind in _LIFE:
                return self._life(event, ends=kind == "interaction.completed")
            case "error":
                return {**_said(event, _EVENT, "event", "error"), "error": event.get("error") or "error"}
            case _:
                # A step of an unknown type may be a call too.
                self.carried_call = True
                return _said(event, {}, "event")

    def _in_turn(self, kind: str, parts: list[Part]) -> list[Part]:
        """Return the parts of a step within the model's turn: an echo of the user's input is not the model's text."""
        if kind != "user_input":
            return parts
        self._echoes += [said for part in parts if _MEDIA.isdisjoint(part) for said in strings_in([*part.values()])]
        return [part for part in parts if not _MEDIA.isdisjoint(part)]

    def _about_step(self, event: Payload, read: str, parts: list[Part]) -> dict[str, Any]:
        told: dict[str, Any] = {"candidates": [{"content": {"parts": parts}}]} if parts else {}
        others = event.keys() - _OF_STEPS - {read}
        if others or not is_id(event.get("event_id", "-")):
            told |= _said(event, _EVENT, "event", read)
            metadata = event.get("metadata")
            told |= _usage(metadata.get("total_usage") if isinstance(metadata, Mapping) else None)
        return told

    def _life(self, event: Payload, *, ends: bool) -> dict[str, Any]:
        told = _said(event, _EVENT, "event", "interaction") | _usage(event.get("usage"))
        if is_id(interaction_id := event.get("interaction_id")):
            told["responseId"] = interaction_id
        if ends or event.get("interaction") is not None:
            told |= self._interaction(_object(event, "interaction"), whole=ends)
        return told

    def _start(self, index: int, head: Payload) -> list[Part]:
        kind = step_type(head)
        parts = self._stop(index) if index in self._open else []
        step = self._steps[index] = _StreamedStep(kind, head)
        self._marks.append((self._frames, index, True))
        if is_client_call(kind):
            self.carried_call = True
            step.fragments = []
            self._open.add(index)
            fresh = call_fields(head)
        elif kind.endswith("_call") and not head.get("arguments"):
            fresh = call_fields(head)
        else:
            step.told = True
            fresh = self._in_turn(kind, step_parts(head))
        step.parts += fresh
        return parts + fresh

    def _delta(self, index: int, delta: Payload) -> list[Part]:
        step = self._steps.get(index)
        if step is None:
            # A resumed stream continues within a step.
            step = self._steps[index] = _StreamedStep("", {})
            self._marks.append((self._frames, index, True))
        kind = delta.get("type")
        if kind == "text" and len(delta) == 2:
            parts = contents_parts(delta.get("text"), "text")
        elif kind == "arguments_delta":
            parts = self._fragment(step, delta)
        else:
            parts = self._other_delta(step, step_type(delta), delta)
        if step.fragments is not None:
            self.carried_call = True
            self._open.add(index)
        step.parts += parts
        return parts

    def _fragment(self, step: _StreamedStep, delta: Payload) -> list[Part]:
        fragment = delta.get("arguments")
        if fragment is not None and not isinstance(fragment, str):
            raise DecodeError("The upstream sent a fragment of arguments that is not a string")
        if step.fragments is None:
            step.fragments = []
        step.fragments.append(fragment or "")
        return beside("arguments_delta", {k: v for k, v in delta.items() if k not in ("type", "arguments")}, {})

    def _other_delta(self, step: _StreamedStep, kind: str, delta: Payload) -> list[Part]:
        if kind == "thought_summary":
            rest = {name: value for name, value in delta.items() if name not in ("type", "content")}
            return contents_parts(delta.get("content"), "content", thought=True) + beside(kind, rest, {})
        if kind == "thought_signature":
            return beside(kind, delta, {"type": WORD, "signature": TOKEN})
        if kind == "text_annotation_delta":
            rest = {name: value for name, value in delta.items() if name not in ("type", "annotations")}
            return annotation_parts(delta.get("annotations")) + beside(kind, rest, {})
        if is_content(delta):
            return content_parts(delta)
        if is_client_call(kind):
            return self._whole_call(step, kind, delta)
        if kind.endswith(("_call", "_result")):
            if kind == step.kind and step.told and delta.get("arguments", delta) == step.head.get("arguments"):
                return []
            step.told = True
            named = {name: step.head[name] for name in ("id", "call_id", "name") if name in step.head}
            return step_parts({**named, **delta})
        self.carried_call = True
        return beside(kind or "delta", delta, {})

    def _whole_call(self, step: _StreamedStep, kind: str, delta: Payload) -> list[Part]:
        """Take in a delta that has all the arguments of a call for the client."""
        head = {**step.head, **delta}
        if delta.get("arguments") and (step.fragments or step.head.get("arguments")):
            raise DecodeError("The upstream sent the arguments of a function call twice")
        step.fragments = step.fragments or []
        step.kind, step.head = kind, head
        return call_fields(delta)

    def _stop(self, index: int) -> list[Part]:
        step = self._steps.get(index)
        self._marks.append((self._frames, index, False))
        if step is None:
            return []
        parts: list[Part] = []
        if step.fragments is not None:
            self.carried_call = True
            head = step.head if is_client_call(step.kind) else {**step.head, "type": "function_call"}
            parts = [call_part(head, self._arguments(step))]
            step.fragments = None
            self._open.discard(index)
        elif step.kind.endswith("_call") and not step.told:
            parts = [call_part(step.head, step.head.get("arguments"))]
        step.told = True
        step.parts += parts
        return parts

    def _arguments(self, step: _StreamedStep) -> Mapping[str, Any]:
        """Return the arguments of a call, from its fragments or from where it began. Raises DecodeError."""
        text = "".join(step.fragments or ())
        begun = step.head.get("arguments")
        if not text.strip():
            return begun if isinstance(begun, Mapping) else {}
        try:
            joined = read_object(text.encode())
        except (BadRequest, UnicodeEncodeError):
            raise DecodeError(
                "The upstream sent a function call whose arguments are not an object, or can be read two ways"
            ) from None
        if begun and begun != joined:
            raise DecodeError("The upstream sent the arguments of a function call twice")
        return joined

    def _interaction(self, interaction: Payload, *, whole: bool) -> dict[str, Any]:
        """Return the content of an interaction. ``whole``: no more of it follows in this response."""
        told = _said(interaction, _INTERACTION, "interaction", "error", *_READ) | _usage(interaction.get("usage"))
        for name, into in (("id", "responseId"), ("model", "modelVersion")):
            if is_id(value := interaction.get(name)):
                told[into] = value
        if interaction.get("error") is not None:
            told["error"] = interaction["error"]
        waiting = sorted(self._open) if whole else ()
        parts = [part for index in waiting for part in self._stop(index)]
        parts += self._in_turn("user_input", input_parts(interaction.get("input")))
        parts += self._repeated(interaction.get("steps"))
        outputs = any(interaction.get(name) is not None for name in ("output_text", *_OUTPUTS))
        if outputs:
            before = () if self._compared else (part for step in self._steps.values() for part in step.parts)
            parts += _outputs(interaction, [*before, *parts])
        self._compared = self._compared or whole or outputs
        candidate: dict[str, Any] = {"content": {"parts": parts}} if parts else {}
        if whole and "error" not in told:
            candidate["finishReason"] = _finish(interaction.get("status"))
        return {**told, "candidates": [candidate]} if candidate else told

    def _repeated(self, steps: Any) -> Iterator[Part]:
        """Yield the parts of the steps of a whole interaction that were not told before."""
        if steps is None:
            return
        if not isinstance(steps, list):
            raise DecodeError("The upstream sent steps that are not a list")
        for index, step in enumerate(steps):
            if not isinstance(step, Mapping):
                raise DecodeError("The upstream sent a step that is not an object")
            parts = self._in_turn(step_type(step), step_parts(step))
            known = None if self._compared else self._steps.get(index)
            if known is not None and known.fragments is None and _merged(known.parts) == _merged(parts):
                continue
            if is_client_call(step_type(step)):
                self.carried_call = True
            yield from parts


def _event_bytes(event_type: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event_type.encode(), ascii_json({"event_type": event_type, **fields}))


def _index(event: Payload) -> int:
    index = event.get("index")
    if index is None:
        return 0
    if type(index) is not int or index < 0:
        raise DecodeError("The upstream sent a step whose index is not a number")
    return index


def _object(event: Payload, name: str) -> Payload:
    value = event.get(name)
    if not isinstance(value, Mapping):
        raise DecodeError(f"The upstream sent an event whose {name} is not an object")
    return value


def _said(source: Payload, shape: Mapping[str, Any], where: str, *read: str) -> dict[str, Any]:
    """Return the texts in the fields of ``source``, by ``shape``, as fields of a response. Leave out the fields in
    ``read``.

    ``where`` is the prefix of their names, so that none of them is the name of a response's own field.
    """
    rest = {name: value for name, value in source.items() if name not in read}
    return {f"{where}.{name}": text for name, text in texts_beside(rest, shape)}


def _usage(usage: Any) -> dict[str, Any]:
    """Return the counts of tokens in Gemini's words, nothing where there are none."""
    if not isinstance(usage, Mapping):
        return {}
    counts = {into: usage[name] for name, into in _COUNTS.items() if type(usage.get(name)) is int}
    return {"usageMetadata": counts} if counts else {}


def _finish(status: Any) -> str:
    """Return the finish reason of an interaction that says no more, by its status."""
    if not isinstance(status, str) or not WORD.fullmatch(status):
        return "OTHER"
    return _FINISHED.get(status, status.upper())


def _merged(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return parts as a response has them in the end, whatever pieces they came in."""
    candidate = Candidate(0)
    candidate.add({"content": {"parts": parts}})
    return candidate.parts


def _outputs(interaction: Payload, told: Sequence[Part]) -> Iterator[Part]:
    """Yield what the fields ``output_...`` say that no step said: most often they repeat the last step."""
    if (text := interaction.get("output_text")) is not None:
        [part] = contents_parts(a_string(text, "output_text"), "output_text")
        said = [part["text"] for part in _merged(told) if "text" in part and "thought" not in part]
        if not said:
            yield part
        elif not any(text in run for run in said):
            yield {"interaction.outputText": text}
    for name in _OUTPUTS:
        if (content := an_object(interaction.get(name), name)) is not None:
            yield from (part for part in content_parts(content) if part not in told)
