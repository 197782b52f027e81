"""A whole response from the events it came in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.candidates import Candidate, Grown
from gemini_proxy.gemini.function_calls import carries_function_call
from gemini_proxy.gemini.response_fields import RESPONSE, FieldTexts, is_id

__all__ = ["Candidate", "Grown", "Merger", "carries_function_call"]

_RESPONSE = -1
"""In place of a candidate's index: what the response itself got."""
# Both APIs have their own name for "no reason"; clients that ask for integers get 0.
_NO_BLOCK = frozenset((None, "", 0, "BLOCK_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED"))


class Merger:
    """Adds up ``GenerateContentResponse`` objects: text is a delta, counts are totals, what came once stays.

    Names are read in camelCase and snake_case, null is absent. The cost of ``add`` is that of its payload; parts are
    put together when asked for.

    ``fields`` has what the response says beside its candidates. ``prompt_feedback``: the last given, though one that
    blocks stays. ``error``: the first given in this hop.
    """

    def __init__(self) -> None:
        self.prompt_feedback: dict[str, Any] | None = None
        self.model_version: str | None = None
        self.response_id: str | None = None
        self.error: Any = None
        self.fields = FieldTexts(RESPONSE)
        self._usage: dict[str, Any] | None = None
        self._earlier_usage: dict[str, Any] | None = None
        self._token_seen = False
        self._candidates: dict[int, Candidate] = {}
        self._grown: list[Grown] | None = None

    def follow(self) -> None:
        """From here on keep what candidates get for ``take_grown``."""
        self._grown = []
        for candidate in self._candidates.values():
            candidate.grown = self._grown

    def take_grown(self) -> list[Grown]:
        """What candidates got since the last time, in order; nothing unless ``follow`` was called."""
        taken = self._grown
        if not taken:
            return []
        self._grown = []
        for candidate in self._candidates.values():
            candidate.grown = self._grown
        return taken

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The candidates seen, ordered by index. They grow with the merger."""
        return [self._candidates[index] for index in sorted(self._candidates)]

    @property
    def usage(self) -> dict[str, Any] | None:
        """The last usage of each hop, its counts summed."""
        if self._usage is None or self._earlier_usage is None:
            return self._usage or self._earlier_usage
        return _summed(self._earlier_usage, self._usage)

    @property
    def continuation_token_seen(self) -> bool:
        """Whether this hop gave a token, with which clients ask for more by themselves."""
        return self._token_seen or any(each.continuation_token_seen for each in self._candidates.values())

    @property
    def function_calls(self) -> int:
        """How many complete function calls there are in all candidates."""
        return sum(each.function_calls for each in self._candidates.values())

    @property
    def blocked(self) -> bool:
        """Whether the prompt feedback says that the prompt was blocked."""
        return _blocks(self.prompt_feedback)

    def finished(self, candidate_count: int | None = None) -> bool:
        """Whether the answer is over: an error, a blocked prompt, or a terminal finish reason for every candidate.

        Every candidate is every one seen, and at least ``candidate_count``. More events may follow all the same.
        """
        if self.error is not None or self.blocked:
            return True
        seen = self._candidates
        if len(seen) < (candidate_count or 1):
            return False
        for each in seen.values():
            if not each.finished:
                return False
        return True

    def add(self, payload: Mapping[str, Any]) -> None:
        """Add one event's response; raises DecodeError for a shape in which a part of the answer might go unread."""
        fields = self.fields
        before = fields.size
        for key, value in payload.items():
            if value is not None:
                read = _READERS.get(key)
                if read is not None:
                    read(self, value)
                if key != "candidates" and fields.last.get(key) != value:
                    fields.add(key, value)
        if self._grown is not None and fields.size != before:
            self._grown.append(Grown(_RESPONSE, None))

    def next_hop(self) -> None:
        """Another answer to the same request follows: its parts continue these, its ending replaces this one."""
        self._earlier_usage, self._usage = self.usage, None
        self._token_seen = False
        self.error = None
        for candidate in self._candidates.values():
            candidate.next_hop()

    def _add_candidates(self, candidates: Any) -> None:
        if not isinstance(candidates, list):
            raise DecodeError("The upstream sent candidates that are not a list")
        for candidate in candidates:
            if isinstance(candidate, dict):
                self._candidate(candidate.get("index")).add(candidate)
            elif candidate is not None:
                raise DecodeError("The upstream sent a candidate that is not an object")

    def _candidate(self, index: Any) -> Candidate:
        if index is None:
            index = 0
        elif type(index) is not int or index < 0:
            raise DecodeError("The upstream sent a candidate whose index is not a number")
        found = self._candidates.get(index)
        if found is None:
            found = self._candidates[index] = Candidate(index)
            found.grown = self._grown
        return found

    def _set_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._usage = usage

    def _set_model_version(self, version: Any) -> None:
        if is_id(version):
            self.model_version = version

    def _set_response_id(self, given: Any) -> None:
        if is_id(given):
            self.response_id = given

    def _set_feedback(self, feedback: Any) -> None:
        if isinstance(feedback, dict) and (_blocks(feedback) or not self.blocked):
            self.prompt_feedback = feedback

    def _set_error(self, error: Any) -> None:
        self.error = error if self.error is None else self.error

    def _see_token(self, token: Any) -> None:
        if token:
            self._token_seen = True
            self.fields.declare("continuationToken", "a token for more of the answer")


_READERS: dict[str, Callable[[Merger, Any], None]] = {
    "candidates": Merger._add_candidates,
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
"""Fields that are more than their text."""


def _blocks(feedback: dict[str, Any] | None) -> bool:
    if feedback is None:
        return False
    reason = feedback.get("blockReason", feedback.get("block_reason"))
    return isinstance(reason, dict | list) or reason not in _NO_BLOCK


def _summed(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """``later`` with every top-level count increased by the earlier one."""
    summed = {**earlier, **later}
    for key, value in earlier.items():
        other = later.get(key)
        if key.lower().endswith("count") and isinstance(value, int) and isinstance(other, int):
            summed[key] = value + other
    return summed
