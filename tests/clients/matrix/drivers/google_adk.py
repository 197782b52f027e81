"""google-adk: an agent in memory, which reads where Gemini is from the environment."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.runners import InMemoryRunner
from google.genai import types
from pydantic import BaseModel

from tests.clients.matrix.drivers.driver import KEY, MODEL, TOOLS, Ask, Connect, Say, serve


class City(BaseModel):
    """A city."""

    city: str


class _Session:
    """One conversation with a new agent."""

    def __init__(self, base_url: str, mode: StreamingMode, model: Callable[[], Any], **agent: Any) -> None:
        os.environ.update(GOOGLE_GEMINI_BASE_URL=base_url, GOOGLE_API_KEY=KEY)
        self._mode = mode
        self._runner = InMemoryRunner(LlmAgent(name="agent", model=model(), **agent), app_name="matrix")
        self._id: str | None = None

    async def ask(self, prompt: str, say: Say) -> None:
        async for event in self._events(prompt):
            # A stream's pieces are partial, and come once more as a whole.
            if event.partial or self._mode is StreamingMode.NONE:
                for part in event.content.parts or () if event.content else ():
                    say(part.text or "")
            if event.error_code and not event.content:
                raise RuntimeError(f"{event.error_code}: {event.error_message}")

    async def _events(self, prompt: str) -> AsyncIterator[Any]:
        if self._id is None:
            session = await self._runner.session_service.create_session(app_name="matrix", user_id="user")
            self._id = session.id
        async for event in self._runner.run_async(
            user_id="user",
            session_id=self._id,
            new_message=types.Content(role="user", parts=[types.Part(text=prompt)]),
            run_config=RunConfig(streaming_mode=self._mode),
        ):
            yield event


def unary(base_url: str, **agent: Any) -> Ask:
    return _Session(base_url, StreamingMode.NONE, **agent).ask


def stream(base_url: str, **agent: Any) -> Ask:
    return _Session(base_url, StreamingMode.SSE, **agent).ask


def operations(model: Callable[[], Any]) -> Mapping[str, Connect]:
    """What agents do, each with a new ``model``: it keeps the base URL that it is made with."""
    return {
        "unary": lambda base_url: unary(base_url, model=model),
        "stream": lambda base_url: stream(base_url, model=model),
        "structured": lambda base_url: stream(base_url, output_schema=City, model=model),
        "tool": lambda base_url: unary(base_url, tools=list(TOOLS.values()), model=model),
        "tool_stream": lambda base_url: stream(base_url, tools=list(TOOLS.values()), model=model),
        "chat": lambda base_url: stream(base_url, model=model),
    }


if __name__ == "__main__":
    serve(operations(lambda: MODEL))
