"""Put a response together from the events in which it came."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.candidates import Candidate, Delta
from gemini_proxy.gemini.response_fields import RESPONSE, FieldTexts, is_id

_RESPONSE = -1
"""Replaces a candidate's index, for content of the response itself."""
# Each API has its own name for "no reason"; clients that ask for integers get 0.
_NO_BLOCK = frozenset((None, "", 0, "BLOCK_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED"))


class Merger:
    """Add up ``GenerateContentResponse`` objects: text is a delta, counts are totals, a field stays once received.

    Names are read in camelCase and snake_case; null means absent. ``add`` takes time in proportion to its payload;
    parts are put together on request.

    ``fields`` has the texts of the response beside its candidates. ``prompt_feedback`` is the last one given, except
    that one that blocks stays; ``error`` is the first one given. ``carried_call`` says whether the last event held a
    function call that the client would run, or a piece of one, in any candidate.
    """

    __slots__ = (
        "_candidates",
        "_deltas",
        "carried_call",
        "error",
        "fields",
        "model_version",
        "prompt_feedback",
        "response_id",
        "usage",
    )

    def __init__(self) -> None:
        self.prompt_feedback: dict[str, Any] | None = None
        self.model_version: str | None = None
        self.response_id: str | None = None
        self.error: Any = None
        self.fields = FieldTexts(RESPONSE)
        self.usage: dict[str, Any] | None = None
        self.carried_call = False
        self._candidates: dict[int, Candidate] = {}
        self._deltas: list[Delta] | None = None

    def follow(self) -> list[Delta]:
        """Return a list to which every event from here on adds its deltas in order. The caller empties it."""
        self._deltas = []
        for candidate in self._candidates.values():
            candidate.deltas = self._deltas
        return self._deltas

    @property
    def candidates(self) -> Sequence[Candidate]:
        """Return the candidates so far, ordered by index. They grow with the merger."""
        candidates = self._candidates
        return [candidates[index] for index in sorted(candidates)] if len(candidates) > 1 else list(candidates.values())

    @property
    def blocked(self) -> bool:
        """True where the prompt feedback says that the prompt was blocked."""
        return self.prompt_feedback is not None and _blocks(self.prompt_feedback)

    def finished(self, candidate_count: int | None = None) -> bool:
        """Return whether the response is over: an error, a blocked prompt, or a finish reason for every candidate.

        Every candidate means all so far, and at least ``candidate_count``. More events may still follow.
        """
        if self.error is not None or (self.prompt_feedback is not None and self.blocked):
            return True
        seen = self._candidates
        if len(seen) < (candidate_count or 1):
            return False
        for each in seen.values():
            if not each.finished:
                return False
        return True

    def add(self, payload: Mapping[str, Any]) -> None:
        """Add one event's response. Raises DecodeError for a shape in which some of it might go unread."""
        fields = self.fields
        last, before = fields.last, fields.size
        self.carried_call = False
        for key, value in payload.items():
            if value is None:
                continue
            if key == "candidates":
                self._add_candidates(value)
            elif last.get(key) != value:
                read = _READERS.get(key)
                if read is not None:
                    read(self, value)
                fields.add(key, value)
        if self._deltas is not None and fields.size != before:
            self._deltas.append(Delta(_RESPONSE, None))

    def _add_candidates(self, candidates: Any) -> None:
        if not isinstance(candidates, list):
            raise DecodeError("The upstream sent candidates that are not a list")
        for candidate in candidates:
            if isinstance(candidate, dict):
                index = candidate.get("index")
                merged = self._candidates.get(index) if type(index) is int else None
                if (merged or self._candidate(index)).add(candidate):
                    self.carried_call = True
            elif candidate is not None:
                raise DecodeError("The upstream sent a candidate that is not an object")

    def _candidate(self, index: Any) -> Candidate:
        if index is None:
            index = 0
        elif type(index) is not int or index < 0:
            raise DecodeError("The upstream sent a candidate whose index is not a number")
        candidate = self._candidates.get(index)
        if candidate is None:
            candidate = self._candidates[index] = Candidate(index)
            candidate.deltas = self._deltas
        return candidate

    def _set_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self.usage = usage or None

    def _set_model_version(self, version: Any) -> None:
        if version != self.model_version and is_id(version):
            self.model_version = version

    def _set_response_id(self, response_id: Any) -> None:
        if response_id != self.response_id and is_id(response_id):
            self.response_id = response_id

    def _set_feedback(self, feedback: Any) -> None:
        if isinstance(feedback, dict) and (_blocks(feedback) or not self.blocked):
            self.prompt_feedback = feedback

    def _set_error(self, error: Any) -> None:
        self.error = error if self.error is None else self.error

    def _see_token(self, token: Any) -> None:
        if token:
            self.fields.declare("continuationToken", "a token for more of the response")


_READERS: dict[str, Callable[[Merger, Any], None]] = {
    "usageMetadata": Merger._set_usage,
    "usage_metadata": Merger._set_usage,
    "modelVersion": Merger._set_model_version,
    "model_version": Merger._set_model_version,
    "responseId": Merger._set_response_id,
    "response_id": Merger._set_response_id,
    "promptFeedback": Merger._set_feedback,
    "prompt_feedback": Merger._set_feedback,
    "error": Merger._set_error,
    "continuationToken": Merger._see_token,
    "continuation_token": Merger._see_token,
}
"""Fields that are more than their text, beside the candidates."""


def _blocks(feedback: dict[str, Any]) -> bool:
    reason = feedback.get("blockReason", feedback.get("block_reason"))
    return isinstance(reason, dict | list) or reason not in _NO_BLOCK
