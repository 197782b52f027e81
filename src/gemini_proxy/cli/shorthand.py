"""Conversations as people write them in case files, to the messages that rules read.

``user: text``, ``system: text``, ``assistant: text``, ``thought: text``, ``call: {name: {argument: value}}``,
``output: text or data`` (of the earliest call without one; ``of: name`` says which tool's), ``tools: [name]``; a
mapping with ``role`` is a message as it is.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

Message = dict[str, Any]

_SPEAKERS = ("system", "user", "assistant", "thought")
_KEYS = (*_SPEAKERS, "call", "output", "of", "tools")


class CasesError(ValueError):
    """Cases that cannot be read; the text names the case and what was expected."""


def messages_of(items: object, where: str) -> list[Message]:
    """The messages of a conversation. Raises CasesError, which begins with ``where``."""
    if not isinstance(items, list):
        raise CasesError(f"{where}: messages must be a list")
    conversation = _Conversation()
    for index, item in enumerate(items):
        conversation.add(item, f"{where}, message {index + 1}")
    return conversation.messages


class _Conversation:
    """Makes the messages that the proxy makes of the same exchange, and names the tool that each output is of."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._unanswered: list[str] = []

    def add(self, item: object, where: str) -> None:
        if not isinstance(item, dict) or not item:
            raise CasesError(f"{where}: expected a mapping such as {{user: text}}")
        if "role" in item or "function" in item:
            self.messages.append(item)
            return
        _check_keys(item, where)
        if "output" in item:
            self.messages.append(self._output(item, where))
        elif "tools" in item:
            self.messages.append({"tools": _tools(item["tools"], where)})
        elif "call" in item:
            if "assistant" in item:
                self.messages.append({"role": "assistant", "content": _content(item["assistant"], where)})
            calls = [self._call(name, arguments) for name, arguments in _calls(item["call"], where)]
            self.messages.append({"role": "assistant", "tool_calls": calls})
        else:
            self.messages.append(_spoken(item, where))

    def _call(self, name: str, arguments: object) -> Message:
        self._unanswered.append(name)
        function = {"name": name, "arguments": {} if arguments is None else arguments}
        return {"type": "function", "function": function}

    def _output(self, item: Mapping[str, Any], where: str) -> Message:
        wanted = item.get("of")
        name = wanted if wanted is not None else next(iter(self._unanswered), None)
        if name is None:
            return {"role": "tool", "content": item["output"]}
        if name not in self._unanswered:
            raise CasesError(f'{where}: no call of "{name}" waits for an output')
        self._unanswered.remove(name)
        return {"role": "tool", "tool_name": name, "content": item["output"]}


def _check_keys(item: Mapping[str, Any], where: str) -> None:
    for key in item:
        if key not in _KEYS:
            close = get_close_matches(str(key), _KEYS, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"one of {', '.join(_KEYS)}, or a message with a role"
            raise CasesError(f'{where}: unknown key "{key}" ({hint})')
    if len(item) > 1 and set(item) not in ({"assistant", "call"}, {"output", "of"}):
        raise CasesError(f"{where}: {' and '.join(item)} do not go together; write one message each")


def _spoken(item: Mapping[str, Any], where: str) -> Message:
    ((speaker, said),) = item.items()
    if speaker not in _SPEAKERS:
        raise CasesError(f'{where}: "{speaker}" needs an output')
    if speaker == "thought":
        return {"role": "assistant", "content": _content(said, where), "thought": True}
    content = _content(said, where)
    if speaker == "user" and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return {"role": speaker, "content": content}


def _content(said: object, where: str) -> Any:
    if isinstance(said, str | list):
        return said
    raise CasesError(f"{where}: expected a text, found {said!r}; put it in quotes")


def _calls(calls: object, where: str) -> list[tuple[str, object]]:
    if isinstance(calls, str):
        return [(calls, None)]
    if isinstance(calls, dict) and calls and all(isinstance(name, str) for name in calls):
        return list(calls.items())
    if isinstance(calls, list) and calls:
        return [pair for one in calls for pair in _calls(one, where)]
    raise CasesError(f"{where}: a call is written {{call: {{name: {{argument: value}}}}}}")


def _tools(tools: object, where: str) -> list[Message]:
    if not isinstance(tools, list):
        raise CasesError(f"{where}: tools must be a list of names or declarations")
    return [{"name": tool} if isinstance(tool, str) else tool for tool in tools]
