"""Read the requests of Gemini's OpenAI path for rules: each message becomes a content of Gemini's.

Google's parser of this path takes ProtoJSON, so either spelling of a field's name counts here as well. Every string is
text, except in the fields that only steer the call (``_CONTROL``).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.fields import JsonObject, a_string, an_object, field, objects, snake_case, spellings, steers
from gemini_proxy.gemini.messages import Message, MessageList
from gemini_proxy.gemini.parts import Unchecked, strings_in
from gemini_proxy.gemini.request import (
    GeminiRequest,
    add_settings,
    cache_reference,
    candidate_count,
    control_fields,
    declaration,
    outbound_fields,
)
from gemini_proxy.gemini.secret_fields import without_secrets
from gemini_proxy.gemini.strict_json import read_object

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_THOUGHTS: Final = ("reasoningContent", "reasoning")
_CALLS: Final = spellings("toolCalls", "functionCall")
_MESSAGE: Final = spellings("role", "content", "refusal", "extraContent", *_THOUGHTS) | _CALLS
_OUTPUT: Final = spellings("role", "content", "name", "toolCallId", "extraContent")
_CALL: Final = spellings("id", "type", "function", "custom", "index", "extraContent")
_FUNCTION: Final = spellings("name", "arguments")
_PART: Final = spellings("type", "text", "refusal", "imageUrl", "inputAudio", "file", "extraContent")
_BESIDE: Final = "beside"
"""The name under which a part or a call keeps the fields that are not known here."""
_SIGNATURE: Final = "thoughtSignature"

_CONTROL: Final = control_fields(
    """
    model n stream streamOptions.includeUsage streamOptions.includeObfuscation temperature topP topK
    maxTokens maxCompletionTokens presencePenalty frequencyPenalty seed logprobs topLogprobs reasoningEffort verbosity
    parallelToolCalls serviceTier store modalities toolChoice toolChoice.type functionCall responseFormat.type
    responseFormat.jsonSchema.strict encodingFormat dimensions webSearchOptions.searchContextSize
    extraBody.google.thinkingConfig.includeThoughts extraBody.google.thinkingConfig.thinkingBudget
    extraBody.google.thinkingConfig.thinkingLevel google.thinkingConfig.includeThoughts
    google.thinkingConfig.thinkingBudget google.thinkingConfig.thinkingLevel
    """
)
"""Fields that steer the call and carry no text to the model."""
_READ_APART: Final = spellings("messages", "tools", "functions", "input")
_OWN_NAMES: Final = _READ_APART | spellings("responseFormat", "metadata")
"""Fields in which names are the client's own."""
_NO_SECRETS: Final = spellings(
    *"messages input function functions responseFormat metadata".split(),
    *"promptCacheKey safetyIdentifier cachedContent".split(),
)


def read_chat(body: bytes) -> GeminiRequest:
    """Read the body of ``chat/completions``. Raises BadRequest if it cannot be read, or can be read two ways."""
    return _read(body, _ChatRequestReader.add_chat)


def read_embeddings(body: bytes) -> GeminiRequest:
    """Read the body of ``embeddings``. Raises as ``read_chat`` does."""
    return _read(body, _ChatRequestReader.add_embeddings)


def messages_read(body: bytes) -> tuple[int | None, ...]:
    """Return for each message as rules see it which of the body's ``messages`` it is made of, None for what is in none.

    Raises BadRequest as ``read_chat`` does.
    """
    reader = _ChatRequestReader()
    reader.add_chat(read_object(body))
    return tuple(reader.places)


def _streams(root: JsonObject) -> bool:
    """Return whether the request asks for a stream. Raises BadRequest for anything but true or false."""
    stream = root.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest('"stream" must be true or false')
    return bool(stream)


def _read(body: bytes, add: "Callable[[_ChatRequestReader, JsonObject], None]") -> GeminiRequest:
    root = read_object(body)
    bare, secrets = without_secrets(root, _NO_SECRETS)
    outbound = outbound_fields({name: value for name, value in root.items() if name not in _OWN_NAMES})
    read = _messages(root, add, outbound)
    messages = tuple(read.messages)
    return GeminiRequest(
        messages=messages,
        unchecked=tuple(read.unchecked),
        settings={name: value for name, value in bare.items() if name not in _READ_APART or name in spellings("tools")},
        candidate_count=candidate_count(root.get("n")),
        structured=_is_structured(root),
        outbound=outbound,
        stored=messages if bare is root else tuple(_messages(bare, add, outbound).messages),
        secrets=secrets,
        model=model if isinstance(model := root.get("model"), str) else None,
        streams=_streams(root),
    )


def _messages(
    root: JsonObject, add: "Callable[[_ChatRequestReader, JsonObject], None]", outbound: tuple[str, ...]
) -> MessageList:
    reader = _ChatRequestReader()
    add(reader, root)
    reason = "another destination of the response"
    reader.list.unchecked.extend(Unchecked(f"request.{address}", reason) for address in outbound)
    return reader.list


