"""Return the texts at a violation's addresses, cut to fit a line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.guardrails.addresses import value_at, without_offsets
from gemini_proxy.policy import RuleViolation
from gemini_proxy.traces.visible import as_json

# Characters shown of a match, and of the text on each side of it.
_FOUND, _AROUND = 160, 40
# Ranges of one violation that are shown: a text in which everything matches is not printed a thousand times.
_RANGES = 20


@dataclass(frozen=True, slots=True)
class Excerpt:
    """``found`` stands at ``address``, between ``before`` and ``after``; long texts are cut at ``...``."""

    address: str
    role: str
    before: str
    found: str
    after: str

    @property
    def text(self) -> str:
        return f"{self.before}{self.found}{self.after}"


def excerpts(messages: Sequence[Mapping[str, Any]], addresses: Sequence[str]) -> tuple[Excerpt, ...]:
    """Return the first twenty of ``addresses`` with what they point at; nothing is found at one that does not exist."""
    return tuple(_excerpt(messages, address) for address in addresses[:_RANGES])


def _excerpt(messages: Sequence[Mapping[str, Any]], address: str) -> Excerpt:
    path, offsets = without_offsets(address)
    value = value_at(messages, path)
    role = _role(messages, path.partition(".")[2])
    if offsets is None or not isinstance(value, str):
        return Excerpt(address, role, "", _cut(_described(value)), "")
    start, end = offsets
    before = value[max(0, start - _AROUND) : start]
    after = value[end : end + _AROUND]
    return Excerpt(
        address,
        role,
        f"...{before}" if start > _AROUND else before,
        _cut(value[start:end]),
        f"{after}..." if len(value) > end + _AROUND else after,
    )


def _role(messages: Sequence[Mapping[str, Any]], path: str) -> str:
    index = path.partition(".")[0]
    message = messages[int(index)] if index.isdecimal() and int(index) < len(messages) else {}
    return str(message.get("role") or ("tools" if "tools" in message else ""))


def _described(value: Any) -> str:
    """Show a message by its content, chunks of text by their text, a call as ``name({...})``, the rest as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        if isinstance(function := value.get("function"), Mapping):
            return f"{function.get('name')}({_described(function.get('arguments'))})"
        if value.get("content"):
            return _described(value["content"])
        if value.get("tool_calls"):
            return " ".join(_described(call) for call in value["tool_calls"])
    if isinstance(value, list) and value and all(_is_text(chunk) for chunk in value):
        return "".join(chunk["text"] for chunk in value)
    return as_json(value)


def _is_text(chunk: Any) -> bool:
    """Return whether a chunk says nothing but its text."""
    return (
        isinstance(chunk, Mapping) and isinstance(chunk.get("text"), str) and chunk.keys() <= {"type", "text", "field"}
    )


def _cut(text: str) -> str:
    return text if len(text) <= _FOUND else f"{text[: _FOUND - 3]}..."


@dataclass(frozen=True, slots=True)
class ShownViolation:
    """A violation as it is shown: the rule's message and line, its first ranges, and how many more there are."""

    message: str
    rule_line: int
    excerpts: tuple[Excerpt, ...]
    more: int

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], violation: RuleViolation) -> "ShownViolation":
        found = excerpts(messages, violation.ranges)
        return cls(violation.message, violation.rule.line, found, len(violation.ranges) - len(found))

    def json(self) -> dict[str, Any]:
        """Return the same as plain JSON."""
        ranges = [{"address": one.address, "found": one.found, "excerpt": one.text} for one in self.excerpts]
        return {"message": self.message, "line": self.rule_line, "ranges": ranges, "more_ranges": self.more}
