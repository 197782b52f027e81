"""The vertexai SDK (google-cloud-aiplatform) over REST, with a token of OAuth: it streams JSON arrays."""

from typing import Any

import vertexai
from google.oauth2.credentials import Credentials
from vertexai.generative_models import FunctionDeclaration, GenerationConfig, GenerativeModel, Part, Tool

from tests.clients.matrix.drivers.driver import MODEL, TOOLS, Ask, Say, serve

_STRUCTURED = GenerationConfig(
    response_mime_type="application/json",
    response_schema={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def _model(base_url: str, **more: Any) -> Any:
    vertexai.init(
        project="p",
        location="europe-west4",
        credentials=Credentials(token="ya29.matrix"),  # type: ignore[no-untyped-call]
        api_transport="rest",
        api_endpoint=base_url,
    )
    return GenerativeModel(MODEL, **more)


def _tools() -> list[Tool]:
    return [Tool([FunctionDeclaration.from_func(function) for function in TOOLS.values()])]


def unary(base_url: str) -> Ask:
    model = _model(base_url)

    def ask(prompt: str, say: Say) -> None:
        say(model.generate_content(prompt).text)

    return ask


def stream(base_url: str, **more: Any) -> Ask:
    model = _model(base_url, **more)

    def ask(prompt: str, say: Say) -> None:
        for chunk in model.generate_content(prompt, stream=True):
            say(chunk.text)

    return ask


def tool(base_url: str, *, stream: bool = False) -> Ask:
    """The SDK calls no function by itself: its user does, and gives the model the results."""
    kept = _model(base_url, tools=_tools()).start_chat()

    def ask(prompt: str, say: Say) -> None:
        said: Any = prompt
        while said:
            answer = kept.send_message(said, stream=stream)
            parts = [part for one in (answer if stream else [answer]) for part in one.candidates[0].content.parts]
            calls = [part.function_call for part in parts if part.function_call]
            if not calls:
                say("".join(part.text for part in parts))
            results = [(call.name, TOOLS[call.name](**call.args)) for call in calls]
            said = [Part.from_function_response(name, {"result": result}) for name, result in results]

    return ask


def chat(base_url: str) -> Ask:
    kept = _model(base_url).start_chat()

    def ask(prompt: str, say: Say) -> None:
        for chunk in kept.send_message(prompt, stream=True):
            say(chunk.text)

    return ask


if __name__ == "__main__":
    serve(
        {
            "unary": unary,
            "stream": stream,
            "structured": lambda base_url: stream(base_url, generation_config=_STRUCTURED),
            "tool": tool,
            "tool_stream": lambda base_url: tool(base_url, stream=True),
            "chat": chat,
        }
    )
