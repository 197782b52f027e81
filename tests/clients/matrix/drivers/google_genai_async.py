"""google-genai, its asyncio half."""

from google.genai import types

from tests.clients.matrix.drivers.driver import MODEL, Ask, Say, serve
from tests.clients.matrix.drivers.google_genai import STRUCTURED, WITH_TOOLS, client


def unary(base_url: str, config: types.GenerateContentConfig | None = None) -> Ask:
    opened = client(base_url)

    async def ask(prompt: str, say: Say) -> None:
        say((await opened.aio.models.generate_content(model=MODEL, contents=prompt, config=config)).text or "")

    return ask


def stream(base_url: str, config: types.GenerateContentConfig | None = None) -> Ask:
    opened = client(base_url)

    async def ask(prompt: str, say: Say) -> None:
        async for chunk in await opened.aio.models.generate_content_stream(model=MODEL, contents=prompt, config=config):
            say(chunk.text or "")

    return ask


def chat(base_url: str) -> Ask:
    opened = client(base_url)
    kept = opened.aio.chats.create(model=MODEL)

    async def ask(prompt: str, say: Say) -> None:
        async for chunk in await kept.send_message_stream(prompt):
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
