"""Make the trace of an exchange, and have it stored before the last byte leaves."""

import functools
import hmac
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gemini_proxy.errors import Unavailable
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.upstream_fault import read_fault
from gemini_proxy.guardrails.coverage import Coverage
from gemini_proxy.guardrails.masking import Masks, hide_in_messages, moved
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.exchange_metrics import ExchangeMetrics
from gemini_proxy.proxy.masker import masked_bytes
from gemini_proxy.proxy.shadow_runner import ShadowRunner
from gemini_proxy.proxy.tasks import Tasks, off_loop
from gemini_proxy.sections import Guardrails
from gemini_proxy.traces.alerts.notebook import Notebook
from gemini_proxy.traces.datasets import UNNAMED
from gemini_proxy.traces.headline import conversation_of, question_of
from gemini_proxy.traces.masked_values import SAID, SENT, MaskedValues, ValueScope
from gemini_proxy.traces.pinned_tools import ToolLearner
from gemini_proxy.traces.recorder import Recorder
from gemini_proxy.traces.redact import REDACTED, redact
from gemini_proxy.traces.trace import REFUSED, Outcome, Trace, annotations_for
from gemini_proxy.traces.value_keys import SealedValue

log = logging.getLogger(__name__)

_UNDECIDED = (None, Outcome.CLIENT_GONE, Outcome.FAILED)
"""While the exchange is in progress, and if it ended before its final check."""


_TELLING = (Outcome.COMPLETED, *REFUSED)
"""Outcomes of exchanges whose tools are pinned."""


