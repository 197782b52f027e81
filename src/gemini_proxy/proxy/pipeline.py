"""The guardrail lifecycle of an exchange: start, chunk, end. It asks the engine and moves the gate; it does no HTTP."""

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable, Sequence

from gemini_proxy.errors import DecodeError, EngineUnavailable, Unauthenticated, UpstreamError
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.parts import Unchecked
from gemini_proxy.gemini.refusal import Phase, Refusal
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.guardrails.engine import Check, Engine
from gemini_proxy.guardrails.response_messages import CandidateMessages, candidate_messages, for_rules, is_thought
from gemini_proxy.guardrails.stream import FrameGate, StreamCheck
from gemini_proxy.guardrails.tail import Tail
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.guardrails.windows import AnswerWindows
from gemini_proxy.proxy.exchange import Exchange, Refused
from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.sections import Guardrails, Refusals
from gemini_proxy.traces.trace import Outcome


class Lifecycle:
    """Runs the checks of every exchange with one engine and one configuration."""

    def __init__(
        self, engine: Engine, guardrails: Guardrails, refusals: Refusals, tasks: Tasks, max_answer_bytes: int
    ) -> None:
        self._engine = engine
        self._guardrails = guardrails
        self._refusals = refusals
        self._tasks = tasks
        self._max_answer_bytes = max_answer_bytes

    async def start(self, exchange: Exchange) -> "asyncio.Task[None] | None":
        """Check the request. A check that takes a while is returned as a task, to run beside the upstream call.

        Raises Refused.
        """
        request = _request(exchange)
        exchange.unseen.extend(request.unchecked)
        self._note_thoughts(exchange, request.messages)
        verdict = self._judge(exchange, "request", request.messages)
        deciding = self._decide_request(exchange, verdict)
        if not isinstance(verdict, Verdict) and self._guardrails.request_check == "overlap":
            return self._tasks.beside(deciding, "request check")
        await deciding
        return None

    async def _decide_request(self, exchange: Exchange, verdict: Verdict | Awaitable[Verdict]) -> None:
        verdicts = [await self._wait(exchange, "request", verdict)]
        exchange.checked_messages = exchange.message_count
        self._apply(exchange, "request", verdicts, exchange.unseen)

    async def admit(self, exchange: Exchange) -> None:
        """Return when the request may have an answer. Raises Refused."""
        if exchange.checking is not None:
            await exchange.checking
            exchange.checking = None

    def open_gate(self, exchange: Exchange, framing: Framing) -> None:
        """Put the gate before an answer that comes in ``framing``."""
        mode, tail = self._guardrails.stream_check, None
        if mode == "window":
            mode, tail = self._open_windows(exchange)
        exchange.gate = FrameGate(
            framing, exchange.merger, mode, _request(exchange).candidate_count, self._max_answer_bytes, tail
        )

    def _open_windows(self, exchange: Exchange) -> tuple[StreamCheck, Tail | None]:
        """``window`` as the rules allow: without any it is ``final``, with one that has to see the whole ``hold``."""
        messages, settings = _request(exchange).messages, self._guardrails
        check = self._check(exchange, for_rules(messages, settings.thoughts))
        session = self._engine.open_session(check, settings.window_overlap) if exchange.rules.blocking else None
        if session is None:
            return "final", None
        exchange.waiting = session.waiting
        if session.waiting:
            return "hold", None
        skips = settings.thoughts == "skip"
        exchange.windows = AnswerWindows(session, len(messages), skips_thoughts=skips)
        return "window", Tail(session.overlap, skips_thoughts=skips)

    async def feed(self, exchange: Exchange, data: bytes) -> bytes:
        """The bytes that may leave now that ``data`` came from upstream.

        Raises Refused, and DecodeError for bytes that cannot be read.
        """
        gate = exchange.gate
        assert gate is not None
        if exchange.checking is not None:
            await self.admit(exchange)
        gate.feed(data[:_SLICE])
        for start in range(_SLICE, len(data), _SLICE):
            await asyncio.sleep(0)
            gate.feed(data[start : start + _SLICE])
        if exchange.windows is not None:
            await self._judge_windows(exchange, gate, exchange.windows)
        elif gate.wants_verdict and not exchange.undecided:
            if await self._judge_answer(exchange, until_now=True):
                gate.release()
            else:
                exchange.undecided = True
        return gate.take()

    async def end(self, exchange: Exchange) -> bytes:
        """The bytes that may leave now that the body has ended, after the final check. Raises as ``feed`` does.

        An answer without a gate (an upstream error, a call that generates nothing) has nothing withheld. Raises
        UpstreamError for one in which there was nothing.
        """
        await self.admit(exchange)
        if exchange.gate is None:
            return b""
        exchange.gate.end()
        if exchange.gate.empty:
            raise UpstreamError("The upstream's answer has no content.")
        return await self.remains(exchange)

    async def remains(self, exchange: Exchange) -> bytes:
        """What of an answer may still leave when no more of it will come, after a check. Raises Refused."""
        assert exchange.gate is not None
        await self._judge_answer(exchange)
        exchange.gate.release()
        return exchange.gate.take()

    def remember(self, exchange: Exchange) -> None:
        """Keep for the trace what came of an answer that nobody waits for; what cannot be read of it is left out."""
        if exchange.request is not None and exchange.gate is not None:
            with contextlib.suppress(DecodeError):
                self._read_answer(exchange, exchange.request)

    def outcome(self, exchange: Exchange) -> Outcome:
        """How an exchange ended that was not refused and did not fail."""
        status = exchange.upstream_status or 0
        if status >= 400 or exchange.merger.error is not None:
            return Outcome.UPSTREAM_ERROR
        if exchange.gate is not None and not exchange.merger.finished():
            return Outcome.UPSTREAM_CUT
        return Outcome.COMPLETED

    def unreadable(self, exchange: Exchange, error: DecodeError) -> None:
        """Refuse an answer that cannot be read: what cannot be checked is not passed on."""
        self._refused(exchange, "response", [error.message], reason="ANSWER_UNREADABLE")

    async def _judge_windows(self, exchange: Exchange, gate: FrameGate, windows: AnswerWindows) -> None:
        """Let what has passed leave: texts are judged piece by piece, any other part with the whole so far."""
        if windows.waits or gate.ending or (gate.part_waits and not gate.wants_verdict):
            return
        if gate.part_waits:
            gate.take_grown()
            if await self._judge_answer(exchange, until_now=True):
                windows.resume(candidate_messages(_request(exchange), exchange.merger))
                gate.pass_parts()
            else:
                windows.wait()
        elif found := windows.grow(gate.take_grown()):
            self._refuse_early(exchange, found)
        if windows.clear:
            gate.pass_texts()

    def _refuse_early(self, exchange: Exchange, found: Sequence[tuple[int, Verdict]]) -> None:
        first = len(_request(exchange).messages)
        offsets, offset = {}, 0
        for candidate in self._read_answer(exchange, _request(exchange)):
            offsets[candidate.index] = offset
            offset += len(candidate.messages)
        exchange.checked_messages = exchange.message_count
        self._apply(exchange, "response", [_placed(verdict, first, offsets[index]) for index, verdict in found], ())

    async def _judge_answer(self, exchange: Exchange, *, until_now: bool = False) -> bool:
        """Check the whole answer. Raises Refused.

        With ``until_now`` more of it follows: only what that cannot undo is refused for, and False says that there are
        violations which it may.
        """
        request = _request(exchange)
        candidates = self._read_answer(exchange, request)
        verdicts: list[Verdict] = []
        unseen: list[Unchecked] = []
        offset = len(request.messages)
        for candidate in candidates:
            judged = self._judge(exchange, "response", (*request.messages, *candidate.messages))
            verdict = await self._wait(exchange, "response", judged)
            verdicts.append(_placed(verdict, len(request.messages), offset - len(request.messages)))
            unseen.extend(candidate.unchecked)
            offset += len(candidate.messages)
        exchange.checked_messages = exchange.message_count
        passed = not any(verdict.violations for verdict in verdicts)
        if until_now:
            verdicts = [_standing(verdict) for verdict in verdicts]
        self._apply(exchange, "response", verdicts, unseen)
        exchange.unseen.extend(one for one in unseen if one not in exchange.unseen)
        return passed

    def _read_answer(self, exchange: Exchange, request: GeminiRequest) -> tuple[CandidateMessages, ...]:
        candidates = candidate_messages(request, exchange.merger)
        exchange.answer_messages = tuple(message for candidate in candidates for message in candidate.messages)
        self._note_thoughts(exchange, exchange.answer_messages)
        return candidates

    def _judge(self, exchange: Exchange, phase: Phase, messages: Sequence[Message]) -> Verdict | Awaitable[Verdict]:
        if not exchange.rules.blocking:
            return _NOTHING_TO_CHECK
        visible = for_rules(messages, self._guardrails.thoughts)
        try:
            return self._engine.judge(self._check(exchange, visible))
        except (EngineUnavailable, Unauthenticated) as error:
            raise self._no_verdict(exchange, phase, error) from None

    def _check(self, exchange: Exchange, messages: Sequence[Message]) -> Check:
        given, dataset = exchange.credentials, exchange.call.dataset
        rules, parameters = exchange.rules, self._guardrails.parameters
        if rules.compares_tools or rules.tools.labels:
            parameters = rules.tools.within(parameters, messages)
        keys = given.guardrails, given.invariant
        return Check(rules.blocking, messages, parameters, *keys, dataset, exchange.id, exchange.client, given.gemini)

    async def _wait(self, exchange: Exchange, phase: Phase, judged: Verdict | Awaitable[Verdict]) -> Verdict:
        try:
            verdict = judged if isinstance(judged, Verdict) else await self._patiently(exchange, phase, judged)
        except (EngineUnavailable, Unauthenticated) as error:
            raise self._no_verdict(exchange, phase, error) from None
        exchange.check_ms += verdict.milliseconds
        if verdict.unchecked is not None:
            exchange.pass_unchecked(verdict.unchecked)
        return verdict

    async def _patiently(self, exchange: Exchange, phase: Phase, judged: Awaitable[Verdict]) -> Verdict:
        """Wait for a verdict; while it takes long on an answer, show the client that the connection lives."""
        checking = self._tasks.beside(_verdict(judged), "check")
        try:
            while not (await asyncio.wait({checking}, timeout=_PATIENCE))[0]:
                if phase == "response" and exchange.keep_alive is not None and exchange.gate is not None:
                    await exchange.keep_alive(exchange.gate.following)
            return checking.result()
        finally:
            checking.cancel()

    def _apply(
        self, exchange: Exchange, phase: Phase, verdicts: Iterable[Verdict], missed: Sequence[Unchecked]
    ) -> None:
        violations = [violation for verdict in verdicts for violation in verdict.violations]
        if violations:
            exchange.violations.extend(violations)
            raise self._refused(exchange, phase, [violation.message for violation in violations], violations)
        if missed and self._guardrails.unseen_content == "block":
            named = ", ".join(dict.fromkeys(one.reason for one in missed))
            raise self._refused(exchange, phase, [f"content that cannot be checked ({named})"])

    def _note_thoughts(self, exchange: Exchange, messages: Sequence[Message]) -> None:
        if self._guardrails.thoughts == "skip" and any(is_thought(message) for message in messages):
            note = Unchecked("messages", "thoughts, which the configuration skips")
            if note not in exchange.unseen:
                exchange.unseen.append(note)

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


async def _verdict(judged: Awaitable[Verdict]) -> Verdict:
    return await judged


_PATIENCE = 1.0
"""Seconds a client waits for a verdict without a sign of life."""
_NOTHING_TO_CHECK = Verdict()
_SLICE = 4096
"""Bytes of an answer read before the loop gets its turn: a few milliseconds where they are comments of three bytes."""


def _request(exchange: Exchange) -> GeminiRequest:
    assert exchange.request is not None
    return exchange.request


def _standing(verdict: Verdict) -> Verdict:
    """The verdict with those violations alone that the rest of the answer cannot undo."""
    kept = tuple(violation for violation in verdict.violations if violation.stays)
    return Verdict(kept, verdict.milliseconds, verdict.unchecked)


def _placed(verdict: Verdict, start: int, by: int) -> Verdict:
    """The verdict on one candidate, with its addresses counted through all candidates' messages."""
    if not by or not verdict.violations:
        return verdict
    moved = tuple(violation.moved(start, by) for violation in verdict.violations)
    return Verdict(moved, verdict.milliseconds, verdict.unchecked)
