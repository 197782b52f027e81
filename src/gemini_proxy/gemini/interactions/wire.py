"""Read and write the wire of the Interactions API: a request of steps, an interaction in return, whole or as events."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.doors import Method
from gemini_proxy.gemini.fields import snake_case
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.interactions.request import contents_of_messages, read_get, read_request
from gemini_proxy.gemini.interactions.response import InteractionReader
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.refusal import Refusal, error_body, error_refusal
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.gemini.wire import SSE_TYPE, Payload, ResponseReader, Run

_NAMES: Final = frozenset("type id call_id name server_name mime_type data uri signature role language".split())
"""Strings of contents and steps that are no text: the API reads them itself."""
_OPAQUE: Final = _NAMES | frozenset("event_type event_id interaction_id status continuation_token model".split())
_CLIENTS_OWN: Final = frozenset(("arguments", "result"))
"""Fields in which names are the client's own."""


class InteractionPlaces:
    """The texts of events and interactions: in contents, and in fragments of a call's arguments."""

    def texts(self, payload: Payload) -> Iterator[str]:
        delta = payload.get("delta")
        if isinstance(delta, Mapping):
            yield from _strings(delta.get("text"), delta.get("arguments"))
            content = delta.get("content")
            if isinstance(content, Mapping):
                yield from _strings(content.get("text"))
            return
        step = payload.get("step")
        for content in _contents(step) if isinstance(step, Mapping) else ():
            yield from _strings(content.get("text"))

    def run_of(self, path: Path, payload: Payload) -> Run | None:
        """Return the run of a step's text, of its thoughts or of its arguments; in a whole interaction one a text."""
        index = payload.get("index", 0)
        match path:
            case ("delta", "text"):
                return (0, "text", index)
            case ("delta", "arguments"):
                return (0, "argument", index)
            case ("delta", "content", "text") | ("step", "summary", _, "text"):
                return (0, "thought", index)
            case ("step", "content", _, "text"):
                return (0, "text", index)
            case (*_, "steps", _, "content" | "summary", _, "text") | (*_, "output_text"):
                return (0, "whole", path)
        return None

    def ends(self, run: Run, payload: Payload) -> bool:
        match payload.get("event_type"):
            case "step.stop":
                return run[1] == "whole" or run[2] == payload.get("index", 0)
            case "step.start" | "step.delta":
                return run[1] == "whole"
            case _:
                return True

    def is_opaque(self, path: Path) -> bool:
        return path[-1] in _OPAQUE and _CLIENTS_OWN.isdisjoint(path)

    def is_json(self, path: Path) -> bool:
        return path == ("delta", "arguments")


class InteractionsWire:
    """Requests and responses of the Interactions API: create, get and cancel."""

    places = InteractionPlaces()
    refuses_by_event = False

    def read_request(self, call: ModelCall, body: bytes) -> GeminiRequest:
        if call.method is Method.CREATE_INTERACTION:
            return read_request(body)
        return read_get(call.names["id"], call.query.passed, body)

    def contents_of_messages(self, call: ModelCall, body: bytes) -> tuple[int | None, ...]:
        return contents_of_messages(body) if call.method is Method.CREATE_INTERACTION else ()

    def content_of(self, path: Path) -> int | None:
        if path[0] != "input":
            return None
        return path[1] if len(path) > 1 and isinstance(path[1], int) else 0

    def is_request_text(self, path: Path) -> bool:
        names = [snake_case(step) if isinstance(step, str) else step for step in path]
        if names[0] == "tools":
            return names[-1] in ("description", "short_description")
        if names[0] not in ("input", "system_instruction"):
            return False
        return names[-1] not in _NAMES or not _CLIENTS_OWN.isdisjoint(names[:-1])

    def stream_type(self, call: ModelCall) -> str:
        return SSE_TYPE

    def new_framing(self, content_type: str, *, streams: bool) -> Framing:
        return SseFraming() if content_type == SSE_TYPE else WholeBodyFraming()

    def new_reader(self, call: ModelCall) -> ResponseReader:
        return InteractionReader()

    def error_body(self, status: int, message: str, code: str, details: Sequence[Payload] = ()) -> Payload:
        return error_body(status, message, code, details)

    def refusal_body(self, refusal: Refusal, code: str) -> Payload:
        return error_refusal(refusal, code)


INTERACTIONS: Final = InteractionsWire()


def _strings(*values: Any) -> Iterator[str]:
    return (value for value in values if isinstance(value, str))


def _contents(step: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in ("content", "summary"):
        contents = step.get(name)
        if isinstance(contents, list):
            yield from (content for content in contents if isinstance(content, Mapping))
