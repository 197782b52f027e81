"""Join the texts of a turn as readers do: the model and the SDKs.

A turn is a run of messages of one side: the user's with the outputs of tools, or the model's, each candidate by itself.
There are three readings: its texts joined, its thoughts joined, and both joined in their order. A text that is only a
piece of such a reading knows its place in it (``Joined.readings``), and ``search`` looks there as well. A message of
the turn without text, such as a call, also knows the readings: a negation over it asks what the turn says.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress, count, repeat
from operator import contains
from typing import Any, NamedTuple

from gemini_proxy.policy.run.values import Joined, Within, is_text_chunk

_SIDES = frozenset(("user", "assistant", "tool"))


class Turn(NamedTuple):
    """The text of one side, and its messages without a text part, counted from 0."""

    said: list["Said"]
    silent: list[int]


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


class Linked(NamedTuple):
    """Messages with texts that know their readings; the same objects if no turn has two texts.

    ``silent`` has the readings of the turn for each message without a text part; ``chars`` counts the characters of all
    readings.
    """

    messages: Sequence[Mapping[str, Any]]
    silent: Mapping[int, Sequence[Within]]
    chars: int


def linked(messages: Sequence[Mapping[str, Any]], first: int = 0) -> Linked:
    """Link texts with their readings. Messages of a shape that cannot be read stay as they are.

    ``first`` is the index of the first message: those before it are in other turns.
    """
    if not _may_have_seams(messages):
        return Linked(messages, {}, 0)
    places: dict[tuple[int, int | None], list[Within]] = {}
    silent: dict[int, list[Within]] = {}
    chars = 0
    for turn in _turns(messages, first):
        for pieces in _readings(turn):
            reading = Joined.of([(piece.text, piece.address) for piece in pieces])
            chars += len(reading)
            start = 0
            for piece, end in zip(pieces, reading.ends, strict=True):
                if len(pieces) > 1:
                    places.setdefault((piece.message, piece.chunk), []).append((reading, start, end))
                start = end
            # A message without text has no place in a reading, but negations over it ask about the reading.
            for index in turn.silent:
                silent.setdefault(index, []).append((reading, 0, 0))
            if len(pieces) < len(turn.said):
                absent = (piece for piece in turn.said if piece.thought is not pieces[0].thought)
                for piece in absent:
                    places.setdefault((piece.message, piece.chunk), []).append((reading, 0, 0))
    return Linked(_with_places(messages, first, places), silent, chars)


def _with_places(
    messages: Sequence[Mapping[str, Any]], first: int, places: Mapping[tuple[int, int | None], Sequence[Within]]
) -> Sequence[Mapping[str, Any]]:
    if not places:
        return messages
    changed = list(messages)
    for (index, chunk), within in places.items():
        message = changed[index - first]
        content: Any = message.get("content")
        address = f"messages.{index}.content"
        if chunk is None:
            content = linked_text(content, address, within)
        else:
            content = list(message["content"]) if message is messages[index - first] else message["content"]
            text = linked_text(content[chunk]["text"], f"{address}.{chunk}.text", within)
            content[chunk] = {**content[chunk], "text": text}
        changed[index - first] = {**message, "content": content}
    return changed


def joined_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the texts that rules read as one though they stand in several places: of turns, and of lists of chunks."""
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        if type(content) is list and len(content) > 1:
            texts.append("".join([chunk["text"] for chunk in content if is_text_chunk(chunk)]))
    if _may_have_seams(messages):
        readings = (pieces for turn in _turns(messages) for pieces in _readings(turn))
        texts.extend("".join([piece.text for piece in pieces]) for pieces in readings)
    return texts


