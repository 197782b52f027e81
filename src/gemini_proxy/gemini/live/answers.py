"""Write the frames that the proxy itself sends in a live session: to the client, and to the model."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gemini_proxy.gemini.live.frames import FunctionName

_LONGEST_REASON: Final = 123
"""Bytes of a close frame's reason (RFC 6455, section 5.5)."""


def refusal_frame(text: str, *, completes: bool) -> bytes:
    """Return a turn of the model that says ``text``, which every client shows, or a piece of such a turn."""
    content: dict[str, Any] = {"modelTurn": {"role": "model", "parts": [{"text": text}]}}
    if completes:
        content["turnComplete"] = True
    return _frame({"serverContent": content})


def tool_errors(functions: Iterable[FunctionName], text: str) -> bytes:
    """Return the outputs of ``functions`` as errors: a model whose call is never answered waits for ever."""
    responses = []
    for function in functions:
        response: dict[str, Any] = {"id": function.id} if function.id else {}
        responses.append({**response, "name": function.name, "response": {"error": text}})
    return _frame({"toolResponse": {"functionResponses": responses}})


def go_away(seconds: float) -> bytes:
    """Return the notice that the session ends in this many seconds; clients then open another one."""
    return _frame({"goAway": {"timeLeft": f"{seconds:g}s"}})


def close_reason(text: str) -> bytes:
    """Return ``text`` as the reason of a close frame, shortened to fit."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= _LONGEST_REASON:
        return raw
    return raw[: _LONGEST_REASON - 3].decode("utf-8", "ignore").encode() + b"..."


def _frame(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode("ascii")
