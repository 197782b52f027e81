"""Run an exchange from its first check to its trace: start, open, feed, end; then refuse or fail, and record.

Between the steps the handler moves bytes and knows nothing about rules. This module decides what is checked, what may
leave and when, and what the client gets instead.
"""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from gemini_proxy.errors import (
    DecodeError,
    EngineUnavailable,
    Unauthenticated,
    UpstreamCut,
    UpstreamError,
    UpstreamTimeout,
)
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.parts import Unchecked
from gemini_proxy.gemini.refusal import (
    JSON_TYPE,
    Phase,
    Refusal,
    StreamState,
)
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.gemini.response_fields import counts_in
from gemini_proxy.gemini.uploads import UploadedFile
from gemini_proxy.gemini.upstream_fault import error_in
from gemini_proxy.gemini.wire import ARRAY_TYPE, SSE_TYPE
from gemini_proxy.guardrails.addresses import message_of
from gemini_proxy.guardrails.coverage import HEADER
from gemini_proxy.guardrails.engine import Check, Engine, GuardSession
from gemini_proxy.guardrails.masking import (
    CannotMask,
    FrameEditor,
    Masks,
    RequestMasks,
    Restoring,
    is_history,
    masked_values,
    moved_in_request,
)
from gemini_proxy.guardrails.response_messages import CandidateMessages, candidate_messages, for_rules, is_thought
from gemini_proxy.guardrails.stream import ResponseStream, TextViolated
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.proxy.allowed_turns import AllowedTurns
from gemini_proxy.proxy.approval import ApprovalDesk, NotAllowed
from gemini_proxy.proxy.exchange import Exchange, Refused
from gemini_proxy.proxy.exchange_trace import ExchangeRecorder
from gemini_proxy.proxy.made_objects import made_objects
from gemini_proxy.proxy.masker import Masker, contents_of, masked_bytes
from gemini_proxy.proxy.request_reader import RequestReader
from gemini_proxy.proxy.tasks import Tasks, off_loop
from gemini_proxy.proxy.upstream import UpstreamResponse
from gemini_proxy.sections import Guardrails, Refusals
from gemini_proxy.traces.approvals import Approval
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.trace import REFUSED, Outcome

log = logging.getLogger(__name__)

ReadAgain = Callable[[Exchange], Awaitable[GeminiRequest]]
"""Reads the request of an exchange again, whose body was masked."""

_PATIENCE = 1.0
"""Seconds a client waits for a verdict without a sign of life."""
_NOTHING_TO_CHECK = Verdict()
_SLICE = 4096
"""Bytes of a response read before it is asked whether it is the loop's turn: a few milliseconds where they are comments
of three bytes."""
_TURN = 0.001
"""Seconds of reading a response after which the loop gets its turn."""
_LONG_VALUE = 4096
"""Characters of a masked value that may stand in a slice a hundred times: beyond, it is put back beside the loop."""
_EVENT_END = b"\r\n\r\n"