def begin_a_turn(messages: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether ``messages`` begin a turn behind those ``before`` them, so that no reading joins the two."""
    side = _first_side(messages)
    return bool(side) and side != _first_side(reversed(before))


def _first_side(messages: Iterable[Mapping[str, Any]]) -> str:
    """Return whose turn the first message is part of that is part of one; "" where none is."""
    for message in messages:
        if side := _side(message):
            return side
    return ""


def _may_have_seams(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return False where no turn has more than one message or chunk: what most conversations are, told quickly."""
    side, members = "", 0
    for message in messages:
        its = _side(message)
        if not its:
            continue
        if its != side:
            side, members = its, 0
        if message["role"] != "tool":
            content = message.get("content")
            members += max(1, len(content)) if isinstance(content, list) else 1
            if members > 1:
                return True
    return False


def linked_text(text: str, address: str, within: Sequence[Within]) -> Joined:
    """Return the text at ``address``, which knows where it stands in readings."""
    made = Joined(text, (address,), (len(text),))
    made.readings = tuple(within)
    return made


def _turns(messages: Sequence[Mapping[str, Any]], first: int = 0) -> list[Turn]:
    """Return the turns of more than one message or text; each candidate's begins with what stands before all."""
    turns: list[Turn] = []
    side = ""
    shared = Turn([], [])
    candidates: dict[int, Turn] = {}
    for index, message in enumerate(messages, first):
        its = _side(message)
        if not its:
            continue
        if its != side:
            turns.extend(candidates.values() or (shared,))
            side, shared, candidates = its, Turn([], []), {}
        if message["role"] == "tool":
            continue
        turn, candidate = shared, message.get("candidate")
        if its == "assistant" and type(candidate) is int:
            if candidate not in candidates:
                candidates[candidate] = Turn(list(shared.said), list(shared.silent))
            turn = candidates[candidate]
        if found := said(index, message):
            turn.said.extend(found)
        else:
            turn.silent.append(index)
    turns.extend(candidates.values() or (shared,))
    return [turn for turn in turns if turn.said and len(turn.said) + len(turn.silent) > 1]


def _side(message: Mapping[str, Any]) -> str:
    """Return whose turn a message is part of. A system message is part of none, and ends none."""
    role = message.get("role") if type(message) is dict else None
    if type(role) is not str or role not in _SIDES:
        return ""
    if "turn" in message:
        return "assistant" if message["turn"] == "assistant" else "user"
    return "assistant" if role == "assistant" or (role == "tool" and message.get("provider")) else "user"


def said(index: int, message: Mapping[str, Any]) -> list[Said]:
    """Return the texts of the message at ``index``."""
    if message.get("role") == "tool" or "field" in message:
        return []
    content, thought = message.get("content"), bool(message.get("thought"))
    if isinstance(content, str):
        return [Said(content, index, None, thought)] if content else []
    if not isinstance(content, list):
        return []
    return [
        Said(chunk["text"], index, place, thought)
        for place in _places_of_texts(content)
        if is_text_chunk(chunk := content[place]) and chunk["text"]
    ]


def _places_of_texts(content: list[Any]) -> Iterable[int]:
    """Return where text chunks may be. A long list without chunks is told quickly."""
    kinds = set(map(type, content))
    if kinds == {dict}:
        return compress(count(), map(contains, content, repeat("text")))
    return range(len(content)) if dict in kinds else ()


def said_last(messages: Sequence[Mapping[str, Any]]) -> list[Said]:
    """Return the texts of the model's turn that the messages end in, which a response continues."""
    first = len(messages)
    while first and _side(messages[first - 1]) != "user":
        first -= 1
    model = [index for index in range(first, len(messages)) if messages[index].get("role") == "assistant"]
    return [piece for index in model if _side(messages[index]) for piece in said(index, messages[index])]


def _readings(turn: Turn) -> list[list[Said]]:
    """Return the texts alone, the thoughts alone, and all if there are both: what joins several, or is all."""
    texts = [piece for piece in turn.said if not piece.thought]
    thoughts = [piece for piece in turn.said if piece.thought]
    if not (texts and thoughts):
        return [texts or thoughts]
    return [*(pieces for pieces in (texts, thoughts) if len(pieces) > 1), turn.said]
