"""Make the OpenAI-like message list that rules read and traces keep from Gemini contents.

A message is one of

- ``{"role": "system" | "assistant", "content": str}``,
- ``{"role": "user", "content": [chunk, ...]}``, one chunk a part; the model's images and files have this form too,
- ``{"role": "assistant", "tool_calls": [...]}``, for calls that follow each other,
- ``{"role": "tool", "tool_name": str, "content": str | list of chunks | object}``, for the output of a call,
- ``{"tools": [...]}``, for declarations.

Calls and outputs have an id only if the wire gave one; ``call_links`` makes the others. These marks stand on a message
or a chunk: ``"thought": True`` on a thought, ``"provider": True`` on a call that Gemini's servers made and on its
output, and ``"field": name`` on text outside text parts. A call among a user's parts, or an output among the model's,
has ``"turn": role``, which names the side whose turn it is in.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.fields import JsonObject, a_string, an_object, field, spellings
from gemini_proxy.gemini.parts import (
    Chunk,
    Media,
    Unchecked,
    file_media,
    inline_media,
    output_content,
    output_media,
    saying,
    strings_in,
    text_beside,
    unknown_payload,
)

Message = dict[str, Any]

_CODE_TOOL = "code_execution"
"""The tool name under which ``executableCode`` and ``codeExecutionResult`` appear."""
_CALL = spellings("id", "name", "args")
_CALL_CONTROL = spellings("willContinue")
_ONLY_TEXT = spellings("text", "thought")
_TEXT_MARKS = spellings("text", "thought", "thoughtSignature")
"""The fields of a part that do not end a run of text."""
_SERVER_CALL = spellings("id", "toolType", "name", "args")
_SERVER_OUTPUT = spellings("id", "toolType", "name", "response")


class MessageList:
    """Build messages in the order of the wire, and name in ``unchecked`` what no rule can read of them.

    Raises BadRequest for parts that cannot be read.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.unchecked: list[Unchecked] = []
        self._open: Message | None = None
        self._kind = ""
        self._texts: list[str] = []

    def add_tools(self, tools: Sequence[Message]) -> None:
        if tools:
            self.messages.append({"tools": list(tools)})

    def add_text(self, role: str, text: str, **extra: Any) -> None:
        """Add a message that stands alone, whatever its role. ``content`` is the text."""
        self.messages.append({"role": role, "content": text, **extra})

    def add_content(self, role: str, parts: Sequence[JsonObject]) -> None:
        """Add the parts of one content under ``role``, which is one of a message's four."""
        if len(parts) == 1 and len(parts[0]) == 1 and type(text := parts[0].get("text")) is str:
            content = [{"type": "text", "text": text}] if role == "user" else text
            self.messages.append({"role": role, "content": content})
            return
        first = len(self.messages)
        for part in parts:
            self._add_part(role, part)
        self._close()
        for message in self.messages[first:]:
            if role != "system" and _side(message) != role:
                message["turn"] = role

    def add_provider_call(self, name: str, arguments: JsonObject, call_id: str = "") -> None:
        """Add a call that Gemini's servers made themselves."""
        self._add_call({"name": name, "id": call_id, "args": arguments}, provider=True)

    def add_provider_output(self, name: str, content: Any, call_id: str = "") -> None:
        """Add the output of a call that Gemini's servers made themselves."""
        self._close()
        self.messages.append(_tool_message(name, call_id, content) | {"provider": True})

    def _add_part(self, role: str, part: JsonObject) -> None:
        text = field(part, "text")
        if text is not None:
            self._add_text_part(role, a_string(text, "text"), thought=_is_thought(role, part))
            if _ONLY_TEXT.issuperset(part):
                return
        elif self._texts and not part.keys() <= _TEXT_MARKS:
            self._close()
        if (blob := an_object(field(part, "inlineData"), "inlineData")) is not None:
            self._add_media(role, inline_media(blob))
        if (reference := an_object(field(part, "fileData"), "fileData")) is not None:
            self._add_media(role, file_media(reference))
        if (call := an_object(field(part, "functionCall"), "functionCall")) is not None:
            self._add_call(call)
            self._add_field(role, "functionCall", text_beside(call, _CALL, _CALL_CONTROL))
        if (code := an_object(field(part, "executableCode"), "executableCode")) is not None:
            arguments = {name: value for name, value in code.items() if name != "id"}
            self.add_provider_call(_CODE_TOOL, arguments, a_string(code.get("id"), "executableCode.id"))
        if (result := an_object(field(part, "codeExecutionResult"), "codeExecutionResult")) is not None:
            output = {name: value for name, value in saying(result, {"outcome"}).items() if name != "id"}
            call_id = a_string(result.get("id"), "codeExecutionResult.id")
            self.add_provider_output(_CODE_TOOL, output_content({"response": output}, "output"), call_id)
        if (response := an_object(field(part, "functionResponse"), "functionResponse")) is not None:
            self._add_output(response)
        if (call := an_object(field(part, "toolCall"), "toolCall")) is not None:
            self._add_server_call(role, call)
        if (response := an_object(field(part, "toolResponse"), "toolResponse")) is not None:
            self._add_server_output(role, response)
        for name, value in unknown_payload(part).items():
            self._add_field(role, name, "\n".join(strings_in({name: value})))

    def _add_text_part(self, role: str, text: str, *, thought: bool) -> None:
        if role == "user":
            self._chunk(role, {"type": "text", "text": text}, thought=thought)
            return
        message = self._message(role, "thought" if thought else "content")
        if thought:
            message["thought"] = True
        self._texts.append(text)

    def _add_field(self, role: str, name: str, text: str) -> None:
        """Add text that stands beside the text parts, under the name of its field."""
        if not text:
            return
        if role == "user":
            self._chunk(role, {"type": "text", "text": text, "field": name})
        else:
            self._close()
            self.messages.append({"role": role, "content": text, "field": name})

    def _add_media(self, role: str, media: Media) -> None:
        if role != "user":
            self._close()
        place = self._chunk(role, media.chunk)
        self.unchecked += media.unchecked_at(f"messages.{len(self.messages)}.content.{place}")
        if role != "user":
            self._close()

    def _chunk(self, role: str, chunk: Chunk, *, thought: bool = False) -> int:
        """Add a chunk to the list of the open message. Return its place there."""
        message = self._message(role, "thoughts" if thought else "list")
        if thought:
            message["thought"] = True
        content: list[Chunk] = message.setdefault("content", [])
        content.append(chunk)
        return len(content) - 1

    def _add_call(self, call: JsonObject, *, provider: bool = False) -> None:
        name, call_id = field(call, "name"), field(call, "id")
        arguments = field(call, "args")
        function = {"name": a_string(name, "functionCall.name"), "arguments": {} if arguments is None else arguments}
        call_message: Message = {"type": "function", "function": function}
        if call_id := a_string(call_id, "functionCall.id"):
            call_message = {"id": call_id, **call_message}
        message = self._message("assistant", "provider calls" if provider else "calls")
        if provider:
            message["provider"] = True
        message.setdefault("tool_calls", []).append(call_message)

    def _add_output(self, response: JsonObject) -> None:
        self._close()
        name = a_string(field(response, "name"), "functionResponse.name")
        content, media = output_content(response, "result"), output_media(response)
        if media:
            text = content if isinstance(content, str) else "\n".join(strings_in(content))
            content = [{"type": "text", "text": text}, *(file.chunk for file in media)]
            for place, file in enumerate(media, start=1):
                self.unchecked += file.unchecked_at(f"messages.{len(self.messages)}.content.{place}")
        self.messages.append(_tool_message(name, a_string(field(response, "id"), "functionResponse.id"), content))

    def _add_server_call(self, role: str, call: JsonObject) -> None:
        arguments = field(call, "args")
        if arguments is not None and not isinstance(arguments, Mapping):
            arguments = {"value": arguments}
        call_id = a_string(field(call, "id"), "toolCall.id")
        self.add_provider_call(_named_tool(call, "toolCall.name"), arguments or {}, call_id)
        self._add_field(role, "toolCall", text_beside(call, _SERVER_CALL))

    def _add_server_output(self, role: str, response: JsonObject) -> None:
        content = output_content(response, "result")
        call_id = a_string(field(response, "id"), "toolResponse.id")
        self.add_provider_output(_named_tool(response, "toolResponse.name"), content, call_id)
        self._add_field(role, "toolResponse", text_beside(response, _SERVER_OUTPUT))

    def _message(self, role: str, kind: str) -> Message:
        """Return the open message if it is of this role and kind, else a new one."""
        if self._open is not None and (self._open["role"], self._kind) != (role, kind):
            self._close()
        if self._open is None:
            self._open, self._kind = {"role": role}, kind
        return self._open

    def _close(self) -> None:
        if self._open is None:
            return
        message, self._open = self._open, None
        if self._texts:
            message = {"role": message["role"], "content": "".join(self._texts), **message}
            self._texts = []
        self.messages.append(message)


