"""Take the frames of both sides of a live session through the guardrails, one turn of the model at a time.

A turn is an exchange like any other: its request is the conversation so far, its response is the model's output until
it waits for the client again. Its trace is written before its last frame leaves.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeVar

import orjson
from multidict import CIMultiDict

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.live.frames import (
    ClientFrame,
    FunctionName,
    ServerFrame,
    answered_functions,
    read_client_frame,
    read_server_frame,
    refusal_frame,
    tool_errors,
)
from gemini_proxy.gemini.live.request import (
    names_in,
    read_input,
    read_setup,
    session_name,
    transcribes,
    with_transcriptions,
)
from gemini_proxy.gemini.live.wire import FRAME_END, FRAMES_TYPE, FrameSequence
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.parts import Unchecked
from gemini_proxy.gemini.references import moved as moved_behind
from gemini_proxy.gemini.references import references_of
from gemini_proxy.gemini.refusal import Refusal
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.guardrails.masking import Masks, evidence, hide_in_messages
from gemini_proxy.guardrails.verdict import Violation
from gemini_proxy.proxy.exchange import Exchange, Made, Refused
from gemini_proxy.proxy.pipeline import Pipeline
from gemini_proxy.proxy.request_reader import RequestReader
from gemini_proxy.proxy.tasks import off_loop
from gemini_proxy.traces.handles import Kind
from gemini_proxy.traces.trace import Outcome

T = TypeVar("T")

_HEARD: Final = "inputTranscription"
_LEAST: Final = 2_048
"""The fewest bytes that a client's message counts as: each check reads all again, however short the messages."""
_RESUMABLE: Final = 100_000.0
"""Seconds after a turn for which Google knows its handles: a day on Vertex AI, and the session's own time."""
_NO_FRAME: Final = b"{}"
"""The body of an exchange between frames."""
_READ_AT_ONCE: Final = 4
"""Bytes of a frame that are read in the time that it takes to look for values in one."""


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """A WebSocket message, as received or as the proxy writes it."""

    data: bytes
    binary: bool


@dataclass(slots=True)
class Leaving:
    """The frames that may leave now: ``up`` to the model, ``down`` to the client. ``checked`` says that rules ran."""

    up: list[LiveFrame] = field(default_factory=list)
    down: list[LiveFrame] = field(default_factory=list)
    checked: bool = False


class SessionTooLarge(BadRequest):
    """A session holds more than ``live.max_session_bytes``."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Settings of a session. ``prefix`` is that of refusals; ``max_bytes`` bounds the bytes of it that are kept.

    ``sound_waits`` says that the model's sound is held back like its text.
    """

    prefix: str
    sound_waits: bool
    blocks_unseen: bool
    adds_transcription: bool
    max_bytes: int


class _ServerFrames:
    """Read a server's frames; a frame under decision is read only once."""

    def __init__(self) -> None:
        self._last: tuple[bytes, ServerFrame] | None = None

    def read(self, data: bytes) -> ServerFrame:
        """Return a frame as it is read. Raises DecodeError for one that cannot be."""
        if self._last is None or self._last[0] != data:
            self._last = data, read_server_frame(data)
        return self._last[1]

    def forget(self) -> None:
        """Keep none: a frame may be large, and the next one far away."""
        self._last = None

    def new_framing(self) -> FrameSequence:
        return FrameSequence(self.read)


class _HeldFrames:
    """Keep what the hold-back's byte stream loses about its frames, in their order."""

    def __init__(self) -> None:
        self._frames: deque[tuple[bool, int]] = deque()
        self.size = 0
        """The bytes of the frames."""

    def add(self, frame: LiveFrame) -> bytes:
        """Return a frame in the hold-back's form."""
        self._frames.append((frame.binary, len(frame.data)))
        self.size += len(frame.data)
        return frame.data + FRAME_END

    def take(self, leaving: bytes) -> list[LiveFrame]:
        """Return the frames that leave."""
        frames = []
        for data in leaving.split(FRAME_END)[:-1]:
            binary, size = self._frames.popleft()
            self.size -= size
            frames.append(LiveFrame(data, binary))
        return frames


