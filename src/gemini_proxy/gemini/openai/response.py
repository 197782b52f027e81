"""Read the responses of the OpenAI path as payloads in Gemini's form, and write refusals and errors in their place.

Gemini sends each tool call whole, without an index; other servers send fragments that belong together by index. Both
are read. Pieces that clients could join in two ways are not passed on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.framing.json_scan import ObjectScanner
from gemini_proxy.gemini.openai.request import content_parts, read_arguments, without_signature
from gemini_proxy.gemini.refusal import Feedback, Refusal, StreamState, ascii_json
from gemini_proxy.gemini.wire import Payload

_FINISH_REASONS: Final = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "content_filter": "SAFETY",
    "tool_calls": "STOP",
    "function_call": "STOP",
}
_ROLES: Final = (None, "", "assistant", "model")
_OBJECTS: Final = frozenset({"chat.completion", "chat.completion.chunk"})
_RESPONSE: Final = frozenset({"id", "object", "created", "model", "choices", "usage", "error"})
_CHOICE: Final = frozenset({"index", "message", "delta", "finish_reason", "logprobs"})
_THOUGHTS: Final = ("reasoning_content", "reasoning")
_MESSAGE: Final = frozenset(
    {"role", "content", "refusal", "tool_calls", "function_call", "audio", "extra_content", *_THOUGHTS}
)
_CALL: Final = frozenset({"index", "id", "type", "function", "extra_content"})
_FUNCTION: Final = frozenset({"name", "arguments"})
_TYPES: Final = (None, "", "function")
_AUDIO: Final = frozenset({"data", "transcript", "expires_at"})
_LEGACY: Final = -1
"""The slot of the one call in ``function_call``."""
_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_COUNTS: Final = {
    "prompt_tokens": ("promptTokenCount",),
    "completion_tokens": ("candidatesTokenCount", "thoughtsTokenCount"),
    "total_tokens": ("totalTokenCount",),
}


class ChatReader:
    """Read the frames of one response in order, as ``wire.ResponseReader`` says."""

    def __init__(self) -> None:
        self.carried_call = False
        self._choices: dict[int, _Calls] = {}

    @property
    def has_open_call(self) -> bool:
        """True while a call has begun whose pieces are not all there."""
        return any(calls.open for calls in self._choices.values())

    def read(self, payload: Payload) -> Iterable[Payload]:
        """Return the content of a frame. Raises DecodeError for a form in which some of it might go unread."""
        self.carried_call = False
        told: dict[str, Any] = {f"openai.{name}": value for name, value in payload.items() if name not in _RESPONSE}
        told["responseId"] = payload.get("id")
        told["modelVersion"] = payload.get("model")
        if payload.get("object") not in _OBJECTS:
            told["openai.object"] = payload.get("object")
        if type(payload.get("created")) is not int:
            told["openai.created"] = payload.get("created")
        if payload.get("error") is not None:
            told["error"] = payload["error"]
        told.update(_usage(payload.get("usage")))
        if (candidates := [self._choice(choice) for choice in _objects(payload.get("choices"), "choices")]) or (
            "choices" in payload
        ):
            told["candidates"] = candidates
        return (told,)

    def end(self) -> Iterable[Payload]:
        """Return the calls that have no end of their own. Raises DecodeError for one that broke off."""
        candidates = [
            {"index": index, "content": {"parts": parts}}
            for index, calls in self._choices.items()
            if (parts := calls.close())
        ]
        return ({"candidates": candidates},) if candidates else ()

    def refusal_events(
        self, refusal: Refusal, state: StreamState, feedback: Feedback, framing: str, left: int
    ) -> bytes:
        """Return the end of a refused stream: a chunk for each choice that says why and finishes it, and ``[DONE]``."""
        head = {
            "id": state.response_id or refusal.trace_id,
            "object": "chat.completion.chunk",
            "created": 0,
            "model": state.model_version or "",
        }
        chunks = [{**head, "choices": [_refused_choice(refusal, index)]} for index in state.indexes]
        chunks[-1]["guardrails"] = {"errors": list(refusal.errors)}
        if state.usage:
            chunks[-1]["usage"] = {
                name: sum(state.usage.get(count, 0) for count in counts) for name, counts in _COUNTS.items()
            }
        return b"".join(b"data: %s\n\n" % ascii_json(chunk) for chunk in chunks) + b"data: [DONE]\n\n"

    def error_events(self, body: Payload, framing: str) -> bytes:
        """Return a stream that consists of an error: clients raise it when they read the event."""
        return b"data: %s\n\ndata: [DONE]\n\n" % ascii_json(body)

    def _choice(self, choice: Payload) -> Payload:
        index = choice.get("index")
        if index is not None and type(index) is not int:
            raise DecodeError("The upstream sent a choice whose index is not a number")
        calls = self._choices.setdefault(index or 0, _Calls())
        candidate: dict[str, Any] = {"index": index}
        candidate.update(_named("openai", choice, _CHOICE))
        parts: list[Payload] = []
        for name in ("message", "delta"):
            message = _object(choice.get(name), name)
            if message is not None:
                if (role := message.get("role")) not in _ROLES:
                    candidate["openai.role"] = role
                parts += self._message(message, calls)
                candidate.update(_named(f"openai.{name}", message, _MESSAGE))
                candidate.update(_extra(f"openai.{name}.extra_content", message))
        reason = choice.get("finish_reason")
        if reason is not None:
            candidate["finishReason"] = _FINISH_REASONS.get(reason, reason) if isinstance(reason, str) else reason
            parts += calls.close()
        candidate["content"] = {"parts": parts}
        candidate.update(_log_probabilities(choice.get("logprobs")))
        return candidate

    def _message(self, message: Payload, calls: "_Calls") -> Iterator[Payload]:
        for name in _THOUGHTS:
            thought = message.get(name)
            if isinstance(thought, str):
                yield {"text": thought, "thought": True}
            elif thought is not None:
                yield {"openaiThought": thought}
        yield from _content(message.get("content"))
        yield from _content(message.get("refusal"))
        audio = _object(message.get("audio"), "audio")
        if audio is not None:
            yield from _audio(audio)
        legacy = _object(message.get("function_call"), "function_call")
        if legacy is not None:
            self.carried_call = True
            yield from calls.add({"function": legacy}, _LEGACY)
        for place, call in enumerate(_objects(message.get("tool_calls"), "tool_calls")):
            self.carried_call = True
            yield from calls.add(call, place)


def error_body(status: int, message: str, code: str, details: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return the body of an error: an object, of which clients show the message."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": code}
    if details:
        error["details"] = list(details)
    return {"error": error}


def refusal_body(refusal: Refusal, code: str) -> dict[str, Any]:
    """Return the body of a refusal by HTTP 400. ``code`` is that of errors of the kind."""
    body = error_body(400, refusal.text, refusal.reason)
    metadata = {"guardrail": refusal.guardrail, "phase": refusal.phase, "trace": refusal.trace_id, "status": code}
    body["error"] |= {"guardrails": {**metadata, "errors": list(refusal.errors)}}
    return body


def _refused_choice(refusal: Refusal, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "delta": {"role": "assistant", "content": refusal.text},
        "logprobs": None,
        "finish_reason": "content_filter",
    }


class _ToolCall:
    """A tool call, as far as it has come. ``joins`` says that another call came in the same slot before it."""

    __slots__ = ("_pieces", "_scanner", "_text", "beside", "call_id", "joins", "name", "whole")

    def __init__(self, *, joins: bool) -> None:
        self.call_id = ""
        self.name = ""
        self.beside: dict[str, Any] = {}
        self.joins = joins
        self.whole = False
        self._text = bytearray()
        self._scanner = ObjectScanner()

    @property
    def has_arguments(self) -> bool:
        return bool(self._text)

    def continues(self, call_id: str) -> bool:
        """Return whether a piece with this id is one of this call."""
        return not call_id or call_id == self.call_id

    def add(self, call_id: str, name: str, arguments: str) -> None:
        """Add a piece. Raises DecodeError for one that clients may put together in two ways."""
        if name and self.name:
            raise DecodeError("The upstream sent a tool call with two names")
        self.call_id = self.call_id or call_id
        self.name = self.name or name
        try:
            piece = arguments.encode()
        except UnicodeEncodeError:
            raise DecodeError("The upstream sent arguments of a tool call that are not UTF-8") from None
        if not self._text:
            piece = piece.lstrip(b" \t\r\n")
            if piece and not piece.startswith(b"{"):
                raise DecodeError("The upstream sent arguments of a tool call that are not an object")
        self._text += piece
        if self.whole:
            if piece.strip(b" \t\r\n"):
                raise DecodeError("The upstream sent a tool call whose arguments go on after their end")
        elif self._text:
            end = self._scanner.find_end(self._text, 0)
            self.whole = end != -1
            if self.whole and self._text[end:].strip(b" \t\r\n"):
                raise DecodeError("The upstream sent a tool call whose arguments go on after their end")

    def part(self) -> Payload:
        """Return the call as a part. Raises DecodeError for one without a name, and for arguments that cannot be read.

        A call of another kind than a function has its input where no rule would look for it.
        """
        if not self.name:
            raise DecodeError("The upstream sent a tool call without the name of a function")
        if self.joins and not self._text:
            raise DecodeError("The upstream sent two tool calls in one place, one of them without arguments")
        try:
            arguments = read_arguments(self._text.decode())
        except BadRequest:
            raise DecodeError("The upstream sent arguments of a tool call that are not an object") from None
        call: dict[str, Any] = {"name": self.name, "args": arguments}
        if self.call_id:
            call["id"] = self.call_id
        if self.beside:
            call["openai"] = self.beside
        return {"functionCall": call}


class _Calls:
    """The tool calls of one choice. Each is reported once, when it is whole."""

    def __init__(self) -> None:
        self._slots: dict[int, _ToolCall] = {}
        self._waiting: dict[_ToolCall, None] = {}  # in the order in which they began

    @property
    def open(self) -> bool:
        """True while a call waits for the end of its arguments."""
        return bool(self._waiting)

    def add(self, call: Payload, place: int) -> list[Payload]:
        """Add a piece of a call, which was at ``place`` in its list. Return the calls that are now whole.

        Raises DecodeError for pieces that cannot be read, or can be read in two ways.
        """
        index = call.get("index")
        if index is not None and type(index) is not int:
            raise DecodeError("The upstream sent a tool call whose index is not a number")
        function = _object(call.get("function"), "function") or {}
        call_id, name = _string(call.get("id"), "id"), _string(function.get("name"), "name")
        slot = place if index is None else index
        open_call = self._slots.get(slot)
        if open_call is None or not open_call.continues(call_id) or (index is None and open_call.whole):
            open_call = self._begin(slot, open_call)
        open_call.add(call_id, name, _string(function.get("arguments"), "arguments"))
        beside = {
            **{name: value for name, value in call.items() if name not in _CALL},
            **{name: value for name, value in function.items() if name not in _FUNCTION},
            **_extra("extra_content", call),
            **({"type": kind} if (kind := call.get("type")) not in _TYPES else {}),
        }
        for key, value in beside.items():
            if open_call.beside.setdefault(key, value) != value:
                raise DecodeError("The upstream sent a tool call with two values for one field")
        if not open_call.name and open_call.has_arguments:
            raise DecodeError("The upstream sent arguments of a tool call without its name")
        if open_call.whole and open_call in self._waiting:
            del self._waiting[open_call]
            return [open_call.part()]
        return []

    def close(self) -> list[Payload]:
        """Return the calls that wait: those without arguments. Raises DecodeError for any other."""
        waiting, self._waiting = self._waiting, {}
        return [call.part() for call in waiting]

    def _begin(self, slot: int, before: _ToolCall | None) -> _ToolCall:
        # Some clients join the pieces into one call. The result must not be a call that no rule has checked.
        if before is not None and not before.whole:
            raise DecodeError("The upstream sent a tool call before the one in its place was whole")
        begun = self._slots[slot] = _ToolCall(joins=before is not None)
        self._waiting[begun] = None
        return begun


def _content(content: Any) -> Iterator[Payload]:
    """Yield the parts of a content, which is a text, a list or nothing."""
    try:
        yield from content_parts(content, "content")
    except BadRequest as error:
        raise DecodeError(f"The upstream sent content that cannot be read: {error.message}") from None


def _audio(audio: Payload) -> Iterator[Payload]:
    if transcript := _string(audio.get("transcript"), "transcript"):
        yield {"text": transcript}
    if audio.get("data") is not None:
        yield {"inlineData": {"mimeType": "audio/unknown", "data": _string(audio["data"], "data")}}
    if rest := {name: value for name, value in audio.items() if name not in _AUDIO and value is not None}:
        yield {"openaiAudio": rest}


def _named(prefix: str, source: Payload, known: frozenset[str]) -> dict[str, Any]:
    """Return the fields that are not known here under names that Gemini's own fields never have."""
    return {f"{prefix}.{name}": value for name, value in source.items() if name not in known and value is not None}


