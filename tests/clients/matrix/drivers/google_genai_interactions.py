"""google-genai's Interactions: each prompt goes on from the interaction before, tools are run by hand."""

import json
from collections.abc import Iterator
from typing import Any

from google import genai

from tests.clients.matrix.drivers.driver import MODEL, SCHEMAS, TOOLS, Ask, Say, serve
from tests.clients.matrix.drivers.google_genai import client

STRUCTURED = {
    "response_format": {
        "type": "text",
        "mime_type": "application/json",
        "schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
}
WITH_TOOLS = {
    "tools": [
        {
            "type": "function",
            "name": name,
            "description": about,
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]},
        }
        for name, (about, argument) in SCHEMAS.items()
    ]
}


class _Conversation:
    """Interactions that go on from each other."""

    def __init__(self, opened: genai.Client, *, streams: bool, **fields: Any) -> None:
        self._client = opened
        self._streams = streams
        self._fields = fields
        self._last: str | None = None

    def ask(self, prompt: str, say: Say) -> None:
        given: Any = prompt
        while given:
            calls = list(self._steps(given, say))
            given = [
                {"type": "function_result", "call_id": call_id, "name": name, "result": TOOLS[name](**arguments)}
                for call_id, name, arguments in calls
            ]

    def _steps(self, given: Any, say: Say) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Create an interaction, say its text and yield its calls."""
        asked: dict[str, Any] = {"model": MODEL, "input": given, "stream": self._streams, **self._fields}
        if self._last:
            asked["previous_interaction_id"] = self._last
        made: Any = self._client.interactions.create(**asked)
        if not self._streams:
            say(made.output_text or "")
            self._last = made.id
            yield from ((step.id, step.name, step.arguments) for step in made.steps if step.type == "function_call")
            return
        yield from self._events(made, say)

    def _events(self, events: Any, say: Say) -> Iterator[tuple[str, str, dict[str, Any]]]:
        calls: dict[int, list[Any]] = {}
        for event in events:
            if event.event_type == "step.start" and event.step.type == "function_call":
                calls[event.index] = [event.step.id, event.step.name, ""]
            elif event.event_type == "step.delta" and event.delta.type == "arguments_delta":
                calls[event.index][2] += event.delta.arguments
            elif event.event_type == "step.delta" and event.delta.type == "text":
                say(event.delta.text)
            elif event.event_type == "interaction.completed":
                self._last = event.interaction.id
            elif event.event_type == "error":
                raise RuntimeError(event.error.message)
        yield from ((call_id, name, json.loads(text)) for call_id, name, text in calls.values())


def asking(base_url: str, *, streams: bool, **fields: Any) -> Ask:
    return _Conversation(client(base_url), streams=streams, **fields).ask


if __name__ == "__main__":
    serve(
        {
            "unary": lambda base_url: asking(base_url, streams=False),
            "stream": lambda base_url: asking(base_url, streams=True),
            "structured": lambda base_url: asking(base_url, streams=True, **STRUCTURED),
            "tool": lambda base_url: asking(base_url, streams=False, **WITH_TOOLS),
            "tool_stream": lambda base_url: asking(base_url, streams=True, **WITH_TOOLS),
            "chat": lambda base_url: asking(base_url, streams=True),
        }
    )