def _is_structured(root: JsonObject) -> bool:
    kind = (an_object(field(root, "responseFormat"), "response_format") or {}).get("type")
    return kind not in (None, "", "text")


class _ChatRequestReader:
    """Read one request into one message list.

    ``places`` has for each message the index of the request's message that it is made of.
    """

    def __init__(self) -> None:
        self.list = MessageList()
        self.places: list[int | None] = []
        self._names: dict[str, str] = {}  # of functions, by the id of their call

    def add_chat(self, root: JsonObject) -> None:
        self._tools(root)
        self._settings(root)
        for index, message in enumerate(objects(root.get("messages"), "messages")):
            self._message(message)
            self._mark(index)

    def add_embeddings(self, root: JsonObject) -> None:
        self._settings(root)
        given = root.get("input")
        texts = given if isinstance(given, list) else [given]
        parts = [{"text": text} for text in texts if isinstance(text, str)]
        if parts:
            self.list.add_content("user", parts)
        others = [text for text in texts if text is not None and not isinstance(text, str)]
        if others:
            self._unchecked("request.input", "text given as tokens")
            add_settings(self.list, "request", {"input": others}, {})

    def _mark(self, place: int | None) -> None:
        self.places += [place] * (len(self.list.messages) - len(self.places))

    def _tools(self, root: JsonObject) -> None:
        declared: list[Message] = []
        for tool in objects(root.get("tools"), "tools"):
            function = an_object(tool.get("function"), "tools[].function")
            if function is not None:
                declared.append(declaration(function))
            rest = {name: value for name, value in tool.items() if name != "function"}
            kind = a_string(rest.get("type"), "tools[].type")
            if kind not in ("", "function") or (function is None and rest):
                declared.append({"name": kind, "description": "\n".join(strings_in(rest)), "inputSchema": {}})
                self._unchecked("request.tools", f"{kind or 'a tool'} runs at the provider")
            else:
                self._beside("tools", rest, {"type"})
        declared.extend(declaration(function) for function in objects(root.get("functions"), "functions"))
        self.list.add_tools(declared)

    def _settings(self, root: JsonObject) -> None:
        add_settings(self.list, "request", {k: v for k, v in root.items() if k not in _READ_APART}, _CONTROL)
        for where in ("extraBody", "extra_body"):
            self._references(root.get(where), f"request.{where}.google")
        self._references({"google": root.get("google")}, "request.google")
        self._references({"google": root}, "request")
        self._mark(None)

    def _references(self, extra: Any, address: str) -> None:
        google = extra.get("google") if isinstance(extra, Mapping) else None
        cached = field(google, "cachedContent") if isinstance(google, Mapping) else None
        if cached is not None:
            found = Unchecked(f"{address}.cached_content", "cached content", cache_reference(cached))
            self.list.unchecked.append(found)

    def _message(self, message: JsonObject) -> None:
        given = a_string(message.get("role"), "role")
        role = _ROLES.get(given)
        if role is None:
            raise BadRequest('"role" must be "system", "developer", "user", "assistant", "tool" or "function"')
        if role == "tool":
            self._output(message)
            self._beside("messages", message, _OUTPUT)
        else:
            self.list.add_content(role, [*self._parts(role, message)])
            self._beside("messages", message, _MESSAGE)
        self._extra(message)

    def _parts(self, role: str, message: JsonObject) -> Iterator[JsonObject]:
        for name in _THOUGHTS:
            thought = field(message, name)
            if isinstance(thought, str):
                yield {"text": thought, "thought": role == "assistant"}
            elif thought is not None:
                yield {_BESIDE: {snake_case(name): thought}}
        yield from content_parts(message.get("content"), "content")
        if text := a_string(message.get("refusal"), "refusal"):
            yield {"text": text}
        for call in objects(field(message, "toolCalls"), "tool_calls"):
            yield self._call(call)
        if (function := an_object(field(message, "functionCall"), "function_call")) is not None:
            yield self._call({"function": function})

    def _call(self, call: JsonObject) -> JsonObject:
        """Return a call as a part, its arguments read."""
        self._extra(call)
        call_id = a_string(call.get("id"), "tool_calls[].id")
        beside: dict[str, Any] = {name: value for name, value in call.items() if name not in _CALL}
        function = an_object(call.get("function"), "tool_calls[].function")
        custom = an_object(call.get("custom"), "tool_calls[].custom")
        if function is not None:
            arguments = read_arguments(a_string(function.get("arguments"), "tool_calls[].function.arguments"))
            beside.update((name, value) for name, value in function.items() if name not in _FUNCTION)
            if custom is not None:
                beside["custom"] = custom
        else:
            function = custom or {}
            arguments = {name: value for name, value in function.items() if name != "name"}
        name = a_string(function.get("name"), "tool_calls[].function.name")
        if call_id:
            self._names[call_id] = name
        made: dict[str, Any] = {"name": name, "args": arguments}
        if call_id:
            made["id"] = call_id
        if beside:
            made[_BESIDE] = beside
        return {"functionCall": made}

    def _output(self, message: JsonObject) -> None:
        call_id = a_string(field(message, "toolCallId"), "tool_call_id")
        name = a_string(message.get("name"), "name") or self._names.get(call_id, "")
        parts = content_parts(message.get("content"), "content")
        texts = [part["text"] for part in parts if part.keys() == {"text"}]
        output: dict[str, Any] = {"name": name, "id": call_id, "response": {"result": "".join(texts)}}
        if media := [part for part in parts if part.keys() != {"text"}]:
            output["parts"] = media
        self.list.add_content("user", [{"functionResponse": output}])

    def _extra(self, source: JsonObject) -> None:
        """Read ``extra_content``: everything but a signature is text."""
        extra = field(source, "extraContent")
        if extra is not None:
            self._beside("messages", {"extra_content": without_signature(extra)}, set())

    def _beside(self, where: str, source: JsonObject, known: "frozenset[str] | set[str]") -> None:
        add_settings(self.list, where, {name: value for name, value in source.items() if name not in known}, {})

    def _unchecked(self, address: str, reason: str) -> None:
        self.list.unchecked.append(Unchecked(address, reason))


