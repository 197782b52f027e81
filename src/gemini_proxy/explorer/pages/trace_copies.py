"""Write a trace as a case for ``policy test``, and its request as it can be sent again. No I/O."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import yaml

from gemini_proxy.traces.trace import Annotation, Trace

MAX_COPIED: Final = 1_000_000
"""Bytes of messages that are written as a case or a command; a longer trace is in the JSON alone."""
_METHODS: Final = frozenset({"generateContent", "streamGenerateContent"})
_PARAMETERS: Final = (
    "generationConfig generation_config safetySettings safety_settings toolConfig tool_config cachedContent"
    " cached_content labels serviceTier service_tier store"
).split()
"""Fields of a request that are neither messages nor tools, in both spellings."""
_DATA_URL = re.compile(r"data:([^;,]{1,100});base64,(.*)", re.DOTALL)

Messages = Sequence[Mapping[str, Any]]


def parameters(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the request as the trace keeps them."""
    return {name: metadata[name] for name in _PARAMETERS if metadata.get(name) is not None}


def policy_case(trace: Trace, messages: Messages) -> str:
    """Write the trace as a case file that expects the violations of its first guardrail; none if there is none."""
    fires = _fired(trace.annotations)
    case = {
        "name": f"trace {trace.id[:8]}",
        "fires": fires or False,
        "messages": [dict(message) for message in messages],
    }
    return yaml.safe_dump({"cases": [_plain(case)]}, allow_unicode=True, sort_keys=False, width=110)


def _fired(annotations: Iterable[Annotation]) -> list[str]:
    named = [annotation for annotation in annotations if annotation.guardrail.get("name")]
    first = (annotation for annotation in named if annotation.guardrail["name"] == named[0].guardrail["name"])
    return list(dict.fromkeys(annotation.content for annotation in first))


def _plain(value: Any) -> Any:
    """Return JSON as values that YAML can write: half a character cannot be encoded."""
    return json.loads(json.dumps(value).encode(errors="replace"), object_pairs_hook=_encodable)


