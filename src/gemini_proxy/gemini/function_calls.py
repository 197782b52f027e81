"""Function calls of one candidate: complete ones, and those whose arguments are streamed."""

from collections.abc import Mapping
from typing import Any

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.arg_paths import StreamedArgs
from gemini_proxy.gemini.casing import camel_keys

_CALL_KEYS = frozenset(("functionCall", "function_call"))
_STREAMING = frozenset(("name", "id", "args", "partialArgs", "willContinue"))


class StreamedCall:
    """A call that came in pieces, or still does."""

    __slots__ = ("_args", "_beside", "_call")

    def __init__(self) -> None:
        self._args = StreamedArgs()
        self._call: dict[str, Any] = {}
        self._beside: dict[str, Any] = {}

    def is_continued_by(self, call: Mapping[str, Any]) -> bool:
        """Whether a piece belongs to this call: it brings no other name or id, and is no complete call by itself."""
        if call.get("name") and "args" in call and not ("partialArgs" in call or "willContinue" in call):
            return False
        return all(call.get(key, "") in ("", self._call.get(key, call.get(key))) for key in ("name", "id"))

    def add(self, call: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
        """Add a piece and what its part holds beside it, of which the first value stays (a signature)."""
        for key, value in call.items():
            if key not in _STREAMING and self._call.setdefault(key, value) != value:
                raise DecodeError(f"The upstream sent a streamed function call with two values for {key}")
            if key in ("name", "id") and value:
                self._call.setdefault(key, value)
        for key, value in beside.items():
            self._beside.setdefault(key, value)
        if "args" in call:
            self._args.give(call["args"])
        for partial in call.get("partialArgs", ()):
            self._args.add(partial)

    @property
    def part(self) -> dict[str, Any]:
        """The whole part as far as it is known; its ``args`` grow with the call."""
        return {"functionCall": {**self._call, "args": self._args.value()}, **self._beside}


class FunctionCalls:
    """The calls of one candidate in the order of their first sight; ``complete`` counts the closed ones."""

    __slots__ = ("_by_id", "complete", "open")

    def __init__(self) -> None:
        self.complete = 0
        self.open: StreamedCall | None = None
        self._by_id: dict[str, Any] = {}

    def add(self, part: Mapping[str, Any]) -> StreamedCall | dict[str, Any] | None:
        """Take a part, keys in camelCase, that holds a ``functionCall`` and nothing but marks beside it.

        Returns what takes a new place among the parts: a complete part, or a call that grows in that place; None for
        a piece of the open call, an end mark, and the repeat of a call with an id. Raises DecodeError for other shapes.
        """
        call = read_call(part["functionCall"])
        beside = {key: value for key, value in part.items() if key != "functionCall"}
        if self.open is not None and self.open.is_continued_by(call):
            self._extend(self.open, call, beside)
            return None
        self._close()
        if "partialArgs" in call or "willContinue" in call:
            self.open = started = StreamedCall()
            self._extend(started, call, beside)
            return started
        if not call or self._is_repeat(call):
            return None
        self.complete += 1
        return {"functionCall": call, **beside}

    def _extend(self, streamed: StreamedCall, call: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
        streamed.add(call, beside)
        if "willContinue" not in call:
            self._close()

    def _close(self) -> None:
        if self.open is not None:
            closed = self.open.part["functionCall"]
            if "id" in closed:
                self._by_id.setdefault(closed["id"], closed)
            self.open = None
            self.complete += 1

    def _is_repeat(self, call: Mapping[str, Any]) -> bool:
        """Whether a call of this id came before and was the same; one that differs may be run as well, and is kept."""
        given = call.get("id", "")
        first = self._by_id.setdefault(given, call) if given else call
        return first is not call and first == call


def read_call(value: Any) -> dict[str, Any]:
    """The fields of a ``functionCall``, names in camelCase; raises DecodeError for shapes that cannot be read."""
    if not isinstance(value, dict):
        raise DecodeError("The upstream sent a function call that is not an object")
    call = camel_keys(value)
    for key, kind in (("name", str), ("id", str), ("args", dict), ("partialArgs", list), ("willContinue", bool)):
        if key in call and not isinstance(call[key], kind):
            raise DecodeError(f"The upstream sent a function call with a {key} that cannot be read")
    return {key: value for key, value in call.items() if value or key not in ("partialArgs", "willContinue")}


def carries_function_call(payload: Mapping[str, Any]) -> bool:
    """Whether a response holds a function call, or a piece of one, in any candidate: what the client would run.

    False for shapes that are none of a response; a merger raises DecodeError for those.
    """
    candidates = payload.get("candidates")
    if not isinstance(candidates, list):
        return False
    for candidate in candidates:
        if _candidate_calls(candidate):
            return True
    return False


def _candidate_calls(candidate: Any) -> bool:
    content = candidate.get("content") if isinstance(candidate, dict) else None
    parts = content.get("parts") if isinstance(content, dict) else None
    for part in parts if isinstance(parts, list) else (parts,):
        if isinstance(part, dict) and not _CALL_KEYS.isdisjoint(part):
            return True
    return False
