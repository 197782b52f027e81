"""google-generativeai, the legacy SDK, over REST: it streams JSON arrays."""

from typing import Any

import google.generativeai as genai

from tests.clients.matrix.drivers.driver import KEY, MODEL, TOOLS, Ask, Say, serve

_STRUCTURED = {
    "response_mime_type": "application/json",
    "response_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def _model(base_url: str, **more: Any) -> Any:
    genai.configure(api_key=KEY, transport="rest", client_options={"api_endpoint": base_url})
    return genai.GenerativeModel(MODEL, **more)


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


def tool(base_url: str) -> Ask:
    kept = _model(base_url, tools=list(TOOLS.values())).start_chat(enable_automatic_function_calling=True)

    def ask(prompt: str, say: Say) -> None:
        say(kept.send_message(prompt).text)

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
            "chat": chat,
        }
    )
