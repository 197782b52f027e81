"""Read ``predict`` and ``predictLongRunning``: prompts for images and videos, texts to embed, and the results.

The fields are those of google-genai 3.6 for Imagen, Veo and embeddings. A custom model behind an endpoint may take and
return anything: every string is text, its name included, unless it is known to be something else.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.body_wire import BodyPlaces, BodyWire
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.doors import Method
from gemini_proxy.gemini.fields import JsonObject, a_string, field, snake_case, steers
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.messages import MessageList
from gemini_proxy.gemini.parts import Reference, Unchecked
from gemini_proxy.gemini.request import GeminiRequest, outbound_fields
from gemini_proxy.gemini.secret_fields import without_secrets
from gemini_proxy.gemini.strict_json import read_object
from gemini_proxy.gemini.wire import Payload

_BYTES: Final = frozenset("bytes_base64_encoded encoded_video video_bytes image_bytes".split())
_URIS: Final = frozenset("gcs_uri uri file_uri image_uri video_uri".split())
_TYPE: Final = frozenset(("mime_type", "encoding"))
_CONTROL: Final = _TYPE | frozenset(
    """
    reference_type reference_id mask_mode mask_classes subject_type control_type enable_control_image_computation
    task_type role aspect_ratio edit_mode mode language person_generation safety_setting sample_image_size resolution
    resize_mode compression_mode upscale_factor operation_name sample_count seed guidance_scale base_steps fps
    duration_seconds output_dimensionality max_predictions mask_dilation confidence_threshold binary_color_threshold
    compression_quality image_preservation_factor include_rai_reason include_safety_attributes enhance_prompt
    generate_audio auto_truncate add_watermark enhance_input_image values token_count truncated
    """.split()
)
"""Fields that steer the call or count, where their value is a word or numbers; anything else in them is text."""
_OUTBOUND: Final = frozenset("storage_uri output_gcs_uri output_storage_uri pubsub_topic".split())
"""Fields of ``parameters`` that have Google write the response, or news of it, elsewhere."""
_OWN: Final = frozenset("name done model deployed_model_id model_display_name model_version_id create_time".split())
"""Fields of a response that say which model or operation it is of."""
_OPERATION: Final = re.compile(r"(?:[A-Za-z0-9._:-]{1,128}/){0,16}operations/([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})")
"""The name of an operation. What stands before its id has several spellings, such as a project's number."""


def _read(call: ModelCall, body: bytes) -> GeminiRequest:
    """Read a request: instances are a user's contents, parameters are settings. One without a body asks for what is."""
    root = read_object(body) if body else {}
    bare, secrets = without_secrets(root)
    parameters = field(root, "parameters")
    named = parameters if isinstance(parameters, Mapping) else {}
    outbound = (
        *outbound_fields(root),
        *(f"parameters.{name}" for name, value in named.items() if value and snake_case(name) in _OUTBOUND),
    )
    read = _messages(root, outbound)
    if (asked := _operation_of(call, root)) is not None:
        read.unchecked.append(Unchecked("request.operation", "what an operation was asked for", asked))
    messages = tuple(read.messages)
    return GeminiRequest(
        messages=messages,
        unchecked=tuple(read.unchecked),
        settings={name: value for name, value in bare.items() if name != "instances"},
        candidate_count=None,
        structured=False,
        outbound=outbound,
        stored=messages if bare is root else tuple(_messages(bare, outbound).messages),
        secrets=secrets,
    )


def _operation_of(call: ModelCall, root: JsonObject) -> Reference | None:
    """Return the operation that a call asks about, None if it asks about none. Raises BadRequest for no such name."""
    if call.method is Method.GET_OPERATION:
        name = f"operations/{call.names['id']}"
    elif call.method is Method.FETCH_PREDICT_OPERATION:
        name = a_string(field(root, "operationName"), "operationName")
    else:
        return None
    match = _OPERATION.fullmatch(name)
    if match is None:
        raise BadRequest('"operationName" must be the name of an operation, as the call that began it returned it')
    return Reference("operation", f"operations/{match[1]}", name)


