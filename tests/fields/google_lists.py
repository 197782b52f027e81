"""Where a string may stand in a request or a response, by Google's own field lists: proto descriptors and SDK types.

Both are read from the installed packages, so that a new version brings its new fields.
"""

import enum
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

import pydantic
from google.ai.generativelanguage_v1beta.types import cached_content, file_service, generative_service
from google.genai import models as sdk_models
from google.genai import types as sdk
from google.protobuf.descriptor import Descriptor, FieldDescriptor

Kind = Literal["string", "bytes", "enum", "time", "open"]
"""``open`` is any JSON: a Struct, a schema that the client writes, a dictionary of anything."""
Wrap = Literal["one", "list", "map"]
_NESTED = 2
"""How often a type may stand in itself on the way to a field: a schema within a schema, no deeper."""


@dataclass(frozen=True, slots=True)
class Step:
    """One field on the way: ``name`` in camelCase, and what stands in it: a value, a list, or a map of values."""

    name: str
    wrap: Wrap


@dataclass(frozen=True, slots=True)
class Place:
    """A string field: the steps to it from the root, and its kind."""

    steps: tuple[Step, ...]
    kind: Kind

    @property
    def path(self) -> str:
        """``candidates.content.parts.text``; a map's value is ``.*``."""
        return ".".join(f"{step.name}.*" if step.wrap == "map" else step.name for step in self.steps)


def response_places() -> list[Place]:
    """Of ``generateContent`` responses."""
    return _merged(
        _proto_places(_descriptor(generative_service.GenerateContentResponse)),
        (place for place in _sdk_places(sdk.GenerateContentResponse) if place.steps[0].name not in _SDK_ONLY),
    )


def request_places() -> dict[str, list[Place]]:
    """Of every guarded method's requests, by the method."""
    service = generative_service
    return {
        "generateContent": _merged(_proto_places(_descriptor(service.GenerateContentRequest)), _sdk_request_places()),
        "countTokens": _merged(_proto_places(_descriptor(service.CountTokensRequest))),
        "embedContent": _merged(_proto_places(_descriptor(service.EmbedContentRequest))),
        "batchEmbedContents": _merged(_proto_places(_descriptor(service.BatchEmbedContentsRequest))),
        "createCachedContent": _merged(_proto_places(_descriptor(cached_content.CachedContent))),
        "uploadFile": _merged(_proto_places(_descriptor(file_service.CreateFileRequest))),
    }


_SDK_ONLY = frozenset(("sdkHttpResponse", "automaticFunctionCallingHistory", "parsed"))
"""Fields that the SDK fills in by itself."""


def _merged(*lists: typing.Iterable[Place]) -> list[Place]:
    """Each path once; where the lists differ in kind, as a string rather than as something narrower."""
    found: dict[str, Place] = {}
    for places in lists:
        for place in places:
            known = found.get(place.path)
            if known is None or (known.kind in ("enum", "time") and place.kind not in ("enum", "time")):
                found[place.path] = place
    return [found[path] for path in sorted(found)]


def _descriptor(message: Any) -> Descriptor:
    descriptor: Descriptor = message.pb().DESCRIPTOR
    return descriptor


def _proto_places(message: Descriptor, steps: tuple[Step, ...] = (), on_path: tuple[str, ...] = ()) -> Iterator[Place]:
    for field in message.fields:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            value = inner.fields_by_name["value"]
            yield from _proto_field(value, (*steps, Step(field.json_name, "map")), on_path)
        else:
            wrap: Wrap = "list" if field.is_repeated else "one"
            yield from _proto_field(field, (*steps, Step(field.json_name, wrap)), on_path)


def _proto_field(field: FieldDescriptor, steps: tuple[Step, ...], on_path: tuple[str, ...]) -> Iterator[Place]:
    inner = field.message_type
    if inner is None:
        kind = _PROTO_KINDS.get(field.type)
        if kind is not None:
            yield Place(steps, kind)
    elif inner.full_name in _PROTO_MESSAGES:
        yield Place(steps, _PROTO_MESSAGES[inner.full_name])
    elif on_path.count(inner.full_name) < _NESTED:
        yield from _proto_places(inner, steps, (*on_path, inner.full_name))


_PROTO_KINDS: dict[int, Kind] = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_ENUM: "enum",
}
_PROTO_MESSAGES: dict[str, Kind] = {
    "google.protobuf.Struct": "open",
    "google.protobuf.Value": "open",
    "google.protobuf.ListValue": "open",
    "google.protobuf.Any": "open",
    "google.protobuf.Duration": "time",
    "google.protobuf.Timestamp": "time",
}


def _sdk_request_places() -> Iterator[Place]:
    """The SDK's ``contents`` and configuration where its own converters put them in the body."""
    yield from _sdk_value(sdk.Content, (Step("contents", "list"),), ())
    for converter in (sdk_models._GenerateContentConfig_to_mldev, sdk_models._GenerateContentConfig_to_vertex):
        for name, target, wire in _CONVERTED.findall(inspect.getsource(converter)):
            prefix = () if target == "parent_object" else (Step("generationConfig", "one"),)
            hint: Any = sdk.GenerateContentConfig.model_fields[name].annotation
            yield from _sdk_field(list[sdk.Tool] if name == "tools" else hint, wire, prefix, ())


_CONVERTED = re.compile(
    r"if getv\(from_object, \['(\w+)'\]\) is not None:\s+setv\(\s*(parent_object|to_object),\s*\['(\w+)'\]"
)
"""A field of the configuration, whether it stands beside ``contents`` or in ``generationConfig``, and its name."""


def _sdk_places(
    model: type[pydantic.BaseModel], steps: tuple[Step, ...] = (), on_path: tuple[type, ...] = ()
) -> Iterator[Place]:
    for name, field in model.model_fields.items():
        yield from _sdk_field(field.annotation, field.alias or name, steps, on_path)


def _sdk_field(hint: Any, name: str, steps: tuple[Step, ...], on_path: tuple[type, ...]) -> Iterator[Place]:
    for option in _options(hint):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is list:
            for inner in _options(arguments[0]):
                yield from _sdk_value(inner, (*steps, Step(name, "list")), on_path)
        elif origin is dict and arguments[1] is not Any:
            for inner in _options(arguments[1]):
                yield from _sdk_value(inner, (*steps, Step(name, "map")), on_path)
        else:
            yield from _sdk_value(option, (*steps, Step(name, "one")), on_path)


def _sdk_value(option: Any, steps: tuple[Step, ...], on_path: tuple[type, ...]) -> Iterator[Place]:
    if option is Any or option is dict or typing.get_origin(option) is dict:
        yield Place(steps, "open")
    elif not isinstance(option, type):
        return
    elif issubclass(option, pydantic.BaseModel):
        if on_path.count(option) < _NESTED:
            yield from _sdk_places(option, steps, (*on_path, option))
    elif issubclass(option, enum.Enum):
        yield Place(steps, "enum")
    elif issubclass(option, str):
        yield Place(steps, "string")
    elif issubclass(option, bytes):
        yield Place(steps, "bytes")
    elif issubclass(option, datetime | date):
        yield Place(steps, "time")


def _options(hint: Any) -> list[Any]:
    """What a field may hold on the wire: of a union the object that everything else in it is turned into."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return [hint]
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    objects = [option for option in options if isinstance(option, type) and issubclass(option, pydantic.BaseModel)]
    if sdk.Content in objects:
        return [sdk.Content]
    return objects or options