class ExchangeRecorder:
    """Count every exchange and write its trace.

    ``required`` makes an exchange that cannot be recorded an error; with ``deferred`` a response does not wait for its
    trace, and with ``push`` traces are queued for the Explorer. ``learner`` gets declared tools, ``notebook`` the
    events for alerts. ``tell`` is called with exchanges whose spans were not begun. ``values`` keeps masked values,
    with the trace. ``shadows`` runs the comparisons of policies in shadow.
    """

    def __init__(
        self,
        recorder: Recorder,
        guardrails: Guardrails,
        tasks: Tasks,
        metrics: ExchangeMetrics,
        *,
        required: bool,
        learner: ToolLearner,
        deferred: bool = False,
        push: bool = False,
        notebook: Notebook | None = None,
        tell: Callable[[Exchange], None] | None = None,
        values: MaskedValues | None = None,
        shadows: ShadowRunner,
    ) -> None:
        self._recorder = recorder
        self._guardrails = guardrails
        self._tasks = tasks
        self._metrics = metrics
        self._required = required
        self._learner = learner
        self._deferred = deferred
        self._push = push
        self._notebook = notebook
        self._telemetry = tell
        self._values = values
        self._shadows = shadows

    async def record(self, exchange: Exchange, coverage: Coverage) -> None:
        """Return once the trace is durable or dropped. Raises Unavailable if a required trace was not written."""
        self._note(exchange)
        trace = await off_loop(masked_bytes(exchange), self._trace, exchange, coverage)
        self._compare(exchange, trace)
        # The content of a handle is read from the trace, perhaps by the next request.
        if self._deferred and not exchange.made:
            self._write_later(trace)
            self._learn(exchange)
            return
        written = await self._recorder.commit(trace, _bytes_read(exchange))
        if self._required and not written:
            raise Unavailable(
                "The exchange could not be recorded, and this server requires a trace of each exchange "
                "(traces.required)"
            )
        self._learn(exchange)

    def record_later(self, exchange: Exchange, hiding: Coroutine[Any, Any, None]) -> None:
        """Record an exchange whose client has left, after ``hiding`` what is masked; shutdown waits for it."""
        self._note(exchange)
        self._tasks.spawn(self._record_left(exchange, self.coverage(exchange), hiding), "record")

    async def _record_left(self, exchange: Exchange, coverage: Coverage, hiding: Coroutine[Any, Any, None]) -> None:
        await hiding
        trace = await off_loop(masked_bytes(exchange), self._trace, exchange, coverage)
        self._compare(exchange, trace)
        await self._recorder.commit(trace)

    def _write_later(self, trace: Trace) -> None:
        self._tasks.spawn(self._recorder.commit(trace), "record")

    def _compare(self, exchange: Exchange, trace: Trace) -> None:
        """Schedule the comparison of policies in shadow with those in force, after the exchange."""
        if exchange.rules.shadows:
            self._shadows.offer(exchange, trace.metadata["conversation"], self._guardrails, _hiding(exchange))

    def _learn(self, exchange: Exchange) -> None:
        """Have the declared tools of a completed exchange pinned, and those of a refused one compared.

        Do nothing for an exchange that passed unchecked or got no response.
        """
        request, outcome = exchange.request, exchange.outcome
        if request is not None and outcome in _TELLING:
            self._learner.see(
                exchange.owner,
                exchange.call.dataset or UNNAMED,
                request.messages,
                request.stored,
                exchange.size,
                allowed=outcome is Outcome.COMPLETED,
                pinned=exchange.rules.tools.pinned if exchange.call.dataset or exchange.rules.compares_tools else None,
            )

    def _note(self, exchange: Exchange) -> None:
        exchange.recorded = True
        self._metrics.add(exchange)
        if self._notebook is not None and exchange.outcome is not Outcome.COMPLETED:
            self._tell(exchange, self._notebook)
        if self._telemetry is not None and exchange.spans is None:
            self._telemetry(exchange)
        _say(exchange)

    def _tell(self, exchange: Exchange, notebook: Notebook) -> None:
        """Note what alerts tell of: refusals by guardrail, and failures of the upstream by status."""
        example = {"trace": exchange.id, "dataset": exchange.call.dataset, "model": exchange.model}
        if exchange.refusal is not None:
            for name in self._metrics.refusing(exchange):
                notebook.note("refusals", name, example)
        elif (failure := _upstream_failure(exchange)) is not None:
            notebook.note("upstream_errors", failure, example)

    def coverage(self, exchange: Exchange) -> Coverage:
        """Return the coverage of the exchange so far."""
        guardrails = self._guardrails
        return Coverage(
            mode=_mode(exchange, guardrails),
            rules=exchange.rules.deciding_names,
            checked_messages=exchange.checked_messages if exchange.rules.deciding and exchange.unchecked is None else 0,
            unchecked_content=tuple(exchange.unchecked_content),
            verdict=_verdict(exchange, off=guardrails.engine == "off"),
            unchecked=exchange.unchecked,
            milliseconds=exchange.check_ms,
            waiting=exchange.waiting,
            masked=len(exchange.masks.placeholders) if exchange.masks is not None else 0,
            values_kept=self._values is not None and exchange.is_of_user,
        )

    def _trace(self, exchange: Exchange, coverage: Coverage) -> Trace:
        call = exchange.call
        invariant = exchange.credentials.invariant
        messages, violations, masks = exchange.messages, exchange.violations, exchange.masks
        if masks is not None:
            violations = moved(violations, masks, messages)
            messages = hide_in_messages(messages, masks)
        metadata = _metadata(exchange, coverage)
        metadata |= _place(exchange, messages)
        trace = Trace(
            id=exchange.id,
            created=exchange.created,
            dataset=call.dataset,
            owner=exchange.owner,
            tenant=tenant(invariant) if invariant else None,
            outcome=exchange.outcome or Outcome.FAILED,
            model=metadata["model"],
            stream=exchange.streams,
            messages=messages,
            annotations=annotations_for(violations) if violations else (),
            metadata=metadata,
            duration_ms=_milliseconds(exchange.started_at, time.perf_counter()),
            log_rules=self._log_rules(exchange, messages) if exchange.rules.annotating else (),
            push=self._push,
            masked=() if masks is None else self._kept(exchange, masks, metadata["conversation"]),
        )
        if masks is not None:
            trace = _with_texts(trace, masks.hide)
        return _without(exchange.request.secrets, trace) if exchange.request and exchange.request.secrets else trace

    def _log_rules(self, exchange: Exchange, messages: Sequence[Message]) -> tuple[Mapping[str, Any], ...]:
        """Return the rules to run once the trace is written, each with its parameters."""
        rules = exchange.rules
        terms: dict[str, Any] = {"parameters": rules.tools.within(self._guardrails.parameters, messages)}
        if allowed := exchange.allowed or exchange.settled:
            terms["allowed"] = allowed
        return tuple({**rule.described, **terms} for rule in rules.annotating)

    def _kept(self, exchange: Exchange, masks: Masks, conversation: str) -> tuple[SealedValue, ...]:
        """Return the masked values to store, of the conversation and of objects that Gemini keeps from the exchange."""
        if self._values is None or not exchange.is_of_user:
            return ()
        values = [
            (placeholder, SAID if value in masks.unsent else SENT, value)
            for value, placeholder in masks.placeholders.items()
        ]
        owner, dataset = exchange.owner, exchange.call.dataset
        # Values that the conversation already has stored are not written again.
        lasting = exchange.lasting.get(conversation, ())
        new = [one for one in values if one[0] not in lasting]
        rows = self._values.sealed(ValueScope(owner, dataset, [conversation]), (*new, *exchange.spelled))
        if exchange.made or not conversation:
            rows += self._values.sealed(ValueScope(owner, dataset, [exchange.id]), values)
        return rows


