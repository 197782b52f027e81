"""A scripted Gemini: what is asked decides the answer, in the form that the client asked for."""

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from tests.support.upstream import Call, Reply, candidate, sse, stream, unary

ALLOWED: Final = ("Where is Cork?", "Cork is in the south.")
"""A prompt and the answer to it."""
TOOL: Final = ("What is the weather in Cork?", "It is sunny, says the tool.")
"""A prompt for which the model calls a tool, and what it says of the result."""
FORBIDDEN_CALL: Final = "Please delete the file."
"""A prompt for which the model calls a tool that the policy forbids."""
REFUSED_REQUEST: Final = ("Where is xyzzy?", "the word is secret")
"""A prompt that the policy forbids, and the reason."""
REFUSED_ANSWER: Final = ("What is the capital of Ireland?", "the city is secret")
"""A prompt whose answer the policy forbids, and the reason."""
CALL_REASON: Final = "nothing is deleted"
POLICY: Final = f"""\
raise "{REFUSED_REQUEST[1]}" if:
    (m: Message)
    m.role == "user"
    "xyzzy" in m.content

raise "{REFUSED_ANSWER[1]}" if:
    (m: Message)
    m.role == "assistant"
    "Dublin" in m.content

raise "{CALL_REASON}" if:
    (c: ToolCall)
    c.function.name in ["delete_file", "write_file"]
"""
_ARGUMENTS: Final[Mapping[str, Mapping[str, str]]] = {
    "weather": {"city": "Cork"},
    "delete_file": {"path": "forbidden.txt"},
    # Those of gemini-cli.
    "list_directory": {"dir_path": "."},
    "write_file": {"file_path": "forbidden.txt", "content": "written"},
}
_USAGE: Final = {"promptTokenCount": 4, "candidatesTokenCount": 4, "totalTokenCount": 8}
_MODEL: Final = {
    "name": "models/gemini-2.5-flash",
    "displayName": "Scripted",
    "inputTokenLimit": 1_048_576,
    "outputTokenLimit": 65_536,
    "supportedGenerationMethods": ["generateContent", "countTokens"],
}


def gemini(call: Call) -> Reply:
    """The reply to one call of a client."""
    if call.method == "DELETE":
        return unary({})
    if call.method == "GET":
        return unary(_MODEL)
    if call.target.endswith("/interactions"):
        return _interaction(call.json)
    if "/openai/chat/completions" in call.target:
        return _chat(call.json)
    if ":countTokens" in call.target:
        return unary({"totalTokens": 4})
    events = list(_answer(call.json))
    if ":streamGenerateContent" not in call.target:
        return unary(_joined(events))
    if "alt=sse" in call.target:
        return stream(*sse(*events))
    return Reply([b"[", b",\r\n".join(orjson.dumps(event) for event in events), b"]"])


def _chat(request: Mapping[str, Any]) -> Reply:
    """The reply in OpenAI's words; a call is whole and has no index, as Gemini's have none."""
    *_, last = request["messages"]
    content = last["content"]
    texts = content if isinstance(content, str) else "".join(part["text"] for part in content)
    parts: list[Any] = [{"functionResponse": {"name": "f"}}] if last["role"] == "tool" else [{"text": texts}]
    tools = [{"functionDeclarations": [tool["function"] for tool in request.get("tools", ())]}]
    config = {"responseMimeType": "application/json"} if "response_format" in request else {}
    asked = {"contents": [{"parts": parts}], "tools": tools, "generationConfig": config}
    events = list(_answer(asked))
    if not request.get("stream"):
        return unary(_completion("message", _joined(events)))
    return stream(*sse(*(_completion("delta", event) for event in events)), b"data: [DONE]\n\n")


def _completion(name: str, event: Mapping[str, Any]) -> dict[str, Any]:
    answer = event["candidates"][0]
    parts = answer["content"]["parts"]
    calls = [part["functionCall"] for part in parts if "functionCall" in part]
    said: dict[str, Any] = {"role": "assistant"}
    if calls:
        said["tool_calls"] = [
            {
                "id": f"call-{call['name']}",
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["args"])},
            }
            for call in calls
        ]
    else:
        said["content"] = "".join(part["text"] for part in parts)
    reason = ("tool_calls" if calls else "stop") if "finishReason" in answer else None
    choice = {"index": 0, name: said, "finish_reason": reason}
    kind = "chat.completion" if name == "message" else "chat.completion.chunk"
    return {"id": "r", "object": kind, "created": 1, "model": "m", "choices": [choice]}


