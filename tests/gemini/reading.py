"""Short ways to read requests in tests, and to look at everything in what was read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import orjson

from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.request import GeminiRequest, read_request
from gemini_proxy.gemini.wire import Payload
from gemini_proxy.guardrails.response_messages import candidate_messages


def read(body: Mapping[str, Any] | bytes, verb: str = "generateContent") -> GeminiRequest:
    """``body`` as a request for ``verb``."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return read_request(read_call("POST", f"/v1beta/models/m:{verb}"), raw)


ASKED = read({})


class FrameReader(Protocol):
    """What a response's reader is without its refusals."""

    def read(self, payload: Payload) -> Iterable[Payload]: ...

    def end(self) -> Iterable[Payload]: ...


def merge(reader: FrameReader, frames: Iterable[Mapping[str, Any]]) -> Merger:
    """Read frames to their end."""
    merger = Merger()
    for frame in frames:
        for payload in reader.read(frame):
            merger.add(payload)
    for payload in reader.end():
        merger.add(payload)
    return merger


def heard(merger: Merger) -> list[Message]:
    """What rules see of a response."""
    return [message for candidate in candidate_messages(ASKED, merger) for message in candidate.messages]


def messages_of(*parts: Any, role: str = "user") -> list[Message]:
    """The messages of one content with these parts."""
    return list(read({"contents": [{"role": role, "parts": list(parts)}]}).messages)


def call(name: str, call_id: str | None = None, **args: Any) -> dict[str, Any]:
    """A part that calls."""
    return {"functionCall": {"name": name, "args": args, **({"id": call_id} if call_id else {})}}


def output(name: str, response: Any = None, call_id: str | None = None, **extra: Any) -> dict[str, Any]:
    """A part that answers a call."""
    found = {"name": name, "response": response, **extra}
    return {"functionResponse": {**found, **({"id": call_id} if call_id else {})}}


def spelled(value: Any, spell: Callable[[str], str]) -> Any:
    """A body with the names of its fields written another way."""
    if isinstance(value, dict):
        return {spell(name): spelled(inner, spell) for name, inner in value.items()}
    return [spelled(item, spell) for item in value] if isinstance(value, list) else value


def strings(value: Any) -> Iterator[str]:
    """Every string and key at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)


def said(messages: Any) -> str:
    """All that can be read in messages, in one text."""
    return "\n".join(strings(list(messages)))
