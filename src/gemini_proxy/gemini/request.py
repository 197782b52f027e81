"""Read a request body as the model will: everything in it becomes messages, or is named as unchecked content.

A setting is text unless it is one of the fields that only steer the call (``_CONTROL``).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.doors import Method
from gemini_proxy.gemini.fields import JsonObject, a_string, an_object, field, objects, snake_case, spellings, steers
from gemini_proxy.gemini.messages import Message, MessageList
from gemini_proxy.gemini.parts import Reference, Unchecked, strings_in, text_beside
from gemini_proxy.gemini.secret_fields import without_secrets
from gemini_proxy.gemini.strict_json import read_object

_CONTENTS = spellings("contents", "content", "systemInstruction")
_REFERENCES = spellings("cachedContent", "continuationToken")
_KNOWN = _CONTENTS | spellings("tools", "generationConfig") | _REFERENCES
_WRAPPERS = {Method.COUNT_TOKENS: "generateContentRequest", Method.BATCH_EMBED: "requests"}
"""The field of a method's request that holds whole requests."""
_NO_SETTINGS = _CONTENTS | spellings(*_WRAPPERS.values())
_SCHEMAS = ("responseSchema", "responseJsonSchema", "_responseJsonSchema")
_STRUCTURING = spellings(*_SCHEMAS, "responseMimeType", "responseFormat")
_CONTENT = spellings("role", "parts")
_DECLARED = spellings("name", "description", "parameters", "parametersJsonSchema")
_MODEL = re.compile(r"(?:[\w./-]{1,256}/)?([A-Za-z0-9][A-Za-z0-9._-]{0,127})", re.ASCII)
_CACHE = re.compile(r"(?:(?:projects/[^/]{1,60}/locations/[^/]{1,40}/)?cachedContents/)?([A-Za-z0-9_-]{1,128})")
_TYPES = frozenset({"STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL", "TYPE_UNSPECIFIED"})


class GeminiRequest(NamedTuple):
    """A request as rules and traces see it.

    ``messages`` ends where the response begins. ``unchecked`` names the content that no rule can read. ``settings``
    holds the fields other than contents. ``candidate_count`` is None if the client left it out. ``structured`` says
    that the response's text will be parsed, such as JSON of a schema. ``outbound`` has the addresses of fields that
    send the response to someone else. ``secrets`` are given to Gemini to log in elsewhere: they are in ``messages``,
    but neither in ``settings`` nor in ``stored``, the messages as a trace keeps them, which have the same addresses.
    ``model`` and ``streams`` come from the body if the path does not say them. The first ``earlier`` messages are the
    content of the request's references.
    """

    messages: tuple[Message, ...]
    unchecked: tuple[Unchecked, ...]
    settings: Mapping[str, Any]
    candidate_count: int | None
    structured: bool
    outbound: tuple[str, ...]
    stored: tuple[Message, ...]
    secrets: tuple[str, ...]
    model: str | None = None
    streams: bool = False
    earlier: int = 0

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self._asdict().items() if name != "secrets")
        return f"GeminiRequest({', '.join(shown)})"


def request_without_settings(
    messages: Iterable[Message] = (), unchecked: Iterable[Unchecked] = (), *, streams: bool = False
) -> GeminiRequest:
    """Return a request that is its ``messages`` and what is ``unchecked``, of which a trace keeps all."""
    read = tuple(messages)
    return GeminiRequest(
        messages=read,
        unchecked=tuple(unchecked),
        settings={},
        candidate_count=None,
        structured=False,
        outbound=(),
        stored=read,
        secrets=(),
        streams=streams,
    )


def read_request(call: ModelCall, body: bytes) -> GeminiRequest:
    """Read ``body`` as ``call`` means it. Raises BadRequest if it cannot be read, or can be read two ways."""
    return request_of(call, read_object(body))


def request_of(call: ModelCall, root: JsonObject) -> GeminiRequest:
    """Return the request that the object ``root`` is. Raises BadRequest as ``read_request`` does."""
    bare, secrets = without_secrets(root)
    outbound = outbound_fields(root)
    read = _read(call, root, outbound)
    messages = tuple(read.messages)
    config = an_object(field(root, "generationConfig"), "generationConfig") or {}
    return GeminiRequest(
        messages=messages,
        unchecked=tuple(read.unchecked),
        settings={k: v for k, v in bare.items() if k not in _NO_SETTINGS},
        candidate_count=candidate_count(field(config, "candidateCount")),
        structured=_is_structured(config),
        outbound=outbound,
        stored=messages if bare is root else tuple(_read(call, bare, outbound).messages),
        secrets=secrets,
        model=_named_model(root),
    )