class _SessionHandle(NamedTuple):
    """A handle that lets another session continue, and its frame."""

    text: str
    frame: LiveFrame


class _KeptMessage(NamedTuple):
    """A message as rules read it, and as traces keep it."""

    message: Message
    stored: Message


@dataclass(slots=True)
class _LiveTurn:
    """A turn under way: ``inputs`` are the client's messages for it.

    ``heard`` is the index among the inputs of the user's speech. ``handle`` continues from the middle of the turn: it
    leaves once that part has passed.
    """

    exchange: Exchange
    inputs: list[_KeptMessage]
    heard: int | None = None
    handle: "_SessionHandle | None" = None
    held: _HeldFrames = field(default_factory=_HeldFrames)

    @property
    def begun(self) -> bool:
        """True once the model has begun to answer."""
        return self.exchange.stream is not None


class LiveSession:
    """Take in frames and return those that may leave, for one client and one server.

    Frames are decided one at a time; streamed sound and pictures need no decision and do not wait. After a refusal of
    the model's output the rest of that turn is withheld, and no handle leaves that could continue the refused
    conversation elsewhere.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        reader: RequestReader,
        settings: SessionSettings,
        new_exchange: Callable[[], Exchange],
        spend: Callable[[Mapping[str, Any]], None],
        remember: Callable[[Exchange], Awaitable[None]],
        begin: Callable[[Exchange], None] = lambda exchange: None,
    ) -> None:
        """``new_exchange`` makes an exchange with its call and rules; ``spend`` gets the token counts of each turn.

        ``remember`` stores the handles that an exchange made, with which another session can continue. ``begin`` is
        called with each exchange to begin its spans.
        """
        self._pipeline = pipeline
        self._reader = reader
        self._settings = settings
        self._new_exchange = new_exchange
        self._spend = spend
        self._begin = begin
        self._remember = remember
        self._lock = asyncio.Lock()
        self._frames = _ServerFrames()
        # From the setup: the call with its names, and notes for the first turn.
        self._call: ModelCall | None = None
        self._names: Mapping[str, str] = {}
        self._base: GeminiRequest | None = None
        self._transcribed = False
        self._noted: list[Violation] = []
        # The conversation: its name, the messages that passed as the model knows them, and the number of bytes kept.
        self._name = ""
        self._conversation: list[_KeptMessage] = []
        self._unchecked: dict[Unchecked, None] = {}
        self._secrets: dict[str, None] = {}
        self._masks: Masks | None = None
        self._last: Exchange | None = None
        self._kept = 0
        # The turn under way, and the next one, to which the client's new messages belong.
        self._turn: _LiveTurn | None = None
        self._next: _LiveTurn | None = None
        self._listens = False
        self._muted = False
        self._withheld = False
        self._interrupted = False
        self._tainted = False
        self._recorded = False

    @property
    def call(self) -> ModelCall:
        """Return the call, with the names from its setup, which has them in place of a path."""
        assert self._call is not None, "the setup comes first"
        return self._call

    @property
    def idle(self) -> bool:
        """True between turns: nothing that anybody said waits for an answer."""
        return self._turn is None and not self._lock.locked()

    async def start(self, data: bytes) -> bytes:
        """Return the checked setup in the form that goes upstream.

        Raises BadRequest and NotFound, and Refused, whose trace is written.
        """
        frame = read_client_frame(data)
        if frame.kind != "setup":
            raise BadRequest("The first frame of a session must be its setup")
        self._names = names_in(frame)
        exchange = await self._continued(frame)
        if self._settings.adds_transcription:
            data = with_transcriptions(data, frame)
        self._transcribed = self._settings.adds_transcription or transcribes(frame)
        self._keep(len(data))
        exchange.size, exchange.body = len(data), data
        try:
            await self._pipeline.check_input(exchange, self._reader.read_again)
        except Refused:
            await self._record(exchange, Outcome.REFUSED_REQUEST)
            raise
        request = exchange.checked_request
        self._base, self._call = request._replace(unchecked=()), exchange.call
        self._conversation = _pairs(request)
        self._unchecked.update(dict.fromkeys(request.unchecked))
        self._secrets.update(dict.fromkeys(request.secrets))
        self._masks = exchange.masks
        self._noted = [violation for violation in exchange.violations if violation.action != "log"]
        self._last = exchange
        return exchange.body

    async def _continued(self, frame: ClientFrame) -> Exchange:
        """Return an exchange of the setup, in the conversation that it continues. Raises BadRequest and NotFound."""
        exchange = self._exchange()
        exchange.request = read_setup(exchange.call, frame)
        own, exchange.conversation = exchange.conversation, ""
        await self._reader.follow_references(exchange)
        self._name = exchange.conversation = exchange.conversation or own
        exchange.sent = exchange.request.earlier
        if exchange.sent:
            earlier = await asyncio.to_thread(orjson.dumps, exchange.request.messages[: exchange.sent])
            self._keep(len(earlier))
        return exchange

    async def from_client(self, frame: LiveFrame) -> Leaving:
        """Decide on a frame of the client; it goes upstream masked if a rule masks something in it.

        Raises BadRequest for a frame that cannot be read; the session then ends. Raises Refused for streamed sound or
        pictures if content that no rule can read is refused: nothing of it goes upstream.
        """
        read, said = await _read(self._read_input, frame.data)
        self._listens = self._listens or any(
            unchecked.address.startswith("realtimeInput") for unchecked in said.unchecked
        )
        if not said.messages:
            for unchecked in said.unchecked:
                if unchecked not in self._unchecked:
                    await self._note_stream(unchecked)
            return Leaving(up=[frame])
        self._keep(max(len(frame.data), _LEAST))
        said = await self._with_earlier(said)
        async with self._lock:
            turn = self._input_turn()
            exchange, noted = turn.exchange, list(turn.exchange.violations)
            try:
                passed = await self._check_input(turn, said, frame.data)
            except Refused as refused:
                await self._record(exchange, Outcome.REFUSED_REQUEST)
                self._replace(turn, noted)
                return self._refuse_input(read, exchange, refused.refusal)
            # A refused transcription may have been the last text of a finished turn.
            self._muted = self._muted and self._withheld
            return Leaving(up=[frame if passed == frame.data else replace(frame, data=passed)], checked=True)

    async def from_server(self, frame: LiveFrame) -> Leaving:
        """Decide on a frame of the server. Raises DecodeError for one that cannot be read; the session then ends."""
        read = await _read(self._frames.read, frame.data)
        async with self._lock:
            leaving = await self._decide(read, frame)
            self._frames.forget()
            return leaving

    async def cut(self) -> Leaving:
        """Return what may still leave now that the server has closed, after a check. Its trace is written."""
        async with self._lock:
            turn = self._turn
            if turn is None or not turn.begun:
                return Leaving()
            try:
                last = await self._pipeline.end(turn.exchange)
            except Refused as refused:
                return await self._refuse_turn(turn, refused.refusal, [], None)
            return Leaving(down=await self._complete(turn, last))

    def leave(self, outcome: Outcome, error: str = "") -> None:
        """Record what is under way when the session ends before its turn does, and a session without any turn."""
        if self._turn is None and not self._recorded and self._base is not None:
            self._turn = self._new_turn()
        for turn in (self._turn, self._next):
            if turn is not None:
                turn.exchange.error = error
                self._pipeline.give_up(turn.exchange, outcome)
                _end_spans(turn.exchange)
        self._turn = self._next = None

    # Input of the client

    def _read_input(self, data: bytes) -> tuple[ClientFrame, GeminiRequest]:
        """Read a frame other than a setup. Raises BadRequest."""
        frame = read_client_frame(data)
        if self._call is None or frame.kind == "setup":
            raise BadRequest("A session has only one setup, its first frame")
        return frame, read_input(self._call, frame)

    async def _check_input(self, turn: _LiveTurn, said: GeminiRequest, data: bytes) -> bytes:
        """Check messages of the client as the end of the conversation. Return the frame that may go upstream.

        Raises Refused.
        """
        exchange = turn.exchange
        exchange.size += len(data)
        exchange.body = data
        exchange.sent = len(self._conversation) + len(turn.inputs)

        def request(said: GeminiRequest) -> GeminiRequest:
            said = said._replace(
                unchecked=tuple(moved_behind(unchecked, exchange.sent) for unchecked in said.unchecked)
            )
            return self._request([*turn.inputs, *_pairs(said)], said)

        async def read_again(exchange: Exchange) -> GeminiRequest:
            _, masked = await _read(self._read_input, exchange.body)
            return request(await self._with_earlier(masked))

        exchange.request = request(said)
        await self._pipeline.check_input(exchange, read_again)
        turn.inputs.extend(_pairs(exchange.request)[exchange.sent :])
        self._unchecked.update(dict.fromkeys(exchange.request.unchecked))
        self._secrets.update(dict.fromkeys(said.secrets))
        self._mask(exchange.masks)
        passed, exchange.body = exchange.body, _NO_FRAME
        return passed

    def _mask(self, masks: Masks | None) -> None:
        """Mask these values from now on, and restore them, also in the model's next turn."""
        if masks is not None and (self._masks is None or masks.placeholders != self._masks.placeholders):
            self._masks = masks
            for turn in (self._turn, self._next):
                if turn is not None:
                    turn.exchange.masks = masks
                    if turn.begun:
                        self._pipeline.restore(turn.exchange, masks)

    async def _with_earlier(self, said: GeminiRequest) -> GeminiRequest:
        """Return messages of the client after the content of their references. Raises as the reader does."""
        if not said.outbound and not references_of(said):
            return said
        exchange = self._exchange()
        exchange.request = said
        await self._reader.follow_references(exchange)
        return exchange.request

    def _input_turn(self) -> _LiveTurn:
        """Return the turn that the client's next message belongs to: while the model speaks, the next turn."""
        if self._turn is None:
            self._turn = self._new_turn()
        elif self._turn.begun:
            if self._next is None:
                self._next = self._new_turn()
            return self._next
        return self._turn

    def _replace(self, turn: _LiveTurn, noted: Sequence[Violation]) -> None:
        """Go on with a new exchange for what the turn had, with what was noted, before its last input was refused."""
        turn.exchange = self._exchange(turn.exchange)
        turn.exchange.violations.extend(noted)
        turn.exchange.request = self._request(turn.inputs)
        if not turn.inputs:
            self._turn, self._next = (None if kept is turn else kept for kept in (self._turn, self._next))

    def _refuse_input(self, read: ClientFrame, exchange: Exchange, refusal: Refusal) -> Leaving:
        """Return what tells the client that its frame was refused. Errors go up in place of outputs of functions."""
        answers_calls = read.kind == "toolResponse"
        completes = not answers_calls and (self._turn is None or not self._turn.begun)
        leaving = Leaving(down=[self._frame(refusal_frame(refusal.text, completes=completes))], checked=True)
        if answers_calls:
            functions = answered_functions(read)
            turn = self._input_turn()
            turn.inputs.extend(_KeptMessage(message, message) for message in self._tool_errors(functions, "request"))
            turn.exchange.request = self._request(turn.inputs)
            leaving.up.append(self._frame(tool_errors(functions, _for_the_model(exchange, refusal))))
        return leaving

    def _tool_errors(self, functions: Sequence[FunctionName], phase: Any) -> list[Message]:
        """Return outputs that say no more than that they are errors: why would be found again by the rule it quotes."""
        error = {"error": _neutral(phase, self._settings.prefix)}
        return [
            {
                "role": "tool",
                "tool_name": function.name,
                "content": error,
                **({"tool_call_id": function.id} if function.id else {}),
            }
            for function in functions
        ]

    async def _note_stream(self, unchecked: Unchecked) -> None:
        """Note a stream that no rule can read. Raises Refused where that is not allowed, once its trace is written."""
        if self._settings.blocks_unseen:
            exchange = self._exchange()
            exchange.request = self._request([])._replace(unchecked=(unchecked,))
            exchange.sent = len(exchange.request.messages)
            try:
                await self._pipeline.check_input(exchange, _unchanged)
            except Refused:
                await self._record(exchange, Outcome.REFUSED_REQUEST)
                raise
        self._unchecked[unchecked] = None

    # Output of the model

    async def _decide(self, read: ServerFrame, frame: LiveFrame) -> Leaving:
        if read.handle and self._tainted:
            return Leaving()
        if read.kind == "goAway":
            return Leaving(down=[frame])
        if self._muted:
            return self._withhold(read)
        if not self._belongs_to_turn(read):
            self._spend(read.tokens)
            return await self._pass(read, frame)
        return await self._answer(read, frame)

    def _belongs_to_turn(self, read: ServerFrame) -> bool:
        """Tell whether a frame is part of a turn: the model says something in it, or it may not overtake what waits."""
        turn = self._turn
        if read.says or (turn is not None and turn.begun):
            return True
        if read.kind != "serverContent":
            return False
        ended, self._interrupted = self._interrupted and read.turn_complete, False
        return read.ends and not ended and turn is not None

    async def _pass(self, read: ServerFrame, frame: LiveFrame) -> Leaving:
        """Let a frame pass in which the model says nothing. What the user was heard to say is checked first."""
        for path, reason in read.unread(transcribed=self._transcribed).items():
            self._unchecked[Unchecked(f"serverContent.{path}", reason)] = None
        if read.handle:
            await self._remember_handle(read.handle)
        if not read.heard:
            return Leaving(down=[frame])
        turn = self._input_turn()
        self._hear(turn, read.heard)
        self._keep(len(frame.data))
        turn.exchange.sent = len(turn.exchange.checked_request.messages)
        try:
            await self._pipeline.check_input(turn.exchange, _unchanged)
        except Refused as refused:
            # The model has already heard it: its response to it is withheld.
            turn.inputs.pop(turn.heard if turn.heard is not None else -1)
            turn.heard = None
            return await self._refuse_turn(turn, refused.refusal, [], read)
        return Leaving(down=[frame])

    async def _answer(self, read: ServerFrame, frame: LiveFrame) -> Leaving:
        turn = self._turn
        if turn is None:
            turn = self._turn = self._new_turn()
        if not turn.begun:
            self._open(turn)
        exchange, held = turn.exchange, turn.held
        if read.handle:
            self._spend(read.tokens)
            turn.handle = _SessionHandle(read.handle, frame)
            return Leaving()
        if read.heard:
            self._hear(turn, read.heard)
        unread = read.unread(transcribed=self._transcribed)
        for path, reason in unread.items():
            exchange.merger.fields.declare(path, reason)
        if "modelTurn" not in unread:
            self._keep(len(frame.data))
        elif not (self._settings.sound_waits or self._settings.blocks_unseen) and read.only_sound:
            assert exchange.stream is not None, "the turn has begun"
            exchange.stream.overtake()
            return self._leave(exchange, [frame])
        data = held.add(frame)
        self._keep(0, held.size)
        leaving = b""
        try:
            leaving = await self._pipeline.feed(exchange, data)
            if unread and self._settings.blocks_unseen:
                # This frame itself is refused, so it must not leave.
                leaving = leaving.removesuffix(data)
                await self._pipeline.end(exchange)
            elif read.ends:
                leaving += await self._pipeline.end(exchange)
        except Refused as refused:
            return await self._refuse_turn(turn, refused.refusal, held.take(leaving), read)
        if not read.ends:
            return self._leave(exchange, held.take(leaving))
        down = await self._complete(turn, leaving)
        self._interrupted = read.interrupted and not read.turn_complete
        return self._leave(exchange, down)

    async def _complete(self, turn: _LiveTurn, leaving: bytes) -> list[LiveFrame]:
        """Return the last frames of an allowed turn, once its trace is written."""
        exchange = turn.exchange
        down = turn.held.take(leaving)
        if turn.handle is not None:
            exchange.made.append(_made(turn.handle.text, exchange, goes_on=self._next is not None))
            down.append(turn.handle.frame)
        await self._record(exchange, None)
        self._conclude(turn, exchange.response_messages)
        self._last = exchange
        return down

    async def _remember_handle(self, handle: str) -> None:
        """Remember a handle that arrives between turns as part of the last turn."""
        assert self._last is not None, "the setup comes first"
        self._last.made[:] = [_made(handle, self._last, goes_on=self._turn is not None)]
        await self._remember(self._last)

    def _leave(self, exchange: Exchange, down: list[LiveFrame]) -> Leaving:
        """Return frames of the model that leave, the first of which is when its response begins."""
        if down and exchange.response.first_byte_at is None:
            exchange.response.first_byte_at = time.perf_counter()
        return Leaving(down=down)

    def _withhold(self, read: ServerFrame) -> Leaving:
        """Withhold the rest of a refused turn, to which the client has seen the end."""
        self._withheld = self._withheld or read.says
        if read.heard:
            self._hear(self._input_turn(), read.heard)
        self._spend(read.tokens)
        if read.turn_complete or read.interrupted:
            self._muted = False
            self._interrupted = read.interrupted and not read.turn_complete
        if read.calls:
            return Leaving(up=[self._frame(tool_errors(read.calls, _neutral("response", self._settings.prefix)))])
        return Leaving()

    async def _refuse_turn(
        self, turn: _LiveTurn, refusal: Refusal, passed: list[LiveFrame], read: ServerFrame | None
    ) -> Leaving:
        """Return the passed part of a turn and its refusal; the rest of the turn will be withheld.

        Refused calls get errors as outputs, so that the model continues.
        """
        exchange = turn.exchange
        if exchange.stream is not None:
            passed += turn.held.take(exchange.stream.take())
        refused_request = refusal.phase == "request"
        await self._record(exchange, Outcome.REFUSED_REQUEST if refused_request else Outcome.REFUSED_RESPONSE)
        self._tainted = True
        calls = read.calls if read is not None else ()
        said: list[Message] = [{"role": "assistant", "content": _neutral(refusal.phase, refusal.prefix)}]
        self._conclude(turn, [*said, *self._tool_errors(calls, "response")])
        if read is not None:
            self._muted = not read.ends
            self._withheld = read.says
            self._interrupted = read.interrupted and not read.turn_complete
        down = [*passed, self._frame(refusal_frame(refusal.text, completes=not calls))]
        return Leaving([self._frame(tool_errors(calls, _for_the_model(exchange, refusal)))] if calls else [], down)

    def _open(self, turn: _LiveTurn) -> None:
        """Begin to hold back the model's turn. Later messages of the client follow it."""
        if self._listens and turn.heard is None:
            self._hear(turn, "")
        turn.exchange.frames = self._frames.new_framing
        turn.exchange.head_at = time.perf_counter()
        turn.exchange.unchecked_content[:] = turn.exchange.checked_request.unchecked
        # Sound passes and is not kept; the session counts the bytes that are kept.
        self._pipeline.open_stream(turn.exchange, FRAMES_TYPE, bounded=False)

    def _hear(self, turn: _LiveTurn, text: str) -> None:
        """Add to the user's transcribed speech, in one message of the turn."""
        if turn.heard is None:
            if turn.begun:
                turn = self._input_turn()
            if turn.heard is None:
                turn.heard = len(turn.inputs)
                turn.inputs.append(_heard(""))
        turn.inputs[turn.heard] = _heard(_heard_text(turn.inputs[turn.heard]) + text)
        turn.exchange.request = self._request(turn.inputs)

    def _conclude(self, turn: _LiveTurn, response: Sequence[Message]) -> None:
        """Make a turn part of the conversation that has passed."""
        self._conversation += [
            said for index, said in enumerate(turn.inputs) if index != turn.heard or _heard_text(said)
        ]
        if (masks := turn.exchange.masks) is not None:
            # In the model's own spelling.
            response = hide_in_messages(response, masks)
        self._conversation += [_KeptMessage(message, message) for message in response]
        self._turn, self._next = self._next, None
        if self._turn is not None:
            following = self._turn.exchange
            moved = len(self._conversation) - following.settled
            following.violations[:] = [violation.moved(following.settled, moved) for violation in following.violations]
            following.settled = len(self._conversation)
            following.request = self._request(self._turn.inputs)

    # Shared by both sides

    def _new_turn(self) -> _LiveTurn:
        turn = _LiveTurn(self._exchange(), [])
        turn.exchange.request = self._request([])
        turn.exchange.violations.extend(self._noted)
        self._noted = []
        return turn

    def _exchange(self, before: Exchange | None = None) -> Exchange:
        """Return a new exchange, which keeps the approvals of ``before``."""
        exchange = self._new_exchange()
        exchange.call = replace(exchange.call, names=self._names)
        exchange.conversation = self._name or exchange.conversation
        exchange.settled = len(self._conversation)
        exchange.masks = self._masks
        exchange.body = _NO_FRAME
        exchange.response.head(200, CIMultiDict(), streams=False)
        if before is not None:
            exchange.approvals.extend(before.approvals)
        self._begin(exchange)
        return exchange

    def _request(self, inputs: Sequence[_KeptMessage], said: GeminiRequest | None = None) -> GeminiRequest:
        """Return the conversation with ``inputs`` at its end, of which ``said`` is the newest."""
        assert self._base is not None, "the setup comes first"
        conversation = (*self._conversation, *inputs)
        return self._base._replace(
            messages=tuple([kept.message for kept in conversation]),
            stored=tuple([kept.stored for kept in conversation]),
            unchecked=tuple(dict.fromkeys((*self._unchecked, *(said.unchecked if said else ())))),
            secrets=tuple(dict.fromkeys((*self._secrets, *(said.secrets if said else ())))),
        )

    async def _record(self, exchange: Exchange, outcome: Outcome | None) -> None:
        if outcome is not None:
            exchange.end(outcome)
        self._recorded = True
        self._spend(exchange.merger.usage or {})
        await self._pipeline.record(exchange)
        if exchange.made:
            await self._remember(exchange)
        _end_spans(exchange)

    def _keep(self, size: int, held: int = 0) -> None:
        """Count what is kept of the session. Raises SessionTooLarge."""
        self._kept += size
        if self._kept + held > self._settings.max_bytes:
            raise SessionTooLarge("The session is larger than live.max_session_bytes allows; open another one")

    def _frame(self, data: bytes) -> LiveFrame:
        # In the form that Google's servers use.
        return LiveFrame(data, binary=True)


