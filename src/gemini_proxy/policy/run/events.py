"""Read a conversation, an OpenAI-like list of messages, as the events that rules bind.

Events stand in one line: a message, then its tool calls, then what comes after. A tool output belongs to the call its
``tool_call_id`` names, without an id to the earliest call that has no output yet.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import orjson

from gemini_proxy.policy.errors import ConversationError, EvaluationError
from gemini_proxy.policy.run.readings import begin_a_turn, linked, linked_text
from gemini_proxy.policy.run.values import Content, Within, count_chars, is_chunk

# Characters. With more no check is quick, and the exact number does not matter.
_MANY_CHARS = 2_000_000

EventKind = Literal["Message", "ToolCall", "ToolOutput", "Tool", "ToolParameter", "Image", "TextChunk", "Input"]

FIELDS: Mapping[str, tuple[str, ...]] = {
    "Message": ("role", "content", "tool_calls", "metadata"),
    "ToolCall": ("id", "type", "function", "metadata"),
    "ToolOutput": ("role", "content", "tool_call_id", "tool_name", "metadata"),
    "Tool": ("name", "description", "inputSchema", "metadata"),
    "ToolParameter": ("name", "type", "description", "required", "properties", "additionalProperties", "items", "enum"),
    "Image": ("type", "image_url"),
    "TextChunk": ("type", "text"),
    "Input": ("messages",),
}

# The key under which arguments that are not a JSON object are read: c.function.arguments.raw
RAW_ARGUMENTS = "raw"


class Event:
    """One event: its ``data`` as in the message, its ``address`` there, its ``position`` in the line of events.

    ``calls`` are a message's tool calls, ``call`` is the call that a tool output answers. Immutable once built, except
    that ``texts`` are cached on first use.
    """

    __slots__ = ("address", "call", "calls", "content", "data", "kind", "position", "texts")

    def __init__(self, kind: EventKind, position: int, address: str, data: dict[str, Any]) -> None:
        self.kind: EventKind = kind
        self.position = position
        self.address = address
        self.data = data
        self.content: Any = None
        self.calls: tuple[Event, ...] = ()
        self.call: Event | None = None
        self.texts: tuple[str, ...] | None = None

    def field(self, name: str) -> Any:
        """Return a declared field, None if the message does not have it. Raises EvaluationError for any other name."""
        if name not in FIELDS[self.kind]:
            raise EvaluationError(f'{self.kind} has no field "{name}"; it has {", ".join(FIELDS[self.kind])}')
        if name == "content":
            return self.content
        if name == "tool_calls":
            return list(self.calls)
        if name == "metadata":
            return self.data.get("metadata") or {}
        if name == "inputSchema":
            return list(_parameters(self))
        return self.data.get(name)


class Conversation:
    """Messages read once for any number of checks. Immutable; safe to share between threads."""

    __slots__ = ("_events", "_reader", "chars", "counts", "messages")

    def __init__(
        self,
        messages: Sequence[Mapping[str, Any]],
        events: dict[str, list[Event]],
        chars: int,
        reader: "_EventReader | None" = None,
    ) -> None:
        self.messages = messages
        self._events = events
        self._reader = reader
        self.chars = chars
        self.counts = {kind: len(found) for kind, found in events.items()}

    @classmethod
    def of(
        cls, messages: Sequence[Mapping[str, Any]], answered: Mapping[int, tuple[int, int]] | None = None
    ) -> "Conversation":
        """Read messages; raises ConversationError for shapes that cannot be read.

        ``answered`` maps the index of each tool message to the call that it answers: the index of its message, and its
        index among that message's calls. Without it outputs are linked by their ids, and without ids by their order.
        The messages must not change afterwards: events hold the same string objects.
        """
        known, silent, chars = linked(messages)
        reader = _EventReader(answered, silent)
        for index, message in enumerate(known):
            reader.read(index, message)
        return cls(known, reader.events, reader.chars + chars, reader)

    def continued(
        self, messages: Sequence[Mapping[str, Any]], answered: Mapping[int, tuple[int, int]] | None = None
    ) -> "Conversation":
        """Return the conversation continued with ``messages``. If they begin a turn, only they are read.

        ``answered`` covers all messages; pass it if it was passed to ``of``. Raises ConversationError as ``of`` does.
        """
        if self._reader is None or not begin_a_turn(messages, self.messages):
            return Conversation.of((*self.messages, *messages), answered)
        first = len(self.messages)
        known, silent, chars = linked(messages, first)
        reader = self._reader.fork(answered, silent)
        for index, message in enumerate(known, first):
            reader.read(index, message)
        added = reader.chars - self._reader.chars + chars
        return Conversation((*self.messages, *known), reader.events, self.chars + added, reader)

    def events(self, kind: str) -> list[Event]:
        """Return the events of a kind in order; TextChunk, Image, ToolParameter and Input are built at each call."""
        found = self._events.get(kind)
        if found is not None:
            return found
        if kind == "Input":
            whole = Event("Input", -1, "messages", {"messages": list(self.messages)})
            return [whole]
        if kind == "ToolParameter":
            return [parameter for tool in self._events["Tool"] for parameter in _parameters(tool)]
        holders = self._events["Message"] + self._events["ToolOutput"]
        holders.sort(key=lambda event: event.position)
        return [chunk for holder in holders for chunk in chunks(holder) if chunk.kind == kind]


def chunks(holder: Event) -> Iterator[Event]:
    """Yield the content of a message or tool output as TextChunk and Image events; a plain text is one TextChunk."""
    content = holder.content
    if isinstance(content, str):
        if content:
            yield Event("TextChunk", holder.position, f"{holder.address}.content", {"type": "text", "text": content})
        return
    items = content.value if isinstance(content.value, list) else []
    for index, item in enumerate(items):
        if is_chunk(item):
            kind: EventKind = "Image" if item["type"] == "image_url" else "TextChunk"
            if kind == "Image" or isinstance(item.get("text"), str):
                yield Event(kind, holder.position, f"{holder.address}.content.{index}", item)


def _parameters(tool: Event) -> Iterator[Event]:
    key = "inputSchema" if "inputSchema" in tool.data else "parameters"
    schema = tool.data.get(key)
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(schema, dict) or not isinstance(properties, dict):
        return
    required = schema.get("required")
    for name, inner in properties.items():
        data: dict[str, Any] = {"type": "string", "description": "", **(inner if isinstance(inner, dict) else {})}
        data["name"] = name
        data["required"] = isinstance(required, list) and name in required
        yield Event("ToolParameter", tool.position, f"{tool.address}.{key}.properties.{name}", data)


class _EventReader:
    """Collect events message by message."""

    def __init__(self, answered: Mapping[int, tuple[int, int]] | None, silent: Mapping[int, Sequence[Within]]) -> None:
        self.events: dict[str, list[Event]] = {"Message": [], "ToolCall": [], "ToolOutput": [], "Tool": []}
        self.chars = 0
        self._answered = answered
        self._silent = silent
        self._callers: dict[int, Event] = {}
        self._position = 0
        self._by_id: dict[str, Event] = {}
        self._unanswered: dict[int, Event] = {}

    def fork(
        self, answered: Mapping[int, tuple[int, int]] | None, silent: Mapping[int, Sequence[Within]]
    ) -> "_EventReader":
        """Copy the reader, to continue from here separately."""
        forked = _EventReader(answered, silent)
        forked.events = {kind: list(events) for kind, events in self.events.items()}
        forked.chars = self.chars
        forked._callers = dict(self._callers)
        forked._position = self._position
        forked._by_id = dict(self._by_id)
        forked._unanswered = dict(self._unanswered)
        return forked

    def read(self, index: int, message: Mapping[str, Any]) -> None:
        if type(message) is not dict:
            raise ConversationError(f"messages.{index} is not an object")
        address = f"messages.{index}"
        role = message.get("role")
        if role is None:
            self._read_other(address, message)
        elif type(role) is not str:
            raise ConversationError(f"{address}.role is not a string")
        elif role == "tool":
            self._read_output(index, address, message)
        else:
            self._read_message(index, address, message)

    def _add(self, kind: EventKind, address: str, data: dict[str, Any]) -> Event:
        event = Event(kind, self._position, address, data)
        self._position += 1
        self.events[kind].append(event)
        return event

    def _read_message(self, index: int, address: str, message: dict[str, Any]) -> None:
        event = self._add("Message", address, message)
        event.content = self._content(address, message.get("content"), self._silent.get(index, ()))
        calls = message.get("tool_calls")
        if calls:
            if type(calls) is not list:
                raise ConversationError(f"{address}.tool_calls is not a list")
            event.calls = tuple(self._call(f"{address}.tool_calls.{number}", call) for number, call in enumerate(calls))
            self._callers[index] = event

    def _read_output(self, index: int, address: str, message: dict[str, Any]) -> None:
        event = self._add("ToolOutput", address, message)
        event.content = self._content(address, message.get("content"))
        if self._answered is not None:
            if (place := self._answered.get(index)) is not None:
                event.call = self._callers[place[0]].calls[place[1]]
            return
        call_id = message.get("tool_call_id")
        if call_id:
            event.call = self._by_id.get(call_id) if type(call_id) is str else None
        elif self._unanswered:
            event.call = next(iter(self._unanswered.values()))
        if event.call is not None:
            self._unanswered.pop(event.call.position, None)

    def _content(self, address: str, content: Any, readings: Sequence[Within] = ()) -> Any:
        if content is None:
            content = ""
        if isinstance(content, str):
            self.chars += len(content)
            return linked_text(content, f"{address}.content", readings) if readings else content
        if not isinstance(content, list | dict | int | float | str):
            raise ConversationError(f"{address}.content is neither text, a list nor an object")
        self._count(content)
        return Content(content, f"{address}.content", readings)

    def _count(self, value: Any) -> None:
        if self.chars <= _MANY_CHARS:
            self.chars += count_chars(value, _MANY_CHARS - self.chars)

    def _call(self, address: str, call: Any) -> Event:
        function = call.get("function") if type(call) is dict else None
        if type(function) is not dict or type(function.get("name")) is not str:
            raise ConversationError(f"{address} has no function with a name")
        arguments = function.get("arguments")
        if type(arguments) is not dict:
            function = {**function, "arguments": read_arguments(arguments)}
            call = {**call, "function": function}
        self._count(function["arguments"])
        event = self._add("ToolCall", address, cast("dict[str, Any]", call))
        self._unanswered[event.position] = event
        if type(call_id := event.data.get("id")) is str:
            self._by_id[call_id] = event
        return event

    def _read_other(self, address: str, message: dict[str, Any]) -> None:
        if "tools" in message:
            tools = message["tools"]
            if type(tools) is not list:
                raise ConversationError(f"{address}.tools is not a list")
            for index, tool in enumerate(tools):
                if type(tool) is not dict or type(tool.get("name")) is not str:
                    raise ConversationError(f"{address}.tools.{index} has no name")
                self._count(tool)
                self._add("Tool", f"{address}.tools.{index}", tool)
        elif "function" in message:
            self._call(address, message)
        else:
            raise ConversationError(f"{address} has neither a role, tools nor a function call")


def read_arguments(arguments: Any) -> dict[str, Any]:
    """Tool arguments as a dictionary: an object, or JSON text of one; anything else is kept under ``raw``."""
    if arguments is None:
        return {}
    if type(arguments) is str:
        try:
            parsed = orjson.loads(arguments)
        except ValueError:
            return {RAW_ARGUMENTS: arguments}
        if type(parsed) is dict:
            return parsed
    return {RAW_ARGUMENTS: arguments}