def _read(call: ModelCall, root: JsonObject, outbound: Iterable[str]) -> MessageList:
    reader = _ContentsReader()
    wrapper = _WRAPPERS.get(call.method)
    if wrapper is None:
        reader.add(root)
    else:
        reader.add({name: value for name, value in root.items() if name not in spellings(wrapper)})
        for request in objects(field(root, wrapper), wrapper):
            reader.add(request)
    reason = "another destination of the response"
    reader.list.unchecked.extend(Unchecked(f"request.{address}", reason) for address in outbound)
    return reader.list


def candidate_count(count: Any) -> int | None:
    """Read how many candidates are asked for, None if not said: ProtoJSON reads 2, 2.0 and "2" alike."""
    if isinstance(count, str) and count.isascii() and count.isdigit() and len(count) < 10:
        count = int(count)
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None


def _is_structured(config: JsonObject) -> bool:
    if _STRUCTURING.isdisjoint(config):
        return False
    if any(field(config, name) is not None for name in _SCHEMAS) or is_parsed(field(config, "responseMimeType")):
        return True
    formats = field(config, "responseFormat")
    formats = formats if isinstance(formats, list) else [formats]
    texts = [field(entry, "text") for entry in formats if type(entry) is dict]
    return any(
        type(text) is dict and (field(text, "schema") is not None or is_parsed(field(text, "mimeType")))
        for text in texts
    )


def is_parsed(mime_type: Any) -> bool:
    """Return whether text of this type is parsed, not only shown."""
    return isinstance(mime_type, str) and mime_type.partition(";")[0].strip().lower() not in ("", "text/plain")


def contents_of_messages(call: ModelCall, body: bytes) -> tuple[int | None, ...]:
    """Return for each message of a request the index of its source in ``contents``, None for a message without one.

    Return nothing for a request that holds other requests. Raises BadRequest as ``read_request`` does.
    """
    if call.method in _WRAPPERS:
        return ()
    reader = _ContentsReader()
    reader.add(read_object(body))
    made_of: list[int | None] = [None] * len(reader.list.messages)
    for index, (start, end) in enumerate(pairwise(reader.ends)):
        made_of[start:end] = [index] * (end - start)
    return tuple(made_of)


class _ContentsReader:
    """Read one or several request objects into one message list.

    ``ends`` has the number of messages before the contents of the last request, and after each of these contents.
    """

    def __init__(self) -> None:
        self.list = MessageList()
        self.ends = [0]

    def add(self, request: JsonObject) -> None:
        self._tools(request)
        self._system(request)
        self._prompting_settings(request)
        messages = self.list.messages
        self.ends = [len(messages)]
        for content in objects(request.get("contents"), "contents"):
            self._content(content)
            self.ends.append(len(messages))
        for content in objects(request.get("content"), "content"):
            self._content(content)
        self._references(request)

    def _content(self, content: JsonObject) -> None:
        role = a_string(content.get("role"), "role")
        self.list.add_content("assistant" if role == "model" else "user", objects(content.get("parts"), "parts"))
        if not _CONTENT.issuperset(content):
            self._beside("contents", content)

    def _system(self, request: JsonObject) -> None:
        instruction = field(request, "systemInstruction")
        if instruction is None:
            return
        content = an_object(instruction, "systemInstruction") or {}
        self.list.add_content("system", objects(content.get("parts"), "parts"))
        if not _CONTENT.issuperset(content):
            self._beside("systemInstruction", content)

    def _beside(self, where: str, content: JsonObject) -> None:
        """Add the fields of a content beside its role and parts."""
        add_settings(self.list, where, {k: v for k, v in content.items() if k not in _CONTENT}, {})

    def _tools(self, request: JsonObject) -> None:
        tools = request.get("tools")
        if tools is None:
            return
        declared: list[Message] = []
        for tool in objects(tools, "tools"):
            for name, value in tool.items():
                if snake_case(name) == "function_declarations":
                    declared.extend([declaration(function) for function in objects(value, name)])
                elif value is not None:
                    declared.append({"name": name, "description": "\n".join(strings_in(value)), "inputSchema": {}})
                    self._unchecked("request.tools", f"{name} runs at the provider")
            field(tool, "functionDeclarations")
        self.list.add_tools(declared)

    def _prompting_settings(self, request: JsonObject) -> None:
        config = an_object(field(request, "generationConfig"), "generationConfig") or {}
        add_settings(self.list, "generationConfig", config, _CONTROL["generationConfig"])
        if not _KNOWN.issuperset(request):
            add_settings(self.list, "request", {k: v for k, v in request.items() if k not in _KNOWN}, _CONTROL)

    def _references(self, request: JsonObject) -> None:
        if _REFERENCES.isdisjoint(request):
            return
        if (cached := field(request, "cachedContent")) is not None:
            self.list.unchecked.append(Unchecked("request.cachedContent", "cached content", cache_reference(cached)))
        if field(request, "continuationToken") is not None:
            self._unchecked("request.continuationToken", "the response that this one continues")

    def _unchecked(self, address: str, reason: str) -> None:
        self.list.unchecked.append(Unchecked(address, reason))


