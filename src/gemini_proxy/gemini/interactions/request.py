"""Read a request of the Interactions API: turn its history of steps into the same messages as any other request's.

That API has snake_case names; both spellings of a name are read, as by Google's parsers elsewhere. A setting is text
unless it is one of the fields that only steer the call.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.fields import JsonObject, a_string, field, objects, spellings, steers
from gemini_proxy.gemini.interactions.steps import Part, contents_parts, is_content, step_parts, step_type
from gemini_proxy.gemini.messages import Message, MessageList
from gemini_proxy.gemini.parts import Reference, Unchecked, strings_in
from gemini_proxy.gemini.request import (
    GeminiRequest,
    add_settings,
    cache_reference,
    control_fields,
    declaration,
    is_parsed,
    outbound_fields,
    request_without_settings,
)
from gemini_proxy.gemini.secret_fields import without_secrets
from gemini_proxy.gemini.strict_json import read_object

_TEXTS = spellings("input", "systemInstruction")
_STATE: Final = ("previousInteractionId", "cachedContent", "continuationToken", "environmentId")
"""Fields that name what is kept at Google."""
_COLLECTION = "interactions/"
INTERACTION_ID: Final = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9_.:=+-]{0,255}")
"""The form of an id that may be continued: a refused interaction can be remembered by any such id."""
_KNOWN = _TEXTS | spellings("tools", *_STATE)
_SECRET_FREE = _TEXTS | spellings("parameters", "labels", "generationConfig", "responseFormat", *_STATE)
_USER = frozenset(("user_input", "function_result"))
_FUNCTION_CONTROL = frozenset(("type", "defer_loading"))

_CONTROL: Final = control_fields(
    """
    model agent store stream background serviceTier responseModalities responseMimeType
    safetySettings.type safetySettings.threshold safetySettings.method
    generationConfig.maxOutputTokens generationConfig.seed generationConfig.temperature generationConfig.topP
    generationConfig.thinkingLevel generationConfig.thinkingSummaries generationConfig.toolChoice
    generationConfig.imageConfig.aspectRatio generationConfig.imageConfig.imageSize generationConfig.videoConfig.task
    responseFormat.type responseFormat.mimeType responseFormat.delivery responseFormat.bitRate
    responseFormat.sampleRate responseFormat.aspectRatio responseFormat.imageSize
    responseFormat.resolution
    """
)


def read_request(body: bytes) -> GeminiRequest:
    """Read the body of ``POST interactions``. Raises BadRequest if it cannot be read, or can be read two ways."""
    root = read_object(body)
    bare, secrets = without_secrets(root, _SECRET_FREE)
    outbound = tuple(_outbound(root))
    reader = _read(root, outbound)
    messages = tuple(reader.list.messages)
    model = field(root, "model")
    return GeminiRequest(
        messages=messages,
        unchecked=tuple(reader.list.unchecked),
        settings={name: value for name, value in bare.items() if name not in _TEXTS},
        candidate_count=None,
        structured=_is_structured(root),
        outbound=outbound,
        stored=messages if bare is root else tuple(_read(bare, outbound).list.messages),
        secrets=secrets,
        model=model if isinstance(model, str) else None,
        streams=field(root, "stream") is True,
    )


def _interaction_reference(name: str) -> Reference:
    """Return the reference to an interaction by its id. Raises BadRequest for what Google may read as another one."""
    interaction = name.removeprefix(_COLLECTION)
    if not INTERACTION_ID.fullmatch(interaction):
        raise BadRequest('"previous_interaction_id" is not the id of an interaction')
    return Reference("interaction", f"{_COLLECTION}{interaction}", name)


def read_get(name: str, query: Sequence[tuple[str, str]], body: bytes) -> GeminiRequest:
    """Read a request for the stored interaction ``name`` by the parameters of its ``query``. Raises BadRequest.

    It says nothing to a model. A stream that resumes after an event is a response without its beginning.
    """
    given = dict(query)
    if len(given) != len(query):
        raise BadRequest("A query parameter is given more than once")
    if body.strip() not in (b"", b"{}"):
        raise BadRequest("A request about an existing interaction takes no body")
    unchecked = [Unchecked("request.id", "what an earlier interaction was asked", _interaction_reference(name))]
    if given.get("last_event_id"):
        unchecked.append(Unchecked("request.last_event_id", "the events before"))
    streams = given.get("stream", "").lower() in ("true", "1")
    return request_without_settings(unchecked=unchecked, streams=streams)


def contents_of_messages(body: bytes) -> tuple[int | None, ...]:
    """Return for each message of a request which element of its input it is made of, None for what is in none."""
    return tuple(_read(read_object(body), ()).contents)


def _read(root: JsonObject, outbound: Sequence[str]) -> "_InputReader":
    reader = _InputReader()
    reader.add(root)
    reason = "another destination of the response"
    reader.list.unchecked.extend(Unchecked(f"request.{address}", reason) for address in outbound)
    return reader


class _InputReader:
    """Read a request into one message list. ``contents`` says of each message which element of the input it is of."""

    def __init__(self) -> None:
        self.list = MessageList()
        self.contents: list[int | None] = []

    def add(self, root: JsonObject) -> None:
        self._tools(root)
        self._instruction(root)
        add_settings(
            self.list, "request", {name: value for name, value in root.items() if name not in _KNOWN}, _CONTROL
        )
        self._state(root)
        self._mark(None)
        self._input(root.get("input"))

    def _mark(self, content: int | None) -> None:
        self.contents += [content] * (len(self.list.messages) - len(self.contents))

    def _instruction(self, root: JsonObject) -> None:
        instruction = field(root, "systemInstruction")
        if instruction is not None:
            self.list.add_content("system", contents_parts(instruction, "systemInstruction"))

    def _tools(self, root: JsonObject) -> None:
        declared: list[Message] = []
        for tool in objects(root.get("tools"), "tools"):
            kind = a_string(tool.get("type"), "tools.type")
            if kind == "function":
                declared.append(declaration(_without_control(tool)))
                continue
            texts = strings_in({name: value for name, value in tool.items() if name != "type"})
            declared.append({"name": kind, "description": "\n".join(texts), "inputSchema": {}})
            self.list.unchecked.append(Unchecked("request.tools", f"{kind or 'a tool'} runs at the provider"))
        self.list.add_tools(declared)

    def _state(self, root: JsonObject) -> None:
        """Name what the request brings that is kept, or runs, at Google."""
        before = a_string(field(root, "previousInteractionId"), "previous_interaction_id") or None
        earlier = _interaction_reference(before) if before else None
        named = {
            "previous_interaction_id": (before, "an earlier interaction", earlier),
            "cached_content": (cached := field(root, "cachedContent"), "cached content", cache_reference(cached)),
            # Beside the name of its interaction, a token adds nothing.
            "continuation_token": (field(root, "continuationToken"), "the response that this one continues", earlier),
            "environment_id": (field(root, "environmentId"), "an environment at the provider", None),
            "environment": (root.get("environment"), "an environment at the provider", None),
            "agent": (root.get("agent"), "an agent runs at the provider", None),
        }
        for name, (value, reason, reference) in named.items():
            if value is not None:
                self.list.unchecked.append(Unchecked(f"request.{name}", reason, reference))

    def _input(self, given: Any) -> None:
        if given is None:
            return
        if isinstance(given, str):
            self.list.add_content("user", contents_parts(given, "input"))
            self._mark(0)
            return
        together: list[Part] = []
        first = 0
        for index, item in enumerate(objects(given, "input")):
            if is_content(item):
                first = first if together else index
                together += contents_parts(item, "input")
                continue
            self._contents(together, first)
            together = []
            self.list.add_content(*_turn(item))
            self._mark(index)
        self._contents(together, first)

    def _contents(self, parts: list[Part], first: int) -> None:
        """Add contents that stand in the input by themselves, which are one message of the user."""
        if parts:
            self.list.add_content("user", parts)
            self._mark(first)


def _turn(item: JsonObject) -> tuple[str, list[Part]]:
    """Return whose turn a step is, and its parts. A step without a type is a turn with a role."""
    kind = step_type(item)
    if kind or "role" not in item:
        return ("user" if kind in _USER else "assistant"), step_parts(item)
    role = a_string(item.get("role"), "role")
    rest = {name: value for name, value in item.items() if name != "role"}
    return ("assistant" if role == "model" else "user"), step_parts({**rest, "type": "user_input"})


def _without_control(function: JsonObject) -> JsonObject:
    return {name: value for name, value in function.items() if not (name in _FUNCTION_CONTROL and steers(value))}


def _outbound(root: JsonObject) -> Iterator[str]:
    """Yield the addresses of fields that make Google send the response, or news of it, to someone else."""
    yield from outbound_fields({name: value for name, value in root.items() if name not in _TEXTS})
    for entry in objects(field(root, "responseFormat"), "response_format"):
        if field(entry, "gcsUri") is not None:
            yield "response_format.gcs_uri"


def _is_structured(root: JsonObject) -> bool:
    if is_parsed(field(root, "responseMimeType")):
        return True
    return any(
        entry.get("schema") is not None or is_parsed(field(entry, "mimeType"))
        for entry in objects(field(root, "responseFormat"), "response_format")
        if entry.get("type") in (None, "text")
    )
