"""langchain-openai on Gemini's OpenAI path. The application keeps the history of a chat."""

from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.clients.matrix.drivers.driver import KEY, MODEL, TOOLS, Ask, Say, serve


class City(BaseModel):
    """A city."""

    city: str


def _model(base_url: str) -> Any:
    return ChatOpenAI(model=MODEL, api_key=KEY, base_url=f"{base_url}/v1beta/openai/")


def unary(base_url: str) -> Ask:
    model = _model(base_url)

    def ask(prompt: str, say: Say) -> None:
        say(model.invoke(prompt).text)

    return ask


def stream(base_url: str) -> Ask:
    model = _model(base_url)

    def ask(prompt: str, say: Say) -> None:
        for chunk in model.stream(prompt):
            say(chunk.text)

    return ask


def structured(base_url: str) -> Ask:
    model = _model(base_url).with_structured_output(City, method="json_schema")

    def ask(prompt: str, say: Say) -> None:
        say(str(list(model.stream(prompt))[-1]))

    return ask


def tool(base_url: str, *, streamed: bool = False) -> Ask:
    model = _model(base_url).bind_tools(list(TOOLS.values()))

    def ask(prompt: str, say: Say) -> None:
        messages: list[Any] = [HumanMessage(prompt)]
        while True:
            answer = _whole(model.stream(messages)) if streamed else model.invoke(messages)
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


if __name__ == "__main__":
    serve(
        {
            "unary": unary,
            "stream": stream,
            "structured": structured,
            "tool": tool,
            "tool_stream": lambda base_url: tool(base_url, streamed=True),
        }
    )