def _bytes_read(exchange: Exchange) -> int | None:
    """Return how many bytes the messages were read from. None if some came otherwise: earlier, or in frames."""
    if exchange.earlier or exchange.call.row.transport != "json":
        return None
    return exchange.size + (exchange.stream.size if exchange.stream is not None else 0)


def _upstream_failure(exchange: Exchange) -> str | None:
    """Return what the upstream did wrong. None if nothing, and for a status that finds fault with the request."""
    status = exchange.upstream_status
    if exchange.outcome is Outcome.UPSTREAM_CUT:
        return "cut_off"
    if exchange.outcome is not Outcome.UPSTREAM_ERROR:
        return None
    if status is None:
        return "no_response"
    if status < 400:
        return "error_in_stream"
    return str(status) if status in _FAILED_FOR_ALL or status >= 500 else None


_FAILED_FOR_ALL = (401, 403, 429)
"""Statuses that tell of an exhausted key or quota rather than of the request."""

_MOST_WORK = 100_000
"""Characters of a text, for each secret that is looked for in it, which take some 0.1 ms; beyond, it goes whole."""


def _without(secrets: Sequence[str], trace: Trace) -> Trace:
    """Return the trace without the request's secrets where a rule's words or an error repeat them."""
    return _with_texts(trace, functools.cache(functools.partial(_bare, secrets)))


def _bare(secrets: Sequence[str], text: str) -> str:
    return REDACTED if len(text) * len(secrets) > _MOST_WORK else str(redact(text, secrets))


def _hiding(exchange: Exchange) -> Callable[[str], str]:
    """Return a function that removes from a text what the exchange's trace must not show: masked values and secrets."""
    masks, secrets = exchange.masks, exchange.request.secrets if exchange.request else ()
    return lambda text: _bare(secrets, text if masks is None else masks.hide(text))


def _with_texts(trace: Trace, changed: Callable[[str], str]) -> Trace:
    """Return the trace with its sentences changed: what rules say, and what was answered in their place."""
    metadata = dict(trace.metadata)
    if "refusal" in metadata:
        metadata["refusal"] = {**metadata["refusal"], "text": changed(metadata["refusal"]["text"])}
    for name in ("error", "asked"):
        if name in metadata:
            metadata[name] = changed(metadata[name])
    if "upstream_error" in metadata:
        error = metadata["upstream_error"]
        metadata["upstream_error"] = {**error, "message": changed(error["message"])}
    annotations = tuple(replace(annotation, content=changed(annotation.content)) for annotation in trace.annotations)
    return replace(trace, annotations=annotations, metadata=metadata)


