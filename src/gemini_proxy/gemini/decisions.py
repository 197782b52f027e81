"""Read ``decisions``: closed questions about one input. The response has labels and numbers alone.

The input is a user's content, instructions and criteria are a system's. Source: the types of google-genai 3.6.
"""

from collections.abc import Mapping
from typing import Any, Final

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.body_wire import BodyWire
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.fields import JsonObject, an_object, steers
from gemini_proxy.gemini.interactions.steps import contents_parts
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.messages import MessageList
from gemini_proxy.gemini.parts import Unchecked, strings_in
from gemini_proxy.gemini.request import GeminiRequest, outbound_fields
from gemini_proxy.gemini.secret_fields import without_secrets
from gemini_proxy.gemini.strict_json import read_object

_OF_CONTENTS: Final = frozenset(("type", "mime_type", "data", "uri", "model"))
_CLIENTS_NAMES: Final = frozenset({"input", "questions", "instructions", "criteria"})
"""Fields of which the names are the client's own: no key of a service is in them."""


def _read(call: ModelCall, body: bytes) -> GeminiRequest:
    """Read the body of a decision. Raises BadRequest if it cannot be read, or can be read two ways."""
    root = read_object(body)
    bare, secrets = without_secrets(root, _CLIENTS_NAMES)
    outbound = outbound_fields(root)
    read = _messages(root)
    reason = "another destination of the response"
    read.unchecked.extend(Unchecked(f"request.{address}", reason) for address in outbound)
    messages, model = tuple(read.messages), root.get("model")
    return GeminiRequest(
        messages=messages,
        unchecked=tuple(read.unchecked),
        settings={name: value for name, value in bare.items() if name not in ("input", "questions")},
        candidate_count=None,
        structured=False,
        outbound=outbound,
        stored=messages if bare is root else tuple(_messages(bare).messages),
        secrets=secrets,
        model=model.removeprefix("models/") if isinstance(model, str) else None,
    )


def _messages(root: JsonObject) -> MessageList:
    read = MessageList()
    questions = an_object(root.get("questions"), "questions") or {}
    for name, question in questions.items():
        if not isinstance(question, Mapping):
            raise BadRequest('"questions" must hold objects')
        read.add_content("system", contents_parts(question.get("instructions") or "", "instructions"))
        # The other texts of a question: its name and its options, which come back as labels.
        rest = {inner: value for inner, value in question.items() if inner != "instructions"}
        texts = [name, *_texts(rest)]
        read.add_text("system", "\n".join(texts), field="request.questions")
    for name, value in root.items():
        if name in ("input", "questions") or (name == "model" and steers(value)):
            continue
        if texts := _texts({name: value}):
            read.add_text("system", "\n".join(texts), field=f"request.{name}")
    if root.get("input") is not None:
        read.add_content("user", contents_parts(root["input"], "input"))
    return read


def _texts(value: JsonObject) -> list[str]:
    return [
        text
        for name, inner in value.items()
        if not (name == "type" and steers(inner))
        for text in strings_in(inner if name == "criteria" else {name: inner})
    ]


def _is_text(path: Path) -> bool:
    names: list[Any] = [step for step in path if isinstance(step, str)]
    if names[0] not in ("input", "questions"):
        return False
    return names[-1] not in _OF_CONTENTS or "criteria" in names[:-1]


DECISIONS: Final = BodyWire(_read, _is_text)
