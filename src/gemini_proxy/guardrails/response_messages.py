"""Turn a merged response into the messages that rules read, one candidate at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.candidates import Candidate
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message, MessageList
from gemini_proxy.gemini.parts import Unchecked, strings_in
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.gemini.response_fields import Texts


@dataclass(frozen=True, slots=True)
class CandidateMessages:
    """The messages of one candidate, and its parts that no rule can read.

    Addresses count from the request's first message, as if this were the only candidate. The first ``turn`` messages
    are the model's turn; the others are texts in fields of the response.
    """

    index: int
    messages: tuple[Message, ...]
    unchecked: tuple[Unchecked, ...]
    turn: int


@dataclass(frozen=True, slots=True)
class _Tool:
    """A tool that the provider runs by itself, and the fields of a response with its input and output.

    ``of_parts`` has the tool's names in parts with the same content.
    """

    name: str
    of_parts: frozenset[str]
    argument: str
    asked: tuple[str, ...]
    found: tuple[str, ...]


_URLS = "urlContextMetadata.retrievedUrl"
_QUERIES = tuple(f"groundingMetadata.{kind}Queries" for kind in ("webSearch", "imageSearch", "retrieval"))
_TOOLS = (
    _Tool("google_search", frozenset({"google_search"}), "queries", _QUERIES[:2], ("groundingMetadata",)),
    _Tool("google_maps", frozenset({"google_maps"}), "queries", (), ("groundingMetadata.maps",)),
    _Tool("retrieval", frozenset({"file_search"}), "queries", _QUERIES[2:], ("groundingMetadata.retrievedContext",)),
    _Tool("url_context", frozenset({"url_context"}), "urls", (_URLS,), (_URLS, "urlContextMetadata")),
)
_REPEATED = {
    "interaction.userInput": "user",
    "interaction.systemInstruction": "system",
    "interaction.tools": "system",
}
"""Fields in which a response repeats its request, and whose words these are."""
_OF_TOOLS = frozenset(field for tool in _TOOLS for field in (*tool.asked, *tool.found))


def candidate_messages(request: GeminiRequest, merger: Merger) -> tuple[CandidateMessages, ...]:
    """Read every candidate of ``merger``. Raises DecodeError for parts that cannot be read.

    The last candidate also has the texts of the response itself. Without a candidate they stand alone.
    """
    candidates = merger.candidates
    several = len(candidates) > 1
    try:
        read = [_candidate(request, candidate, several) for candidate in candidates]
    except BadRequest as error:
        raise DecodeError(f"The upstream's response cannot be read: {error.message}") from None
    if not merger.fields.said and not merger.fields.has_unchecked:
        return tuple(read)
    beside, unchecked = _field_messages(merger.fields.said), merger.fields.unchecked("response")
    if beside or unchecked:
        last = read.pop() if read else CandidateMessages(0, (), (), 0)
        read.append(replace(last, messages=(*last.messages, *beside), unchecked=(*last.unchecked, *unchecked)))
    return tuple(read)


def _candidate(request: GeminiRequest, candidate: Candidate, several: bool) -> CandidateMessages:
    builder = MessageList()
    builder.add_content("assistant", candidate.parts)
    beside_parts = candidate.fields.said or candidate.fields.has_unchecked or candidate.tokens is not None
    if not beside_parts and not builder.unchecked and not several:
        return CandidateMessages(candidate.index, tuple(builder.messages), (), len(builder.messages))
    said = list(builder.messages)
    ran = _provider_messages(candidate.fields.said, builder.messages)
    for place, message in reversed(ran):
        said.insert(place, message)
    beside = _field_messages({field: texts for field, texts in candidate.fields.said.items() if field not in _OF_TOOLS})
    if candidate.tokens is not None:
        beside += _field_messages(candidate.tokens.said)
    messages = [*said, *beside]
    if several:
        messages = [{**message, "candidate": candidate.index} for message in messages]
    places = [place for place, _ in ran]
    unchecked = [
        Unchecked(_moved(content.address, len(request.messages), places), content.reason)
        for content in builder.unchecked
    ]
    unchecked += candidate.fields.unchecked(f"candidates.{candidate.index}")
    return CandidateMessages(candidate.index, tuple(messages), tuple(unchecked), len(said))


def _provider_messages(said: Texts, parts: Sequence[Message]) -> list[tuple[int, Message]]:
    """Return the provider's calls and results that only fields name, each with its place among ``parts``.

    That place is the beginning, or after the parts about the same tool. A call that is also among the parts counts
    once.
    """
    if _OF_TOOLS.isdisjoint(said):
        return []
    told = list(_told(parts))
    placed: list[tuple[int, Message]] = []
    for tool in _TOOLS:
        ran = MessageList()
        known = set(strings_in([values for _, name, values in told if name in tool.of_parts]))
        asked = [text for field in tool.asked for text in said.get(field, ()) if text not in known]
        results = [text for field in tool.found for text in said.get(field, ())]
        if asked:
            ran.add_provider_call(tool.name, {tool.argument: asked})
        if asked or not known.issuperset(results):
            ran.add_provider_output(tool.name, "\n".join(results))
        place = 0 if asked else max((index + 1 for index, name, _ in told if name in tool.of_parts), default=0)
        placed.extend((place, message) for message in ran.messages)
    return sorted(placed, key=itemgetter(0))


def _told(parts: Sequence[Message]) -> Iterator[tuple[int, str, Any]]:
    """Yield the tools that the provider ran by its parts: the index, the name, and the arguments or the result."""
    for index, message in enumerate(parts):
        if not message.get("provider"):
            continue
        if message["role"] == "tool":
            yield index, message["tool_name"], message["content"]
        for call in message.get("tool_calls", ()):
            yield index, call["function"]["name"], list(call["function"]["arguments"].values())


def _field_messages(said: Texts) -> list[Message]:
    return [_field_message(field, "\n".join(texts)) for field, texts in said.items() if texts]


def _field_message(field: str, text: str) -> Message:
    """Return the message of a field: the model's, or an earlier speaker's if a response repeats a request."""
    role = _REPEATED.get(field, "assistant")
    return {"role": role, "content": [{"type": "text", "text": text}] if role == "user" else text, "field": field}


def _moved(address: str, by: int, places: Sequence[int]) -> str:
    """Move an address behind ``by`` messages and those that were put in at ``places``."""
    head, given, rest = address.split(".", 2)
    index = int(given)
    return f"{head}.{index + by + sum(place <= index for place in places)}.{rest}"


def for_rules(messages: Sequence[Message], thoughts: str) -> Sequence[Message]:
    """Return the messages as rules see them: with ``thoughts = "skip"`` a thought keeps its place without its text."""
    if thoughts == "check" or not any(is_thought(message) for message in messages):
        return messages
    return [{**message, "content": ""} if is_thought(message) else message for message in messages]


def is_thought(message: Message) -> bool:
    """Return whether it is a thought of the model: a prompt that a client marks as one is still a prompt."""
    return "thought" in message and message["role"] == "assistant"
