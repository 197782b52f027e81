"""langchain-google-genai, and what every chat model of LangChain's does. The application keeps a chat's history."""

from collections.abc import Callable
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from pydantic import BaseModel

from tests.clients.matrix.drivers.driver import KEY, MODEL, TOOLS, Ask, Say, serve


class City(BaseModel):
    """A city."""

    city: str


def _unary(model: Any) -> Ask:
    def ask(prompt: str, say: Say) -> None:
        say(model.invoke(prompt).text)

    return ask


def _stream(model: Any) -> Ask:
    def ask(prompt: str, say: Say) -> None:
        for chunk in model.stream(prompt):
            say(chunk.text)

    return ask


def _structured(model: Any) -> Ask:
    parsed = model.with_structured_output(City, method="json_schema")

    def ask(prompt: str, say: Say) -> None:
        say(str(list(parsed.stream(prompt))[-1]))

    return ask


def _tool(model: Any, *, streamed: bool = False) -> Ask:
    bound = model.bind_tools(list(TOOLS.values()))

    def ask(prompt: str, say: Say) -> None:
        messages: list[Any] = [HumanMessage(prompt)]
        while True:
            answer = _whole(bound.stream(messages)) if streamed else bound.invoke(messages)
            say(answer.text)
            if not answer.tool_calls:
                return
            messages.append(answer)
            for call in answer.tool_calls:
                messages.append(ToolMessage(TOOLS[call["name"]](**call["args"]), tool_call_id=call["id"]))

    return ask


def _whole(chunks: Any) -> Any:
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


def serve_chats(new_model: Callable[[str], Any]) -> None:
    """Serve every way to ask the model that ``new_model`` makes for a base URL."""
    serve(
        {
            "unary": lambda base_url: _unary(new_model(base_url)),
            "stream": lambda base_url: _stream(new_model(base_url)),
            "structured": lambda base_url: _structured(new_model(base_url)),
            "tool": lambda base_url: _tool(new_model(base_url)),
            "tool_stream": lambda base_url: _tool(new_model(base_url), streamed=True),
        }
    )


if __name__ == "__main__":
    # Not installed where the driver of another model takes the rest from here.
    from langchain_google_genai import ChatGoogleGenerativeAI

    serve_chats(lambda base_url: ChatGoogleGenerativeAI(model=MODEL, api_key=KEY, base_url=base_url))
