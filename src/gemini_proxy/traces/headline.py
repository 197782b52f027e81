"""Summarize a trace: the start of its last question, the tools it called, and its conversation. No I/O."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

CONVERSATION_HEADER: Final = "x-gemini-proxy-conversation"
"""Names the conversation that an exchange belongs to."""
LONGEST: Final = 160
"""Characters of the last question that a trace keeps apart, and of an upstream's message in a line."""
KEY_LENGTH: Final = 12
"""Characters of a key's keyed hash that tell it from the others in filters and on pages."""
MAX_TOOLS: Final = 32
"""Names of tools that one trace is found by."""
_LOOKED_INTO: Final = 2_000
"""Characters of a text that are looked into for its first words."""
_MOST_WORDS: Final = LONGEST // 2 + 1
"""Words that fill what is kept of a question, however short they are."""
_DIGESTED: Final = 4_096
"""Characters from the beginning and the end of a text that tell it from another."""
_MOST_TEXTS: Final = 256
"""Texts of one message that are looked at: reading thousands would hold up the event loop."""

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class HitExcerpt:
    """The first hit of a search, with a little of the text around it."""

    before: str
    hit: str
    after: str


@dataclass(frozen=True, slots=True)
class Headline:
    """A trace in a line of a listing: its last question, and the upstream's error if there was one.

    ``status`` is the HTTP status of the upstream's response, None if there was none.
    """

    asked: str = ""
    status: int | None = None
    failure: str = ""
    excerpt: HitExcerpt | None = None


def question_of(messages: Messages) -> str:
    """Return the first words of the last user message that has some, on one line."""
    for message in reversed(messages):
        if message.get("role") == "user" and (said := _first_words(message)):
            return said
    return ""


def headline_of(metadata: object, asked: str) -> Headline:
    """Return the line of a trace; values of the wrong type count for nothing."""
    told = metadata if isinstance(metadata, Mapping) else {}
    failure = _upstream_failure(told) or told.get("error")
    return Headline(asked[:LONGEST], upstream_status(told), failure[:LONGEST] if isinstance(failure, str) else "")


def upstream_status(metadata: Mapping[str, Any]) -> int | None:
    """Return the HTTP status of the upstream's response; None if there was none, or none that can be one."""
    status = metadata.get("upstream_status")
    return status if isinstance(status, int) and 100 <= status <= 999 else None


def _upstream_failure(metadata: Mapping[str, Any]) -> str:
    """Return what the upstream said of its error, "" if it said nothing."""
    error = metadata.get("upstream_error")
    message = error.get("message") if isinstance(error, Mapping) else None
    return message if isinstance(message, str) else ""


def tools_called(messages: Messages) -> list[str]:
    """Return the names of the tools that the messages call, each once, at most MAX_TOOLS."""
    names: dict[str, None] = {}
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, Mapping) else None
            name = function.get("name") if isinstance(function, Mapping) else None
            if isinstance(name, str) and name:
                names[name] = None
        if len(names) >= MAX_TOOLS:
            break
    return list(names)[:MAX_TOOLS]


def conversation_of(messages: Messages) -> str:
    """Return an id that the exchanges of one conversation share: a digest of its beginning.

    The beginning is everything up to the end of the model's first turn, which every later request repeats, as one text
    or in the pieces in which it came. Thoughts do not count, because clients leave them out, nor do declared tools,
    which change. Of several candidates only the first one counts.
    """
    said: list[str] = []
    pieces: list[str] = []
    answered = False
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role == "assistant":
            if message.get("thought") or message.get("candidate"):
                continue
            answered = True
            if isinstance(content, str) and not message.get("tool_calls"):
                pieces.append(content)
                continue
        elif answered:
            break
        elif role is None:
            continue
        if pieces:
            said += ("assistant", "".join(pieces))
            pieces.clear()
        said.append(str(role))
        said += _texts(content)
        if "tool_calls" in message:
            said += _called(message["tool_calls"])
    if pieces:
        said += ("assistant", "".join(pieces))
    digested = "".join([f"{len(text)}\0{text if len(text) <= 2 * _DIGESTED else _ends(text)}\0" for text in said])
    return hashlib.blake2b(digested.encode(errors="replace"), digest_size=12).hexdigest()


def _ends(text: str) -> str:
    """Return the digested parts of a long text: its beginning and its end."""
    return f"{text[:_DIGESTED]}{text[-_DIGESTED:]}"


def _first_words(message: Mapping[str, Any]) -> str:
    words: list[str] = []
    for text in _texts(message.get("content")):
        words += text[:_LOOKED_INTO].split(maxsplit=_MOST_WORDS)
        if sum(map(len, words)) > LONGEST:
            break
    return " ".join(words)[:LONGEST]


def _texts(content: object) -> Sequence[str]:
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, list):
        return ()
    chunks = content[:_MOST_TEXTS]
    return [chunk["text"] for chunk in chunks if isinstance(chunk, dict) and isinstance(chunk.get("text"), str)]


def _called(calls: object) -> Sequence[str]:
    if not isinstance(calls, list):
        return ()
    functions = [call.get("function") for call in calls if isinstance(call, Mapping)]
    return [str(function.get("name")) for function in functions if isinstance(function, Mapping)]