def content_parts(content: Any, where: str) -> list[dict[str, Any]]:
    """Return the parts of a message's content, which is a text or a list, as Gemini's parts. Raises BadRequest."""
    if isinstance(content, str):
        return [{"text": content}]
    return [part for given in objects(content, where) for part in _part(given)]


def _part(part: JsonObject) -> Iterator[dict[str, Any]]:
    """Yield all content of a part, whatever type it declares."""
    for name in ("text", "refusal"):
        if (text := part.get(name)) is not None:
            yield {"text": a_string(text, name)}
    image = field(part, "imageUrl")
    if image is not None:
        image = {"url": image} if isinstance(image, str) else an_object(image, "image_url") or {}
        yield _media(a_string(image.get("url"), "image_url.url"), "")
        yield from _rest(image, spellings("url"), spellings("detail"))
    if (audio := an_object(field(part, "inputAudio"), "input_audio")) is not None:
        kind = a_string(audio.get("format"), "input_audio.format")
        yield {"inlineData": {"mimeType": f"audio/{kind}", "data": a_string(audio.get("data"), "input_audio.data")}}
        yield from _rest(audio, spellings("format", "data"))
    if (file := an_object(part.get("file"), "file")) is not None:
        name = a_string(file.get("filename"), "file.filename")
        for key in ("fileData", "fileId"):
            if reference := a_string(field(file, key), f"file.{key}"):
                yield _media(reference, name)
                name = ""
        yield from _rest({"filename": name, **file} if name else file, spellings("filename", "fileData", "fileId"))
        if name:
            yield {"text": name}
    yield from _rest({"extra_content": without_signature(field(part, "extraContent"))}, frozenset())
    yield from _rest(part, _PART)
    if not steers(part.get("type")):
        yield {_BESIDE: {"type": part["type"]}}


def _rest(source: JsonObject, known: frozenset[str], control: frozenset[str] = frozenset()) -> Iterator[dict[str, Any]]:
    rest = {
        name: value
        for name, value in source.items()
        if name not in known and value is not None and not (name in control and steers(value))
    }
    if rest:
        yield {_BESIDE: rest}


def _media(url: str, name: str) -> dict[str, Any]:
    """Return the part of a data URL, or of a reference."""
    head, comma, data = url.partition(",")
    scheme, _, kind = head.partition(":")
    named = {"displayName": name} if name else {}
    if comma and scheme.lower() == "data" and kind.lower().endswith(";base64"):
        return {"inlineData": {"mimeType": kind[: -len(";base64")], "data": data, **named}}
    return {"fileData": {"fileUri": url, **named}}


def without_signature(extra: Any) -> Any:
    """Return ``extra_content`` without the signatures in it, None where nothing else is there."""
    if not isinstance(extra, Mapping):
        return extra
    kept: dict[str, Any] = {}
    for vendor, inner in extra.items():
        if isinstance(inner, Mapping):
            signatures = spellings(_SIGNATURE)
            inner = {
                name: value
                for name, value in inner.items()
                if not (name in signatures and isinstance(value, str)) and not (name == "thought" and steers(value))
            }
        if inner or vendor not in ("google", "vertex"):
            kept[vendor] = inner
    return kept or None


def read_arguments(text: str) -> dict[str, Any]:
    """Read the arguments of a call: the text of a JSON object, or nothing. Raises BadRequest for other text."""
    if not text or text.isspace():
        return {}
    try:
        return read_object(text.encode())
    except (BadRequest, UnicodeEncodeError):
        raise BadRequest(
            'The "arguments" of a tool call must be the text of a JSON object, without repeated keys'
        ) from None