def _interaction(request: Mapping[str, Any]) -> Reply:
    """The reply as steps; each interaction has an id of its own."""
    given = request["input"]
    last = given[-1] if isinstance(given, list) else {"content": [{"text": given}]}
    texts = "".join(content.get("text", "") for content in last.get("content", ()))
    parts: list[Any] = (
        [{"functionResponse": {"name": "f"}}] if last.get("type") == "function_result" else [{"text": texts}]
    )
    config = {"responseMimeType": "application/json"} if "response_format" in request else {}
    tools = [{"functionDeclarations": list(request.get("tools", ()))}]
    events = list(_answer({"contents": [{"parts": parts}], "tools": tools, "generationConfig": config}))
    told = [part for event in events for part in event["candidates"][0]["content"]["parts"]]
    calls = [part["functionCall"] for part in told if "functionCall" in part]
    whole = {"id": f"v1_{uuid.uuid4().hex}", "object": "interaction", "model": "m", "created": "", "updated": ""}
    status = "requires_action" if calls else "completed"
    if calls:
        step = {"type": "function_call", "id": "c1", "name": calls[0]["name"]}
        steps = [{**step, "arguments": calls[0]["args"]}]
        head, deltas = (
            {**step, "arguments": {}},
            [{"type": "arguments_delta", "arguments": json.dumps(calls[0]["args"])}],
        )
    else:
        deltas = [{"type": "text", "text": part["text"]} for part in told]
        head = {"type": "model_output"}
        steps = [{**head, "content": [{"type": "text", "text": "".join(part["text"] for part in told)}]}]
    if not request.get("stream"):
        return unary({**whole, "status": status, "steps": steps})
    told_as: list[dict[str, Any]] = [
        {"event_type": "interaction.created", "interaction": {**whole, "status": "in_progress"}},
        {"event_type": "step.start", "index": 0, "step": head},
        *({"event_type": "step.delta", "index": 0, "delta": delta} for delta in deltas),
        {"event_type": "step.stop", "index": 0},
        {"event_type": "interaction.completed", "interaction": {**whole, "status": status}},
    ]
    return stream(*sse(*told_as), b"event: done\ndata: [DONE]\n\n")


def _answer(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    parts = request["contents"][-1]["parts"]
    prompt = "".join(part.get("text", "") for part in parts)
    if any(_of(part, "functionResponse") for part in parts):
        return _says(TOOL[1])
    if TOOL[0] in prompt:
        return _calls(request, "weather", "list_directory")
    if FORBIDDEN_CALL in prompt:
        return _calls(request, "delete_file", "write_file")
    says = (
        ("The capital ", "is Dublin, ", "on the Liffey.")
        if REFUSED_ANSWER[0] in prompt
        else ("Cork is ", "in the south.")
    )
    structured = _of(_of(request, "generationConfig", {}), "responseMimeType") == "application/json"
    return _says(*(('{"city": "', *says, '"}') if structured else says))


def _of(given: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A member by its name, or in the other spelling that Gemini takes: litellm writes ``function_declarations``."""
    snake = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)
    return given.get(name, given.get(snake, default))


def _says(*pieces: str) -> Iterator[dict[str, Any]]:
    for piece in pieces[:-1]:
        yield candidate(piece)
    yield {**candidate(pieces[-1], "STOP"), "usageMetadata": _USAGE}


def _calls(request: Mapping[str, Any], *names: str) -> Iterator[dict[str, Any]]:
    """A call of the one of these tools that the request declares."""
    tools = _of(request, "tools", ())
    declared = {one["name"] for tool in tools for one in _of(tool, "functionDeclarations", ())}
    name = next(name for name in names if name in declared)
    call = {"functionCall": {"name": name, "args": dict(_ARGUMENTS[name])}}
    found = {"content": {"role": "model", "parts": [call]}, "index": 0, "finishReason": "STOP"}
    yield {"candidates": [found], "usageMetadata": _USAGE}


def _joined(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The events of a stream as one answer."""
    whole: dict[str, Any] = json.loads(json.dumps(events[-1]))
    content = whole["candidates"][0]["content"]
    parts = [part for event in events for part in event["candidates"][0]["content"]["parts"]]
    texts = "".join(part.get("text", "") for part in parts)
    content["parts"] = [{"text": texts}] if texts else parts
    return whole
