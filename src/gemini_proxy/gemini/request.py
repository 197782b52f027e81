"""A request body read as the model will: everything in it becomes messages, or is named as out of sight."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gemini_proxy.gemini.calls import Method, ModelCall
from gemini_proxy.gemini.fields import JsonObject, a_string, an_object, field, objects, snake_case
from gemini_proxy.gemini.messages import Message, MessageList, content_parts, texts
from gemini_proxy.gemini.parts import Unseen, strings_in
from gemini_proxy.gemini.strict_json import read_object

_CONTROL = frozenset(
    {"model", "safety_settings", "tool_config", "store", "service_tier", "task_type", "output_dimensionality"}
)
"""Fields that steer the call and carry no text to the model."""
_READ = frozenset(
    {
        "contents",
        "content",
        "system_instruction",
        "tools",
        "generation_config",
        "cached_content",
        "continuation_token",
        "generate_content_request",
        "requests",
    }
)
_PROMPTING = frozenset({"response_schema", "response_json_schema", "_response_json_schema", "stop_sequences"})
"""Fields of generationConfig whose text the model reads."""


@dataclass(frozen=True, slots=True)
class GeminiRequest:
    """A request as rules and traces see it.

    ``messages`` ends where the answer begins; ``unseen`` names what no rule could read; ``settings`` are the request's
    fields other than contents and system instruction; ``candidate_count`` is None where the client left it out.
    """

    messages: tuple[Message, ...]
    unseen: tuple[Unseen, ...]
    settings: Mapping[str, Any]
    candidate_count: int | None
    linked: MessageList

    @property
    def continues(self) -> bool:
        """True where the answer goes on from an earlier answer that this request does not hold."""
        return field(self.settings, "continuationToken") is not None


def read_request(call: ModelCall, body: bytes) -> GeminiRequest:
    """Read ``body`` as ``call`` means it. Raises BadRequest for what cannot be read, or can be read two ways."""
    root = read_object(body)
    reader = _Reader()
    for request in _requests(call, root):
        reader.add(request)
    config = an_object(field(root, "generationConfig"), "generationConfig") or {}
    count = field(config, "candidateCount")
    return GeminiRequest(
        messages=tuple(reader.list.messages),
        unseen=tuple(reader.list.unseen),
        settings={k: v for k, v in root.items() if k not in ("contents", "systemInstruction", "system_instruction")},
        candidate_count=count if isinstance(count, int) and not isinstance(count, bool) else None,
        linked=reader.list,
    )


def _requests(call: ModelCall, root: JsonObject) -> Iterator[JsonObject]:
    yield root
    if call.method is Method.COUNT_TOKENS:
        inner = an_object(field(root, "generateContentRequest"), "generateContentRequest")
        if inner is not None:
            yield inner
    elif call.method is Method.BATCH_EMBED:
        yield from objects(field(root, "requests"), "requests")


class _Reader:
    """Gathers one or several request objects into one message list."""

    def __init__(self) -> None:
        self.list = MessageList()

    def add(self, request: JsonObject) -> None:
        self._tools(request)
        self._system(request)
        self._prompting_settings(request)
        for content in objects(field(request, "contents"), "contents"):
            self._content(content)
        for content in objects(field(request, "content"), "content"):
            self._content(content)
        self._references(request)

    def _content(self, content: JsonObject) -> None:
        role = a_string(content.get("role"), "role")
        self.list.add_content("assistant" if role == "model" else "user", content_parts(content))
        beside = {name: value for name, value in content.items() if name not in ("role", "parts")}
        self._text_beside("contents", beside)

    def _system(self, request: JsonObject) -> None:
        instruction = field(request, "systemInstruction")
        if instruction is None:
            return
        content = an_object(instruction, "systemInstruction") or {}
        parts = content_parts(content)
        if all(set(part) <= {"text"} for part in parts):
            self.list.add_text("system", texts(parts))
        else:
            self.list.add_content("system", parts)
        self._text_beside("systemInstruction", {k: v for k, v in content.items() if k not in ("role", "parts")})

    def _tools(self, request: JsonObject) -> None:
        declared: list[Message] = []
        for tool in objects(field(request, "tools"), "tools"):
            for name, value in tool.items():
                if snake_case(name) == "function_declarations":
                    declared.extend(_declaration(found) for found in objects(value, name))
                elif value is not None:
                    declared.append({"name": name, "description": "\n".join(strings_in(value)), "inputSchema": {}})
                    self._unseen("request.tools", f"{name} runs at the provider")
            field(tool, "functionDeclarations")
        self.list.add_tools(declared)

    def _prompting_settings(self, request: JsonObject) -> None:
        config = an_object(field(request, "generationConfig"), "generationConfig") or {}
        for name, value in config.items():
            if snake_case(name) in _PROMPTING:
                self._text_beside("generationConfig", {name: value})
        known = _CONTROL | _READ
        self._text_beside("request", {k: v for k, v in request.items() if snake_case(k) not in known})

    def _text_beside(self, where: str, values: JsonObject) -> None:
        """Text outside the contents that the model may read: shown to rules as a system message."""
        for name, value in values.items():
            text = "\n".join(strings_in(value))
            if text:
                self.list.add_text("system", text, field=f"{where}.{name}")

    def _references(self, request: JsonObject) -> None:
        if field(request, "cachedContent") is not None:
            self._unseen("request.cachedContent", "cached content")
        if field(request, "continuationToken") is not None:
            self._unseen("request.continuationToken", "the answer this one continues")

    def _unseen(self, address: str, reason: str) -> None:
        self.list.unseen.append(Unseen(address, reason))


def _declaration(function: JsonObject) -> Message:
    parameters = field(function, "parametersJsonSchema") or field(function, "parameters") or {}
    rest = {
        name: value
        for name, value in function.items()
        if snake_case(name) not in ("name", "description", "parameters", "parameters_json_schema", "behavior")
    }
    beside = "\n".join(strings_in(rest))
    description = a_string(field(function, "description"), "description")
    return {
        "name": a_string(field(function, "name"), "name"),
        "description": f"{description}\n{beside}" if beside else description,
        "inputSchema": _lower_types(parameters),
    }


def _lower_types(schema: Any) -> Any:
    """Gemini's ``"type": "STRING"`` as JSON Schema's ``"string"``."""
    if isinstance(schema, list):
        return [_lower_types(inner) for inner in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: value.lower() if name == "type" and isinstance(value, str) else _lower_types(value)
        for name, value in schema.items()
    }