def _extra(name: str, source: Payload) -> dict[str, Any]:
    """Return ``extra_content`` but for the signatures in it."""
    rest = without_signature(source.get("extra_content"))
    return {name: rest} if rest is not None else {}


def _usage(usage: Any) -> dict[str, Any]:
    """Return the counts as Gemini names them. Thoughts are in ``total_tokens``, and may be in ``completion_tokens``."""
    if usage is None:
        return {}
    if not isinstance(usage, Mapping):
        return {"openai.usage": usage}
    prompt, completion, total = (_count(usage, f"{name}_tokens") for name in ("prompt", "completion", "total"))
    counts = {"promptTokenCount": prompt, "candidatesTokenCount": completion, "totalTokenCount": total}
    details = usage.get("completion_tokens_details")
    thoughts = _count(details, "reasoning_tokens") if isinstance(details, Mapping) else 0
    beside = max(0, total - prompt - completion)
    if thoughts and not beside:
        counts["candidatesTokenCount"] = max(0, completion - thoughts)
    if thoughts or beside:
        counts["thoughtsTokenCount"] = thoughts or beside
    cached = usage.get("prompt_tokens_details")
    if isinstance(cached, Mapping) and (tokens := _count(cached, "cached_tokens")):
        counts["cachedContentTokenCount"] = tokens
    return {"usageMetadata": counts, **({"openai.usage": usage} if _says(usage) else {})}


