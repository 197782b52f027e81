"""Where a string may stand in what OpenAI's own SDK sends and reads, by its types, with a canary in each place."""

import typing
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple

import orjson
import pydantic
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.embedding_create_params import EmbeddingCreateParams
from typing_extensions import TypeAliasType, is_typeddict

from tests.fields.canaries import CANARY, Planted
from tests.fields.google_lists import Kind, Place, Step


class Field(NamedTuple):
    """A body with a canary in one field of it."""

    planted: Planted
    place: Place


_Build = Callable[[Any], Any]
_NESTED = 2


def openai_requests() -> dict[str, list[Field]]:
    """Return the fields of requests, by the name of what is asked for."""
    return {
        "chat/completions": fields_of(CompletionCreateParamsStreaming),
        "embeddings": fields_of(EmbeddingCreateParams),
    }


def openai_responses() -> dict[str, list[Field]]:
    """Return the fields of responses, by the name of their object."""
    return {"chat.completion": fields_of(ChatCompletion), "chat.completion.chunk": fields_of(ChatCompletionChunk)}


def fields_of(model: Any) -> list[Field]:
    """Return the fields of a typed dictionary or a pydantic model, each once."""
    found: dict[str, Field] = {}
    for path, kind, build in _walk(model, "", lambda value: value, ()):
        for at, value in _values(path, kind):
            key = at if not isinstance(value, Mapping) else f"{at}.*"
            body = build(value)
            planted = Planted(key, body, next(_strings(value)))
            found.setdefault(key, Field(planted, Place((Step(key, "one"),), kind)))
    return [found[key] for key in sorted(found)]


def _values(path: str, kind: Kind) -> Iterator[tuple[str, Any]]:
    if kind == "open":
        yield path, {"k": [{"k": CANARY}]}
        yield f"{path}.{{key}}", {CANARY: 1}
    elif path.endswith("arguments"):
        yield path, orjson.dumps({"k": CANARY}).decode()
    else:
        yield path, CANARY


def _walk(hint: Any, path: str, build: _Build, within: tuple[Any, ...]) -> Iterator[tuple[str, Kind, _Build]]:
    """Yield every string under ``hint``, with what makes a body of its value."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        yield from _walk(arguments[0], path, build, within)
    elif isinstance(hint, TypeAliasType):
        yield from _walk(hint.__value__, path, build, within)
    elif origin in (typing.Union, UnionType):
        for option in arguments:
            if not getattr(option, "__name__", "").startswith("Unknown"):
                yield from _walk(option, path, build, within)
    elif origin is Literal:
        yield path, "enum", build
    elif origin is dict and arguments[1] is not object:
        yield f"{path}.*", "string", lambda value: build({"k": value})
        yield f"{path}.{{key}}", "string", lambda value: build({value: "v"})
    elif origin is dict or hint in (object, Any):
        yield path, "open", build
    elif origin is not None:
        yield from _walk(arguments[0], path, lambda value: build([value]), within)
    elif hint is str:
        yield path, "string", build
    elif _is_object(hint) and within.count(hint) < _NESTED:
        yield from _walk_object(hint, path, build, (*within, hint))


def _walk_object(model: Any, path: str, build: _Build, within: tuple[Any, ...]) -> Iterator[tuple[str, Kind, _Build]]:
    hints = _hints(model)
    beside = {name: literal for name, hint in hints.items() if (literal := _literal(hint)) is not None}
    if "arguments" in hints:
        beside["name"] = "f"
    for name, hint in hints.items():

        def within_object(value: Any, name: str = name) -> Any:
            return build({**beside, name: value})

        yield from _walk(hint, f"{path}.{name}" if path else name, within_object, within)


def _hints(model: Any) -> dict[str, Any]:
    if is_typeddict(model):
        return typing.get_type_hints(model)
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _literal(hint: Any) -> Any:
    """Return what tells an object's kind: the one value that a field may have."""
    while typing.get_origin(hint) in (typing.Annotated, typing.Required):
        hint = typing.get_args(hint)[0]
    values = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    return values[0] if len(values) == 1 else None


def _is_object(hint: Any) -> bool:
    if is_typeddict(hint):
        return True
    return isinstance(hint, type) and hint is not NoneType and issubclass(hint, pydantic.BaseModel)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(inner)
            yield key
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
