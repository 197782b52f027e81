"""Read and write the wire of Gemini's OpenAI path: chats, streamed as events or whole, and embeddings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.doors import Method
from gemini_proxy.gemini.fields import objects_in, snake_case
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.openai.request import messages_read, read_chat, read_embeddings
from gemini_proxy.gemini.openai.response import ChatReader, error_body, refusal_body
from gemini_proxy.gemini.refusal import Refusal
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.gemini.wire import SSE_TYPE, Payload, ResponseReader, Run

_TEXTS: Final = ("content", "refusal", "reasoning_content", "reasoning")
_ARGUMENTS: Final = (("function", "arguments"), ("custom", "input"))
_SAID: Final = frozenset({"delta", "message"})
_OPAQUE: Final = frozenset({"id", "model", "object", "data", "thought_signature", "thoughtSignature", "finish_reason"})


class OpenAIPlaces:
    """The texts of a chunk or a whole completion: contents, thoughts and arguments, which are JSON text."""

    def texts(self, payload: Payload) -> Iterator[str]:
        for choice in objects_in(payload.get("choices")):
            for said in (choice.get("delta"), choice.get("message")):
                if not isinstance(said, Mapping):
                    continue
                yield from (text for name in _TEXTS if isinstance(text := said.get(name), str))
                for call in objects_in(said.get("tool_calls")):
                    function = call.get("function")
                    if isinstance(function, Mapping) and isinstance(text := function.get("arguments"), str):
                        yield text

    def run_of(self, path: Path, payload: Payload) -> Run | None:
        """Return the run of a choice's text, or of the arguments of a call that comes in pieces."""
        if len(path) < 4 or path[0] != "choices" or path[2] not in _SAID:
            return None
        try:
            choice = payload["choices"][path[1]]
            index = choice.get("index") or 0
            if len(path) == 4 and path[3] in _TEXTS:
                return (index, path[3])
            if len(path) == 7 and path[3] == "tool_calls" and path[5:] == ("function", "arguments"):
                call = choice[path[2]][path[3]][path[4]]
                return (index, "argument", call["index"])
        except (LookupError, TypeError, AttributeError):
            # A parser does not see the value of a repeated name that stands in the text. A call without an index is
            # whole.
            return None
        return None

    def ends(self, run: Run, payload: Payload) -> bool:
        for choice in objects_in(payload.get("choices")):
            if (choice.get("index") or 0) != run[0]:
                continue
            if choice.get("finish_reason"):
                return True
            said = choice.get("delta") or choice.get("message")
            if not isinstance(said, Mapping):
                continue
            calls = said.get("tool_calls")
            if run[1] != "argument":
                return bool(calls) or (run[1] != "content" and bool(said.get("content")))
            if calls:
                return all(call.get("index") != run[2] for call in objects_in(calls))
            return bool(said.get("content"))
        return False

    def is_opaque(self, path: Path) -> bool:
        return path[-1] in _OPAQUE

    def is_json(self, path: Path) -> bool:
        return path[-2:] in (("function", "arguments"), ("function_call", "arguments"))


class OpenAIWire:
    """Requests and responses of ``chat/completions``, and requests of ``embeddings``."""

    places = OpenAIPlaces()
    refuses_by_event = False

    def read_request(self, call: ModelCall, body: bytes) -> GeminiRequest:
        if call.query.alt is not None or call.query.int_enums:
            raise BadRequest("The OpenAI path takes neither alt nor $alt; ask for a stream in the body")
        return read_embeddings(body) if call.method is Method.OPENAI_EMBED else read_chat(body)

    def contents_of_messages(self, call: ModelCall, body: bytes) -> tuple[int | None, ...]:
        return () if call.method is Method.OPENAI_EMBED else messages_read(body)

    def content_of(self, path: Path) -> int | None:
        return path[1] if path[0] == "messages" and len(path) > 1 and isinstance(path[1], int) else None

    def is_request_text(self, path: Path) -> bool:
        names = [snake_case(step) if isinstance(step, str) else step for step in path]
        if names[0] in ("tools", "functions"):
            return names[-1] == "description"
        if names[0] == "input":
            return True
        if names[0] != "messages" or len(names) < 3:
            return False
        own = names[2:]
        if own[0] == "tool_calls":
            return tuple(own[-2:]) in _ARGUMENTS
        if own[0] == "function_call":
            return own[1:] == ["arguments"]
        return own[0] in _TEXTS and (len(own) == 1 or own[-1] in ("text", "refusal"))

    def stream_type(self, call: ModelCall) -> str:
        return SSE_TYPE

    def new_framing(self, content_type: str, *, streams: bool) -> Framing:
        """Return the framing for the response's content type: a stream of events, or one object."""
        return SseFraming() if content_type == SSE_TYPE else WholeBodyFraming()

    def new_reader(self, call: ModelCall) -> ResponseReader:
        return ChatReader()

    def error_body(self, status: int, message: str, code: str, details: Sequence[Payload] = ()) -> Payload:
        return error_body(status, message, code, details)

    def refusal_body(self, refusal: Refusal, code: str) -> Payload:
        return refusal_body(refusal, code)


OPENAI: Final = OpenAIWire()