def _messages(root: JsonObject, outbound: Iterable[str]) -> MessageList:
    read = MessageList()
    for name, value in root.items():
        if name == "instances":
            for instance in value if isinstance(value, list) else [value]:
                read.add_content("user", list(_parts(instance)))
        elif name == "parameters" and isinstance(value, Mapping):
            for inner, setting in value.items():
                _add_setting(read, f"parameters.{inner}", {inner: setting})
        else:
            _add_setting(read, f"request.{name}", {name: value})
    reason = "another destination of the response"
    read.unchecked.extend(Unchecked(f"request.{address}", reason) for address in outbound)
    return read


def _add_setting(read: MessageList, where: str, value: JsonObject) -> None:
    parts = list(_parts(value))
    if texts := [part["text"] for part in parts if "text" in part]:
        read.add_text("system", "\n".join(texts), field=where)
    read.add_content("user", [part for part in parts if "text" not in part])


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the texts of a value as parts of a content."""
    if isinstance(value, Mapping):
        mime = next((kind for name, kind in value.items() if snake_case(name) in _TYPE and isinstance(kind, str)), "")
        for name, inner in value.items():
            yield from _field(name, inner, mime)
    elif isinstance(value, list):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, str | int | float) and value != "" and not isinstance(value, bool):
        yield {"text": str(value)}


def _field(name: str, value: Any, mime: str) -> Iterator[dict[str, Any]]:
    folded = snake_case(name)
    if folded in _BYTES and isinstance(value, str):
        # Text is read as text: an image never has a text type.
        yield {"inlineData": {"mimeType": mime if "/" in mime else "application/octet-stream", "data": value}}
    elif folded in _URIS and isinstance(value, str):
        yield {"fileData": {"mimeType": mime, "fileUri": value}}
    elif not (folded in _CONTROL and steers(value)):
        if folded not in _KNOWN and folded not in _CONTROL:
            yield {"text": name}
        yield from _parts(value)


_KNOWN: Final = frozenset(
    """
    prompt content title negative_prompt image video mask last_frame reference_images reference_image scribble person
    person_image product_images images subject_image_config subject_description style_image_config style_description
    control_image_config mask_image_config text gcs_source predictions rai_filtered_reason rai_media_filtered_reasons
    metadata response generate_video_response generated_samples videos samples error message embeddings
    statistics output_options upscale_config edit_config
    """.split()
)
"""Names that are Google's own, and no text themselves."""


def _is_text(path: Path) -> bool:
    names = [snake_case(step) for step in path if isinstance(step, str)]
    return names[0] in ("instances", "parameters") and names[-1] not in _BYTES | _URIS | _CONTROL | _OUTBOUND


def _is_own(name: str, value: Any) -> bool:
    return snake_case(name) in _OWN and steers(value)


def _tell(payload: Payload) -> Iterable[Payload]:
    """Return the texts of a response as one, and its pictures and videos."""
    said = {name: value for name, value in payload.items() if not _is_own(name, value) and name != "error"}
    parts = list(_parts(said))
    texts = "\n".join(part["text"] for part in parts if "text" in part)
    content = [*([{"text": texts}] if texts else ()), *(part for part in parts if "text" not in part)]
    told: dict[str, Any] = {"candidates": [{"content": {"role": "model", "parts": content}, "finishReason": "STOP"}]}
    if payload.get("error") is not None:
        told["error"] = payload["error"]
    name = payload.get("name")
    if isinstance(name, str) and (match := _OPERATION.fullmatch(name)):
        told["responseId"] = match[1]
    return (told,)


def _is_media(path: Path) -> bool:
    return isinstance(path[-1], str) and snake_case(path[-1]) in _BYTES


PREDICTIONS: Final = BodyWire(_read, _is_text, _tell, BodyPlaces(_is_media))