def _says(value: Any) -> bool:
    """Return whether there is a string in a value."""
    if isinstance(value, Mapping):
        return any(_says(inner) for inner in value.values())
    return isinstance(value, str) or (isinstance(value, list) and any(_says(inner) for inner in value))


def _count(source: Payload, name: str) -> int:
    count = source.get(name)
    return count if type(count) is int and count > 0 else 0


def _log_probabilities(given: Any) -> dict[str, Any]:
    """Return the tokens as Gemini's ``logprobsResult``: the response once more, and what else the model weighed."""
    if given is None:
        return {}
    logprobs = _object(given, "logprobs") or {}
    chosen: list[Payload] = []
    weighed: list[Payload] = []
    for name in ("content", "refusal"):
        for token in _objects(logprobs.get(name), f"logprobs.{name}"):
            chosen.append({"token": token.get("token")})
            others = _objects(token.get("top_logprobs"), "top_logprobs")
            weighed.append({"candidates": [{"token": other.get("token")} for other in others]})
    beside = _named("openai.logprobs", logprobs, frozenset({"content", "refusal"}))
    return {"logprobsResult": {"chosenCandidates": chosen, "topCandidates": weighed}, **beside}


def _objects(value: Any, where: str) -> list[Payload]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise DecodeError(f"The upstream sent {where} that are not a list of objects")
    return value


def _object(value: Any, where: str) -> Payload | None:
    if value is not None and not isinstance(value, Mapping):
        raise DecodeError(f"The upstream sent a {where} that is not an object")
    return value


def _string(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DecodeError(f"The upstream sent a {where} that is not a string")
    return value
