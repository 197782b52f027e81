"""The OpenAI-like message list that rules read and traces keep, made from Gemini contents.

A message is ``{"role": "system" | "user" | "assistant" | "tool", "content": str | list of chunks | object}``, with
``tool_calls`` where the model calls and ``tool_call_id`` on outputs; ``{"tools": [...]}`` declares tools. A thought is
a message of its own with ``"thought": true``.
"""

from collections.abc import Sequence
from typing import Any

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.call_links import CallLinks
from gemini_proxy.gemini.fields import JsonObject, a_string, an_object, field, objects, spellings
from gemini_proxy.gemini.parts import (
    Chunk,
    Media,
    Unseen,
    file_media,
    inline_media,
    output_content,
    output_media,
    strings_in,
    text_beside,
    unknown_payload,
)

Message = dict[str, Any]

CODE_TOOL = "code_execution"
"""The tool name under which ``executableCode`` and ``codeExecutionResult`` appear."""
_CALL = spellings("id", "name", "args", "willContinue")


class MessageList:
    """Builds messages in order, gives every call a unique id and links every output to its call.

    Raises BadRequest for parts that cannot be read.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.unseen: list[Unseen] = []
        self._open: Message | None = None
        self._chunks: list[Chunk] = []
        self._pieces: list[str] = []
        self._linked: CallLinks | None = None
        self._earlier: CallLinks | None = None

    def continued(self) -> "MessageList":
        """An empty list whose call ids and outputs go on from this one: for one candidate's answer."""
        following = MessageList()
        following._earlier = self._linked or self._earlier
        return following

    @property
    def _links(self) -> CallLinks:
        """Made for the first call or output: most conversations have none."""
        if self._linked is None:
            self._linked = self._earlier.copy() if self._earlier is not None else CallLinks()
        return self._linked

    def add_tools(self, tools: Sequence[Message]) -> None:
        if tools:
            self.messages.append({"tools": list(tools)})

    def add_text(self, role: str, text: str, **extra: Any) -> None:
        self.messages.append({"role": role, "content": text, **extra})

    def add_content(self, role: str, parts: Sequence[JsonObject]) -> None:
        """Add the parts of one content under ``role`` (already one of the four)."""
        if len(parts) == 1 and len(parts[0]) == 1 and type(text := parts[0].get("text")) is str:
            self.messages.append({"role": role, "content": text})
            return
        for part in parts:
            self._add_part(role, part)
        self._flush()

    def _add_part(self, role: str, part: JsonObject) -> None:
        text = field(part, "text")
        if text is not None:
            self._add_text_part(role, a_string(text, "text"), thought=_is_thought(role, part))
        if (blob := an_object(field(part, "inlineData"), "inlineData")) is not None:
            self._add_media(role, inline_media(blob))
        if (reference := an_object(field(part, "fileData"), "fileData")) is not None:
            self._add_media(role, file_media(reference))
        if (call := an_object(field(part, "functionCall"), "functionCall")) is not None:
            self._add_call(call)
        if (code := an_object(field(part, "executableCode"), "executableCode")) is not None:
            self._add_call(
                {"name": CODE_TOOL, "id": code.get("id"), "args": {k: v for k, v in code.items() if k != "id"}}
            )
        if (result := an_object(field(part, "codeExecutionResult"), "codeExecutionResult")) is not None:
            output = {k: v for k, v in result.items() if k not in ("id", "outcome")}
            self._add_output({"name": CODE_TOOL, "id": result.get("id"), "response": output})
        if (response := an_object(field(part, "functionResponse"), "functionResponse")) is not None:
            self._add_output(response)
        if rest := unknown_payload(part):
            self._add_text(role, "\n".join(strings_in(rest)))

    def _add_text_part(self, role: str, text: str, *, thought: bool) -> None:
        if thought:
            self._flush()
            self.messages.append({"role": role, "content": text, "thought": True})
        elif text:
            self._add_text(role, text)
        else:
            self._message(role)

    def _add_media(self, role: str, media: Media) -> None:
        self._message(role)
        if media.chunk["type"] == "text":
            self._pieces.append(media.chunk["text"])
        else:
            self._close_text()
            self._chunks.append(media.chunk)
        if media.unseen:
            place = len(self._chunks) - (not self._pieces)
            self.unseen.append(Unseen(f"messages.{len(self.messages)}.content.{place}", media.unseen))

    def _add_text(self, role: str, text: str) -> None:
        """Text beside text is one text, as the model reads it; it is put together once, when it ends."""
        self._message(role)
        self._pieces.append(text)

    def _close_text(self) -> None:
        if self._pieces:
            self._chunks.append({"type": "text", "text": "".join(self._pieces)})
            self._pieces = []

    def _add_call(self, call: JsonObject) -> None:
        name = a_string(field(call, "name"), "functionCall.name")
        call_id = self._links.call(a_string(field(call, "id"), "functionCall.id"), name)
        arguments = field(call, "args")
        function = {"name": name, "arguments": {} if arguments is None else arguments}
        message = self._message("assistant")
        message.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})
        if beside := text_beside(call, _CALL):
            self._add_text("assistant", beside)

    def _add_output(self, response: JsonObject) -> None:
        self._flush()
        name = a_string(field(response, "name"), "functionResponse.name")
        call_id = self._links.output(a_string(field(response, "id"), "functionResponse.id"), name)
        content, media = output_content(response), output_media(response)
        if media:
            text = content if isinstance(content, str) else "\n".join(strings_in(content))
            content = [{"type": "text", "text": text}, *(found.chunk for found in media)]
            for place, found in enumerate(media, start=1):
                if found.unseen:
                    self.unseen.append(Unseen(f"messages.{len(self.messages)}.content.{place}", found.unseen))
        self.messages.append({"role": "tool", "tool_call_id": call_id, "name": name, "content": content})

    def _message(self, role: str) -> Message:
        if self._open is not None and self._open["role"] != role:
            self._flush()
        if self._open is None:
            self._open = {"role": role, "content": ""}
        return self._open

    def _flush(self) -> None:
        if self._open is None:
            return
        self._close_text()
        if len(self._chunks) == 1 and self._chunks[0]["type"] == "text":
            self._open["content"] = self._chunks[0]["text"]
        elif self._chunks:
            self._open["content"] = self._chunks
        self.messages.append(self._open)
        self._open, self._chunks = None, []


def _is_thought(role: str, part: JsonObject) -> bool:
    """Only the model thinks: what a client marks as a thought elsewhere is text like any other."""
    thought = field(part, "thought")
    if thought is not None and not isinstance(thought, bool):
        raise BadRequest('"thought" must be true or false.')
    return bool(thought) and role == "assistant"


def content_parts(content: JsonObject) -> list[JsonObject]:
    return objects(field(content, "parts"), "parts")
