"""Read the steps and contents of the Interactions API as parts of ``generateContent``.

Source: the types of google-genai 3.6. Any other text of a step becomes a part named after its field, which rules read
like any text.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.fields import JsonObject, a_string, an_object, objects
from gemini_proxy.gemini.response_fields import ANYTHING, ID, NUMBER, TEXT, TIME, TOKEN, WORD, FieldTexts

Part = dict[str, Any]

_PROVIDER_CALLS: Final = frozenset(
    f"{tool}_call"
    for tool in (
        *"code_execution google_search url_context file_search google_maps retrieval".split(),
        *"mcp_server_tool processing".split(),
    )
)
"""Calls that Gemini's servers have made themselves. Any other may be one for the client."""
_CONTENTS: Final = frozenset({"text", "image", "document", "audio", "video"})
_CODE_CALL, _CODE_RESULT = "code_execution_call", "code_execution_result"

_SNIPPETS: Final = ({"title": TEXT, "url": TEXT, "reviewId": TEXT},)
_ANNOTATIONS: Final = (
    dict.fromkeys(("title", "url", "name", "text", "speaker", "style", "source"), TEXT)
    | dict.fromkeys(("fileName", "documentUri", "mediaId", "placeId"), TEXT)
    | dict.fromkeys(("startIndex", "endIndex", "pageNumber"), NUMBER)
    | {"type": WORD, "startOffset": TIME, "endOffset": TIME}
    | {"customMetadata": ANYTHING, "reviewSnippets": _SNIPPETS},
)
_PROCESSING: Final = {"type": WORD, "startOffset": TIME, "endOffset": TIME, "fps": NUMBER, "contentLayers": (WORD,)}
_CONTENT_FIELDS: Final = {
    "type": WORD,
    "annotations": _ANNOTATIONS,
    "processing": _PROCESSING,
    "resolution": WORD,
    "channels": NUMBER,
    "sampleRate": NUMBER,
    "rate": NUMBER,
}
_STEP_FIELDS: Final = {
    "type": WORD,
    "searchType": WORD,
    "retrievalType": WORD,
    "isError": NUMBER,
    "id": ID,
    "callId": ID,
    "signature": TOKEN,
    "serverName": TEXT,
    "error": {"code": NUMBER, "message": TEXT, "details": ANYTHING},
}
_READ_FROM_CONTENT: Final = frozenset(("type", "text", "data", "uri", "mime_type"))
_NO_CALLS: Final = frozenset(("user_input", "model_output", "thought"))
_CODE: Final = frozenset((_CODE_CALL, _CODE_RESULT))


def is_content(item: JsonObject) -> bool:
    """Return whether an element of an input is a content, and not a step."""
    kind = item.get("type")
    return isinstance(kind, str) and kind in _CONTENTS


def is_client_call(kind: str) -> bool:
    """Return whether a step of this type may be a call that the client runs: all calls but those known as others."""
    return kind.endswith("_call") and kind not in _PROVIDER_CALLS


def contents_parts(contents: Any, where: str, *, thought: bool = False) -> list[Part]:
    """Return the parts of a content or a list of them, or of a plain string. Raises BadRequest."""
    if isinstance(contents, str):
        return [_text(contents, thought)]
    return [part for content in objects(contents, where) for part in content_parts(content, thought=thought)]


def content_parts(content: JsonObject, *, thought: bool = False) -> list[Part]:
    """Return the parts of one content: its text, its media, and its other fields as text. Raises BadRequest."""
    parts: list[Part] = []
    if (text := content.get("text")) is not None:
        parts.append(_text(a_string(text, "text"), thought))
    mime = a_string(content.get("mime_type"), "mime_type")
    if (data := content.get("data")) is not None:
        parts.append({"inlineData": {"mimeType": mime, "data": a_string(data, "data")}})
    if (uri := content.get("uri")) is not None:
        parts.append({"fileData": {"mimeType": mime, "fileUri": a_string(uri, "uri")}})
    rest = {name: value for name, value in content.items() if name not in _READ_FROM_CONTENT}
    kind = content.get("type")
    if not isinstance(kind, str) or kind not in _CONTENTS:
        rest["type"] = kind
    return [*parts, *beside("content", rest, _CONTENT_FIELDS)]


def annotation_parts(annotations: Any) -> list[Part]:
    """Return what annotations of a text say, as text."""
    return beside("content", {"annotations": annotations}, _CONTENT_FIELDS)


