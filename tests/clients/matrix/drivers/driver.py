"""What the drivers in Python have in common: tasks come in as lines of JSON, and what the client showed goes out.

A driver runs in its client's own environment, where nothing is to be had but that client and the standard library.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

MODEL = "gemini-2.5-flash"
KEY = "AIzaTestKey"
Say = Callable[[str], None]
"""Called with each piece of text that the client shows."""
Ask = Callable[[str, Say], Any]
"""Puts one prompt to the client; may be a coroutine function."""
Connect = Callable[[str], Ask]
"""Makes a client for the proxy at a base URL. A chat is asked several times, and keeps its history."""

ran: list[str] = []
"""The tools that the client has run."""


def weather(city: str) -> str:
    """Tell the weather in a city."""
    ran.append("weather")
    return f"It is sunny in {city}."


def delete_file(path: str) -> str:
    """Delete a file."""
    ran.append("delete_file")
    return f"{path} is gone."


TOOLS: Mapping[str, Callable[..., str]] = {"weather": weather, "delete_file": delete_file}
SCHEMAS = {"weather": ("Tell the weather in a city.", "city"), "delete_file": ("Delete a file.", "path")}
"""What each tool does, and the name of its one argument, which is a text."""


def serve(operations: Mapping[str, Connect]) -> None:
    """Do the tasks of standard input with ``operations`` until it ends.

    A task is ``{"base_url", "do", "prompts"}``; its result has for each prompt the text that was shown, the error that
    was raised (None without one), and the tools that were run.
    """
    results, sys.stdout = sys.stdout, sys.stderr
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    for line in sys.stdin:
        task = json.loads(line)
        turns = _turns(loop, operations[task["do"]], task["base_url"], task["prompts"])
        print(json.dumps({"turns": turns}), file=results, flush=True)


def _turns(
    loop: asyncio.AbstractEventLoop, connect: Connect, base_url: str, prompts: list[str]
) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    ask: Ask | None = None
    for prompt in prompts:
        said: list[str] = []
        raised: str | None = None
        ran.clear()
        try:
            ask = ask or connect(base_url)
            done = ask(prompt, said.append)
            if asyncio.iscoroutine(done):
                loop.run_until_complete(done)
        except Exception as error:
            raised = f"{type(error).__name__}: {error}"
        turns.append({"text": "".join(said), "raised": raised, "ran": list(ran)})
    return turns
