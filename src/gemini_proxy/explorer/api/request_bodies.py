"""Read the JSON of requests to the API with pydantic models: types, bounds, and the messages about faults.

A null member is the same as an absent one: clients send either. Members that a model does not name are ignored.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    InstanceOf,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.guardrails.masking import PLACEHOLDER
from gemini_proxy.traces.inserts import MAX_ANNOTATIONS
from gemini_proxy.traces.trace import Annotation

MAX_DATASET_NAME: Final = 128
"""Characters of a dataset's name: as many as the path of a model call may have."""
MAX_POLICY: Final = 65_536
"""Characters of one policy: it takes less than half a second to compile, whatever is in it."""
MAX_POLICY_NAME: Final = 256
MAX_POLICIES_CHECKED: Final = 100
"""Policies of one call."""
MAX_TRACES_PUSHED: Final = 1_000
"""Traces of one push: they are written in one transaction."""
MAX_REASON: Final = 1_000
"""Characters of a decision's reason: it is part of a refusal."""
MAX_ALLOWED_SECONDS: Final = 30 * 86_400
"""Seconds for which a decision allows the same again."""
MAX_RULE_NAME: Final = 256
"""Characters of the name of an annotation's rule: traces are looked up by it."""
MAX_SOURCE: Final = 256
"""Characters of an annotation's source: annotations are counted, listed and replaced by it."""
USER_SOURCE: Final = "user"
"""The source of annotations that name none."""
RECORD: Final = "gemini_proxy"
"""The member of a trace's metadata in which a proxy like this one describes the exchange."""
INVALID: Final = "Input Validation Error: "
EXCESSIVE: Final = "Excessive Policy: "
"""Phrases by which Invariant's clients recognize the reason of a 400."""

_MAX_MODEL: Final = 256
_DATASET: Final = re.compile(r"[a-zA-Z0-9_-]+")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TYPES: Final = {
    "string_type": "a string",
    "bool_type": "a boolean",
    "int_type": "a number",
    "float_type": "a number from 0",
    "greater_than_equal": "a number from 0",
    "list_type": "a list",
    "is_instance_of": "a dictionary",
    "model_type": "a dictionary",
    "string_pattern_mismatch": "an id",
}
"""Descriptions of valid values, by pydantic's name for the error."""


def dataset_name(name: str) -> str:
    """Return ``name`` if a dataset may have it. Raise BadRequest if not."""
    if not _DATASET.fullmatch(name):
        raise BadRequest("Dataset name can only contain A-Z, a-z, 0-9, - and _")
    if len(name) > MAX_DATASET_NAME:
        raise BadRequest(f"Dataset name must not be longer than {MAX_DATASET_NAME} characters")
    return name


def is_dataset_name(name: str) -> bool:
    """Return whether a dataset may have that name."""
    return len(name) <= MAX_DATASET_NAME and _DATASET.fullmatch(name) is not None


def read_uuid(text: str, missing: str) -> str:
    """Return a UUID in lower case. Raise NotFound with ``missing`` for anything else: nothing has that id."""
    folded = text.lower()
    if not _UUID.fullmatch(folded):
        raise NotFound(missing)
    return folded


class RequestBody(BaseModel):
    """A JSON object. Validators raise BadRequest for faults with a message of their own."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    messages_of_faults: ClassVar[Mapping[str, str]] = {}
    """Messages for an invalid member, by its dotted path; by ``path:kind`` for one of pydantic's error
    types. A member that is null although it must not be is ``missing``."""
    path_prefix: ClassVar[str] = ""
    """The prefix of a path in messages that are not listed."""
    may_be_empty: ClassVar[bool] = True

    @classmethod
    def read(cls, document: object) -> Self:
        """Return the document as this model. Raise BadRequest with the first fault."""
        if not document and not cls.may_be_empty:
            raise BadRequest("Request should not be empty")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
        path = [part for part in fault["loc"] if isinstance(part, str)]
        kind = "missing" if fault["input"] is None else fault["type"]
        raise BadRequest(cls._message(path, kind, fault.get("ctx", {})))

    @classmethod
    def _message(cls, path: list[str], kind: str, context: Mapping[str, Any]) -> str:
        if f"{'.'.join(path)}:{kind}" in cls.messages_of_faults:
            return cls.messages_of_faults[f"{'.'.join(path)}:{kind}"]
        if kind == "string_too_long":
            return f"{cls.path_prefix}{'.'.join(path)} must not be longer than {context['max_length']} characters"
        for length in range(len(path), 0, -1):
            if (known := ".".join(path[:length])) in cls.messages_of_faults:
                return cls.messages_of_faults[known]
        return f"{cls.path_prefix}{'.'.join(path)} must be {_TYPES.get(kind, 'given')}"


def _without_nul(text: str, info: ValidationInfo) -> str:
    if "\0" in text:
        raise BadRequest(f"{info.field_name} must not hold the character NUL")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("blank")
    return text


def _bounded_policy(policy: str) -> str:
    if len(policy) > MAX_POLICY:
        raise BadRequest(f"{EXCESSIVE}a policy must not be longer than {MAX_POLICY} characters")
    return policy


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


class _SchemaOf:
    """Describe a JSON object by a model that it is checked with, although it is kept as it is."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self._model.__pydantic_core_schema__)


