"""What is wrong with a value of the configuration, in words: one line a fault, and nothing secret in it. No I/O."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from gemini_proxy.traces.redact import redact

_LONGEST: Final = 200
"""Characters of a wrong value that are shown."""
# What TOML calls it, by the beginning of pydantic's name for the fault.
_EXPECTED: Final = {
    "tuple_type": "a list",
    "model_": "a table",
    "dict_type": "a table",
    "mapping_type": "a table",
    "bool_": "true or false",
    "int_": "an integer",
    "float_": "a number",
    "string_type": "a text in quotes",
}
# A table may hold keys, and so may what stands in its place: of these only the kind is shown.
_HIDDEN: Final = ("model_", "dict_type", "mapping_type")
_KINDS: Final = {str: "a text", list: "a list", dict: "a table", bool: "true or false"}
_QUERY: Final = re.compile(r"[?#].*", re.DOTALL)


def explain(error: ValidationError, config: type[BaseModel], source: Callable[[Sequence[str]], str]) -> Iterator[str]:
    """Each fault of ``error`` as "source: key: value: expected what". ``source`` says where a key's value is from."""
    for fault in error.errors(include_url=False):
        path = [str(step) for step in fault["loc"]]
        where = f"{source(path)}: {'.'.join(path)}"
        if fault["type"] == "extra_forbidden":
            yield f"{where}: unknown key{nearest(path[-1], _known_keys(config, path[:-1]))}"
        else:
            hidden = fault["type"].startswith(_HIDDEN)
            shown = _kind(fault["input"]) if hidden else _shown(path[-1], fault["input"])
            yield f"{where}: {shown}: expected {_expected(fault['type'], fault['msg'])}"


def nearest(name: str, known: set[str]) -> str:
    """The hint behind an unknown name: the one that was probably meant, or all."""
    close = difflib.get_close_matches(name, known, n=1)
    return f' (did you mean "{close[0]}"?)' if close else f" (known are {', '.join(sorted(known))})"


def _expected(kind: str, message: str) -> str:
    plain = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return next((words for start, words in _EXPECTED.items() if kind.startswith(start)), plain)


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a number")


def _shown(key: str, value: object) -> str:
    """A wrong value without what is secret in it."""
    if key.endswith("api_key"):
        return "***"
    if key.endswith("database") and isinstance(value, str):
        # Imports SQLAlchemy, which is more than the rest of reading a configuration takes.
        from gemini_proxy.traces.database import shown_url

        return repr(shown_url(value))
    if not all(isinstance(one, str | int | float) for one in (value if isinstance(value, list) else [value])):
        return _kind(value)
    shown = repr(redact(_without_credentials(value)))
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"


def _without_credentials(value: object) -> object:
    """A URL without its user, password, query and fragment; a list of such."""
    if isinstance(value, list):
        return [_without_credentials(one) for one in value]
    if not isinstance(value, str):
        return value
    before, at, host = value.rpartition("@")
    scheme, slashes, _ = before.partition("//")
    bare = f"{scheme}{slashes}***@{host}" if at and slashes else f"***@{host}" if at else value
    return _QUERY.sub("?***", bare)


def _known_keys(config: type[BaseModel], path: Sequence[str]) -> set[str]:
    model: Any = config
    for step in path:
        model = model.model_fields[step].annotation
    return set(model.model_fields)
