"""Find the call that an output answers, and give every call its own id. Gemini gives none, or repeats them.

Both work on messages as traces keep them, in which ids stand only where the wire gave them.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_Key = tuple[str | None, str | None]
"""The reference of an output to a call: the client's id, a name, or both."""


CallPlace = tuple[int, int]
"""The position of a call: the index of its message, and its index among that message's calls."""


def answered_calls(messages: Sequence[Mapping[str, Any]]) -> dict[int, CallPlace]:
    """Return the place of the call that each tool message answers, by the index of the tool message."""
    for message in messages:
        if "tool_calls" in message:
            break
    else:
        return {}
    places: dict[tuple[Any, str], CallPlace] = {}
    answered: dict[int, CallPlace] = {}
    for candidate, call_id, place in _linked(messages):
        if isinstance(place, tuple):
            places[candidate, call_id] = place
        else:
            called = places.get((candidate, call_id), places.get((None, call_id)))
            if called is not None:
                answered[place] = called
    return answered


def with_ids(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the messages with a unique id on every call, and on every output the id of the call that it answers."""
    if not any("tool_calls" in message or message.get("role") == "tool" for message in messages):
        return messages
    made: list[Mapping[str, Any]] = list(messages)
    for _, call_id, place in _linked(messages):
        if isinstance(place, tuple):
            index, number = place
            message = made[index]
            if message is messages[index]:
                message = made[index] = {**message, "tool_calls": list(message["tool_calls"])}
            message["tool_calls"][number] = {**message["tool_calls"][number], "id": call_id}
        else:
            made[place] = {**made[place], "tool_call_id": call_id}
    return made


def _linked(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, str, CallPlace | int]]:
    """Yield every call and output in order: candidate, id, place. Each candidate continues the request."""
    request = CallLinks()
    responses: dict[Any, CallLinks] = {}
    for index, message in enumerate(messages):
        if "tool_calls" not in message and message.get("role") != "tool":
            continue
        candidate = message.get("candidate")
        links = request if candidate is None else responses.get(candidate)
        if links is None:
            links = responses[candidate] = request.copy()
        if message.get("role") == "tool":
            name = message.get("tool_name") or message.get("name")
            yield candidate, links.output(_text(message.get("tool_call_id")), _text(name)), index
            continue
        calls = message["tool_calls"]
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                function = call.get("function")
                name = function.get("name") if isinstance(function, dict) else ""
                yield candidate, links.call(_text(call.get("id")), _text(name)), (index, number)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


class CallLinks:
    """Link the calls and outputs of a conversation. Each step takes constant time on average, whatever the ids."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._number = 0
        self._keys: dict[str, tuple[_Key, ...]] = {}
        self._waiting: dict[_Key, deque[str]] = {}
        self._answered: set[str] = set()
        self._last: dict[_Key, str] = {}

    def copy(self) -> "CallLinks":
        """Copy the calls so far, to continue from them separately."""
        copied = CallLinks()
        copied._ids = set(self._ids)
        copied._number = self._number
        copied._keys = dict(self._keys)
        copied._waiting = {key: deque(ids) for key, ids in self._waiting.items()}
        copied._answered = set(self._answered)
        copied._last = dict(self._last)
        return copied

    def call(self, given: str, name: str) -> str:
        """Return the id of a new call: ``given``, if there is one and no call has it yet."""
        call_id = self._new_id(given)
        own: tuple[_Key, ...] = ((given, name), (given, None)) if given else ()
        self._keys[call_id] = (*own, (None, name), (None, None))
        for key in self._keys[call_id]:
            self._waiting.setdefault(key, deque()).append(call_id)
        return call_id

    def output(self, given: str, name: str) -> str:
        """Return the id of the call that an output answers. An output without a call gets an id of its own.

        The call is found by its id, else by its name, else by its place: the first call without an output, else the
        call that was answered last.
        """
        for key in _keys(given, name):
            if (call_id := self._next(key)) is not None:
                self._answered.add(call_id)
                for called in self._keys[call_id]:
                    self._last[called] = call_id
                return call_id
            if key in self._last:
                return self._last[key]
        return self._new_id(given)

    def _next(self, key: _Key) -> str | None:
        waiting = self._waiting.get(key)
        while waiting:
            call_id = waiting.popleft()
            if call_id not in self._answered:
                return call_id
        return None

    def _new_id(self, given: str) -> str:
        call_id = given
        while not call_id or call_id in self._ids:
            # The number only grows: each id that a client chose to collide costs one step, once.
            self._number += 1
            call_id = f"{given or 'call'}_{self._number}"
        self._ids.add(call_id)
        return call_id


def _keys(given: str, name: str) -> tuple[_Key, ...]:
    """Return what an output names its call by, the surest first."""
    if given and name:
        return (given, name), (given, None), (None, name)
    return ((given or None, name or None),)