JsonObject = InstanceOf[dict[str, Any]]
"""Any JSON object. It is not copied."""
Messages = Annotated[list[JsonObject], Field(fail_fast=True)]
DatasetName = Annotated[
    str,
    AfterValidator(dataset_name),
    WithJsonSchema({"type": "string", "pattern": f"^{_DATASET.pattern}$", "maxLength": MAX_DATASET_NAME}),
]
_WITHOUT_NUL: Final = AfterValidator(_without_nul)
PolicyName = Annotated[str, Field(max_length=MAX_POLICY_NAME), _WITHOUT_NUL, AfterValidator(_not_blank)]
PolicyText = Annotated[str, Field(max_length=MAX_POLICY), _WITHOUT_NUL, AfterValidator(_not_blank)]
CheckedPolicy = Annotated[
    str, AfterValidator(_bounded_policy), WithJsonSchema({"type": "string", "maxLength": MAX_POLICY})
]


class DatasetCreation(RequestBody):
    """A new dataset. ``is_public`` has no effect: a dataset is its owner's alone."""

    messages_of_faults = {
        "name": "name must be a string",
        "name:missing": "name must be provided",
        "metadata": "metadata must be a dictionary",
    }

    name: DatasetName
    metadata: JsonObject | None = None
    is_public: bool | None = None


class MetadataChange(RequestBody):
    """Metadata to merge into a dataset's, or to replace it. A member that is null changes nothing."""

    messages_of_faults = {"metadata": "metadata must be a dictionary"}

    metadata: JsonObject | None = None
    replace_all: bool | None = None


class PolicyCreation(RequestBody):
    """A new rule of a dataset; it is enabled and logs, unless the request says otherwise."""

    messages_of_faults = {
        "name": "Name must be provided and non-empty",
        "policy": "Policy content must be provided and non-empty",
        "action": 'action must be "block", "ask", "mask" or "log"',
        "extra_metadata": "extra_metadata must be a dictionary",
    }
    may_be_empty = False

    name: PolicyName
    policy: PolicyText
    enabled: bool | None = None
    action: Literal["block", "ask", "mask", "log"] | None = None
    extra_metadata: JsonObject | None = None


class PolicyChange(RequestBody):
    """Changes to a dataset's rule; an absent member stays as it is."""

    messages_of_faults = {
        **PolicyCreation.messages_of_faults,
        "name": "Name must be non-empty if provided",
        "policy": "Policy must be non-empty if provided",
    }
    may_be_empty = False

    # Not None: null is a fault here.
    name: PolicyName = Field("", json_schema_extra=_without_default)
    policy: PolicyText = Field("", json_schema_extra=_without_default)
    enabled: bool | None = None
    action: Literal["block", "ask", "mask", "log"] | None = None
    extra_metadata: JsonObject | None = None


_Share = Annotated[int, Field(ge=0, le=100)]
_SHARE_FAULT: Final = "share must be a whole number from 0 to 100, in percent"


class ShadowStart(RequestBody):
    """A policy to run in shadow on ``share`` percent of the conversations: beside the rule ``policy_id``, whose name
    and action it takes unless others are given; or, without ``policy_id``, as a new rule."""

    messages_of_faults = {
        **PolicyCreation.messages_of_faults,
        "policy_id": "policy_id must be an id",
        "share": _SHARE_FAULT,
    }
    may_be_empty = False

    policy: PolicyText
    share: _Share
    policy_id: str | None = None
    name: PolicyName | None = None
    action: Literal["block", "ask", "mask", "log"] | None = None


class ShadowShare(RequestBody):
    """The share of conversations that a shadow runs on, in percent."""

    messages_of_faults = {"share": _SHARE_FAULT}

    share: _Share


