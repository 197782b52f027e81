"""Read and write the wire of ``generateContent``, and of methods whose requests are like its own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.fields import camel_case, objects_in
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.framing.json_array import JsonArrayFraming
from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.refusal import (
    Feedback,
    Refusal,
    StreamState,
    array_refusal,
    error_array,
    error_body,
    error_event,
    error_refusal,
    sse_refusal,
)
from gemini_proxy.gemini.request import GeminiRequest, contents_of_messages, read_request
from gemini_proxy.gemini.wire import ARRAY_TYPE, SSE_TYPE, Payload, ResponseReader, Run

_NAMES: Final = frozenset("id name toolType mimeType data fileUri thoughtSignature language outcome".split())
"""Strings of parts, and of what is directly in them, that are no text: the API reads them itself."""
_BLOBS: Final = frozenset({"inlineData", "fileData"})
_CONTENTS: Final = frozenset({"contents", "content", "systemInstruction"})
_DESCRIBING: Final = frozenset({"functionDeclarations", "responseSchema", "responseJsonSchema"})
_OPAQUE: Final = frozenset({"data", "thoughtSignature", "thought_signature"})


class GenerateReader:
    """Pass payloads on as they are: the merger reads this form."""

    carried_call = False
    has_open_call = False

    def read(self, payload: Payload) -> Iterable[Payload]:
        return (payload,)

    def end(self) -> Iterable[Payload]:
        return ()

    def refusal_events(
        self, refusal: Refusal, state: StreamState, feedback: Feedback, framing: str, left: int
    ) -> bytes:
        if framing == SSE_TYPE:
            return sse_refusal(refusal, state, feedback)
        return array_refusal(refusal, state, opened=left > 0, elements=left)

    def error_events(self, body: Payload, framing: str) -> bytes:
        return error_event(body) if framing == SSE_TYPE else error_array(body)


GENERATE_READER: Final = GenerateReader()
"""It has no state, so one serves all responses."""


class GeneratePlaces:
    """The texts of a ``GenerateContentResponse``: parts, and streamed arguments of calls."""

    def texts(self, payload: Payload) -> Iterator[str]:
        for candidate in objects_in(payload.get("candidates")):
            content = candidate.get("content")
            for part in objects_in(content.get("parts") if isinstance(content, Mapping) else None):
                if isinstance(text := part.get("text"), str):
                    yield text
                call = part.get("functionCall", part.get("function_call"))
                if isinstance(call, Mapping):
                    for piece in objects_in(call.get("partialArgs", call.get("partial_args"))):
                        if isinstance(text := piece.get("stringValue", piece.get("string_value")), str):
                            yield text

    def run_of(self, path: Path, payload: Payload) -> Run | None:
        """Return the run of a candidate's text, or of a streamed argument."""
        if len(path) < 6 or path[0] != "candidates" or path[3] != "parts":
            return None
        try:
            candidate = payload["candidates"][path[1]]
            part, index = candidate["content"]["parts"][path[4]], candidate.get("index", 0)
            if path[5:] == ("text",):
                return (index, "text", bool(part.get("thought")))
            if path[-1] in ("stringValue", "string_value") and path[6] in ("partialArgs", "partial_args"):
                piece = part[path[5]][path[6]][path[7]]
                return (index, "argument", piece.get("jsonPath", piece.get("json_path")))
        except (LookupError, TypeError, AttributeError):
            # A parser does not see the value of a repeated name that stands in the text. The merger reads the parser's
            # result.
            return None
        return None

    def ends(self, run: Run, payload: Payload) -> bool:
        for candidate in objects_in(payload.get("candidates")):
            if candidate.get("index", 0) != run[0]:
                continue
            if candidate.get("finishReason") or candidate.get("finish_reason"):
                return True
            content = candidate.get("content")
            parts = list(objects_in(content.get("parts"))) if isinstance(content, Mapping) else []
            if run[1] == "text":
                return bool(parts) and "text" not in parts[-1]
            return any("text" in part for part in parts)
        return False

    def is_opaque(self, path: Path) -> bool:
        return path[-1] in _OPAQUE

    def is_json(self, path: Path) -> bool:
        return False


class GenerateWire:
    """Requests and responses of ``generateContent``, streamed as events or as a JSON array."""

    places = GeneratePlaces()
    refuses_by_event = True

    def read_request(self, call: ModelCall, body: bytes) -> GeminiRequest:
        return read_request(call, body)

    def contents_of_messages(self, call: ModelCall, body: bytes) -> tuple[int | None, ...]:
        return contents_of_messages(call, body)

    def content_of(self, path: Path) -> int | None:
        return path[1] if path[0] == "contents" and len(path) > 1 and isinstance(path[1], int) else None

    def is_request_text(self, path: Path) -> bool:
        names = [camel_case(step) if isinstance(step, str) else step for step in path]
        at = next((index for index, step in enumerate(names) if step in _CONTENTS), None)
        if at is None:
            if names[-1:] == ["description"]:
                return not _DESCRIBING.isdisjoint(names)
            outer = all(step == "requests" or isinstance(step, int) for step in names[:-1])
            return outer and names[-1:] in (["title"], ["displayName"])
        within = names[at + 1 :]
        if "parts" not in within:
            return False
        # The part's own fields and those of its call or output. Deeper values belong to the client, except media.
        own = within[within.index("parts") + 1 :]
        if own and isinstance(own[0], int):
            own = own[1:]
        return bool(own) and (own[-1] not in _NAMES or (len(own) > 2 and own[-2] not in _BLOBS))

    def stream_type(self, call: ModelCall) -> str:
        return SSE_TYPE if call.query.alt == "sse" else ARRAY_TYPE

    def new_framing(self, content_type: str, *, streams: bool) -> Framing:
        """Return the framing for the response's content type.

        ``alt=sse`` works on unary calls too, and streams without it are arrays.
        """
        if content_type == SSE_TYPE:
            return SseFraming()
        return JsonArrayFraming() if streams else WholeBodyFraming()

    def new_reader(self, call: ModelCall) -> ResponseReader:
        return GENERATE_READER

    def error_body(self, status: int, message: str, code: str, details: Sequence[Payload] = ()) -> Payload:
        return error_body(status, message, code, details)

    def refusal_body(self, refusal: Refusal, code: str) -> Payload:
        return error_refusal(refusal, code)


GENERATE: Final = GenerateWire()
