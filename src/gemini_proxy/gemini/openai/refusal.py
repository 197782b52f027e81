"""Write errors and refusals as OpenAI's clients know them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gemini_proxy.gemini.refusal import Refusal, StreamState

_TYPES: Final = {
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


def error_body(status: int, message: str, code: str, details: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return the body of an error: an object, of which clients show the message."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
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


def refusal_events(refusal: Refusal, state: StreamState) -> bytes:
    """Return the end of a refused stream: a chunk for each choice that says why and finishes it, and ``[DONE]``."""
    head = {
        "id": state.response_id or refusal.trace_id,
        "object": "chat.completion.chunk",
        "created": 0,
        "model": state.model_version or "",
    }
    chunks = [{**head, "choices": [_choice(refusal, index)]} for index in state.indexes]
    chunks[-1]["guardrails"] = {"errors": list(refusal.errors)}
    if state.usage:
        chunks[-1]["usage"] = {
            name: sum(state.usage.get(count, 0) for count in counts) for name, counts in _COUNTS.items()
        }
    return b"".join(b"data: %s\n\n" % _ascii_json(chunk) for chunk in chunks) + b"data: [DONE]\n\n"


def error_events(body: Mapping[str, Any]) -> bytes:
    """Return a stream that consists of an error: clients raise it when they read the event."""
    return b"data: %s\n\ndata: [DONE]\n\n" % _ascii_json(body)


def _choice(refusal: Refusal, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "delta": {"role": "assistant", "content": refusal.text},
        "logprobs": None,
        "finish_reason": "content_filter",
    }


def _ascii_json(value: Mapping[str, Any]) -> bytes:
    """Encode JSON in ASCII: several clients split lines at a raw U+2028 and the like."""
    return json.dumps(value, separators=(",", ":"), default=str).encode("ascii")
