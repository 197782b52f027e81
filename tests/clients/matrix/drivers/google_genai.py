"""google-genai, its blocking half."""

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


def unary(base_url: str, config: types.GenerateContentConfig | None = None) -> Ask:
    opened = client(base_url)

    def ask(prompt: str, say: Say) -> None:
        say(opened.models.generate_content(model=MODEL, contents=prompt, config=config).text or "")

    return ask


def stream(base_url: str, config: types.GenerateContentConfig | None = None) -> Ask:
    opened = client(base_url)

    def ask(prompt: str, say: Say) -> None:
        for chunk in opened.models.generate_content_stream(model=MODEL, contents=prompt, config=config):
            say(chunk.text or "")

    return ask


def chat(base_url: str) -> Ask:
    opened = client(base_url)
    kept = opened.chats.create(model=MODEL)

    def ask(prompt: str, say: Say) -> None:
        for chunk in kept.send_message_stream(prompt):
            say(chunk.text or "")

    # Without the client, its connection is closed.
    vars(ask)["client"] = opened
    return ask


if __name__ == "__main__":
    serve(
        {
            "unary": unary,
            "stream": stream,
            "structured": lambda base_url: stream(base_url, STRUCTURED),
            "tool": lambda base_url: unary(base_url, WITH_TOOLS),
            "tool_stream": lambda base_url: stream(base_url, WITH_TOOLS),
            "chat": chat,
        }
    )