def _named_model(root: JsonObject) -> str | None:
    """Return the model that a body names, without its collection; None where it names none."""
    named = root.get("model")
    match = _MODEL.fullmatch(named) if isinstance(named, str) else None
    return match[1] if match else None


def cache_reference(cached: Any) -> Reference | None:
    """Return the reference to a cache by its name, with or without the steps before the last one.

    Raises BadRequest for a text that is not a valid name but could be read as one.
    """
    if cached is None or cached == "":
        return None
    named = _CACHE.fullmatch(cached) if isinstance(cached, str) else None
    if named is None:
        raise BadRequest('"cachedContent" must be the name of a cache, such as "cachedContents/abc"')
    return Reference("cache", f"cachedContents/{named[1]}", named[0])


def add_settings(messages: MessageList, where: str, values: JsonObject, known: JsonObject) -> None:
    """Add text outside the contents that the model may read. It becomes system messages.

    ``known`` is a tree of ``control_fields``, which only steer the call.
    """
    place = where if where == "request" else f"request.{where}"
    for name, value in values.items():
        within = known.get(name)
        if within is not None and not within and steers(value):
            continue
        texts: list[str] = []
        for text in _read_setting(f"{place}.{name}", value, within):
            if isinstance(text, Unchecked):
                messages.unchecked.append(text)
            else:
                texts.append(text)
        if any(texts):
            messages.add_text("system", "\n".join(texts), field=f"{where}.{name}")


def declaration(function: JsonObject) -> Message:
    """Return the declaration of a function as rules read it, with a schema in JSON Schema's words."""
    schema, second = field(function, "parametersJsonSchema"), function.get("parameters")
    parameters = second if schema is None else schema
    # Only one of the two schemas applies; if both are given, the other one is read as text.
    known = _DECLARED if schema is None or second is None else _DECLARED - {"parameters"}
    if (behavior := function.get("behavior")) is not None and steers(behavior):
        known |= {"behavior"}
    beside = text_beside(function, known)
    description = a_string(function.get("description"), "description")
    hints = function.get("annotations")
    declared: Message = {
        "name": a_string(function.get("name"), "name"),
        "description": f"{description}\n{beside}" if beside else description,
        "inputSchema": _lower_types({} if parameters is None else parameters),
    }
    if isinstance(hints, dict):
        declared["annotations"] = hints
    return declared


def _lower_types(schema: Any) -> Any:
    """Turn Gemini's ``"type": "STRING"`` into JSON Schema's ``"string"``."""
    if type(schema) is dict:
        lowered: dict[str, Any] = {}
        for name, value in schema.items():
            if type(value) is not str:
                lowered[name] = _lower_types(value)
            else:
                lowered[name] = value.lower() if name == "type" and value in _TYPES else value
        return lowered
    return [_lower_types(inner) for inner in schema] if type(schema) is list else schema


def control_fields(paths: str) -> JsonObject:
    """Return a tree of the fields on dotted paths, each in both spellings, with ``{}`` where a path ends."""
    root: dict[str, Any] = {}
    for path in paths.split():
        node = root
        for name in path.split("."):
            inner = node.get(name, {})
            node.update(dict.fromkeys(spellings(name), inner))
            node = inner
    return root


