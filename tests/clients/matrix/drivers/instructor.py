"""instructor over google-genai: every answer is structured; what streams is a partial object."""

from typing import Any

import instructor
from google import genai
from google.genai import types
from pydantic import BaseModel

from tests.clients.matrix.drivers.driver import KEY, MODEL, Ask, Say, serve


class City(BaseModel):
    """A city."""

    city: str


def _client(base_url: str) -> Any:
    client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=base_url))
    return instructor.from_genai(client, mode=instructor.Mode.GENAI_STRUCTURED_OUTPUTS)


def _call(prompt: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "response_model": City}


def unary(base_url: str) -> Ask:
    client = _client(base_url)

    def ask(prompt: str, say: Say) -> None:
        say(client.chat.completions.create(**_call(prompt), max_retries=3).city)

    return ask


def stream(base_url: str) -> Ask:
    client = _client(base_url)

    def ask(prompt: str, say: Say) -> None:
        say(list(client.chat.completions.create_partial(**_call(prompt), max_retries=3))[-1].city)

    return ask


if __name__ == "__main__":
    serve({"unary": unary, "stream": stream, "structured": stream})
