"""Report an exchange to OpenTelemetry, under the names of its conventions for generative AI.

Those for guardrails are a draft. This module has only names and values; ``server/telemetry.py`` sends them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gemini_proxy.gemini.messages import Message
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.traces.redact import redact
from gemini_proxy.traces.rows import dump
from gemini_proxy.traces.trace import Outcome

Value = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, Value]

REFUSED: Final = "guardrail_refused"
"""``error.type`` of an exchange that a guardrail ended."""
COMPONENT: Final = "gemini-proxy"
_MOST_CONTENT: Final = 262_144
"""Bytes of an exchange whose content is sent: writing it down takes the event loop a millisecond."""
_NAME: Final = 200
_PARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MEMBER: Final = r"[a-z0-9][a-z0-9_*/@-]{0,255}=[!-+\--<>-~]{1,256}"
_STATE: Final = re.compile(rf"(?=.{{1,512}}\Z){_MEMBER}(?:,{_MEMBER}){{0,31}}")
"""The form of trace headers by W3C's Trace Context, without spaces."""
_OPERATIONS: Final[Mapping[str, str]] = {
    "generateContent": "generate_content",
    "streamGenerateContent": "generate_content",
    "embedContent": "embeddings",
    "batchEmbedContents": "embeddings",
    "createInteraction": "interactions.create",
    "getInteraction": "fetch_response",
    "openaiChatCompletions": "chat",
    "openaiEmbeddings": "embeddings",
    "bidiGenerateContent": "generate_content",
}
_PROVIDERS: Final[Mapping[str, str]] = {"gemini": "gcp.gemini", "vertex": "gcp.vertex_ai"}
# By their names in camelCase, the form of a generation's settings here.
_SETTINGS: Final[Mapping[str, tuple[str, type]]] = {
    "temperature": ("gen_ai.request.temperature", float),
    "topP": ("gen_ai.request.top_p", float),
    "topK": ("gen_ai.request.top_k", float),
    "seed": ("gen_ai.request.seed", int),
    "maxOutputTokens": ("gen_ai.request.max_tokens", int),
    "candidateCount": ("gen_ai.request.choice.count", int),
    "frequencyPenalty": ("gen_ai.request.frequency_penalty", float),
    "presencePenalty": ("gen_ai.request.presence_penalty", float),
}
_ROLES: Final[Mapping[str, str]] = {"user": "user", "assistant": "assistant", "tool": "tool"}


def operation_of(exchange: Exchange) -> str:
    """Return what the model is asked to do."""
    return _OPERATIONS.get(exchange.call.method.value, exchange.call.method.value)


def span_name(exchange: Exchange) -> str:
    """Return the name of the span around the model's call."""
    model = model_of(exchange)
    return f"{operation_of(exchange)} {model}" if model else operation_of(exchange)


def model_of(exchange: Exchange) -> str | None:
    """Return the requested model as a plain name; None if none is given."""
    model = exchange.model
    return None if model is None else plain(model)


def common_attributes(exchange: Exchange, host: str, port: int) -> dict[str, Value]:
    """Return the attributes that spans and metrics have in common."""
    found: dict[str, Value] = {
        "gen_ai.operation.name": operation_of(exchange),
        "gen_ai.provider.name": _PROVIDERS.get(exchange.call.host, "gcp.gen_ai"),
        "server.address": host,
        "server.port": port,
    }
    if (model := model_of(exchange)) is not None:
        found["gen_ai.request.model"] = model
    return found


def ending_attributes(exchange: Exchange) -> dict[str, Value]:
    """Return what is known of an exchange at its end: its settings, response, tokens, and what became of it."""
    merger = exchange.merger
    found: dict[str, Value] = {"gemini_proxy.outcome": str(exchange.outcome or Outcome.FAILED)}
    found["gemini_proxy.trace.id"] = exchange.id
    if exchange.call.dataset:
        found["gemini_proxy.dataset"] = exchange.call.dataset
    if exchange.conversation:
        found["gen_ai.conversation.id"] = plain(exchange.conversation)
    if exchange.call.streams:
        found["gen_ai.request.stream"] = True
    found |= _settings(exchange)
    if merger.response_id:
        found["gen_ai.response.id"] = plain(merger.response_id)
    if merger.model_version:
        found["gen_ai.response.model"] = plain(merger.model_version)
    if reasons := [plain(one.finish_reason) for one in merger.candidates if one.finish_reason]:
        found["gen_ai.response.finish_reasons"] = reasons
    if (seconds := first_chunk_seconds(exchange)) is not None:
        found["gen_ai.response.time_to_first_chunk"] = seconds
    found |= {f"gen_ai.usage.{kind}": count for kind, count in usage_of(exchange).items()}
    if (error := error_type(exchange)) is not None:
        found["error.type"] = error
    return found


