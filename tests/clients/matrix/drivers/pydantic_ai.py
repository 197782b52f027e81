"""pydantic-ai. A run's messages are given to the next one, as its documentation has it."""

from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.providers.google import GoogleProvider

from tests.clients.matrix.drivers.driver import KEY, MODEL, TOOLS, Ask, Say, serve


class City(BaseModel):
    """A city."""

    city: str


def _agent(base_url: str, **more: Any) -> Any:
    return Agent(GoogleModel(MODEL, provider=GoogleProvider(api_key=KEY, base_url=base_url)), **more)


def unary(base_url: str, **more: Any) -> Ask:
    agent = _agent(base_url, **more)

    async def ask(prompt: str, say: Say) -> None:
        say((await agent.run(prompt)).output)

    return ask


def stream(base_url: str, **more: Any) -> Ask:
    agent = _agent(base_url, **more)
    history: list[Any] = []

    async def ask(prompt: str, say: Say) -> None:
        async with agent.run_stream(prompt, message_history=history) as run:
            async for text in run.stream_text(delta=True):
                say(text)
            history[:] = run.all_messages()

    return ask


def structured(base_url: str) -> Ask:
    agent = _agent(base_url, output_type=NativeOutput(City))

    async def ask(prompt: str, say: Say) -> None:
        async with agent.run_stream(prompt) as run:
            say(str([found async for found in run.stream_output()][-1]))

    return ask


if __name__ == "__main__":
    tools = list(TOOLS.values())
    serve(
        {
            "unary": unary,
            "stream": stream,
            "structured": structured,
            "tool": lambda base_url: unary(base_url, tools=tools),
            "tool_stream": lambda base_url: stream(base_url, tools=tools),
            "chat": stream,
        }
    )
