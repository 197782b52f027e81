"""llama-index with its Google GenAI model."""

from typing import Any

from google.genai import types
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.google_genai import GoogleGenAI
from pydantic import BaseModel

from tests.clients.matrix.drivers.driver import KEY, MODEL, TOOLS, Ask, Say, serve


class City(BaseModel):
    """A city."""

    city: str


def _model(base_url: str) -> Any:
    return GoogleGenAI(model=MODEL, api_key=KEY, http_options=types.HttpOptions(base_url=base_url))


def unary(base_url: str) -> Ask:
    model = _model(base_url)

    def ask(prompt: str, say: Say) -> None:
        say(model.complete(prompt).text)

    return ask


def stream(base_url: str) -> Ask:
    model = _model(base_url)

    def ask(prompt: str, say: Say) -> None:
        for chunk in model.stream_complete(prompt):
            say(chunk.delta or "")

    return ask


def structured(base_url: str) -> Ask:
    model = _model(base_url)

    def ask(prompt: str, say: Say) -> None:
        say(str(list(model.stream_structured_predict(City, PromptTemplate(prompt)))[-1]))

    return ask


def tool(base_url: str, *, streaming: bool = False) -> Ask:
    agent = FunctionAgent(tools=list(TOOLS.values()), llm=_model(base_url), streaming=streaming)

    async def ask(prompt: str, say: Say) -> None:
        say(str(await agent.run(prompt)))

    return ask


def chat(base_url: str) -> Ask:
    engine = SimpleChatEngine.from_defaults(llm=_model(base_url))

    def ask(prompt: str, say: Say) -> None:
        # Not ``stream_chat``: whoever reads that waits for ever where its thread has raised.
        say(str(engine.chat(prompt)))

    return ask


if __name__ == "__main__":
    serve(
        {
            "unary": unary,
            "stream": stream,
            "structured": structured,
            "tool": tool,
            "tool_stream": lambda base_url: tool(base_url, streaming=True),
            "chat": chat,
        }
    )
