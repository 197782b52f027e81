"""Read and write the wire of methods with one JSON body each way, whose texts do not run on from one to the next."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.refusal import (
    JSON_TYPE,
    Feedback,
    Refusal,
    StreamState,
    error_body,
    error_refusal,
    sse_refusal,
)
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.gemini.wire import Payload, ResponseReader, Run


def _as_it_is(payload: Payload) -> Iterable[Payload]:
    return (payload,)


@dataclass(frozen=True, slots=True)
class BodyReader:
    """Tell what one body says, by ``tell``. It is refused by HTTP 400, unless its client was shown life before."""

    tell: Callable[[Payload], Iterable[Payload]]
    carried_call: bool = False
    has_open_call: bool = False

    def read(self, payload: Payload) -> Iterable[Payload]:
        return self.tell(payload)

    def end(self) -> Iterable[Payload]:
        return ()

    def refusal_events(
        self, refusal: Refusal, state: StreamState, feedback: Feedback, framing: str, left: int
    ) -> bytes:
        return sse_refusal(refusal, state, feedback)

    def error_events(self, body: Payload, framing: str) -> bytes:
        raise AssertionError("no response of this door is a stream")


def _nothing(path: Path) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class BodyPlaces:
    """The texts of one body: every string is a separate text, except at opaque paths."""

    opaque: Callable[[Path], bool] = _nothing

    def texts(self, payload: Payload) -> Iterable[str]:
        return ()

    def run_of(self, path: Path, payload: Payload) -> Run | None:
        return None if self.opaque(path) else (0, "text", path)

    def ends(self, run: Run, payload: Payload) -> bool:
        return True

    def is_opaque(self, path: Path) -> bool:
        return self.opaque(path)

    def is_json(self, path: Path) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class BodyWire:
    """``read`` reads a request's body. ``is_text`` tells for a path in it whether the model reads that string as text.

    ``tell`` says a response in Gemini's words, as ``ResponseReader.read`` does.
    """

    read: Callable[[ModelCall, bytes], GeminiRequest]
    is_text: Callable[[Path], bool]
    tell: Callable[[Payload], Iterable[Payload]] = _as_it_is
    places: BodyPlaces = BodyPlaces()
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
        return BodyReader(self.tell)

    def error_body(self, status: int, message: str, code: str, details: Sequence[Payload] = ()) -> Payload:
        return error_body(status, message, code, details)

    def refusal_body(self, refusal: Refusal, code: str) -> Payload:
        return error_refusal(refusal, code)