def _encodable(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {_text(name): _text(value) if isinstance(value, str) else value for name, value in pairs}


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """The request of a trace, as it may be sent to this server again: ``path`` with its query, and the JSON ``body``.

    It lacks the signatures of thoughts, since a trace does not hold them.
    """

    path: str
    body: str


def recorded_request(trace: Trace, messages: Messages) -> RecordedRequest | None:
    """Return the trace's request; None unless it calls one of a model's two generating methods."""
    method, asked = trace.metadata.get("method"), _asked(trace, messages)
    if method not in _METHODS or not trace.model or not asked:
        return None
    prefix = f"/api/v1/gateway/{quote(trace.dataset, safe='')}/gemini" if trace.dataset else ""
    query = "?alt=sse" if method == "streamGenerateContent" else ""
    body = json.dumps({**request_body(asked), **parameters(trace.metadata)}, indent=1, ensure_ascii=False)
    return RecordedRequest(f"{prefix}/v1beta/models/{quote(trace.model)}:{method}{query}", _text(body))


def why_not_repeated(trace: Trace) -> str:
    """Return why the trace does not hold its request as it was sent, "" if it does."""
    metadata = trace.metadata
    coverage = metadata.get("coverage")
    if metadata.get("method") not in _METHODS or not trace.model:
        return "Only calls of generateContent and streamGenerateContent can be sent again."
    if metadata.get("vertex"):
        return "It went to Vertex AI, which takes access tokens instead of keys."
    if isinstance(coverage, Mapping) and coverage.get("masked_values"):
        return "Values in it were masked: the trace has placeholders instead of what was sent."
    if metadata.get("earlier"):
        return "It refers to something that Gemini keeps, such as cached content, and is incomplete without it."
    return ""


def curl_command(base_url: str, trace: Trace, messages: Messages) -> str | None:
    """Write the trace's request as a command that sends it to this server, the key left to the caller's environment.

    Return None for any call but those of a model's two generating methods.
    """
    request = recorded_request(trace, messages)
    if request is None:
        return None
    lines = (
        f"curl {shlex.quote(base_url + request.path)}",
        '-H "x-goog-api-key: $GEMINI_API_KEY"',
        "-H 'content-type: application/json'",
        f"-d {shlex.quote(request.body)}",
    )
    return " \\\n  ".join(lines) + "\n"


def _asked(trace: Trace, messages: Messages) -> Messages:
    """Return the messages of the request; where the trace does not say how many, all up to the model's last turn."""
    count = trace.metadata.get("request_messages")
    if isinstance(count, int) and 0 <= count <= len(messages):
        return messages[:count]
    end = len(messages)
    while end and messages[end - 1].get("role") == "assistant":
        end -= 1
    return messages[:end]


def request_body(messages: Messages) -> dict[str, Any]:
    """Return the messages as the body of a request of the Gemini API."""
    contents: list[dict[str, Any]] = []
    system: list[dict[str, Any]] = []
    tools: list[Any] = []
    for message in messages:
        role = message.get("role")
        if role is None:
            tools += message.get("tools") or []
        elif role == "system":
            system += _parts(message)
        elif not message.get("provider"):
            side = str(message.get("turn") or {"assistant": "model"}.get(str(role), "user"))
            side = "model" if side == "assistant" else side
            parts = _parts(message)
            if contents and contents[-1]["role"] == side:
                contents[-1]["parts"] += parts
            elif parts:
                contents.append({"role": side, "parts": parts})
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    if tools:
        body["tools"] = [{"functionDeclarations": [_declaration(tool) for tool in tools]}]
    return body


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    if message.get("role") == "tool":
        content = message.get("content")
        response = content if isinstance(content, Mapping) else {"result": content}
        named = {"id": message["tool_call_id"]} if message.get("tool_call_id") else {}
        return [{"functionResponse": {**named, "name": message.get("tool_name", ""), "response": dict(response)}}]
    content, parts = message.get("content"), list[dict[str, Any]]()
    mark = {"thought": True} if message.get("thought") else {}
    if isinstance(content, str) and content:
        parts.append({"text": content, **mark})
    for chunk in content if isinstance(content, list) else ():
        parts += _chunk(chunk)
    for call in message.get("tool_calls") or ():
        function = call.get("function", {}) if isinstance(call, Mapping) else {}
        named = {"id": call["id"]} if isinstance(call, Mapping) and call.get("id") else {}
        parts.append({"functionCall": {**named, "name": function.get("name"), "args": function.get("arguments")}})
    return parts


def _chunk(chunk: Any) -> list[dict[str, Any]]:
    if not isinstance(chunk, Mapping):
        return []
    if isinstance(text := chunk.get("text"), str):
        return [{"text": text}]
    image, file = chunk.get("image_url"), chunk.get("file")
    if isinstance(image, Mapping) and isinstance(url := image.get("url"), str):
        found = _DATA_URL.fullmatch(url)
        return [{"inlineData": {"mimeType": found[1], "data": found[2]}} if found else {"fileData": {"fileUri": url}}]
    if isinstance(file, Mapping):
        mime = {"mimeType": file["mime_type"]} if file.get("mime_type") else {}
        if file.get("data"):
            return [{"inlineData": {**mime, "data": file["data"]}}]
        return [{"fileData": {**mime, "fileUri": file.get("uri")}}]
    return []


def _declaration(tool: Any) -> Any:
    """Return a declared tool in Gemini's own form."""
    if not isinstance(tool, Mapping):
        return tool
    within = tool.get("function") if isinstance(tool.get("function"), Mapping) else tool
    renamed = {"inputSchema": "parametersJsonSchema"}
    return {renamed.get(str(name), str(name)): value for name, value in dict(within or {}).items() if name != "type"}