_CONTROL: Final = control_fields(
    """
    model store serviceTier taskType outputDimensionality ttl expireTime
    safetySettings.category safetySettings.threshold safetySettings.method
    toolConfig.functionCallingConfig.mode toolConfig.functionCallingConfig.streamFunctionCallArguments
    toolConfig.includeServerSideToolInvocations toolConfig.retrievalConfig.languageCode
    toolConfig.retrievalConfig.latLng.latitude toolConfig.retrievalConfig.latLng.longitude
    generationConfig.candidateCount generationConfig.maxOutputTokens generationConfig.temperature
    generationConfig.topP generationConfig.topK generationConfig.seed generationConfig.presencePenalty
    generationConfig.frequencyPenalty generationConfig.logprobs generationConfig.responseLogprobs
    generationConfig.responseMimeType generationConfig.responseModalities generationConfig.mediaResolution
    generationConfig.thinkingConfig.includeThoughts generationConfig.thinkingConfig.thinkingBudget
    generationConfig.thinkingConfig.thinkingLevel
    generationConfig.imageConfig.aspectRatio generationConfig.imageConfig.imageSize
    generationConfig.imageConfig.personGeneration generationConfig.imageConfig.prominentPeople
    generationConfig.imageConfig.outputMimeType generationConfig.imageConfig.outputCompressionQuality
    generationConfig.imageConfig.imageOutputOptions.mimeType
    generationConfig.imageConfig.imageOutputOptions.compressionQuality
    generationConfig.audioTimestamp generationConfig.enableEnhancedCivicAnswers generationConfig.enableAffectiveDialog
    generationConfig.routingConfig.autoMode.modelRoutingPreference generationConfig.routingConfig.manualMode.modelName
    generationConfig.modelSelectionConfig.featureSelectionPreference
    """
)
"""Fields that steer the call and carry no text to the model: numbers, switches, enums, formats, names of models."""
_AUDIO = spellings("voiceSampleAudio", "consentAudio")
_NAMED_BY_CLIENTS = spellings(
    *"contents content systemInstruction functionDeclarations responseSchema responseJsonSchema".split(),
    *"_responseJsonSchema responseFormat labels headers customConfigs".split(),
)
"""Fields in which names are the client's own and mean nothing to Google."""
_OUTBOUND = re.compile(r"output_uri_prefix|webhook\w{0,40}", re.ASCII)


def _read_setting(address: str, value: Any, known: JsonObject | None) -> Iterator[str | Unchecked]:
    """Yield the strings of a field as rules read them, and the parts that rules cannot read.

    ``known`` is the field's entry in ``_CONTROL``: None if it has none, empty if it only steers the call. The names of
    known fields are not text.
    """
    if known is not None and not known:
        if not steers(value):
            yield from strings_in(value)
    elif type(value) is dict:
        for name, inner in value.items():
            if name in _AUDIO and isinstance(inner, str):
                yield Unchecked(f"{address}.{name}", "inline audio")
                continue
            if known is None or name not in known:
                yield name
            yield from _read_setting(f"{address}.{name}", inner, known.get(name) if known else None)
    elif type(value) is list:
        for item in value:
            yield from _read_setting(address, item, known)
    else:
        yield from strings_in(value)


def outbound_fields(request: JsonObject) -> tuple[str, ...]:
    """Return the addresses of fields that make Google send the response, or news of it, to someone else."""
    addresses: list[str] = []
    _find_outbound(request, "", addresses)
    return tuple(addresses)


def _find_outbound(value: Any, prefix: str, addresses: list[str]) -> None:
    if type(value) is dict:
        for name, inner in value.items():
            if inner is None or name in _NAMED_BY_CLIENTS:
                continue
            if _is_outbound(name):
                addresses.append(prefix + name)
            elif type(inner) is dict or type(inner) is list:
                _find_outbound(inner, f"{prefix}{name}.", addresses)
    elif type(value) is list:
        for item in value:
            _find_outbound(item, prefix, addresses)


@lru_cache(maxsize=512)
def _is_outbound(name: str) -> bool:
    return _OUTBOUND.fullmatch(snake_case(name)) is not None
