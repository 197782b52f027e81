"""Describe a guarded door's wire, so that one pipeline, merger and hold-back serve all doors.

A door's frames stay bytes: allowed frames leave as they came. The wire also translates their content into the form of
``generateContent``, which rules, masks and traces work on.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.refusal import Feedback, Refusal, StreamState
from gemini_proxy.gemini.request import GeminiRequest

SSE_TYPE = "text/event-stream"
ARRAY_TYPE = "application/json"
"""The content type of a stream in a JSON array, and of whole bodies."""
Payload = Mapping[str, Any]
Run = tuple[object, ...]
"""The key of a text in a response; a client joins texts with the same key.

The first item is the candidate's index, the second ``"argument"`` for an argument of a call.
"""


class ResponseReader(Protocol):
    """Read the frames of one response, in order. Stateful; the same for whole bodies, arrays and streams.

    The content of a frame goes to the ``Merger`` as payloads of a ``GenerateContentResponse``. Text is passed on as it
    comes. A function call that comes in pieces is passed on once it is whole; until then ``carried_call`` is true for
    each frame with a piece of it, so that the frame may not leave. Other text belongs in fields that
    ``GenerateContentResponse`` does not know: the merger reads their strings as text of the response beside its
    candidates. Content that no rule can read is declared as in ``generateContent`` (``inlineData``, ``fileData``).
    ``finishReason`` marks the end of the response, ``error`` an error, ``usageMetadata`` the use of tokens.
    """

    @property
    def carried_call(self) -> bool:
        """True if the last frame held a call that the client would run, or a piece of one."""
        ...

    @property
    def has_open_call(self) -> bool:
        """True while a call has begun whose pieces are not all there: no check of it is worth anything yet."""
        ...

    def read(self, payload: Payload) -> Iterable[Payload]:
        """Return the content of a frame. Raises DecodeError for a form in which some of it might go unread."""
        ...

    def end(self) -> Iterable[Payload]:
        """Return the rest at the end of the body, such as a call that broke off. Raises DecodeError."""
        ...

    def refusal_events(
        self, refusal: Refusal, state: StreamState, feedback: Feedback, framing: str, left: int
    ) -> bytes:
        """Return the frames that end a refused stream, in place of everything withheld.

        ``framing`` is the content type of the stream that the client reads. ``left`` is the number of frames with a
        payload that have left; if it is 0, perhaps nothing was read either. The reader itself keeps track of what the
        sent frames began, such as the steps that are open.
        """
        ...

    def error_events(self, body: Payload, framing: str) -> bytes:
        """Return the frames of a stream that consists of an error alone; ``body`` is its JSON body.

        They begin like every frame of the stream, whatever the error is.
        """
        ...


class TextPlaces(Protocol):
    """Say where the texts of a response are, so that values in them can be masked and put back in the frames."""

    def texts(self, payload: Payload) -> Iterable[str]:
        """Return the texts of a frame that run on from frame to frame."""
        ...

    def run_of(self, path: Path, payload: Payload) -> Run | None:
        """Return the run of text that the string at ``path`` is part of; None if the text ends with that string.

        Never raises, for any payload.
        """
        ...

    def ends(self, run: Run, payload: Payload) -> bool:
        """Return whether a run ends with this frame: it is finished, or the candidate continues with something else."""
        ...

    def is_opaque(self, path: Path) -> bool:
        """Return whether the string at ``path`` is opaque (media, signatures), so that nothing in it is replaced."""
        ...

    def is_json(self, path: Path) -> bool:
        """Return whether the string at ``path`` is JSON text itself: what is put into it is spelled as that."""
        ...


class Wire(Protocol):
    """One door's wire. It has no state; the state of a response is in its reader.

    ``refuses_by_event`` is the meaning of ``refusals.before_stream = "auto"`` for a stream of which no byte has left.
    """

    @property
    def places(self) -> TextPlaces: ...

    @property
    def refuses_by_event(self) -> bool: ...

    def read_request(self, call: ModelCall, body: bytes) -> GeminiRequest:
        """Read a body as the model will. Its ``streams`` and ``model`` apply if the path does not say them.

        Raises BadRequest if it cannot be read, or can be read in two ways. May run in another process.
        """
        ...

    def contents_of_messages(self, call: ModelCall, body: bytes) -> tuple[int | None, ...]:
        """Return for each message of a request the index of its content (turn), None for a message outside the
        contents.

        Return nothing for a request without turns. Raises BadRequest as ``read_request`` does.
        """
        ...

    def content_of(self, path: Path) -> int | None:
        """Return which of a request's contents the string at ``path`` is in."""
        ...

    def is_request_text(self, path: Path) -> bool:
        """Return whether the string at ``path`` of a request is text that the model reads, and may be masked."""
        ...

    def stream_type(self, call: ModelCall) -> str:
        """Return the content type of the stream that the client of this call expects."""
        ...

    def new_framing(self, content_type: str, *, streams: bool) -> Framing:
        """Return what cuts a response of ``content_type`` into frames. ``streams`` says that a stream was asked for."""
        ...

    def new_reader(self, call: ModelCall) -> ResponseReader:
        """Return a reader for one response."""
        ...

    def error_body(self, status: int, message: str, code: str, details: Sequence[Payload] = ()) -> Payload:
        """Return the JSON body of an error of the proxy's own. ``code`` is a name of google.rpc.Code."""
        ...

    def refusal_body(self, refusal: Refusal, code: str) -> Payload:
        """Return the JSON body of a refusal by HTTP 400, of which nothing has left."""
        ...
