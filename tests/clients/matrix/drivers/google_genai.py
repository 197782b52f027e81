"""google-genai, its blocking half."""

from collections.abc import Callable, Mapping

from google import genai
from google.genai import types

from tests.clients.matrix.drivers.driver import KEY, MODEL, TOOLS, Ask, Say, serve

STRUCTURED = types.GenerateContentConfig(
    response_mime_type="application/json",
    response_schema=types.Schema(
        type=types.Type.OBJECT, properties={"city": types.Schema(type=types.Type.STRING)}, required=["city"]
    ),
)
WITH_TOOLS = types.GenerateContentConfig(tools=list(TOOLS.values()))


def client(base_url: str) -> genai.Client:
    return genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=base_url))


def unary(opened: genai.Client, config: types.GenerateContentConfig | None = None) -> Ask:
    def ask(prompt: str, say: Say) -> None:
        say(opened.models.generate_content(model=MODEL, contents=prompt, config=config).text or "")

    return ask


def stream(opened: genai.Client, config: types.GenerateContentConfig | None = None) -> Ask:
    def ask(prompt: str, say: Say) -> None:
        for chunk in opened.models.generate_content_stream(model=MODEL, contents=prompt, config=config):
            say(chunk.text or "")

    return ask


def chat(opened: genai.Client) -> Ask:
    kept = opened.chats.create(model=MODEL)

    def ask(prompt: str, say: Say) -> None:
        for chunk in kept.send_message_stream(prompt):
            say(chunk.text or "")

    # Without the client, its connection is closed.
    vars(ask)["client"] = opened
    return ask


def operations(open_client: Callable[[str], genai.Client]) -> Mapping[str, Callable[[str], Ask]]:
    """What a client does that ``open_client`` makes of a base URL."""
    return {
        "unary": lambda base_url: unary(open_client(base_url)),
        "stream": lambda base_url: stream(open_client(base_url)),
        "structured": lambda base_url: stream(open_client(base_url), STRUCTURED),
        "tool": lambda base_url: unary(open_client(base_url), WITH_TOOLS),
        "tool_stream": lambda base_url: stream(open_client(base_url), WITH_TOOLS),
        "chat": lambda base_url: chat(open_client(base_url)),
    }


if __name__ == "__main__":
    serve(operations(client))
