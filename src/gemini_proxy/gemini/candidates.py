"""Put one candidate of a response together from the events in which it came."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.fields import camel_keys
from gemini_proxy.gemini.function_calls import FunctionCalls, StreamedCall
from gemini_proxy.gemini.response_fields import CANDIDATE, FieldTexts, TokenTexts

# google.ai.generativelanguage.v1beta Candidate.FinishReason, the numbers of clients that ask for ``enum-encoding=int``.
_FINISH_REASONS = (
    "FINISH_REASON_UNSPECIFIED",
    "STOP",
    "MAX_TOKENS",
    "SAFETY",
    "RECITATION",
    "OTHER",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MALFORMED_FUNCTION_CALL",
    "IMAGE_SAFETY",
    "UNEXPECTED_TOOL_CALL",
)
_NOT_FINISHED = frozenset(("FINISH_REASON_UNSPECIFIED", "CONTINUATION"))
_CALL_KEYS = frozenset(("functionCall", "function_call"))
_CALL_MARKS = frozenset(("functionCall", "thought", "thoughtSignature"))
# Recursion over what was read stays within Python's stack.
_MAX_DEPTH = 256
_TEXT_KEYS = frozenset(("text", "thought", "thoughtSignature"))


class TextRun:
    """Consecutive text with one ``thought`` flag; its ``pieces`` are joined on request."""

    __slots__ = ("pieces", "signature", "thought")

    def __init__(self, thought: bool) -> None:
        self.thought = thought
        self.signature: Any = None
        self.pieces: list[str] = []

    @property
    def part(self) -> dict[str, Any]:
        """Return the run as one part."""
        self.pieces = ["".join(self.pieces)]
        part: dict[str, Any] = {"text": self.pieces[0]}
        if self.thought:
            part["thought"] = True
        if self.signature is not None:
            part["thoughtSignature"] = self.signature
        return part


_Slot = TextRun | StreamedCall | dict[str, Any]


class Delta(NamedTuple):
    """The delta of one event to a candidate: ``text``, or None for any part that is not plain text.

    ``fresh`` says that the text begins a run: another kind of part, or of text, stands before it.
    """

    candidate: int
    text: str | None
    thought: bool = False
    fresh: bool = True


class Candidate:
    """Put one candidate together. Callers must not change what it returns; in it the ``args`` of an open call still
    grow.

    ``finish_reason`` is the last one given: an integer as its name, or as digits where no name is known. ``finished``
    says that this reason ends the candidate, as ``CONTINUATION`` does not. ``fields`` has the texts of the fields
    beside the content, and of those in the content beside its parts; ``tokens`` has the texts of its
    ``logprobsResult``, None before there is one. If ``deltas`` is a list, each event's deltas are appended to it in
    order.
    """

    __slots__ = (
        "_calls",
        "_carried_call",
        "_parts",
        "_run",
        "_slots",
        "deltas",
        "fields",
        "finish_reason",
        "finished",
        "index",
        "tokens",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self.fields = FieldTexts(CANDIDATE)
        self.tokens: TokenTexts | None = None
        self.finished = False
        self.deltas: list[Delta] | None = None
        self._carried_call = False
        self._slots: list[_Slot] = []
        self._run: TextRun | None = None
        self._calls: FunctionCalls | None = None
        self._parts: list[dict[str, Any]] | None = None

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Return the parts in order, keys in camelCase: texts joined by run, calls whole, others as they came."""
        if self._parts is None:
            self._parts = [slot if isinstance(slot, dict) else slot.part for slot in self._slots]
        return self._parts

    @property
    def has_open_call(self) -> bool:
        """True while a streamed call is not complete."""
        return self._calls is not None and self._calls.open is not None

    def add(self, candidate: Mapping[str, Any]) -> bool:
        """Add one event's candidate. Return whether it carried a function call, or a piece of one.

        Raises DecodeError for a shape in which text might go unread.
        """
        self._carried_call = False
        fields = self.fields
        last, before = fields.last, fields.size
        for key, value in candidate.items():
            if value is None or key == "index":
                continue
            if key == "content":
                self._add_content(value)
                continue
            read = _READERS.get(key)
            if read is not None:
                read(self, value)
            if last.get(key) != value:
                fields.add(key, value)
        if fields.size != before:
            self._note_other()
        return self._carried_call

    def _add_content(self, content: Any) -> None:
        if not isinstance(content, dict):
            raise DecodeError("The upstream sent a candidate with content that is not an object")
        role = content.get("role")
        if role and type(role) is not str:
            raise DecodeError("The upstream sent a role that is not a string")
        if not content.keys() <= _CONTENT:
            self.fields.add("content", {key: value for key, value in content.items() if key not in _CONTENT})
        parts = content.get("parts")
        if isinstance(parts, dict):
            parts = (parts,)
        elif not isinstance(parts, list):
            if parts is not None:
                raise DecodeError("The upstream sent parts that are not a list")
            return
        self._parts = None
        for part in parts:
            if type(part) is dict and len(part) == 1 and type(text := part.get("text")) is str:
                self._add_text(text, False, None)
            else:
                self._add_part(part)

    def _add_part(self, part: Any) -> None:
        if not isinstance(part, dict):
            if part is not None:
                raise DecodeError("The upstream sent a part that is not an object")
            return
        if not _CALL_KEYS.isdisjoint(part):
            self._carried_call = True
        if _is_deeper(part, _MAX_DEPTH):
            raise DecodeError("The upstream sent a part that is nested too deeply")
        part = camel_keys(part)
        text = part.get("text", "")
        thought = part.get("thought", False)
        if not isinstance(text, str) or not isinstance(thought, bool):
            raise DecodeError("The upstream sent a part whose text or thought flag cannot be read")
        if "functionCall" in part:
            self._add_call(part)
        elif part.keys() <= _TEXT_KEYS:
            self._add_text(text, thought, part.get("thoughtSignature"))
        else:
            self._note_other()
            self._append(part)

    def _add_text(self, text: str, thought: bool, signature: Any) -> None:
        if not text and signature is None:
            return
        run = self._run
        fresh = run is None or run.thought is not thought
        if self.deltas is not None:
            self.deltas.append(Delta(self.index, text, thought, fresh))
        if run is None or fresh:
            run = TextRun(thought)
            self._append(run)
            self._run = run
        if run.signature is None:
            run.signature = signature
        if text:
            run.pieces.append(text)

    def _add_call(self, part: dict[str, Any]) -> None:
        """Add a call; any field of its part that is not a mark becomes a separate part, so that nothing is lost."""
        self._note_other()
        marked = {key: value for key, value in part.items() if key in _CALL_MARKS}
        if self._calls is None:
            self._calls = FunctionCalls()
        slot = self._calls.add(marked)
        if slot is not None:
            self._append(slot)
        rest = {key: value for key, value in part.items() if key not in _CALL_MARKS}
        if rest:
            self._add_part(rest)

    def _note_other(self) -> None:
        if self.deltas is not None:
            self.deltas.append(Delta(self.index, None))

    def _append(self, slot: _Slot) -> None:
        self._slots.append(slot)
        self._run = None

    def _set_finish_reason(self, reason: Any) -> None:
        if isinstance(reason, int) and not isinstance(reason, bool):
            reason = _FINISH_REASONS[reason] if 0 <= reason < len(_FINISH_REASONS) else str(reason)
        if not isinstance(reason, str):
            raise DecodeError("The upstream sent a finish reason that is neither a name nor a number")
        if reason and (self.finish_reason is None or reason != _FINISH_REASONS[0]):
            self.finish_reason = reason
            self.finished = reason not in _NOT_FINISHED

    def _see_token(self, token: Any) -> None:
        if token:
            self.fields.declare("continuationToken", "a token for more of the response")

    def _add_tokens(self, result: Any) -> None:
        if self.tokens is None:
            self.tokens = TokenTexts()
        before = self.tokens.size
        self.tokens.add(result)
        if self.tokens.size != before:
            self._note_other()


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    while level and depth:
        depth -= 1
        level = [
            inner
            for container in level
            for inner in (container.values() if type(container) is dict else container)
            if type(inner) is dict or type(inner) is list
        ]
    return bool(level)


_READERS: dict[str, Callable[[Candidate, Any], None]] = {
    "finishReason": Candidate._set_finish_reason,
    "finish_reason": Candidate._set_finish_reason,
    "continuationToken": Candidate._see_token,
    "continuation_token": Candidate._see_token,
    "logprobsResult": Candidate._add_tokens,
    "logprobs_result": Candidate._add_tokens,
}
"""Fields that are more than their text, beside the content."""
_CONTENT = frozenset(("role", "parts"))