def _neutral(phase: Any, prefix: str) -> str:
    """Return a refusal that does not say why: what it quotes would be found again in the conversation."""
    return Refusal(phase, (), prefix=prefix).text


def _for_the_model(exchange: Exchange, refusal: Refusal) -> str:
    """Return a refusal as the model reads it, without the reason where that repeats what the model may not read."""
    masks, messages = exchange.masks, exchange.checked_request.messages
    quoted = masks is not None and masks.hide(refusal.text) != refusal.text
    if refusal.phase == "request":
        found = [text for violation in exchange.violations for text in evidence(messages, violation)]
        quoted = quoted or any(text in refusal.text for text in found)
    return _neutral(refusal.phase, refusal.prefix) if quoted else refusal.text


async def _read(reader: Callable[[bytes], T], data: bytes) -> T:
    """Return what ``reader`` makes of a frame, off the event loop if the frame is large."""
    return await off_loop(len(data) // _READ_AT_ONCE, reader, data)


async def _unchanged(exchange: Exchange) -> GeminiRequest:
    """Return the request as it is: of what has gone up nothing is masked."""
    return exchange.checked_request


def _made(handle: str, exchange: Exchange, *, goes_on: bool) -> Made:
    """Return the record of a handle, which stands for the messages in the trace of an exchange.

    ``goes_on`` says that the client has sent more since, which no trace has yet.
    """
    unchecked = "what was said last in the session that this one continues" if goes_on else ""
    return Made(Kind.SESSION, session_name(handle), exchange.created + _RESUMABLE, unchecked)


def _end_spans(exchange: Exchange) -> None:
    if exchange.spans is not None:
        exchange.spans.end(exchange, None)


def _pairs(request: GeminiRequest) -> list[_KeptMessage]:
    return [_KeptMessage(message, stored) for message, stored in zip(request.messages, request.stored, strict=True)]


def _heard(text: str) -> _KeptMessage:
    message: Message = {"role": "user", "content": [{"type": "text", "text": text, "field": _HEARD}]}
    return _KeptMessage(message, message)


def _heard_text(said: _KeptMessage) -> str:
    return "".join(chunk["text"] for chunk in said.message["content"])
