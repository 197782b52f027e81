"""From a merged answer to the messages that rules read, a candidate at a time."""

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
    """The messages of one candidate, and what in it no rule can read. Addresses count from the request's first message
    as if this were the only candidate.

    ``turn`` is how many of the messages are what the model says; those behind are what fields of the response say.
    """

    index: int
    messages: tuple[Message, ...]
    unchecked: tuple[Unchecked, ...]
    turn: int


@dataclass(frozen=True, slots=True)
class _Tool:
    """What the provider runs by itself, as the fields of an answer tell: what was asked, and what came of it.

    ``of_parts`` are the names of the tools in parts that tell of the same.
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
_OF_TOOLS = frozenset(field for tool in _TOOLS for field in (*tool.asked, *tool.found))


def candidate_messages(request: GeminiRequest, merger: Merger) -> tuple[CandidateMessages, ...]:
    """Read every candidate of ``merger``, the last with what the response itself says, or that alone where there is no
    candidate. Raises DecodeError for parts that cannot be read."""
    candidates = merger.candidates
    several = len(candidates) > 1
    try:
        read = [_candidate(request, candidate, several) for candidate in candidates]
    except BadRequest as error:
        raise DecodeError(f"The upstream's answer cannot be read: {error.message}") from None
    beside, unchecked = _field_messages(merger.fields.said), merger.fields.unchecked("response")
    if beside or unchecked:
        last = read.pop() if read else CandidateMessages(0, (), (), 0)
        read.append(replace(last, messages=(*last.messages, *beside), unchecked=(*last.unchecked, *unchecked)))
    return tuple(read)


def _candidate(request: GeminiRequest, candidate: Candidate, several: bool) -> CandidateMessages:
    builder = MessageList()
    builder.add_content("assistant", candidate.parts)
    said = list(builder.messages)
    ran = _provider_messages(candidate.fields.said, builder.messages)
    for place, message in reversed(ran):
        said.insert(place, message)
    beside = _field_messages({field: texts for field, texts in candidate.fields.said.items() if field not in _OF_TOOLS})
    beside += _field_messages(candidate.tokens.said)
    messages = [*said, *beside]
    if several:
        messages = [{**message, "candidate": candidate.index} for message in messages]
    places = [place for place, _ in ran]
    unchecked = [
        Unchecked(_moved(found.address, len(request.messages), places), found.reason) for found in builder.unchecked
    ]
    unchecked += candidate.fields.unchecked(f"candidates.{candidate.index}")
    return CandidateMessages(candidate.index, tuple(messages), tuple(unchecked), len(said))


def _provider_messages(said: Texts, parts: Sequence[Message]) -> list[tuple[int, Message]]:
    """Calls that the provider ran and their results, of which the fields alone tell, each with the place among
    ``parts`` that it goes to: to the beginning, or behind what the parts tell of the same tool.

    A call that is among the parts as well happened once.
    """
    if _OF_TOOLS.isdisjoint(said):
        return []
    told = list(_told(parts))
    placed: list[tuple[int, Message]] = []
    for tool in _TOOLS:
        ran = MessageList()
        known = set(strings_in([values for _, name, values in told if name in tool.of_parts]))
        asked = [text for field in tool.asked for text in said.get(field, ()) if text not in known]
        found = [text for field in tool.found for text in said.get(field, ())]
        if asked:
            ran.add_provider_call(tool.name, {tool.argument: asked})
        if asked or not known.issuperset(found):
            ran.add_provider_output(tool.name, "\n".join(found))
        place = 0 if asked else max((index + 1 for index, name, _ in told if name in tool.of_parts), default=0)
        placed.extend((place, message) for message in ran.messages)
    return sorted(placed, key=itemgetter(0))


def _told(parts: Sequence[Message]) -> Iterator[tuple[int, str, Any]]:
    """The tools of which parts tell that the provider ran them: where, which, and its arguments or what came of it."""
    for index, message in enumerate(parts):
        if not message.get("provider"):
            continue
        if message["role"] == "tool":
            yield index, message["tool_name"], message["content"]
        for call in message.get("tool_calls", ()):
            yield index, call["function"]["name"], list(call["function"]["arguments"].values())


def _field_messages(said: Texts) -> list[Message]:
    return [
        {"role": "assistant", "content": "\n".join(texts), "field": field} for field, texts in said.items() if texts
    ]


def _moved(address: str, by: int, places: Sequence[int]) -> str:
    """An address among the parts' messages, behind ``by`` messages and those that were put in at ``places``."""
    head, given, rest = address.split(".", 2)
    index = int(given)
    return f"{head}.{index + by + sum(place <= index for place in places)}.{rest}"


def for_rules(messages: Sequence[Message], thoughts: str) -> Sequence[Message]:
    """The messages as rules see them: with ``thoughts = "skip"`` a thought keeps its place and loses its text."""
    if thoughts == "check" or not any(is_thought(message) for message in messages):
        return messages
    return [{**message, "content": ""} if is_thought(message) else message for message in messages]


def is_thought(message: Message) -> bool:
    """Return whether the model thinks: a prompt that a client marks as a thought is a prompt all the same."""
    return "thought" in message and message["role"] == "assistant"