# google.ai.generativelanguage ToolType; any other type is shown under its own name.
_SERVER_TOOLS = {"GOOGLE_SEARCH_WEB": "google_search", "GOOGLE_SEARCH_IMAGE": "google_search"}


def _server_tool(tool_type: Any) -> str:
    """Return the name under which rules see a tool of Gemini's servers: ``google_maps`` for ``GOOGLE_MAPS``."""
    if not isinstance(tool_type, str) or not tool_type:
        return "server_tool" if tool_type is None or tool_type == "" else f"server_tool_{tool_type}"
    return _SERVER_TOOLS.get(tool_type, tool_type.lower())


def _named_tool(source: JsonObject, where: str) -> str:
    """Return the name that a call of Gemini's servers or its output gives the tool, else that of its type."""
    return a_string(source.get("name"), where) or _server_tool(field(source, "toolType"))


def _tool_message(name: str, call_id: str, content: Any) -> Message:
    message: Message = {"role": "tool", "tool_name": name, "content": content}
    return {**message, "tool_call_id": call_id} if call_id else message


def _side(message: Message) -> str:
    """Return whose turn a message is part of unless it says otherwise."""
    return "assistant" if message["role"] == "assistant" or message.get("provider") else "user"


def _is_thought(role: str, part: JsonObject) -> bool:
    """Return whether a part is marked as a thought, in a user's content too: readers may leave it out."""
    thought = field(part, "thought")
    if thought is not None and not isinstance(thought, bool):
        raise BadRequest('"thought" must be true or false')
    return bool(thought) and role != "system"