class Pipeline:
    """Take every exchange through the guardrails, with one engine and one configuration."""

    def __init__(
        self,
        reader: RequestReader,
        desk: ApprovalDesk,
        masker: Masker,
        turns: AllowedTurns,
        engine: Engine,
        guardrails: Guardrails,
        refusals: Refusals,
        recorder: ExchangeRecorder,
        tasks: Tasks,
        max_response_bytes: int,
    ) -> None:
        self._reader = reader
        self._desk = desk
        self._masker = masker
        self._turns = turns
        self._engine = engine
        self._guardrails = guardrails
        self._refusals = refusals
        self._recorder = recorder
        self._tasks = tasks
        self._max_response_bytes = max_response_bytes

    async def run(self, exchange: Exchange, answer: Callable[[], Awaitable[object]]) -> bytes:
        """Take an exchange from its first check to its trace, and return its last bytes, which may leave now.

        ``answer`` calls the upstream and feeds its response to the steps below. So the trace is written before the last
        byte leaves. Raises Unavailable if a required trace was not written.
        """
        try:
            await self.start(exchange)
            await answer()
            last = await self.end(exchange)
        except (Refused, UpstreamError) as error:
            last = await self.fail(exchange, error)
        await self.record(exchange)
        return last

    # The steps of an exchange, in their order.

    async def start(self, exchange: Exchange) -> None:
        """Check the request, and mask what the rules want masked. Raises Refused.

        If so configured, a long check goes on beside the upstream call, unless something may be masked: the find of a
        rule, or an earlier refused text in a history with a refusal.
        """
        request = exchange.checked_request
        exchange.unchecked_content.extend(request.unchecked)
        if not exchange.call.guarded:
            exchange.pass_unchecked(request.unchecked[0].reason)
        self._note_thoughts(exchange, request.messages)
        if exchange.rules.narrows:
            await self._turns.find(exchange)
        if exchange.rules.shadows:
            exchange.asked = request.messages
        verdict = self._judge(exchange, "request", request.messages)
        deciding = self._decide_request(exchange, verdict, self._reader.read_again)
        if not isinstance(verdict, Verdict) and self._may_overlap(exchange, request):
            exchange.request_check = self._tasks.beside(deciding, "request check")
        else:
            exchange.heals = self._guardrails.history != "refuse"
            await deciding

    async def check_input(self, exchange: Exchange, read_again: ReadAgain) -> None:
        """Check the new messages of a live session's client, before any of them leaves.

        ``exchange.body`` is the client's last frame, which is masked if rules want it; ``read_again`` returns the whole
        request with that frame read again. Raises Refused.
        """
        request = exchange.checked_request
        exchange.unchecked_content[:] = request.unchecked
        self._note_thoughts(exchange, request.messages)
        # Every check finds violations that only annotate again.
        exchange.violations[:] = [violation for violation in exchange.violations if violation.action != "log"]
        await self._decide_request(exchange, self._judge(exchange, "request", request.messages), read_again)

    def _may_overlap(self, exchange: Exchange, request: GeminiRequest) -> bool:
        """Tell whether the upstream may be called before the verdict.

        After the call nothing can be masked, and an object that Gemini keeps cannot be taken back.
        """
        if exchange.call.row.keeps:
            return False
        if self._guardrails.request_check != "overlap" or not exchange.rules.overlaps:
            return False
        if self._masker.may_recall(exchange):
            return False
        return self._guardrails.history == "refuse" or not self._holds_refusal(request)

    def _holds_refusal(self, request: GeminiRequest) -> bool:
        """Tell whether the history seems to hold a refusal, so that it may have to heal."""
        prefix = self._refusals.prefix
        return any(
            prefix in message["content"]
            for message in request.messages
            if message.get("role") == "assistant" and isinstance(message.get("content"), str)
        )

    async def admit(self, exchange: Exchange) -> None:
        """Return when the request may have a response. Raises Refused."""
        if exchange.request_check is not None:
            await exchange.request_check
            exchange.request_check = None

    def open(self, exchange: Exchange, upstream: UpstreamResponse) -> None:
        """Hold back a response whose head has come, and give the client's response its head, if that has none yet.

        Raises UpstreamError for another stream than the one that has begun.
        """
        if exchange.response.begun:
            if upstream.content_type != exchange.framing:
                raise UpstreamError("The upstream's response is not the stream that was asked for")
            self.open_stream(exchange, upstream.content_type)
            return
        self.open_stream(exchange, upstream.content_type)
        sse = upstream.content_type == SSE_TYPE
        exchange.response.head(upstream.status, upstream.headers, streams=exchange.streams or sse)

    async def answer(self, exchange: Exchange, upstream: UpstreamResponse, body: bytes) -> None:
        """Respond with a body without hold-back. A stream that has begun ends with its form of an error."""
        if not exchange.response.begun:
            exchange.response.whole(upstream.status, upstream.headers, body)
            return
        said = f"The upstream responded with HTTP {upstream.status}"
        error = error_in(body) or exchange.wire.error_body(upstream.status, said, UpstreamError.code)
        await exchange.response.write(self._error_events(exchange, error))

    def open_stream(self, exchange: Exchange, content_type: str, *, bounded: bool = True) -> None:
        """Hold back a response of ``content_type``. It may have any size where it is not ``bounded``."""
        exchange.framing = content_type
        settings, request = self._guardrails, exchange.checked_request
        if exchange.masks is not None:
            self.restore(exchange, exchange.masks)
        # Text that may have to be masked must not leave before its check.
        mode = "window" if exchange.rules.masks and settings.stream_check == "final" else settings.stream_check
        session = self._open_session(exchange) if mode == "window" else None
        exchange.waiting = session.waiting if session is not None else ()
        exchange.response_reader = exchange.wire.new_reader(exchange.call)
        exchange.stream = ResponseStream(
            exchange.new_framing(),
            exchange.merger,
            mode,
            request.candidate_count,
            self._max_response_bytes if bounded else sys.maxsize,
            session=session,
            first_message=len(request.messages),
            skips_thoughts=settings.thoughts == "skip",
            reader=exchange.response_reader,
        )

    def restore(self, exchange: Exchange, masks: Masks) -> None:
        """Put masked values back into a response from here on, where that is configured."""
        exchange.masks = masks
        restore, places = self._guardrails.restore, exchange.wire.places
        if restore == "off":
            return
        if exchange.restoring is None:
            exchange.restoring = FrameEditor(
                exchange.new_framing(),
                Restoring(masks),
                texts_only=restore == "text",
                places=places,
                repetitions=exchange.repetitions,
                most_added=self._max_response_bytes,
            )
        else:
            exchange.restoring.replace_by(Restoring(masks))

    def pass_on(self, exchange: Exchange, data: bytes) -> bytes | None:
        """If there is nothing to wait for, send the client the part of ``data`` that may leave, and return None.

        Otherwise return the bytes to call ``feed`` with: ``data``, or none if they wait for a verdict. Raises as
        ``feed`` does.
        """
        response, stream = exchange.response, exchange.stream
        if len(data) > _SLICE or exchange.request_check is not None or stream is None or not response.flows:
            return data
        if exchange.restoring is not None:
            if _restores_at_length(exchange):
                return data
            data = exchange.restoring.feed(data)
        if leaving := self._read(exchange, stream, data):
            response.write_now(leaving)
        return b"" if stream.wants_check else None

    async def feed(self, exchange: Exchange, data: bytes) -> bytes:
        """Return the bytes that may leave now that ``data`` came from upstream.

        Raises Refused, and DecodeError for bytes that cannot be read.
        """
        stream = exchange.stream
        assert stream is not None
        if exchange.request_check is not None:
            await self.admit(exchange)
        # A frame of a live session was already read, and is only passed on.
        start, began = 0, time.perf_counter()
        while len(data) - start > _SLICE and exchange.frames is None:
            # Framings read whole events with less work than split ones.
            last = data.rfind(_EVENT_END, start, start + _SLICE)
            end = start + _SLICE if last < 0 else last + len(_EVENT_END)
            stream.read(await _restored(exchange, data[start:end]))
            start = end
            if time.perf_counter() - began > _TURN:
                await asyncio.sleep(0)
                began = time.perf_counter()
        rest = data[start:] if exchange.restoring is None else await _restored(exchange, data[start:])
        leaving = self._read(exchange, stream, rest)
        if not stream.wants_check:
            return leaving
        candidates = self._read_response(exchange, exchange.checked_request)
        violations = await self._check_response(exchange, candidates, until_now=True)
        return stream.postpone() if violations else stream.passed(candidates)

    def _read(self, exchange: Exchange, stream: ResponseStream, data: bytes) -> bytes:
        """Return what may leave now that ``data`` came, with its masked values. Raises as ``feed`` does."""
        try:
            return stream.feed(data)
        except TextViolated as violated:
            self._refuse_text(exchange, violated.violations)
            return stream.postpone()

    def restored(self, exchange: Exchange, body: bytes) -> bytes:
        """Return a response that no model wrote, such as the name of a cache, with the values that were masked."""
        if exchange.masks is None or self._guardrails.restore == "off":
            return body
        return self._masker.restore_names(exchange.masks, body, self._max_response_bytes)

    async def send(self, exchange: Exchange, leaving: bytes) -> None:
        """Send the client what may leave; before the first of it the head, with the coverage so far."""
        self._note_coverage(exchange)
        await exchange.response.write(leaving)

    async def end(self, exchange: Exchange) -> bytes:
        """Return the bytes that may leave now that the body has ended, after the final check. Raises as ``feed`` does.

        A response that nothing holds back (an upstream error, a call that generates nothing) has already left. Raises
        UpstreamError for an empty one.
        """
        if exchange.request_check is not None:
            await self.admit(exchange)
        last = b""
        if exchange.stream is not None:
            if exchange.restoring is not None:
                restoring = exchange.restoring
                size = sys.maxsize if _restores_at_length(exchange) else restoring.unread
                exchange.stream.read(await off_loop(size, restoring.end))
            exchange.stream.close()
            if exchange.stream.empty:
                raise UpstreamError("The upstream's response has no content")
            last = await self._remains(exchange)
        exchange.end(_outcome(exchange))
        return last

    async def fail(self, exchange: Exchange, error: Refused | UpstreamError) -> bytes:
        """Decide what the client gets of an exchange that ``error`` ended. Return the bytes that may leave."""
        try:
            if isinstance(error, UpstreamError) and not isinstance(error, DecodeError):
                return await self._cut(exchange, error)
        except (Refused, DecodeError) as later:
            error = later
        if isinstance(error, DecodeError):
            # Unreadable bytes cannot be checked, so they are not passed on.
            self._refused(exchange, "response", [error.message], reason="ANSWER_UNREADABLE")
        return self._refuse(exchange)

    async def record(self, exchange: Exchange) -> None:
        """Return once the trace is durable or dropped. Raises Unavailable if a required trace was not written."""
        if exchange.outcome in REFUSED:
            await self._masker.remember_refused(exchange)
        if exchange.rules.narrows:
            await self._turns.remember(exchange)
        await self._masker.note_spellings(exchange)
        exchange.made += made_objects(exchange)
        coverage = self._recorder.coverage(exchange)
        exchange.response.note(HEADER, coverage.header)
        await self._recorder.record(exchange, coverage)

    def give_up(self, exchange: Exchange, outcome: Outcome) -> None:
        """Record an exchange whose client has left, unless its trace is already written."""
        if exchange.recorded:
            return
        exchange.end(outcome)
        self._remember(exchange)
        exchange.made += made_objects(exchange)
        self._recorder.record_later(exchange, self._hide_unchecked(exchange))

    # Responses that replace what the client asked for.

    def _refuse(self, exchange: Exchange) -> bytes:
        """Turn the response into a refusal: in band where the client expects a stream, else by HTTP 400.

        A key that the guardrails service did not accept is HTTP 401, as long as no byte has left.
        """
        refusal, response = exchange.refusal, exchange.response
        assert refusal is not None
        exchange.end(Outcome.REFUSED_REQUEST if refusal.phase == "request" else Outcome.REFUSED_RESPONSE)
        if refusal.reason == "GUARDRAIL_UNAUTHENTICATED" and not response.begun:
            response.error(401, exchange.wire.error_body(401, " ".join(refusal.messages), Unauthenticated.code))
            return b""
        if response.begun or (exchange.streams and self._refuses_by_event(exchange)):
            return self._refusal_event(exchange, refusal)
        response.error(400, exchange.wire.refusal_body(refusal, self._refusals.error_status))
        return b""

    def _refuses_by_event(self, exchange: Exchange) -> bool:
        """Tell whether a stream of which no byte has left is refused by an event; else it is by HTTP 400."""
        # A client that parses the text would show the event as a parsing error, without the reason.
        structured = exchange.request is not None and exchange.request.structured
        before_stream = self._refusals.before_stream
        by_event = exchange.wire.refuses_by_event and not structured
        return before_stream == "event" or (before_stream == "auto" and by_event)

    def _refusal_event(self, exchange: Exchange, refusal: Refusal) -> bytes:
        """Return the refusal to send in place of everything withheld.

        If a part of the response has left, the refusal has its framing. Otherwise the framing is the one that the
        client asked for, whatever the upstream's was; if the two differ, the passed part does not leave.
        """
        asked = exchange.wire.stream_type(exchange.call)
        framing = exchange.framing if exchange.response.begun else asked
        passed, left = (exchange.stream.take(), exchange.stream.events_left) if exchange.stream else (b"", 0)
        if framing != exchange.framing:
            passed, left = b"", 0
            exchange.response.stream_head(SSE_TYPE if framing == SSE_TYPE else JSON_TYPE)
        reader = exchange.response_reader or exchange.wire.new_reader(exchange.call)
        assert framing is not None
        return passed + reader.refusal_events(refusal, _stream_state(exchange), self._refusals.feedback, framing, left)

    async def _cut(self, exchange: Exchange, error: UpstreamError) -> bytes:
        """Return the part of a failed response that passes the check. After it the body breaks off like the upstream's.

        Raises Refused if it does not pass, DecodeError if it cannot be read.
        """
        await self.admit(exchange)
        exchange.error = error.message
        begun = isinstance(error, UpstreamCut | UpstreamTimeout) and exchange.stream is not None
        exchange.end(Outcome.UPSTREAM_CUT if begun else Outcome.UPSTREAM_ERROR)
        if exchange.response.begun and (exchange.stream is None or exchange.stream.empty):
            return self._error_events(exchange, exchange.wire.error_body(error.status, error.message, error.code))
        if exchange.response.begun:
            self._flush(exchange)
            last = await self._remains(exchange)
            exchange.response.breaks_off = True
            return last
        self._remember(exchange)
        await self._hide_unchecked(exchange)
        body = exchange.wire.error_body(error.status, error.message, error.code)
        exchange.response.error(error.status, body)
        return b""

    def _note_coverage(self, exchange: Exchange) -> None:
        if not exchange.response.begun:
            exchange.response.note(HEADER, self._recorder.coverage(exchange).header)

    def _error_events(self, exchange: Exchange, body: Mapping[str, object]) -> bytes:
        """Return what a stream that has begun, and of which no event has left, says of an error."""
        assert exchange.framing is not None
        return exchange.wire.new_reader(exchange.call).error_events(body, exchange.framing)

    async def _show_life(self, exchange: Exchange) -> None:
        """Show the client of a stream that the connection is alive, while a verdict or a person takes long.

        After sending anything a refusal must be an event, so do it only if it would be one anyway.
        """
        if not (exchange.response.begun or self._refuses_by_event(exchange)):
            return
        if exchange.stream is None:
            await self._show_life_early(exchange)
            return
        sse = exchange.framing == SSE_TYPE
        if sse or self._is_array(exchange):
            self._note_coverage(exchange)
            await exchange.response.keep_alive(exchange.stream.following, sse=sse)

    async def _show_life_early(self, exchange: Exchange) -> None:
        """Begin the stream that the client asked for before the upstream has been called.

        The head is the proxy's own, and any result of the call, even an error, becomes an event.
        """
        if not exchange.streams or exchange.call.row.transport != "json":
            return
        framing = exchange.wire.stream_type(exchange.call).partition(";")[0]
        if not exchange.response.begun:
            exchange.framing = framing
            exchange.response.stream_head(SSE_TYPE if framing == SSE_TYPE else JSON_TYPE)
            self._note_coverage(exchange)
        # The first bytes will be those of any frame of this door.
        following = self._error_events(exchange, {})
        await exchange.response.keep_alive(following, sse=framing == SSE_TYPE)

    def _is_array(self, exchange: Exchange) -> bool:
        """Tell whether the response is the array that the client asked for."""
        asked = exchange.wire.stream_type(exchange.call).partition(";")[0]
        return exchange.streams and asked == exchange.framing == ARRAY_TYPE

    # Checks: questions to the engine, and the consequences of its verdicts

    async def _decide_request(
        self, exchange: Exchange, verdict: Verdict | Awaitable[Verdict], read_again: ReadAgain
    ) -> None:
        """Apply the verdict on a request: refuse it, or mask what the rules want masked and check it again.

        Values masked earlier in a live session are masked wherever they occur. New matches are masked as well, in a few
        rounds; a request that cannot be masked is refused.
        """
        violations = await self._unsettled(exchange, verdict)
        exchange.checked_messages = exchange.message_count
        self._refuse_unread(exchange, "request", exchange.unchecked_content)
        if not violations and exchange.masks is None and not self._masker.may_recall(exchange):
            # Nothing is masked in it, and nothing that was masked before stands in it.
            return
        body, file = exchange.body, exchange.file
        original, noted = exchange.checked_request.messages, list[Violation]()
        masks, rounds = RequestMasks(exchange.masks.placeholders if exchange.masks is not None else {}), 0
        while violations or (masks.placeholders and not rounds):
            violations = await self._masker.healed(exchange, masks, violations)
            wanted = [violation for violation in violations if violation.action == "mask"]
            if any(violation.action == "block" for violation in violations):
                self._masker.hide_refused(exchange, wanted)
            self._refuse_blocking(exchange, "request", violations)
            if not rounds:
                with self._hiding_if_refused(exchange, violations):
                    await self._ask(exchange, "request", violations, original)
                noted += violations
            if not wanted and (rounds or not masks.placeholders):
                break
            masks = await self._mask_again(exchange, body, file, masks, wanted, rounds)
            if not wanted and exchange.body == body:
                break
            rounds += 1
            exchange.masks = masks.restorable
            if not masks.dropped.isdisjoint(masks.contents[: exchange.allowed]):
                # The remaining content has moved.
                exchange.allowed = 0
            exchange.request = await read_again(exchange)
            violations = await self._unsettled(exchange, self._judge(exchange, "request", exchange.request.messages))
        masks = await self._masker.recall(exchange, masks, original)
        exchange.masks = masks.restorable
        if masks.spellings is not None:
            exchange.body = await self._masker.mask_request(exchange, body, masks)
        if noted:
            size = masked_bytes(exchange)
            exchange.violations.extend(await off_loop(size, moved_in_request, noted, masks, original))

    async def _mask_again(
        self,
        exchange: Exchange,
        body: bytes,
        file: UploadedFile | None,
        masks: RequestMasks,
        wanted: Sequence[Violation],
        rounds: int,
    ) -> RequestMasks:
        """Mask the request, from the ``body`` or ``file`` that the client sent, and return all masks in it.

        Raises a refusal if something in it cannot be masked.
        """
        try:
            if wanted:
                masks = await self._masker.add(exchange, masks, wanted, rounds=rounds)
            if file is not None:
                exchange.file = await self._masker.mask_file(file, masks)
            else:
                exchange.body = await self._masker.mask_request(exchange, body, masks)
        except CannotMask as error:
            self._masker.hide_refused(exchange, wanted)
            raise self._violated(exchange, "request", wanted, f"cannot be masked: {error}") from None
        return masks

    async def _unsettled(self, exchange: Exchange, verdict: Verdict | Awaitable[Verdict]) -> Sequence[Violation]:
        """Return the violations of a request about which something is to be done."""
        verdict = await self._verdict_on(exchange, "request", verdict)
        if not verdict.violations:
            return ()
        return [violation for violation in verdict.violations if not self._is_settled(exchange, "request", violation)]

    def _open_session(self, exchange: Exchange) -> GuardSession | None:
        """Return what judges the response's text as it comes; None where no rule is in force."""
        if not exchange.rules.deciding:
            return None
        check = self._check(exchange, for_rules(exchange.checked_request.messages, self._guardrails.thoughts))
        return self._engine.open_session(check, self._guardrails.window_overlap)

    async def _remains(self, exchange: Exchange) -> bytes:
        """Return what may still leave of a response of which no more will come, after a check. Raises Refused."""
        assert exchange.stream is not None
        violations = await self._check_response(exchange, self._read_response(exchange, exchange.checked_request))
        if not violations:
            return exchange.stream.release()
        with self._hiding_if_refused(exchange, violations):
            await self._ask(exchange, "response", violations, exchange.messages)
            left, body = exchange.stream.events_left, exchange.stream.release()
            wanted = [violation for violation in violations if violation.action == "mask"]
            if not wanted:
                return body
            try:
                masked = await self._masker.mask_response(exchange, wanted, body, left)
            except CannotMask as error:
                raise self._violated(exchange, "response", wanted, f"cannot be masked: {error}") from None
        exchange.violations.extend(wanted)
        return masked

    @contextlib.contextmanager
    def _hiding_if_refused(self, exchange: Exchange, violations: Sequence[Violation]) -> Iterator[None]:
        """Have the trace hide what was to be masked, if what is done within refuses the exchange."""
        try:
            yield
        except Refused:
            if wanted := [violation for violation in violations if violation.action == "mask"]:
                self._masker.hide_ended(exchange, wanted)
            raise

    async def _hide_unchecked(self, exchange: Exchange) -> None:
        """Have the trace hide values to be masked in the unchecked rest of an exchange that broke off.

        Without a verdict the trace keeps that rest as it came.
        """
        request = exchange.request
        if request is None or not exchange.rules.masks:
            return
        candidates = [
            list(said) for _, said in groupby(exchange.response_messages, lambda message: message.get("candidate"))
        ]
        start = offset = len(request.messages)
        for said in candidates or [[]]:
            visible = for_rules((*request.messages, *said), self._guardrails.thoughts)
            try:
                judged = self._engine.check(self._check(exchange, visible))
                verdict = judged if isinstance(judged, Verdict) else await judged
            except (EngineUnavailable, Unauthenticated) as error:
                log.warning("what an exchange left cannot be checked, so nothing is masked in its trace: %s", error)
                return
            placed = _placed(verdict, start, offset - start)
            self._masker.hide_ended(
                exchange, [violation for violation in placed.violations if violation.action == "mask"]
            )
            offset += len(said)

    async def _ask(
        self, exchange: Exchange, phase: Phase, violations: Sequence[Violation], messages: Sequence[Message]
    ) -> None:
        """Return when a person has allowed what the violations point at. Raises Refused."""

        async def show_life() -> None:
            await self._show_life(exchange)

        for violation in violations:
            if violation.action != "ask" or self._desk.has_allowed(exchange, violation, messages):
                continue
            old = phase == "request" and is_history(
                await contents_of(exchange), violation, earlier=exchange.checked_request.earlier
            )
            try:
                approval = await self._desk.ask(exchange, violation, messages, show_life, is_history=old)
                exchange.approvals.append(approval)
            except NotAllowed as answer:
                exchange.approvals.append(answer.approval)
                raise self._not_allowed(exchange, phase, violation, answer.approval) from None
            except StoreError:
                said = [violation.message, "approvals cannot be requested now"]
                exchange.violations.append(violation)
                raise self._refused(exchange, phase, said, [violation], "GUARDRAIL_UNAVAILABLE") from None
            if phase == "response":
                exchange.violations.append(violation)

    def _not_allowed(self, exchange: Exchange, phase: Phase, violation: Violation, approval: Approval) -> Refused:
        exchange.violations.append(violation)
        if approval.state == "denied":
            said = f"denied: {approval.reason}" if approval.reason else "denied"
            return self._refused(exchange, phase, [violation.message, said], [violation], "GUARDRAIL_DENIED")
        waited = f"nobody allowed it within {self._guardrails.ask_timeout:g} seconds"
        return self._refused(exchange, phase, [violation.message, waited], [violation], "GUARDRAIL_NOT_ALLOWED")

    def _remember(self, exchange: Exchange) -> None:
        """Keep for the trace what came of a response that nobody waits for; what cannot be read is left out."""
        if exchange.request is not None and exchange.stream is not None:
            with contextlib.suppress(DecodeError):
                self._flush(exchange)
                self._read_response(exchange, exchange.request)

    def _flush(self, exchange: Exchange) -> None:
        """Take in what waited to be restored or joined: no more of the response will come. Raises DecodeError."""
        if exchange.stream is not None:
            if exchange.restoring is not None:
                exchange.stream.read(exchange.restoring.flush())
            exchange.stream.settle()

    def _refuse_text(self, exchange: Exchange, violations: Sequence[tuple[int, Violation]]) -> None:
        """Raise Refused where text that has come is to be refused. Each violation has its candidate's index."""
        first = len(exchange.checked_request.messages)
        offsets, offset = {}, 0
        for candidate in self._read_response(exchange, exchange.checked_request):
            offsets[candidate.index] = offset
            offset += len(candidate.messages)
        exchange.checked_messages = exchange.message_count
        placed = [violation.moved(first, offsets[index]) for index, violation in violations]
        with self._hiding_if_refused(exchange, placed):
            self._refuse_blocking(exchange, "response", placed)

    async def _check_response(
        self, exchange: Exchange, candidates: Sequence[CandidateMessages], *, until_now: bool = False
    ) -> list[Violation]:
        """Check all of the response. Return its violations. Raises Refused.

        With ``until_now`` more of it follows: then only violations that more text cannot undo are refused.
        """
        request = exchange.checked_request
        verdicts: list[Verdict] = []
        unseen: list[Unchecked] = []
        offset = len(request.messages)
        for candidate in candidates:
            judged = self._judge(exchange, "response", (*request.messages, *candidate.messages))
            verdict = await self._verdict_on(exchange, "response", judged)
            if verdict.violations:
                verdicts.append(_placed(verdict, len(request.messages), offset - len(request.messages)))
            unseen.extend(candidate.unchecked)
            offset += len(candidate.messages)
        exchange.checked_messages = exchange.message_count
        if not verdicts and not unseen:
            return []
        violations = [
            violation
            for verdict in verdicts
            for violation in verdict.violations
            if not self._is_settled(exchange, "response", violation)
        ]
        if until_now:
            verdicts = [_standing(verdict) for verdict in verdicts]
        with self._hiding_if_refused(exchange, violations):
            self._refuse_blocking(
                exchange, "response", [violation for verdict in verdicts for violation in verdict.violations]
            )
            self._refuse_unread(exchange, "response", unseen)
        exchange.unchecked_content.extend(one for one in unseen if one not in exchange.unchecked_content)
        if not until_now:
            exchange.violations.extend(violation for violation in violations if violation.action == "log")
        return violations

    def _is_settled(self, exchange: Exchange, phase: Phase, violation: Violation) -> bool:
        """Tell whether a violation needs no further action.

        That is so if a person has allowed it in this exchange, if it is in an earlier, passed part of a live session,
        or if it is in a response and points only at masked values that the client itself sent.
        """
        if exchange.settled and violation.action != "block" and _ends_before(violation, exchange.settled):
            return True
        if violation.action == "ask":
            return self._desk.has_allowed(exchange, violation, exchange.messages)
        if violation.action != "mask" or phase == "request" or exchange.masks is None:
            return False
        try:
            return exchange.masks.placeholders.keys() >= set(masked_values(exchange.messages, [violation]))
        except CannotMask:
            return False

    def _read_response(self, exchange: Exchange, request: GeminiRequest) -> tuple[CandidateMessages, ...]:
        candidates = candidate_messages(request, exchange.merger)
        exchange.response_messages = tuple(message for candidate in candidates for message in candidate.messages)
        self._note_thoughts(exchange, exchange.response_messages)
        return candidates

    def _judge(self, exchange: Exchange, phase: Phase, messages: Sequence[Message]) -> Verdict | Awaitable[Verdict]:
        if not exchange.rules.deciding:
            return _NOTHING_TO_CHECK
        visible = for_rules(messages, self._guardrails.thoughts)
        try:
            return self._engine.check(self._check(exchange, visible))
        except (EngineUnavailable, Unauthenticated) as error:
            raise self._no_verdict(exchange, phase, error) from None

    def _check(self, exchange: Exchange, messages: Sequence[Message]) -> Check:
        given, dataset = exchange.credentials, exchange.call.dataset
        rules, parameters = exchange.rules, self._guardrails.parameters
        if rules.compares_tools or rules.tools.labels:
            parameters = rules.tools.within(parameters, messages)
        return Check(
            rules.deciding,
            messages,
            parameters,
            key=given.guardrails,
            invariant_key=given.invariant,
            dataset=dataset,
            session=exchange.id,
            client=exchange.client,
            # Detectors that ask a model call the Gemini API, which must not get a token for Vertex AI.
            gemini_key=given.gemini if exchange.call.host == "gemini" else None,
            reader=exchange.reader,
            restored=exchange.masks.values if exchange.masks is not None and exchange.restoring is not None else {},
            allowed=exchange.allowed or exchange.settled,
        )

    async def _verdict_on(self, exchange: Exchange, phase: Phase, judged: Verdict | Awaitable[Verdict]) -> Verdict:
        """Return a verdict, once it is there, and note how long its check took. Raises Refused where there is none.

        The exchange also notes if the check let it go on without a verdict.
        """
        try:
            verdict = judged if isinstance(judged, Verdict) else await self._patiently(exchange, phase, judged)
        except (EngineUnavailable, Unauthenticated) as error:
            raise self._no_verdict(exchange, phase, error) from None
        exchange.check_ms += verdict.milliseconds
        if exchange.spans is not None and exchange.rules.deciding:
            exchange.spans.checked(phase, verdict.milliseconds, verdict.unchecked)
        if verdict.unchecked is not None:
            exchange.pass_unchecked(verdict.unchecked)
        return verdict

    async def _patiently(self, exchange: Exchange, phase: Phase, judged: Awaitable[Verdict]) -> Verdict:
        """Wait for a verdict; while it takes long on a response, show the client that the connection lives."""
        checking = self._tasks.beside(_verdict(judged), "check")
        try:
            while not (await asyncio.wait({checking}, timeout=_PATIENCE))[0]:
                if phase == "response":
                    await self._show_life(exchange)
            return checking.result()
        finally:
            checking.cancel()

    def _refuse_blocking(self, exchange: Exchange, phase: Phase, violations: Iterable[Violation]) -> None:
        """Raise Refused for violations that block."""
        if blocking := [violation for violation in violations if violation.action == "block"]:
            raise self._violated(exchange, phase, blocking)

    def _refuse_unread(self, exchange: Exchange, phase: Phase, missed: Sequence[Unchecked]) -> None:
        """Raise Refused for content that no rule can read, where that is not allowed."""
        if missed and self._guardrails.unseen_content == "block":
            named = ", ".join(dict.fromkeys(unchecked.reason for unchecked in missed))
            raise self._refused(exchange, phase, [f"content that cannot be checked ({named})"])

    def _violated(self, exchange: Exchange, phase: Phase, violations: Sequence[Violation], *reasons: str) -> Refused:
        exchange.violations.extend(violations)
        said = [violation.message for violation in violations]
        return self._refused(exchange, phase, [*said, *reasons], violations)

    def _note_thoughts(self, exchange: Exchange, messages: Sequence[Message]) -> None:
        if self._guardrails.thoughts == "skip" and any(is_thought(message) for message in messages):
            note = Unchecked("messages", "thoughts, which the configuration skips")
            if note not in exchange.unchecked_content:
                exchange.unchecked_content.append(note)

    def _no_verdict(self, exchange: Exchange, phase: Phase, error: EngineUnavailable | Unauthenticated) -> Refused:
        reason = "GUARDRAIL_UNAUTHENTICATED" if isinstance(error, Unauthenticated) else "GUARDRAIL_UNAVAILABLE"
        return self._refused(exchange, phase, [error.message], reason=reason)

    def _refused(
        self,
        exchange: Exchange,
        phase: Phase,
        messages: Sequence[str],
        violations: Sequence[Violation] = (),
        reason: str = "GUARDRAIL_BLOCKED",
    ) -> Refused:
        exchange.refusal = Refusal(
            phase=phase,
            messages=tuple(messages),
            errors=tuple(violation.error for violation in violations),
            guardrail=violations[0].guardrail.name if violations else "",
            reason=reason,
            prefix=self._refusals.prefix,
            trace_id=exchange.id,
        )
        return Refused(exchange.refusal)