def usage_of(exchange: Exchange) -> dict[str, int]:
    """Return the tokens as the upstream counted them, by the conventions' kinds; without those that are 0."""
    usage = exchange.merger.usage or {}

    def count(*names: str) -> int:
        return sum(value for name in names if type(value := usage.get(name)) is int and 0 < value < 2**40)

    found = {
        "input_tokens": count("promptTokenCount", "toolUsePromptTokenCount"),
        "output_tokens": count("candidatesTokenCount", "thoughtsTokenCount"),
        "reasoning.output_tokens": count("thoughtsTokenCount"),
        "cache_read.input_tokens": count("cachedContentTokenCount"),
    }
    return {kind: value for kind, value in found.items() if value}


def first_chunk_seconds(exchange: Exchange) -> float | None:
    """Return the seconds to the first byte of a stream that the client got."""
    first = exchange.response.first_byte_at
    return first - exchange.started_at if exchange.call.streams and first is not None else None


def error_type(exchange: Exchange) -> str | None:
    """Return what went wrong, of a few words; None where nothing did."""
    if exchange.refusal is not None:
        return REFUSED
    if exchange.upstream_status is not None and exchange.upstream_status >= 400:
        return str(exchange.upstream_status)
    outcome = exchange.outcome or Outcome.FAILED
    return None if outcome in (Outcome.COMPLETED, Outcome.UNCHECKED) else outcome.value


def guardrail_results(exchange: Exchange) -> Iterator[Attributes]:
    """Yield the attributes of ``gen_ai.guardrail.result`` for each violation: nothing of what was found."""
    before = len(exchange.request.messages) if exchange.request else 0
    for violation in exchange.violations:
        found: dict[str, Value] = {
            "gen_ai.guardrail.component.name": COMPONENT,
            "gen_ai.guardrail.policy.id": plain(violation.guardrail.name),
            "gen_ai.guardrail.policy.version": violation.guardrail.id,
            "gen_ai.guardrail.result.type": "action",
            "gen_ai.guardrail.result.value": violation.action,
            "gen_ai.guardrail.source": _source(violation.ranges, before),
        }
        yield found


def content_attributes(exchange: Exchange, messages: Sequence[Message]) -> dict[str, Value]:
    """Return what was said, in the conventions' JSON: ``messages``, which hold what may be told. None of a long one."""
    if exchange.size > _MOST_CONTENT:
        return {}
    asked = len(exchange.request.stored) if exchange.request else 0
    sides = {"gen_ai.input.messages": messages[:asked], "gen_ai.output.messages": messages[asked:]}
    written = {name: dump(list(map(_message, side))) for name, side in sides.items() if side}
    return {name: text.decode() for name, text in written.items() if len(text) <= _MOST_CONTENT}


def client_trace(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that describe a client's trace, if they are well-formed and hold no key.

    They are the client's words: the SDK would write malformed ones into the log, and send the state on.
    """
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if not _PARENT.fullmatch(parent):
        return {}
    if not _STATE.fullmatch(state) or redact(state) != state:
        return {"traceparent": parent}
    return {"traceparent": parent, "tracestate": state}


def plain(text: str) -> str:
    """Return a name as it can be sent: without keys, cut, and without lone surrogates, which no receiver takes."""
    return str(redact(text))[:_NAME].encode(errors="replace").decode()


def _message(message: Message) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    content = message.get("content")
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []:
        if message.get("role") == "tool":
            parts.append({"type": "tool_call_response", "response": part.get("text", "")})
        elif part.get("type") == "text":
            parts.append({"type": "text", "content": part.get("text", "")})
        else:
            parts.append({"type": str(part.get("type", "blob"))})
    for call in message.get("tool_calls") or ():
        function = call["function"]
        named = {"name": function["name"], "arguments": function["arguments"]}
        parts.append({"type": "tool_call", "id": str(call.get("id", "")), **named})
    role = str(message.get("role", ""))
    told: dict[str, Any] = redact({"role": _ROLES.get(role, role), "parts": parts})
    return told


def _settings(exchange: Exchange) -> dict[str, Value]:
    settings = exchange.request.settings if exchange.request else {}
    config = settings.get("generationConfig", settings.get("generation_config"))
    if not isinstance(config, Mapping):
        return {}
    found: dict[str, Value] = {}
    for name, value in config.items():
        camel = _camel(name)
        known = _SETTINGS.get(camel)
        if known is not None and isinstance(value, int | float) and _fits(value, known[1]):
            found[known[0]] = int(value) if camel == "topK" else value
        elif camel == "responseMimeType" and value == "application/json":
            found["gen_ai.output.type"] = "json"
    return found


def _fits(value: float, kind: type) -> bool:
    """Tell whether a receiver takes the number: a 64-bit integer, or a float that is one."""
    if isinstance(value, bool) or not abs(value) < 2**63:
        return False
    return kind is float or isinstance(value, int)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def _source(ranges: Sequence[str], before: int) -> str:
    """Return where a violation is, by the first of its ranges."""
    steps = ranges[0].partition(":")[0].split(".") if ranges else []
    index = int(steps[1]) if len(steps) > 1 and steps[1].isdecimal() else 0
    if "tool_calls" in steps:
        return "tool_call"
    return "response" if index >= before else "request"
