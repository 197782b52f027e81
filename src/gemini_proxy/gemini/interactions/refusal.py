"""Write refusals within a stream of the Interactions API, in the form that its clients show and do not resume.

Open steps are stopped, and a step of the model says why: clients that show text show it. An ``error`` event follows for
programs: google-genai yields it, and Google's agent kit turns it into an error of the turn; it would take
``interaction.completed`` for a successful end. A refusal before the first byte is HTTP 400, as in the rest of the API.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gemini_proxy.gemini.refusal import Feedback, Refusal, StreamState

BLOCKED: Final = "content_blocked"
"""The code of Google's own refusals on this API."""
_DONE: Final = b"event: done\ndata: [DONE]\n\n"


def refusal_events(
    refusal: Refusal, state: StreamState, feedback: Feedback, opened: Sequence[int], following: int
) -> bytes:
    """Return the events that end a refused stream in which the steps ``opened`` are still open.

    ``following`` is the index of the step with the refusal. With ``feedback = "none"`` there is no ``error`` event: the
    stream ends as an incomplete interaction.
    """
    events = [_event("step.stop", index=index) for index in opened]
    events += [
        _event("step.start", index=following, step={"type": "model_output"}),
        _event("step.delta", index=following, delta={"type": "text", "text": refusal.text}),
        _event("step.stop", index=following),
    ]
    if feedback == "none":
        ended = {
            "id": state.response_id or refusal.trace_id,
            "status": "incomplete",
            "model": state.model_version,
        }
        events.append(_event("interaction.completed", interaction=ended))
    else:
        guardrails = {"errors": list(refusal.errors)}
        events.append(_event("error", error={"code": BLOCKED, "message": refusal.text}, guardrails=guardrails))
    return b"".join([*events, _DONE])


def error_events(body: Mapping[str, Any]) -> bytes:
    """Return the events of a stream that is nothing but the error of which ``body`` is the JSON body."""
    error = body.get("error")
    told = error if isinstance(error, Mapping) else {}
    code = str(told.get("status") or told.get("code") or "error").lower()
    return _event("error", error={"code": code, "message": str(told.get("message") or "")}) + _DONE


def _event(event_type: str, **fields: Any) -> bytes:
    """Return one event, in ASCII: several clients split lines at a raw U+2028 and the like."""
    data = json.dumps({"event_type": event_type, **fields}, separators=(",", ":"), default=str)
    return f"event: {event_type}\ndata: {data}\n\n".encode("ascii")