def _restores_at_length(exchange: Exchange) -> bool:
    """Tell whether a few placeholders become so much text that it takes long to put it in their place."""
    return exchange.masks is not None and exchange.masks.longest_value > _LONG_VALUE


async def _restored(exchange: Exchange, data: bytes) -> bytes:
    """Return bytes of a response, a slice or less, with masked values in the place of placeholders."""
    if exchange.restoring is None:
        return data
    if _restores_at_length(exchange):
        return await asyncio.to_thread(exchange.restoring.feed, data)
    return exchange.restoring.feed(data)


async def _verdict(judged: Awaitable[Verdict]) -> Verdict:
    return await judged


def _outcome(exchange: Exchange) -> Outcome:
    """Return how an exchange ended that was not refused and did not fail."""
    status = exchange.upstream_status or 0
    if status >= 400 or exchange.merger.error is not None:
        return Outcome.UPSTREAM_ERROR
    if exchange.stream is not None and not exchange.merger.finished():
        return Outcome.UPSTREAM_CUT
    return Outcome.COMPLETED


def _stream_state(exchange: Exchange) -> StreamState:
    """Return what a refusal inside a stream repeats of it."""
    merger = exchange.merger
    expected = (exchange.request.candidate_count if exchange.request else None) or 1
    indexes = tuple(candidate.index for candidate in merger.candidates)
    return StreamState(
        indexes=indexes or tuple(range(min(expected, 8))),
        # The refusal must not repeat text that rules read.
        usage=counts_in(merger.usage or {}),
        model_version=merger.model_version or exchange.model,
        response_id=merger.response_id,
    )


def _standing(verdict: Verdict) -> Verdict:
    """Return the verdict with only the violations that the rest of the response cannot undo."""
    kept = tuple(violation for violation in verdict.violations if violation.stays)
    return Verdict(kept, verdict.milliseconds, verdict.unchecked)


def _ends_before(violation: Violation, message: int) -> bool:
    """Return whether all that a violation points at stands before ``message``."""
    indexes = [message_of(address) for address in violation.ranges]
    return bool(indexes) and all(index is not None and index < message for index in indexes)


def _placed(verdict: Verdict, start: int, by: int) -> Verdict:
    """Return the verdict on one candidate, with its addresses counted through all candidates' messages."""
    if not by or not verdict.violations:
        return verdict
    moved = tuple(violation.moved(start, by) for violation in verdict.violations)
    return Verdict(moved, verdict.milliseconds, verdict.unchecked)
