"""The OpenAI SDK on Gemini's OpenAI path. The application keeps the history of a chat, and runs tools."""

import json
from typing import Any

from openai import OpenAI
from pydantic import BaseModel

from tests.clients.matrix.drivers.driver import KEY, MODEL, SCHEMAS, TOOLS, Ask, Say, serve


class City(BaseModel):
    """A city."""

    city: str


_TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}},
        },
    }
    for name, (description, argument) in SCHEMAS.items()
]


def _client(base_url: str) -> OpenAI:
    return OpenAI(base_url=f"{base_url}/v1beta/openai/", api_key=KEY)


def unary(base_url: str) -> Ask:
    client = _client(base_url)

    def ask(prompt: str, say: Say) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": prompt}])
        say(answer.choices[0].message.content or "")

    return ask


def stream(base_url: str) -> Ask:
    """Streams each answer; the history grows with the chat."""
    client = _client(base_url)
    messages: list[Any] = []

    def ask(prompt: str, say: Say) -> None:
        messages.append({"role": "user", "content": prompt})
        said = ""
        for chunk in client.chat.completions.create(model=MODEL, messages=messages, stream=True):
            piece = chunk.choices[0].delta.content or ""
            said += piece
            say(piece)
        messages.append({"role": "assistant", "content": said})

    return ask


def structured(base_url: str) -> Ask:
    client = _client(base_url)

    def ask(prompt: str, say: Say) -> None:
        answer = client.chat.completions.parse(
            model=MODEL, messages=[{"role": "user", "content": prompt}], response_format=City
        )
        say(str(answer.choices[0].message.parsed))

    return ask


def tool(base_url: str, *, streamed: bool = False) -> Ask:
    client = _client(base_url)

    def ask(prompt: str, say: Say) -> None:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        while True:
            text, calls = _answer(client, messages, streamed=streamed)
            say(text)
            if not calls:
                return
            messages.append({"role": "assistant", "content": text, "tool_calls": calls})
            for call in calls:
                result = TOOLS[call["function"]["name"]](**json.loads(call["function"]["arguments"]))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})

    return ask


def _answer(client: OpenAI, messages: list[Any], *, streamed: bool) -> tuple[str, list[dict[str, Any]]]:
    if not streamed:
        message = client.chat.completions.create(model=MODEL, messages=messages, tools=_TOOLS).choices[0].message
        return message.content or "", [call.model_dump() for call in message.tool_calls or ()]
    text, calls = "", list[dict[str, Any]]()
    for chunk in client.chat.completions.create(model=MODEL, messages=messages, tools=_TOOLS, stream=True):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        calls += [call.model_dump(exclude={"index"}) for call in delta.tool_calls or ()]
    return text, calls


if __name__ == "__main__":
    serve(
        {
            "unary": unary,
            "stream": stream,
            "structured": structured,
            "chat": stream,
            "tool": tool,
            "tool_stream": lambda base_url: tool(base_url, streamed=True),
        }
    )