def step_parts(step: JsonObject) -> list[Part]:
    """Return the parts of one step of either side. Raises BadRequest if it cannot be read."""
    kind = step_type(step)
    if kind in ("user_input", "model_output"):
        return [*contents_parts(step.get("content"), "content"), *_rest(kind, step, "content")]
    if kind == "thought":
        return [*contents_parts(step.get("summary"), "summary", thought=True), *_rest(kind, step, "summary")]
    if kind.endswith("_call"):
        return [call_part(step, step.get("arguments")), *_rest(kind, step, "arguments")]
    if kind.endswith("_result"):
        return _result_parts(kind, step)
    return beside(kind or "step", step, {})


def input_parts(given: Any) -> list[Part]:
    """Return the parts of an input in any form, with turns of either side. Raises BadRequest."""
    if given is None or isinstance(given, str):
        return [_text(given, False)] if given else []
    items = objects(given, "input")
    return [part for item in items for part in (content_parts(item) if is_content(item) else step_parts(item))]


def step_type(step: JsonObject) -> str:
    """Return the type of a step, "" for one without. Raises BadRequest if it is not a string."""
    return a_string(step.get("type"), "type")


def call_part(step: JsonObject, arguments: Any) -> Part:
    """Return the part of a call, with ``arguments`` for those of the step. Raises BadRequest."""
    kind = step_type(step)
    call_id, name = a_string(step.get("id"), "id"), a_string(step.get("name"), "name")
    given = an_object(arguments, "arguments") or {}
    if kind == _CODE_CALL:
        return {"executableCode": {"id": call_id, **{key: value for key, value in given.items() if key != "id"}}}
    if is_client_call(kind):
        return {"functionCall": {"id": call_id, "name": name or kind.removesuffix("_call"), "args": dict(given)}}
    return {"toolCall": {"id": call_id, "toolType": kind.removesuffix("_call"), "name": name, "args": dict(given)}}


def call_fields(step: JsonObject) -> list[Part]:
    """Return the fields of a call's step beside the call, as text."""
    return _rest(step_type(step), step, "arguments")


def _result_parts(kind: str, step: JsonObject) -> list[Part]:
    result, call_id = step.get("result"), a_string(step.get("call_id"), "call_id")
    name = a_string(step.get("name"), "name")
    rest = _rest(kind, step, "result")
    if kind == _CODE_RESULT and not isinstance(result, list):
        return [{"codeExecutionResult": {"id": call_id, "output": result}}, *rest]
    media: list[Part] = []
    if isinstance(result, list) and _are_contents(result):
        parts = contents_parts(result, "result")
        result = "\n".join(part["text"] for part in parts if "text" in part)
        media = [part for part in parts if "text" not in part]
    elif isinstance(result, list):
        contents = [item for item in result if isinstance(item, Mapping) and is_content(item)]
        media = [part for part in contents_parts(contents, "result") if "text" not in part]
    response = result if isinstance(result, str) else {"result": result}
    if kind == "function_result":
        return [{"functionResponse": {"id": call_id, "name": name, "response": response, "parts": media}}, *rest]
    tool = kind.removesuffix("_result")
    return [{"toolResponse": {"id": call_id, "toolType": tool, "name": name, "response": response}}, *media, *rest]


def _are_contents(items: Sequence[Any]) -> bool:
    return bool(items) and all(isinstance(item, Mapping) and is_content(item) for item in items)


def _rest(kind: str, step: JsonObject, read: str) -> list[Part]:
    """Return what a step says beside the field ``read``, and beside what its part has of a call or a result."""
    known = {read, "type"}
    if kind not in _NO_CALLS:
        known |= {"id" if kind.endswith("_call") else "call_id"} | (set() if kind in _CODE else {"name"})
    left = {name: value for name, value in step.items() if name not in known}
    return beside(kind, left, _STEP_FIELDS)


def beside(where: str, source: JsonObject, shape: Mapping[str, Any]) -> list[Part]:
    """Return a part for each field of ``source`` that says something, by ``shape``. Raises BadRequest."""
    return [{f"{where}.{name}": text} for name, text in texts_beside(source, shape)]


def texts_beside(source: JsonObject, shape: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the fields of ``source`` that say something, by ``shape``, and what. Raises BadRequest if too deep."""
    if not source:
        return
    texts = FieldTexts(shape)
    for name, value in source.items():
        if value is not None:
            texts.add(name, value)
    if any("deeply" in unchecked.reason for unchecked in texts.unchecked("")):
        raise BadRequest("The JSON is nested too deeply")
    for name, said in texts.said.items():
        if said:
            yield name, "\n".join(said)


def _text(text: str, thought: bool) -> Part:
    return {"text": text, "thought": True} if thought else {"text": text}
