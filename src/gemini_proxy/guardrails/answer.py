"""From a merged answer to the messages that rules read, a candidate at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.parts import Unseen
from gemini_proxy.gemini.request import GeminiRequest


@dataclass(frozen=True, slots=True)
class CandidateMessages:
    """The messages of one candidate, and what in it no rule can read. Addresses count from the request's first message
    as if this were the only candidate."""

    index: int
    messages: tuple[Message, ...]
    unseen: tuple[Unseen, ...]


def candidate_messages(request: GeminiRequest, merger: Merger) -> tuple[CandidateMessages, ...]:
    """Read every candidate of ``merger``. Raises DecodeError for parts that cannot be read."""
    try:
        candidates = merger.candidates
        return tuple([_candidate(request, candidate, len(candidates) > 1) for candidate in candidates])
    except BadRequest as error:
        raise DecodeError(f"The upstream's answer cannot be read: {error.message}") from None


def _candidate(request: GeminiRequest, candidate: Any, several: bool) -> CandidateMessages:
    builder = request.linked.continued()
    builder.add_content("assistant", candidate.parts)
    messages = (
        [{**message, "candidate": candidate.index} for message in builder.messages] if several else builder.messages
    )
    offset = len(request.messages)
    unseen = [Unseen(_moved(found.address, offset), found.reason) for found in builder.unseen]
    for name in ("grounding_metadata", "url_context_metadata"):
        if getattr(candidate, name):
            unseen.append(Unseen(f"candidates.{candidate.index}.{name}", "sources named by the provider"))
    return CandidateMessages(candidate.index, tuple(messages), tuple(unseen))


def _moved(address: str, by: int) -> str:
    head, index, rest = address.split(".", 2)
    return f"{head}.{int(index) + by}.{rest}"


def for_rules(messages: Sequence[Message], thoughts: str) -> Sequence[Message]:
    """The messages as rules see them: with ``thoughts = "skip"`` a thought keeps its place and loses its text."""
    if thoughts == "check" or not any("thought" in message for message in messages):
        return messages
    return [{**message, "content": ""} if message.get("thought") else message for message in messages]