class ShadowPromotion(RequestBody):
    """The shadow that was looked at, by its ``id``: what has changed since is not promoted."""

    messages_of_faults = {"id": "id must be the shadow's number"}

    id: Annotated[int, Field(ge=0)]


class ToolAcceptance(RequestBody):
    """The changed declaration to pin; ``digest`` is that of the declaration that was looked at."""

    messages_of_faults = {"name": "name must be a string", "digest": "digest must be a string"}

    name: str
    digest: str


class ToolRemoval(RequestBody):
    """The tool to forget."""

    messages_of_faults = {"name": "name must be a string"}

    name: str


class ApprovalDecision(RequestBody):
    """A decision. ``seconds`` is how long exactly the same is allowed again; ``conversation`` allows it in all of the
    conversation that asks for it; without either it is allowed for one exchange. A denied exchange is refused with
    ``reason``, which the model can read."""

    messages_of_faults = {
        "decision": 'decision must be "allow" or "deny"',
        "reason": "reason must be a string",
        "reason:string_too_long": f"reason must not be longer than {MAX_REASON} characters",
        "seconds": f"seconds must be a number from 1 to {MAX_ALLOWED_SECONDS}",
        "conversation": "conversation must be true or false",
    }

    decision: Literal["allow", "deny"]
    reason: Annotated[str, Field(max_length=MAX_REASON), _WITHOUT_NUL] | None = None
    seconds: Annotated[int, Field(ge=1, le=MAX_ALLOWED_SECONDS)] | None = None
    conversation: bool = False


class PlaceholderChoice(RequestBody):
    """The placeholder whose value is requested."""

    messages_of_faults = {"placeholder": "placeholder must be one such as <EMAIL_ADDRESS_7f3a9c0b12>"}

    placeholder: Annotated[str, Field(pattern=f"^{PLACEHOLDER}$")]


class GuardrailReference(RequestBody):
    """The rule that an annotation is from; other members are kept as they are."""

    messages_of_faults = {
        "name": "The name of an annotation's guardrail must be a string",
        "name:string_too_long": f"name must not be longer than {MAX_RULE_NAME} characters",
    }

    name: Annotated[str, Field(max_length=MAX_RULE_NAME), _WITHOUT_NUL] | None = None


def _guardrail_reference(guardrail: dict[str, Any]) -> dict[str, Any]:
    GuardrailReference.read(guardrail)
    return guardrail


class AnnotationMetadata(RequestBody):
    """The origin of an annotation; other members are kept as they are."""

    model_config = ConfigDict(extra="allow")

    source: Annotated[str, Field(max_length=MAX_SOURCE), _WITHOUT_NUL] | None = None
    guardrail: Annotated[JsonObject, AfterValidator(_guardrail_reference), _SchemaOf(GuardrailReference)] | None = None


class AnnotationCreation(RequestBody):
    """An annotation: what is said of the range at ``address``."""

    messages_of_faults = {
        "content": "An annotation's content must be a string",
        "address": "An annotation's address must be a string",
        "extra_metadata": "An annotation's extra_metadata must be a dictionary",
        "extra_metadata.source": "An annotation's source must be a string",
        "extra_metadata.source:string_too_long": f"source must not be longer than {MAX_SOURCE} characters",
        "extra_metadata.guardrail": "An annotation's guardrail must be a dictionary",
    }

    content: str
    address: str
    extra_metadata: AnnotationMetadata | None = None

    def annotation(self) -> Annotation:
        """Return the annotation as it is stored."""
        metadata = self.extra_metadata or AnnotationMetadata()
        source = USER_SOURCE if metadata.source is None else metadata.source
        return Annotation(self.content, self.address, source, metadata.guardrail or {}, metadata.model_extra or {})


_ANNOTATIONS_FAULTS: Final = {
    "annotations": "annotations must be a list of annotations",
    "annotations:too_long": f"There must not be more than {MAX_ANNOTATIONS} annotations",
}


Annotations = Annotated[
    list[Annotated[JsonObject, _SchemaOf(AnnotationCreation)]], Field(max_length=MAX_ANNOTATIONS, fail_fast=True)
]
"""Annotations to be read one by one: pydantic would hold the interpreter while it reads a hundred thousand."""


def read_annotations(annotations: Iterable[dict[str, Any]]) -> tuple[Annotation, ...]:
    """Return annotations as they are stored. Raise BadRequest with the first fault."""
    return tuple(AnnotationCreation.read(annotation).annotation() for annotation in annotations)


class AnnotationReplacement(RequestBody):
    """Annotations that replace all those of ``source``; they get this source, whatever source they name."""

    messages_of_faults = {
        "source": "Source must be a string",
        **_ANNOTATIONS_FAULTS,
    }

    source: Annotated[str, Field(max_length=MAX_SOURCE), _WITHOUT_NUL]
    annotations: Annotations


