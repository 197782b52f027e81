"""A trace as Invariant's clients push one. No I/O."""

from typing import Any

from gemini_proxy.traces.rows import dump_messages, with_messages
from gemini_proxy.traces.trace import Trace, annotation_json


def push_body(trace: Trace) -> dict[str, Any]:
    """The body of ``POST /api/v1/push/trace`` for one trace.

    As Invariant's Gateway sends it: members of a message that are null are left out, ``via_gateway`` is true. What
    ``metadata.gemini_proxy`` says lets a receiving gemini-proxy recognise a trace that it has, and show how it ended.
    """
    return {
        "messages": [
            [{name: value for name, value in message.items() if value is not None} for message in trace.messages]
        ],
        "annotations": [[annotation_json(annotation) for annotation in trace.annotations]],
        "dataset": trace.dataset,
        "metadata": [
            {
                **trace.metadata,
                "via_gateway": True,
                "usage": trace.metadata.get("usage"),
                "gemini_proxy": {
                    "id": trace.id,
                    "outcome": trace.outcome.value,
                    "model": trace.model,
                    "stream": trace.stream,
                    "duration_ms": trace.duration_ms,
                    "created": trace.created,
                },
            }
        ],
    }


def push_document(trace: Trace) -> bytes:
    """The body as JSON, a message at a time, see ``dump_messages``. Raises RowRejected where JSON cannot hold it."""
    body = push_body(trace)
    [messages] = body.pop("messages")
    return with_messages(body, b"[%b]" % dump_messages(messages))
