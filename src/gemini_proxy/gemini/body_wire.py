"""The wire of methods that take one JSON body and return one, in whose responses nothing is masked or put back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.generate_wire import GenerateReader
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.refusal import JSON_TYPE, Refusal, error_body, error_refusal
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.gemini.wire import Payload, ResponseReader


@dataclass(frozen=True, slots=True)
class BodyWire:
    """``read`` reads a request's body, ``is_text`` says of a path in it whether the model reads that string as text."""

    read: Callable[[ModelCall, bytes], GeminiRequest]
    is_text: Callable[[Path], bool]
    reader: Callable[[], ResponseReader] = GenerateReader
    places: None = None
    refuses_by_event: bool = False

    def read_request(self, call: ModelCall, body: bytes) -> GeminiRequest:
        return self.read(call, body)

    def contents_of_messages(self, call: ModelCall, body: bytes) -> tuple[int | None, ...]:
        return ()

    def content_of(self, path: Path) -> int | None:
        return None

    def is_request_text(self, path: Path) -> bool:
        return self.is_text(path)

    def stream_type(self, call: ModelCall) -> str:
        return JSON_TYPE

    def new_framing(self, content_type: str, *, streams: bool) -> Framing:
        return WholeBodyFraming()

    def new_reader(self, call: ModelCall) -> ResponseReader:
        return self.reader()

    def error_body(self, status: int, message: str, code: str, details: Sequence[Payload] = ()) -> Payload:
        return error_body(status, message, code, details)

    def refusal_body(self, refusal: Refusal, code: str) -> Payload:
        return error_refusal(refusal, code)