class MessageAppend(RequestBody):
    """Messages for a trace, each with a ``timestamp`` in ISO 8601 or else of now, and annotations."""

    messages_of_faults = {
        "messages": "Invalid messages format - expected a non-empty list of dictionaries",
        **_ANNOTATIONS_FAULTS,
    }

    messages: Annotated[Messages, Field(min_length=1)]
    annotations: Annotations | None = None


class ProxyRecord(RequestBody):
    """The record of an exchange, as written by the proxy that pushes its trace. Times in Unix seconds."""

    messages_of_faults = {"outcome": f"metadata.{RECORD}.outcome must be an outcome"}
    path_prefix = f"metadata.{RECORD}."

    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{1,64}$")]
    created: Annotated[float, Field(ge=0)] | None = None
    outcome: str | None = None
    model: Annotated[str, Field(max_length=_MAX_MODEL)] | None = None
    stream: bool | None = None
    duration_ms: Annotated[float, Field(ge=0)] | None = None


class TraceMetadata(RequestBody):
    """Metadata of a pushed trace; other members are kept as they are."""

    messages_of_faults = {"hierarchy_path": "metadata.hierarchy_path must be a list of strings"}
    path_prefix = "metadata."

    name: str | None = None
    hierarchy_path: list[str] | None = None
    gemini_proxy: ProxyRecord | None = None


def _within_bounds(annotations: object) -> object:
    """Return ``annotations``. Raise BadRequest, before any is read, if there are too many in all."""
    if isinstance(annotations, list):
        count = sum(len(entry) for entry in annotations if isinstance(entry, list))
        if count > MAX_ANNOTATIONS:
            raise BadRequest(f"A push must not hold more than {MAX_ANNOTATIONS} annotations")
    return annotations


class TracePush(RequestBody):
    """Traces with, beside each, its annotations and metadata. The dataset is made if it does not exist."""

    messages_of_faults = {
        "messages": "messages must be a list of traces",
        "messages:too_short": "messages must not be empty",
        "messages:too_long": f"A push must not hold more than {MAX_TRACES_PUSHED} traces",
        "metadata": "metadata must be a list of metadata",
        "dataset": "dataset name must be a string",
        **_ANNOTATIONS_FAULTS,
    }

    messages: Annotated[list[Messages], Field(min_length=1, max_length=MAX_TRACES_PUSHED, fail_fast=True)]
    annotations: Annotated[list[Annotations], Field(fail_fast=True), BeforeValidator(_within_bounds)] | None = None
    metadata: list[Annotated[JsonObject, _SchemaOf(TraceMetadata)] | None] | None = None
    dataset: DatasetName | None = None


class PolicyLoad(RequestBody):
    """A policy to load."""

    messages_of_faults = {"policy": "policy must be a string"}

    policy: CheckedPolicy


_CHECK_FAULTS: Final = {
    "messages": f"{INVALID}messages must be a list of messages",
    "parameters": f"{INVALID}parameters must be a dictionary",
}


class MessageCheck(RequestBody):
    """Messages to check with one policy, and what the policy reads as ``input``."""

    messages_of_faults = {**PolicyLoad.messages_of_faults, **_CHECK_FAULTS}

    policy: CheckedPolicy
    messages: Messages
    parameters: JsonObject | None = None


class BatchCheck(RequestBody):
    """Messages to check with several policies, and what the policies read as ``input``."""

    messages_of_faults = {
        "policies": "policies must be a list of strings",
        "policies:too_long": f"{EXCESSIVE}more than {MAX_POLICIES_CHECKED} policies in one call",
        **_CHECK_FAULTS,
    }

    policies: Annotated[list[CheckedPolicy], Field(max_length=MAX_POLICIES_CHECKED, fail_fast=True)]
    dataset_name: Annotated[str, Field(max_length=MAX_DATASET_NAME), _WITHOUT_NUL] | None = None
    messages: Messages
    parameters: JsonObject | None = None


class WrittenPolicy(RequestBody):
    """A policy as it is being written on a page."""

    messages_of_faults = PolicyLoad.messages_of_faults

    policy: str


class PolicyTrial(WrittenPolicy):
    """A policy as it is being written on a page, to be tried on the ``last`` traces of a dataset."""

    messages_of_faults = {**WrittenPolicy.messages_of_faults, "dataset": "dataset must be a string"}

    dataset: str
    last: int | None = None
