"""Interactions and the events that say the same, and what rules see of either."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from gemini_proxy.gemini.interactions.response import InteractionReader
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message
from tests.gemini.reading import heard, merge

DONE = b"event: done\ndata: [DONE]\n\n"


def merged(frames: Iterable[Mapping[str, Any]]) -> Merger:
    """Read frames to their end."""
    return merge(InteractionReader(), frames)


def said(*frames: Mapping[str, Any]) -> list[Message]:
    """Return what rules see of the frames."""
    return heard(merged(frames))


def event(event_type: str, **fields: Any) -> dict[str, Any]:
    return {"event_type": event_type, **fields}


def start(index: int, step: Mapping[str, Any]) -> dict[str, Any]:
    return event("step.start", index=index, step=step)


def delta(index: int, **fields: Any) -> dict[str, Any]:
    return event("step.delta", index=index, delta=fields)


def stop(index: int) -> dict[str, Any]:
    return event("step.stop", index=index)


def interaction(steps: Sequence[Mapping[str, Any]] | None = None, status: str = "completed") -> dict[str, Any]:
    """Return an interaction, with ``steps`` where it has any."""
    found: dict[str, Any] = {
        "id": "v1_abc",
        "object": "interaction",
        "status": status,
        "model": "gemini-3-flash",
        "created": "2026-11-27T10:00:00Z",
        "updated": "2026-11-27T10:00:01Z",
        "usage": {"total_input_tokens": 3, "total_output_tokens": 4, "total_tokens": 7},
    }
    return found if steps is None else {**found, "steps": steps}


def created() -> dict[str, Any]:
    return event("interaction.created", interaction=interaction(status="in_progress"))


def completed(status: str = "completed", steps: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    return event("interaction.completed", interaction=interaction(steps, status))


def text_step(text: str) -> dict[str, Any]:
    return {"type": "model_output", "content": [{"type": "text", "text": text}]}


def call_step(name: str, arguments: Mapping[str, Any], call_id: str = "c1") -> dict[str, Any]:
    return {"type": "function_call", "id": call_id, "name": name, "arguments": arguments}


def sse(events: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the events as the API writes them, with the end of the stream."""
    written = (b"event: %s\ndata: %s\n\n" % (each["event_type"].encode(), orjson.dumps(each)) for each in events)
    return b"".join(written) + DONE
