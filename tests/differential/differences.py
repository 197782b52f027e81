"""The deliberate differences between the two engines, and the proof that a verdict differs for one of them.

A difference is undone: in a conversation by rewriting it into one that the stock engine reads as we read the original,
in a policy by the text of ``Case.stock``. Where the stock engine, given what is rewritten, says what we said of the
original, the difference is explained by what was rewritten. An error of the stock engine that no rewriting can keep
away is known by its words, and by what has to be in the conversation.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from tests.differential.conversations import Message
from tests.differential.oracle import Outcome

Messages = list[Message]

_SEAM: Final = "\x00"


@dataclass(frozen=True, slots=True)
class Difference:
    """One deliberate difference. ``rewrite`` gives the conversation without it; None where a policy shows it."""

    name: str
    reason: str
    rewrite: Callable[[Messages], Messages] | None = None


@dataclass(frozen=True, slots=True)
class KnownError:
    """An error of one engine where the other has an answer: its words, and whether the conversation is of its kind."""

    name: str
    reason: str
    words: re.Pattern[str]
    applies: Callable[[Messages], bool]


def _with_content(messages: Messages, change: Callable[[Message, Any], Any]) -> Messages:
    return [
        {**message, "content": change(message, message.get("content"))} if "role" in message else message
        for message in messages
    ]


def _is_chunks(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(item, dict) and "type" in item for item in content)


def _no_content(messages: Messages) -> Messages:
    return _with_content(messages, lambda message, content: "" if content is None else content)


def _chunks(messages: Messages) -> Messages:
    """Each message with chunks as one text: the texts of the chunks, and between them what no pattern asks for."""

    def joined(message: Message, content: Any) -> Any:
        return _SEAM.join(item["text"] for item in content if "text" in item) if _is_chunks(content) else content

    return _with_content(messages, joined)


def _chunks_apart(messages: Messages) -> Messages:
    """Each message with chunks as one message for each text: so that a pattern meets the beginning of each."""
    return [part for message in messages for part in _apart(message)]


def _apart(message: Message) -> Messages:
    content = message.get("content")
    if not _is_chunks(content) or not content:
        return [message]
    texts = [{**message, "content": item["text"], "tool_calls": []} for item in content if "text" in item]
    return [*texts, {**message, "content": ""}]


def _chunks_as_one(messages: Messages) -> Messages:
    """Each message with chunks as one text, nothing between them."""

    def joined(message: Message, content: Any) -> Any:
        return "".join(item["text"] for item in content if "text" in item) if _is_chunks(content) else content

    return _with_content(messages, joined)


def _turns(messages: Messages) -> Messages:
    """Behind each turn with several texts a message of what they are together."""
    made: Messages = []
    texts: list[str] = []
    side = ""
    for message in messages:
        role = "assistant" if "function" in message else message.get("role", "")
        now = {"assistant": "assistant", "user": "user", "tool": "user"}.get(role, side)
        if now != side:
            made.extend(_together(side, texts))
            side, texts = now, []
        made.append(message)
        if role == now:
            texts.extend(_said(message.get("content")))
    return [*made, *_together(side, texts)]


def _said(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [item["text"] for item in content if "text" in item] if content and _is_chunks(content) else []


def _together(role: str, texts: list[str]) -> Messages:
    return [{"role": role, "content": "".join(texts)}] if len(texts) > 1 else []


def _turn_in_each(messages: Messages) -> Messages:
    """Each message of a turn with several texts says what the turn says, behind its own."""
    made: Messages = []
    start, side = 0, ""
    for at, message in enumerate([*messages, {"role": "end"}]):
        role = "assistant" if "function" in message else message.get("role", "")
        now = {"assistant": "assistant", "user": "user", "tool": "user", "end": "end"}.get(role, side)
        if now != side:
            made.extend(_saying(messages[start:at], side))
            start, side = at, now
    return made


def _saying(turn: Messages, role: str) -> Messages:
    texts = [text for message in turn if message.get("role") == role for text in _said(message.get("content"))]
    if not texts or len([message for message in turn if message.get("role") == role]) < 2:
        return turn
    said = "".join(texts)
    return [
        {**message, "content": _SEAM.join([*_said(message.get("content")), said])}
        if message.get("role") == role
        else message
        for message in turn
    ]


def _data(messages: Messages) -> Messages:
    """Data as text chunks, one for each string, key and number in it."""

    def listed(message: Message, content: Any) -> Any:
        if _is_chunks(content) or not isinstance(content, list | dict):
            return content
        return [{"type": "text", "text": leaf} for leaf in _leaves(content)]

    return _with_content(messages, listed)


def _data_joined(messages: Messages) -> Messages:
    return _chunks(_data(messages))


def _data_apart(messages: Messages) -> Messages:
    return _chunks_apart(_data(messages))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *_leaves(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _calls(message: Message) -> list[Message]:
    return [message] if "function" in message else message.get("tool_calls") or []


def _ids(messages: Messages) -> Messages:
    """Every call with an id, every output without one with that of the earliest call that is not answered."""
    copied: Messages = json.loads(json.dumps(messages))
    unanswered: dict[str, None] = {}
    for place, message in enumerate(copied):
        for number, call in enumerate(_calls(message)):
            unanswered[call.setdefault("id", f"made_{place}_{number}")] = None
        if message.get("role") == "tool":
            if not message.get("tool_call_id"):
                message["tool_call_id"] = next(iter(unanswered), "of no call")
            unanswered.pop(message.get("tool_call_id", ""), None)
    return copied


def _arguments(messages: Messages) -> Messages:
    """Arguments that are no object as one with the member ``raw``."""
    copied: Messages = json.loads(json.dumps(messages))
    for message in copied:
        for call in _calls(message):
            call["function"]["arguments"] = _read(call["function"]["arguments"])
    return copied


def _read(arguments: Any) -> dict[str, Any]:
    if arguments is None:
        return {}
    if not isinstance(arguments, str):
        return dict(arguments)
    try:
        read = json.loads(arguments)
    except ValueError:
        return {"raw": arguments}
    return read if isinstance(read, dict) else {"raw": arguments}


def _has_orphan(messages: Messages) -> bool:
    """Whether an output names no call, or there is no call left that it could answer."""
    known: set[str] = set()
    for message in _ids(messages):
        known.update(call["id"] for call in _calls(message))
        if message.get("role") == "tool" and message.get("tool_call_id") not in known:
            return True
    return False


def _has_json(messages: Messages) -> bool:
    """Whether a text in the messages is JSON, or reads like it."""
    return any(_is_json(leaf) for leaf in _leaves(messages))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


CONVERSATIONS: Final = (
    Difference("no content is empty text", "the stock engine raises on None where a text is asked for", _no_content),
    Difference("chunks are searched one by one", "find, match and methods raise there on a list of chunks", _chunks),
    Difference(
        "chunks are searched one by one", "find, match and methods raise there on a list of chunks", _chunks_apart
    ),
    Difference("chunks are one text", "len and == see a list of chunks there", _chunks_as_one),
    Difference("outputs of any shape are searched", "there data is not scanned, or refused", _data),
    Difference("outputs of any shape are searched", "there data is not scanned, or refused", _data_joined),
    Difference("outputs of any shape are searched", "there data is not scanned, or refused", _data_apart),
    Difference("outputs without ids answer the earliest open call", "there all belong to the last call", _ids),
    Difference("arguments that are no object are read as raw", "there the whole conversation is refused", _arguments),
    Difference("texts of a turn are read as one", "each message is searched alone there", _turns),
    Difference("a negation asks the whole turn", "it asks the message alone there", _turn_in_each),
)

POLICIES: Final = (
    Difference("a variable needs its event", "a constant message fires there on an empty trace"),
    Difference("truth is Python's", "a condition there must be exactly True: lists and numbers never fire"),
    Difference("precedence is Python's", "and, or, not and comparisons group by the shape of their operands there"),
    Difference("in is literal", "its left side is a regular expression there, and can raise"),
    Difference("literals have escapes", "a backslash and an n are two characters there outside of patterns"),
    Difference("match takes line ends with a dot", "a line end gets around a .* there"),
    Difference("a tool pattern matches the whole argument", "alternatives are not grouped there before the $"),
    Difference("a quoted star is a wildcard", "there it is a pattern that cannot compile"),
    Difference("what is missing is None", "there a missing key or field raises"),
    Difference("no content is empty text", "None there, so it is None and == None differ"),
    Difference("a plain text is one TextChunk", "there only chunks of a list are"),
    Difference("a body is what is indented more than its head", "uneven indentation loads there and raises"),
    Difference("a wildcard asks nothing", "behind an argument pattern it keeps the pattern from ever fitting there"),
    Difference("not in, slices", "there they do not parse"),
    Difference("a line is a line", "a line that begins with a parenthesis is a call of what the line before ends with"),
    Difference("a written list can hold an event's values", "there its items are taken before the event is known"),
    Difference("words are ASCII", "in RE2 a word ends before a letter that is not in ASCII, in Python behind it"),
    Difference("case is RE2's", "without case, Python takes a dotted capital I for an i"),
    Difference(
        "detectors know other patterns", "ours and theirs are lists of patterns, and neither contains the other"
    ),
)

_NOT_TEXT = r"(TypeError: '\w+' object is not subscriptable|TypeError: (list|string) indices|KeyError: '\w+')"

STOCK_ERRORS: Final = (
    KnownError(
        "a missing parameter is an error where it is read",
        "the stock engine reads it before it knows whether there is anything to check",
        re.compile("MissingPolicyParameter: "),
        lambda messages: True,
    ),
    KnownError(
        "a text is a text",
        "the stock engine reads JSON first where a text that looks like it is asked for a method",
        re.compile(_NOT_TEXT + r".*\[visit_MemberAccess\]"),
        _has_json,
    ),
    KnownError(
        "an output of no call is no tool's",
        "the stock engine raises when it is asked for its tool",
        re.compile("AttributeError: .*_tool_call"),
        _has_orphan,
    ),
)


def rewritings(messages: Messages) -> Iterator[tuple[tuple[str, ...], Messages]]:
    """Every combination of differences that changes the conversation, the fewest first; nothing changed at first."""
    applying = [one for one in CONVERSATIONS if one.rewrite and one.rewrite(messages) != messages]
    for size in range(len(applying) + 1):
        for chosen in combinations(applying, size):
            changed = messages
            for one in chosen:
                changed = one.rewrite(changed) if one.rewrite else changed
            yield tuple(one.name for one in chosen), changed


OUR_ERRORS: Final = (
    KnownError(
        "a text is a text",
        "the stock engine reads a text as JSON where a field of it is asked for; ours asks for json_loads",
        re.compile(r'EvaluationError: .*(text|list) has no field "'),
        lambda messages: True,
    ),
)


def our_known_error(outcome: Outcome, messages: Messages) -> str | None:
    """The name of the error of our engine that this is, where the stock engine has an answer."""
    return next((one.name for one in OUR_ERRORS if one.words.search(str(outcome)) and one.applies(messages)), None)


def known_error(outcome: Outcome, messages: Messages) -> str | None:
    """The name of the error of the stock engine that this is."""
    return next((one.name for one in STOCK_ERRORS if one.words.search(str(outcome)) and one.applies(messages)), None)
