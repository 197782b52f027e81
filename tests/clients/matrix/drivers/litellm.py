"""litellm, its route ``gemini/``. The application keeps the history of a chat."""

import json
from typing import Any

import litellm

from tests.clients.matrix.drivers.driver import KEY, MODEL, SCHEMAS, TOOLS, Ask, Say, serve

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]},
        },
    }
    for name, (description, argument) in SCHEMAS.items()
]
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_STRUCTURED = {"type": "json_schema", "json_schema": {"name": "city", "schema": _SCHEMA}}


def _complete(base_url: str, messages: list[Any], **more: Any) -> Any:
    return litellm.completion(model=f"gemini/{MODEL}", api_base=base_url, api_key=KEY, messages=messages, **more)


def unary(base_url: str) -> Ask:
    def ask(prompt: str, say: Say) -> None:
        say(_complete(base_url, [{"role": "user", "content": prompt}]).choices[0].message.content or "")

    return ask


def stream(base_url: str, **more: Any) -> Ask:
    def ask(prompt: str, say: Say) -> None:
        for chunk in _complete(base_url, [{"role": "user", "content": prompt}], stream=True, **more):
            say(chunk.choices[0].delta.content or "")

    return ask


def tool(base_url: str, *, streamed: bool = False) -> Ask:
    def ask(prompt: str, say: Say) -> None:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        while True:
            found = _complete(base_url, messages, tools=_TOOLS, stream=streamed)
            if streamed:
                found = litellm.stream_chunk_builder(list(found), messages=messages)
            message = found.choices[0].message
            say(message.content or "")
            if not message.tool_calls:
                return
            messages.append(message.model_dump())
            for call in message.tool_calls:
                result = TOOLS[call.function.name](**json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    return ask


if __name__ == "__main__":
    serve(
        {
            "unary": unary,
            "stream": stream,
            "structured": lambda base_url: stream(base_url, response_format=_STRUCTURED),
            "tool": tool,
            "tool_stream": lambda base_url: tool(base_url, streamed=True),
        }
    )
