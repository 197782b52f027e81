"""What readers make of a conversation: the texts of one turn joined, as the model and the SDKs join them.

A turn is a run of messages of one side: the user's with the outputs of tools, or the model's, each candidate for
itself. Its texts are read as one, its thoughts are, and both in the order in which they came. A text that is only a
piece of such a reading knows where it stands in it (``Joined.readings``); ``search`` looks there as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gemini_proxy.policy.values import Joined, Within, is_text_chunk

_SIDES = frozenset(("user", "assistant", "tool"))

# Messages of one turn, with their places.
_Turn = list[tuple[int, Mapping[str, Any]]]


class Said(NamedTuple):
    """A text of a turn: of ``message``, counted from 0, and of the chunk of its content, None where that is text."""

    text: str
    message: int
    chunk: int | None = None
    thought: bool = False

    @property
    def address(self) -> str:
        content = f"messages.{self.message}.content"
        return content if self.chunk is None else f"{content}.{self.chunk}.text"


def linked(messages: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], int]:
    """The messages with texts that know their readings, and the characters of all readings.

    Where no turn has two texts these are the very messages. Messages of a shape that cannot be read stay as they are.
    """
    places: dict[tuple[int, int | None], list[Within]] = {}
    chars = 0
    for turn in _turns(messages):
        for pieces in _readings(turn):
            reading = Joined.of([(piece.text, piece.address) for piece in pieces])
            chars += len(reading)
            start = 0
            for piece, end in zip(pieces, reading.ends, strict=True):
                places.setdefault((piece.message, piece.chunk), []).append((reading, start, end))
                start = end
    if not places:
        return messages, 0
    changed = list(messages)
    for (index, chunk), within in places.items():
        message = changed[index]
        content = message["content"]
        address = f"messages.{index}.content"
        if chunk is None:
            content = _linked_text(content, address, within)
        else:
            content = list(content) if content is messages[index]["content"] else content
            text = _linked_text(content[chunk]["text"], f"{address}.{chunk}.text", within)
            content[chunk] = {**content[chunk], "text": text}
        changed[index] = {**message, "content": content}
    return changed, chars


def _linked_text(text: str, address: str, within: Sequence[Within]) -> Joined:
    made = Joined(text, (address,), (len(text),))
    made.readings = tuple(within)
    return made


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[list[Said]]:
    """The turns of more than one text; those of several candidates begin with what stands before all of them."""
    turns: list[_Turn] = []
    side = ""
    shared: _Turn = []
    candidates: dict[int, _Turn] = {}
    for index, message in enumerate(messages):
        its = _side(message)
        if not its:
            continue
        if its != side:
            turns.extend(candidates.values() or (shared,))
            side, shared, candidates = its, [], {}
        candidate = message.get("candidate")
        if its == "assistant" and type(candidate) is int:
            candidates.setdefault(candidate, list(shared)).append((index, message))
        elif message["role"] != "tool":
            shared.append((index, message))
    turns.extend(candidates.values() or (shared,))
    read = (_said_in(turn) for turn in turns)
    return [pieces for pieces in read if len(pieces) > 1]


def _said_in(turn: _Turn) -> list[Said]:
    """The texts of a turn, nothing where a glance shows that there is one at most."""
    if not turn or (len(turn) == 1 and _is_one(turn[0][1].get("content"))):
        return []
    return [piece for index, message in turn for piece in said(index, message)]


def _is_one(content: Any) -> bool:
    return type(content) is str or content is None or (type(content) is list and len(content) < 2)


def _side(message: Mapping[str, Any]) -> str:
    """Whose turn a message is part of; of none, and no interruption, is what no text part says."""
    role = message.get("role") if type(message) is dict else None
    if type(role) is not str or role not in _SIDES or "field" in message:
        return ""
    return "assistant" if role == "assistant" or (role == "tool" and message.get("provider")) else "user"


def said(index: int, message: Mapping[str, Any]) -> list[Said]:
    """The texts of a message that stands at ``index``."""
    if message.get("role") == "tool" or "field" in message:
        return []
    content, thought = message.get("content"), bool(message.get("thought"))
    if isinstance(content, str):
        return [Said(content, index, None, thought)] if content else []
    if not isinstance(content, list):
        return []
    return [
        Said(chunk["text"], index, place, thought)
        for place, chunk in enumerate(content)
        # Lists are long where nothing in them is a chunk.
        if type(chunk) is dict and chunk.get("text") and is_text_chunk(chunk)
    ]


def said_last(messages: Sequence[Mapping[str, Any]]) -> list[Said]:
    """The texts of the model's turn that the messages end in, which an answer to them goes on with."""
    first = len(messages)
    while first and _side(messages[first - 1]) != "user":
        first -= 1
    model = [index for index in range(first, len(messages)) if messages[index].get("role") == "assistant"]
    return [piece for index in model if _side(messages[index]) for piece in said(index, messages[index])]


def _readings(turn: Sequence[Said]) -> list[list[Said]]:
    """The texts alone, the thoughts alone, and all where there are both: what joins more than one."""
    texts = [piece for piece in turn if not piece.thought]
    thoughts = [piece for piece in turn if piece.thought]
    joined = [texts, thoughts, list(turn)] if texts and thoughts else [texts or thoughts]
    return [pieces for pieces in joined if len(pieces) > 1]