def _metadata(exchange: Exchange, coverage: Coverage) -> dict[str, Any]:
    merger = exchange.merger
    metadata: dict[str, Any] = {
        **(exchange.request.settings if exchange.request else {}),
        "via_gateway": True,
        "method": exchange.call.method.value,
        "model": exchange.model,
        "usage": merger.usage,
        "model_version": merger.model_version,
        "response_id": merger.response_id,
        "finish_reasons": [candidate.finish_reason for candidate in merger.candidates],
        "latencies_ms": _latencies(exchange),
        "coverage": coverage.described,
    }
    if exchange.call.host == "vertex":
        metadata["vertex"] = {name: exchange.call.names.get(name) for name in ("project", "location")}
    if merger.prompt_feedback:
        metadata["prompt_feedback"] = merger.prompt_feedback
    if exchange.upstream_status is not None:
        metadata["upstream_status"] = exchange.upstream_status
    fault = exchange.upstream_error
    if fault is None and merger.error is not None:
        fault = read_fault(merger.error)
    if fault is not None:
        metadata["upstream_error"] = fault.described
    if exchange.refusal is not None:
        metadata["refusal"] = {"reason": exchange.refusal.reason, "text": exchange.refusal.text}
    if exchange.approvals:
        kept = ("id", "state", "guardrail", "decided_at", "decided_by", "reason", "for_conversation")
        described = [approval.described for approval in exchange.approvals]
        metadata["approvals"] = [{name: one[name] for name in kept} for one in described]
    if exchange.rules.narrows and exchange.asked is not None:
        metadata["allowed_before"] = exchange.allowed
    if exchange.error:
        metadata["error"] = exchange.error
    if exchange.earlier:
        metadata["earlier"] = [
            {"kind": reference.kind, "name": reference.name, "messages": len(earlier.messages)}
            for reference, earlier in exchange.earlier.items()
        ]
    return metadata


def _place(exchange: Exchange, messages: Sequence[Mapping[str, Any]]) -> dict[str, str | int]:
    """Return the trace's metadata on the place of the exchange: its conversation, and its question.

    ``request_messages`` is the number of the request's messages.
    """
    conversation = exchange.conversation
    if not conversation and exchange.call.generates:
        conversation = conversation_of(messages)
    asked = len(exchange.request.stored) if exchange.request else 0
    return {"conversation": conversation, "asked": question_of(messages), "request_messages": asked}


def _say(exchange: Exchange) -> None:
    """Log an exchange that did not complete, in one line; the trace has the rest."""
    if exchange.outcome is not Outcome.COMPLETED:
        log.info("exchange not completed", extra=_said(exchange))


def _said(exchange: Exchange) -> dict[str, str | int]:
    """The fields of that line; what is not known is left out."""
    refusal = exchange.refusal
    fields = {
        "trace_id": exchange.id,
        "outcome": exchange.outcome,
        "status": exchange.upstream_status,
        "reason": refusal.reason if refusal else exchange.error,
        "rule": refusal.guardrail if refusal else None,
        "dataset": exchange.call.dataset,
    }
    return {name: value for name, value in fields.items() if value}


# Cached, since few keys send most requests, and a hash costs as much as all other values of a trace.
@functools.lru_cache(maxsize=256)
def tenant(invariant_key: str) -> str:
    """Return a digest that identifies a key without showing it: the same on every machine."""
    return hmac.digest(b"gemini-proxy tenant", invariant_key.encode(), "sha256").hex()


def _mode(exchange: Exchange, guardrails: Guardrails) -> str:
    """Return how the response is checked; it can differ from a configured ``window``."""
    if not exchange.call.generates:
        return "request"
    return exchange.stream.mode if exchange.stream is not None else guardrails.stream_check


def _verdict(exchange: Exchange, *, off: bool) -> str:
    if exchange.refusal is not None:
        return "refused"
    if exchange.unchecked is not None:
        return "unchecked"
    if off or not exchange.rules.deciding:
        return "off"
    return "pending" if exchange.outcome in _UNDECIDED else "passed"


def _latencies(exchange: Exchange) -> dict[str, float]:
    latencies = {}
    if (head_at := exchange.head_at) is not None:
        latencies["upstream_head"] = _milliseconds(exchange.started_at, head_at)
    if (first_byte_at := exchange.response.first_byte_at) is not None:
        latencies["first_byte"] = _milliseconds(exchange.started_at, first_byte_at)
    return latencies


def _milliseconds(start: float, end: float) -> float:
    return round((end - start) * 1000, 3)
