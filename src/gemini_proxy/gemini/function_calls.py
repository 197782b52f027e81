"""Put the function calls of one candidate together, those included whose arguments are streamed.

Streamed arguments are values that come with a JSON path; together they make the object of arguments.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import orjson

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.fields import camel_case, camel_keys

# The same limit as for requests.
MAX_DEPTH = 64
# Elements without a leaf (``{}``, ``[]``) are never mentioned, so an index may skip some, but not many.
MAX_INDEX_GAP = 100

_STEP = re.compile(
    r"""\.(?P<name>[^.\[\]'"]+)
    | \[(?P<index>[0-9]{1,9})\]
    | \['(?P<single>(?:[^'\\]|\\.)*+)'\]
    | \["(?P<double>(?:[^"\\]|\\.)*+)"\]""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_SCALARS = frozenset(("stringValue", "numberValue", "boolValue"))
_KNOWN = _SCALARS | {"jsonPath", "willContinue"}

Step = str | int
_Path = tuple[Step, ...]
_Container = dict[str, Any] | list[Any]
_STREAMING = frozenset(("name", "id", "args", "partialArgs", "willContinue"))


class StreamedCall:
    """A call that comes in pieces."""

    __slots__ = ("_args", "_beside", "_call")

    def __init__(self) -> None:
        self._args = _StreamedArgs()
        self._call: dict[str, Any] = {}
        self._beside: dict[str, Any] = {}

    def is_continued_by(self, call: Mapping[str, Any]) -> bool:
        """Return whether a piece belongs to this call: it has no other name or id, and is not a whole call itself."""
        if call.get("name") and "args" in call and not ("partialArgs" in call or "willContinue" in call):
            return False
        return all(call.get(key, "") in ("", self._call.get(key, call.get(key))) for key in ("name", "id"))

    def add(self, call: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
        """Add a piece and the other fields of its part (a signature), of which the first value stays."""
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
        """Return the part as far as it is known. Its ``args`` grow with the call."""
        return {"functionCall": {**self._call, "args": self._args.value()}, **self._beside}


class FunctionCalls:
    """The calls of one candidate in the order in which they begin. ``open`` is the one that is still streamed."""

    __slots__ = ("_by_id", "open")

    def __init__(self) -> None:
        self.open: StreamedCall | None = None
        self._by_id: dict[str, Any] = {}

    def add(self, part: Mapping[str, Any]) -> StreamedCall | dict[str, Any] | None:
        """Add a part, keys in camelCase, that holds a ``functionCall`` and besides it only marks.

        Return the new element for the list of parts: a complete part, or a call that grows in its place. Return None
        for a piece of the open call, an end mark, and the repetition of a call with an id. Raises DecodeError for other
        shapes.
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

    def _is_repeat(self, call: Mapping[str, Any]) -> bool:
        """Return whether the same call with this id came before. One that differs may be run as well, so it is kept."""
        call_id = call.get("id", "")
        first = self._by_id.setdefault(call_id, call) if call_id else call
        return first is not call and first == call


def read_call(value: Any) -> dict[str, Any]:
    """Return the fields of a ``functionCall``, names in camelCase. Raises DecodeError for shapes it cannot read."""
    if not isinstance(value, dict):
        raise DecodeError("The upstream sent a function call that is not an object")
    call = camel_keys(value)
    for key, kind in (("name", str), ("id", str), ("args", dict), ("partialArgs", list), ("willContinue", bool)):
        if key in call and not isinstance(call[key], kind):
            raise DecodeError(f"The upstream sent a function call with a {key} that cannot be read")
    return {key: value for key, value in call.items() if value or key not in ("partialArgs", "willContinue")}


class _StreamedArgs:
    """Put the arguments of one call together, from whole objects and from values by path.

    Strings for the same path are concatenated; other scalars replace each other. Replacing a string or a container
    would hide text that was received, so it raises DecodeError.
    """

    __slots__ = ("_strings", "_tree", "_unjoined")

    def __init__(self) -> None:
        self._tree: dict[str, Any] = {}
        self._strings: dict[_Path, list[str]] = {}
        self._unjoined: dict[_Path, _Container] = {}

    def give(self, args: Mapping[str, Any]) -> None:
        """Add whole arguments. Raises DecodeError if one of that name has another value already."""
        have = self.value()
        for name, value in _copy(args).items():
            if have.setdefault(name, value) != value:
                raise DecodeError("The upstream sent an argument of a streamed function call twice")

    def add(self, partial: Any) -> None:
        """Add one element of ``partialArgs``. Raises DecodeError if it cannot be read or placed."""
        if not isinstance(partial, Mapping):
            raise DecodeError("The upstream sent a streamed argument that is not an object")
        kind, value = _read_value(partial)
        path = partial.get("jsonPath", partial.get("json_path"))
        if kind is None:
            return
        steps = _parse_path(path) if isinstance(path, str) else ()
        if not steps:
            raise DecodeError("The upstream sent a streamed argument that has no path of its own")
        if kind == "stringValue":
            self._add_string(steps, value)
        else:
            self._set(steps, value)

    def value(self) -> dict[str, Any]:
        """Return the arguments so far: the same object each time, which grows."""
        for steps, container in self._unjoined.items():
            text = "".join(self._strings[steps])
            self._strings[steps] = [text]
            _put(container, steps[-1], text)
        self._unjoined.clear()
        return self._tree

    def _add_string(self, steps: _Path, value: Any) -> None:
        if not isinstance(value, str):
            raise DecodeError("The upstream sent a streamed string argument that is not a string")
        container = self._container(steps)
        if steps not in self._strings:
            start = _get(container, steps[-1])
            self._strings[steps] = [start] if isinstance(start, str) else []
            _put(container, steps[-1], "")
        self._strings[steps].append(value)
        self._unjoined[steps] = container

    def _set(self, steps: _Path, value: Any) -> None:
        container = self._container(steps)
        if any(self._strings.pop(steps, ())) or _has_text(_get(container, steps[-1])):
            raise DecodeError("The upstream replaced a string in a streamed argument")
        self._unjoined.pop(steps, None)
        _put(container, steps[-1], value)

    def _container(self, steps: _Path) -> _Container:
        """Return the container of the value at ``steps``. It is made, with all above it, if missing."""
        container: _Container = self._tree
        for step, following in pairwise(steps):
            inner = _get(container, step)
            if inner is None:
                inner = [] if isinstance(following, int) else {}
                _put(container, step, inner)
            if not isinstance(inner, dict | list):
                raise DecodeError("The upstream sent a streamed argument with a path through a scalar")
            container = inner
        if isinstance(_get(container, steps[-1]), dict | list):
            raise DecodeError("The upstream replaced a part of a streamed argument")
        return container


def _parse_path(path: str) -> tuple[Step, ...]:
    """Parse ``$.a.b[0]['c']`` to ``("a", "b", 0, "c")``. Raises DecodeError for anything but names and indexes."""
    if not path.startswith("$"):
        raise DecodeError("The upstream sent a streamed argument whose path does not begin with $")
    steps: list[Step] = []
    at = 1
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None or len(steps) == MAX_DEPTH:
            raise DecodeError("The upstream sent a streamed argument whose path cannot be read")
        steps.append(_step(match))
        at = match.end()
    return tuple(steps)


def _step(match: re.Match[str]) -> Step:
    if match["index"] is not None:
        return int(match["index"])
    if match["name"] is not None:
        return match["name"]
    quoted = match["single"] if match["double"] is None else match["double"]
    return _ESCAPE.sub(r"\1", quoted)


def _has_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _copy(args: Mapping[str, Any]) -> dict[str, Any]:
    """Copy deeply: the arguments grow, and a payload must not."""
    try:
        copied: dict[str, Any] = orjson.loads(orjson.dumps(args))
    except orjson.JSONEncodeError as error:
        raise DecodeError("The upstream sent function call arguments that are nested too deeply") from error
    return copied


def _read_value(partial: Mapping[str, Any]) -> tuple[str | None, Any]:
    """Return the value's kind and the value, no kind if there is none. ``nullValue`` counts even when it is null."""
    values: list[tuple[str, Any]] = []
    for key, value in partial.items():
        name = camel_case(key)
        if name == "nullValue":
            values.append((name, None))
        elif name in _SCALARS and value is not None:
            values.append((name, value))
        elif name not in _KNOWN and value is not None:
            raise DecodeError("The upstream sent a streamed argument with a field that is not known")
    if len(values) > 1:
        raise DecodeError("The upstream sent a streamed argument with two values")
    kind, value = values[0] if values else (None, None)
    if isinstance(value, dict | list):
        raise DecodeError("The upstream sent a streamed argument that is not a scalar")
    return kind, value


def _get(container: _Container, step: Step) -> Any:
    """Return the value at ``step``, None if there is none. Raises DecodeError for an index into an object etc."""
    if isinstance(container, dict) and isinstance(step, str):
        return container.get(step)
    if isinstance(container, list) and isinstance(step, int):
        return container[step] if step < len(container) else None
    raise DecodeError("The upstream sent a streamed argument whose path conflicts with the others")


def _put(container: _Container, step: Step, value: Any) -> None:
    if isinstance(container, dict) and isinstance(step, str):
        container[step] = value
    elif isinstance(container, list) and isinstance(step, int):
        missing = step + 1 - len(container)
        if missing > MAX_INDEX_GAP:
            raise DecodeError("The upstream sent a streamed argument whose index is far beyond the others")
        container.extend([None] * missing)
        container[step] = value
