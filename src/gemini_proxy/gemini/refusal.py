"""Write refusals in a form that every Gemini client shows once, without a retry.

A streamed refusal is one ordinary ``GenerateContentResponse`` event: a text part, a terminal finish reason and a finish
message, so that clients show it and do not resume. Names inside the prompt feedback are in snake_case: clients that
read ``block_reason`` find it, and those that drop the text if there is a ``blockReason`` keep the text. A unary refusal
is HTTP 400.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["request", "response"]
Feedback = Literal["compat", "none", "native"]

_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
JSON_TYPE = "application/json; charset=UTF-8"
"""The content type of Google's error JSON."""
_GUARDRAIL_ERRORS = "type.googleapis.com/gemini_proxy.GuardrailErrors"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal and its reasons.

    ``messages`` are the rules' messages. ``errors`` has one JSON object per violation (args, kwargs, ranges,
    guardrail). ``reason`` is ``GUARDRAIL_BLOCKED``, or ``GUARDRAIL_UNAVAILABLE`` if there was no verdict, or
    ``GUARDRAIL_UNAUTHENTICATED`` if that was because of the caller's key.
    """

    phase: Phase
    messages: tuple[str, ...]
    errors: tuple[Mapping[str, Any], ...] = ()
    guardrail: str = ""
    reason: str = "GUARDRAIL_BLOCKED"
    prefix: str = "[Invariant]"
    trace_id: str = ""

    @property
    def text(self) -> str:
        """Return the refusal as one line: the prefix, the refused phase, and each message once."""
        why = "; ".join(dict.fromkeys(message for message in self.messages if message))
        sentence = f"{self.prefix} The {self.phase} did not pass the guardrails".lstrip()
        return f"{sentence}: {why}" if why else sentence


@dataclass(frozen=True, slots=True)
class StreamState:
    """The part of a stream that the client has: candidate indexes, and the response's identifiers if known."""

    indexes: tuple[int, ...] = (0,)
    usage: Mapping[str, Any] | None = None
    model_version: str | None = None
    response_id: str | None = None


def sse_refusal(refusal: Refusal, state: StreamState, feedback: Feedback) -> bytes:
    """Return the last event of a refused stream."""
    return b"data: " + ascii_json(_response(refusal, state, feedback)) + b"\r\n\r\n"


def array_refusal(refusal: Refusal, state: StreamState, *, opened: bool, elements: int) -> bytes:
    """Return the last element of a refused JSON array and its closing bracket, which nothing may follow.

    There is no prompt feedback: the legacy client that reads arrays raises an error on it.
    """
    start = b"" if opened else b"["
    separator = b"\n,\r\n" if elements else b""
    return start + separator + ascii_json(_response(refusal, state, "none")) + b"\n]"


def error_event(body: Mapping[str, Any]) -> bytes:
    """Return the only event of a stream that consists of an error, in the form of Google's own streams."""
    return b"data: " + ascii_json(body) + b"\r\n\r\n"


def error_array(body: Mapping[str, Any]) -> bytes:
    """Return a JSON array that consists of an error, as Google returns it for array streams."""
    return b"[" + ascii_json(body) + b"\n]"


def error_refusal(refusal: Refusal, code: str = "FAILED_PRECONDITION") -> dict[str, Any]:
    """Return the body of a refusal by HTTP 400: Google's error JSON, whose ``details`` are a list."""
    metadata = {"guardrail": refusal.guardrail, "phase": refusal.phase, "trace": refusal.trace_id}
    info = {"@type": _ERROR_INFO, "reason": refusal.reason, "domain": "gemini-proxy", "metadata": metadata}
    errors = {"@type": _GUARDRAIL_ERRORS, "errors": list(refusal.errors)}
    return error_body(400, refusal.text, code, [info, errors])


def error_body(status: int, message: str, code: str, details: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a google.rpc.Status in its JSON form."""
    error: dict[str, Any] = {"code": status, "message": message, "status": code}
    if details:
        error["details"] = list(details)
    return {"error": error}


def retry_info(seconds: int) -> dict[str, Any]:
    """Return the detail of an error that says when to try again."""
    return {"@type": _RETRY_INFO, "retryDelay": f"{seconds}s"}


def _response(refusal: Refusal, state: StreamState, feedback: Feedback) -> dict[str, Any]:
    response: dict[str, Any] = {"candidates": [_candidate(refusal.text, index) for index in state.indexes]}
    if feedback == "compat":
        response["promptFeedback"] = {
            "block_reason": "SAFETY",
            "block_reason_message": refusal.text,
            "safetyRatings": [],
        }
    elif feedback == "native":
        response["promptFeedback"] = {"blockReason": "SAFETY", "blockReasonMessage": refusal.text, "safetyRatings": []}
    response["usageMetadata"] = dict(state.usage or {"promptTokenCount": 0, "totalTokenCount": 0})
    if state.model_version:
        response["modelVersion"] = state.model_version
    response["responseId"] = state.response_id or refusal.trace_id
    response["guardrails"] = {"errors": list(refusal.errors)}
    return response


def _candidate(text: str, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "content": {"role": "model", "parts": [{"text": text}]},
        "finishReason": "SAFETY",
        "finishMessage": text,
        "safetyRatings": [],
    }


def ascii_json(value: Mapping[str, Any]) -> bytes:
    """Encode JSON in ASCII: several clients split lines at a raw U+2028 and the like."""
    return json.dumps(value, separators=(",", ":"), default=str).encode("ascii")
