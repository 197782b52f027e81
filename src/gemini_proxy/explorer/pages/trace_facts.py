"""Describe what a trace's metadata says about its exchange. It may come from anywhere: no shape is certain."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gemini_proxy.explorer.pages.templating import grouped, milliseconds
from gemini_proxy.explorer.pages.trace_copies import parameters
from gemini_proxy.traces.headline import KEY_LENGTH
from gemini_proxy.traces.trace import Trace
from gemini_proxy.traces.visible import as_json

_LISTED: Final = 20
"""Parts not checked, and other entries, that are shown one by one."""
_LONGEST: Final = 2_000
"""Characters of one entry."""
_ERRORS: Final = 400
_TOKENS: Final = {
    "promptTokenCount": "prompt",
    "cachedContentTokenCount": "cached",
    "thoughtsTokenCount": "thoughts",
    "candidatesTokenCount": "response",
    "totalTokenCount": "total",
}
_TOLD: Final = frozenset(
    "model usage model_version latencies_ms coverage refusal error via_gateway conversation asked request_messages"
    " upstream_status upstream_error allowed_before".split()
)


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """``timing``, ``tokens`` and ``checks`` are a few words each; ``unchecked`` lists unread content with reasons.

    ``warning`` says what was not checked in the whole exchange, "" if nothing. ``upstream`` is the upstream's error
    message, ``parameters`` are the request's.
    """

    model: Fact
    timing: tuple[Fact, ...]
    tokens: tuple[Fact, ...]
    checks: tuple[Fact, ...]
    unchecked: tuple[Fact, ...]
    unchecked_more: int
    refusal: Fact | None
    error: str
    warning: str
    upstream: Fact | None
    conversation: str
    key: str
    parameters: tuple[Fact, ...]
    others: tuple[Fact, ...]


def facts(trace: Trace) -> Facts:
    """Describe everything but the conversation."""
    metadata = trace.metadata
    coverage = _mapping(metadata.get("coverage"))
    refusal = _mapping(metadata.get("refusal"))
    unseen = coverage.get("not_checked")
    unseen = unseen if isinstance(unseen, list) else []
    count = coverage.get("not_checked_in_all")
    asked = parameters(metadata)
    return Facts(
        _model(trace),
        tuple(_timing(trace)),
        tuple(
            Fact(word, grouped(number))
            for name, word in _TOKENS.items()
            if (number := _number(_mapping(metadata.get("usage")).get(name))) is not None
        ),
        tuple(_checks(coverage, _number(metadata.get("allowed_before")))),
        tuple(
            Fact(_text(_mapping(entry).get("address")), _text(_mapping(entry).get("reason")))
            for entry in unseen[:_LISTED]
        ),
        max(0, (count if isinstance(count, int) else len(unseen)) - min(len(unseen), _LISTED)),
        Fact(_text(refusal.get("reason")), _text(refusal.get("text"))) if refusal else None,
        _text(metadata.get("error")),
        _warning(coverage),
        _upstream(metadata),
        _text(metadata.get("conversation")),
        (trace.tenant or "")[:KEY_LENGTH],
        tuple(Fact(name, _text(value)) for name, value in asked.items()),
        tuple(
            Fact(_text(name), _text(value))
            for name, value in list(metadata.items())[:200]
            if name not in _TOLD and name not in asked and value is not None
        ),
    )


def _warning(coverage: Mapping[str, Any]) -> str:
    verdict = coverage.get("verdict")
    if verdict == "off":
        return "Nothing was checked: no guardrail applied to this exchange."
    if verdict == "unchecked":
        return f"The checks gave no verdict and the exchange passed: {_text(coverage.get('unchecked')) or 'no reason'}"
    return "The exchange ended before its last check." if verdict == "pending" else ""


def _upstream(metadata: Mapping[str, Any]) -> Fact | None:
    """Return the status of a response that was an error, with what it said."""
    status, error = _number(metadata.get("upstream_status")), _mapping(metadata.get("upstream_error"))
    if not error and (status is None or status < _ERRORS):
        return None
    return Fact("" if status is None else f"{status:.0f}", _text(error.get("message")), _text(error.get("status")))


def _model(trace: Trace) -> Fact:
    version = _text(trace.metadata.get("model_version"))
    return Fact("model", trace.model or "", version if version != trace.model else "")


def _timing(trace: Trace) -> Iterator[Fact]:
    latencies = _mapping(trace.metadata.get("latencies_ms"))
    yield Fact("total", milliseconds(trace.duration_ms))
    for name, word in {"upstream_head": "upstream response", "first_byte": "first event"}.items():
        if (value := _number(latencies.get(name))) is not None:
            yield Fact(word, milliseconds(value))
    if (value := _number(_mapping(trace.metadata.get("coverage")).get("milliseconds"))) is not None:
        yield Fact("checks", milliseconds(value))


def _checks(coverage: Mapping[str, Any], allowed: float | None) -> Iterator[Fact]:
    if not coverage:
        return
    rules = coverage.get("rules")
    rules = rules if isinstance(rules, list) else []
    yield Fact("verdict", _text(coverage.get("verdict")), _text(coverage.get("unchecked")))
    yield Fact("mode", _text(coverage.get("mode")))
    names = ", ".join(_text(name) for name in rules[:_LISTED])
    if (messages := _number(coverage.get("checked_messages"))) is not None:
        yield Fact("messages", grouped(messages))
    if allowed is not None:
        yield Fact("allowed before", grouped(allowed), 'messages that rules with scope="new" leave alone')
    yield Fact("rules", f"{len(rules)}", names + (", …" if len(rules) > _LISTED else ""))
    if (masked := _number(coverage.get("masked_values"))) is not None:
        kept = coverage.get("values_kept") is True
        told = "they come back in later responses" if kept else "placeholders stay in later responses"
        yield Fact("masked values", grouped(masked), told)
    if isinstance(waiting := coverage.get("judged_only_at_the_end"), list):
        yield Fact("checked only at the end", ", ".join(_text(name) for name in waiting[:_LISTED]))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """Return a number that can be written, else None; JSON may hold integers of any length."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return value if usable else None


def _text(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else as_json(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
