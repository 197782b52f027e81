"""Compute digests of a conversation up to the end of each model turn, to recognize a history. No I/O."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

_TEXT: Final = frozenset(("role", "content", "thought"))
_CALLS: Final = frozenset(("role", "tool_calls"))

Messages = Sequence[Mapping[str, Any]]


def turn_ends(messages: Messages) -> Iterator[tuple[int, str]]:
    """Yield for each turn of the model the number of messages up to its end, and a digest of these messages.

    Two conversations have the same digest if they have the same content in the same order. The division of a model's
    turn into messages does not count: clients keep a response as one text, or as the pieces in which it came.
    """
    chain = hashlib.blake2b(digest_size=32)
    turn: list[Mapping[str, Any]] = []
    for number, message in enumerate(messages):
        if is_of_model(message):
            turn.append(message)
            continue
        if turn:
            chain.update(_line(_said(turn)))
            yield number, chain.hexdigest()
            turn.clear()
        chain.update(_line(message))
    if turn:
        chain.update(_line(_said(turn)))
        yield len(messages), chain.hexdigest()


def answered(request: Messages, response: Messages) -> list[str]:
    """Return digests of a request with its response, as clients may send them in a history.

    Clients keep one candidate. They drop texts in fields of the response, and may drop thoughts and server-side calls.
    """
    numbers = dict.fromkeys(message.get("candidate") for message in response)
    kept: list[list[Mapping[str, Any]]] = []
    for number in numbers:
        whole = [message for message in response if message.get("candidate") == number]
        parts = [message for message in whole if "field" not in message]
        own = [message for message in parts if not message.get("provider")]
        kept += [whole, parts, own, _without_thoughts(parts), _without_thoughts(own)]
    digests: dict[str, None] = {}
    for candidate in kept:
        if candidate:
            *_, (_, digest) = turn_ends((*request, *candidate))
            digests[digest] = None
    return list(digests)


def _without_thoughts(messages: Messages) -> list[Mapping[str, Any]]:
    return [message for message in messages if not message.get("thought")]


def is_of_model(message: Mapping[str, Any]) -> bool:
    """Return whether a message belongs to a model turn."""
    return message.get("turn", message.get("role")) == "assistant" or bool(message.get("provider"))


def _said(turn: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the content of a turn: consecutive texts joined, calls one by one."""
    said: list[Any] = []
    for message in turn:
        message = {name: value for name, value in message.items() if name != "candidate"}
        if message.keys() <= _TEXT and isinstance(text := message.get("content"), str):
            thought = bool(message.get("thought"))
            if said and said[-1][:2] == ["text", thought]:
                said[-1][2] += text
            elif text:
                said.append(["text", thought, text])
        elif message.keys() <= _CALLS:
            said += [["call", call] for call in message["tool_calls"]]
        else:
            said.append(["other", message])
    return said


def _line(value: Any) -> bytes:
    # Text that JSON cannot hold, such as half a surrogate pair, still gets a digest of its own.
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return f"{value!r}\n".encode(errors="backslashreplace")
