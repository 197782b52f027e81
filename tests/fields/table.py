"""What the proxy does with every string field: read by running it, field by field."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, get_args

import orjson
from google.genai import types
from google.genai._gaos.types.decisions import (
    ChoiceQuestionParam,
    CreateDecisionRequestParam,
    NoulQuestionParam,
    ScoreQuestionParam,
)

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.batches import BatchReader
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.decisions import DECISIONS
from gemini_proxy.gemini.interactions.request import read_request as read_interaction
from gemini_proxy.gemini.interactions.response import InteractionReader
from gemini_proxy.gemini.live.frames import read_client_frame, read_server_frame
from gemini_proxy.gemini.live.request import read_input, read_setup
from gemini_proxy.gemini.live.wire import TurnReader
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.openai.request import read_chat, read_embeddings
from gemini_proxy.gemini.openai.response import ChatReader
from gemini_proxy.gemini.parts import Unchecked
from gemini_proxy.gemini.request import GeminiRequest, read_request
from gemini_proxy.gemini.uploads import UploadedFile, read_file, read_start
from gemini_proxy.guardrails.response_messages import candidate_messages
from gemini_proxy.policy import Conversation, compile_policy
from tests.fields.canaries import CANARY, Planted, planted
from tests.fields.google_lists import Place, request_places, response_places
from tests.fields.interactions_lists import interaction_requests, interaction_responses
from tests.fields.openai_lists import fields_of, openai_requests, openai_responses

Class = Literal["seen", "attribute", "declared", "refused", "control", "enum", "time", "silent"]
"""``seen``: text of an event. ``attribute``: readable under a name, such as a call's. ``declared``: named as not
checked. ``refused``: the body is. ``control``: on the list of fields that say nothing. ``enum`` and ``time``: by their
type no text. ``silent``: none of these."""

CONTROL = {
    "*.role": "who speaks, the user or the model",
    "*model": "a model's name",
    "*.modelName": "a model's name",
    "*.thoughtSignature": "a signature that only Google reads",
    "*.imageConfig.*imeType": "a format",
    "*.responseMimeType": "a format",
    "*.responseModalities": "an enum in all but its type",
    "*.imageConfig.aspectRatio": "a ratio",
    "*.imageConfig.imageSize": "a size",
    "*.imageConfig.personGeneration": "an enum in all but its type",
    "*.videoMetadata.*Offset": "a time within the video",
    "*.retrievalConfig.languageCode": "a language",
    "*.googleMapsWidgetContextToken": "a token that only Google reads",
    "response.modelVersion": "a model's name",
    "response.responseId": "an id",
}
"""Fields that carry no text, and why: patterns of paths that begin with ``response.`` or ``request.``. Kept short."""

OPENAI_CONTROL = {
    "chat/completions model": "a model's name",
    "embeddings model": "a model's name",
    "chat.completion model": "a model's name",
    "chat.completion.chunk model": "a model's name",
    "chat.completion id": "an id",
    "chat.completion.chunk id": "an id",
}
"""The same of the OpenAI path, each behind the name of its request or object."""

INTERACTION_CONTROL = {
    "* event_id": "the number of an event",
    "* *interaction_id": "an id",
    "* interaction.id": "an id",
    "interaction id": "an id",
    "interaction environment_id": "an id",
    "interaction cached_content": "the name of a cache",
    "* *continuation_token": "a token that only Google reads",
    "* *.signature": "a signature that only Google reads",
    "* interaction.agent": "an agent's name",
    "* interaction.model": "a model's name",
    "* interaction.object": "an enum in all but its type",
    "* response_mime_type": "a format",
}
"""The same of the Interactions API, as patterns."""

LIVE_CONTROL = {
    "* *role": "who speaks, the user or the model",
    "* *videoMetadata.*Offset": "a time within the video",
    "* *languageCode*": "a language",
    "client setup.model": "a model's name",
    "client *.modelName": "a model's name",
    "client *.responseMimeType": "a format",
    "client *.avatarName": "a name of Google's",
    "server serverContent.interimInputTranscription.*": "named as not checked as a whole",
    "server serverContent.inputTranscription.words.*": "the words again: named as not checked as a whole",
    "server *.googleMapsWidgetContextToken": "a token that only Google reads",
    "server *.jsonPath": "where a piece of an argument belongs",
    "server goAway.timeLeft": "a time: what has a space in it is refused",
    "server sessionResumptionUpdate.newHandle": "a token, the same",
    "server setupComplete.*": "a token, the same",
    "server toolCallCancellation.ids": "ids, the same",
    "server voiceActivity.audioOffset": "a time, the same",
}
"""The same of frames of the Live API, as patterns, each behind the side that sends it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: ``direction`` is ``response`` or the method of a request."""

    direction: str
    path: str
    found: Class


_Read = Callable[[Mapping[str, Any]], tuple[Sequence[Message], Sequence[Unchecked]]]

_FINDS = compile_policy(
    "\n".join(
        f'raise "x" if:\n    (e: {event})\n    "{CANARY}" in e'
        for event in ("Message", "ToolCall", "ToolOutput", "Tool")
    )
)


def rows(spell: Callable[[str], str] = str) -> list[Row]:
    """The table; ``spell`` writes the fields' names another way."""
    lists: list[tuple[str, _Read, list[Place]]] = [("response", _read_response, response_places())]
    lists += [(method, _request_reader(method), places) for method, places in request_places().items()]
    return [
        _controlled(Row(direction, planting.path, _classified(planting, place, read)))
        for direction, read, places in lists
        for place in places
        for planting in planted(place, spell)
    ]


def batch_rows() -> list[Row]:
    """The table of responses within a batch: the fields of a response, one level deeper."""
    return [
        _controlled(Row("response", planting.path, _classified(_in_batch(planting), place, _read_batch_response)))
        for place in response_places()
        for planting in planted(place)
    ]


def _in_batch(planting: Planted) -> Planted:
    inlined = {"inlinedResponses": [{"response": planting.body}]}
    return replace(planting, body={"name": "batches/b", "metadata": {"output": {"inlinedResponses": inlined}}})


def _read_batch_response(body: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[Unchecked]]:
    merger = Merger()
    for payload in BatchReader().read(body):
        merger.add(payload)
    return _merged(merger)


def openai_rows() -> list[Row]:
    """The table of the OpenAI path, by its SDK's types."""
    readers: dict[str, _Read] = {
        "chat/completions": _bytes_reader(read_chat),
        "embeddings": _bytes_reader(read_embeddings),
    }
    return [
        Row(
            direction,
            field.planted.path,
            _classified(field.planted, field.place, readers.get(direction, _read_chat_response)),
        )
        for direction, fields in (openai_requests() | openai_responses()).items()
        for field in fields
    ]


def decision_rows() -> list[Row]:
    """The table of decisions, by the types of Google's SDK."""
    read = _bytes_reader(partial(DECISIONS.read_request, read_call("POST", "/v1/decisions")))
    fields = [
        field for field in fields_of(CreateDecisionRequestParam) if not field.planted.path.startswith("questions")
    ]
    for kind in (NoulQuestionParam, ChoiceQuestionParam, ScoreQuestionParam):
        for field in fields_of(kind):
            body = {"input": "x", "questions": {"q": field.planted.body}}
            fields.append(field._replace(planted=replace(field.planted, body=body)))
    return [Row("decision", field.planted.path, _classified(field.planted, field.place, read)) for field in fields]


def interaction_rows() -> list[Row]:
    """The table of the Interactions API, by the types of Google's SDK."""
    requests, responses = interaction_requests(), interaction_responses()
    read = _bytes_reader(read_interaction)
    return [
        Row(direction, field.planted.path, _classified(field.planted, field.place, reader))
        for found, reader in ((requests, read), (responses, _read_interaction_response))
        for direction, fields in found.items()
        for field in fields
    ]


def live_rows() -> list[Row]:
    """The table of the frames of the Live API, by the types of Google's SDK."""
    sides: list[tuple[str, Any, _Read]] = [
        ("client", types.LiveClientMessage, _read_live_client),
        ("server", types.LiveServerMessage, _read_live_server),
    ]
    return [
        Row(direction, field.planted.path, _classified(field.planted, field.place, read))
        for direction, model, read in sides
        for field in fields_of(model)
    ]


def counts(table: Sequence[Row]) -> str:
    """How many rows of each class there are, a line for each direction."""
    lines = []
    for direction in dict.fromkeys(row.direction for row in table):
        found = Counter(row.found for row in table if row.direction == direction)
        named = ", ".join(f"{found[name]} {name}" for name in get_args(Class) if found[name])
        lines.append(f"{direction}: {found.total()} fields: {named}")
    return "\n".join(lines)


def listed_as(row: Row) -> list[str]:
    """The patterns of ``CONTROL`` that name a row's field."""
    side = "response" if row.direction == "response" else "request"
    return [pattern for pattern in CONTROL if fnmatchcase(f"{side}.{row.path}", pattern)]


def _controlled(row: Row) -> Row:
    return replace(row, found="control") if row.found == "silent" and listed_as(row) else row


def _classified(planting: Planted, place: Place, read: _Read) -> Class:
    try:
        messages, unchecked = read(planting.body)
    except (BadRequest, DecodeError):
        return "refused"
    if _FINDS.check(Conversation.of(messages)):
        return "seen"
    if unchecked and (place.kind == "bytes" or len(unchecked) > len(_unchecked_without(planting, read))):
        return "declared"
    if planting.value in orjson.dumps(messages).decode():
        return "attribute"
    if place.kind in ("enum", "time"):
        return place.kind
    return "silent"


def _unchecked_without(planting: Planted, read: _Read) -> Sequence[Unchecked]:
    """What is named as not checked where the field is missing and everything around it is there."""
    return read(_without(planting.body, planting.value))[1]


def _without(value: Any, leaf: str) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner, leaf) for name, inner in value.items() if inner != leaf and name != leaf}
    if isinstance(value, list):
        return [_without(inner, leaf) for inner in value if inner != leaf]
    return value


def _read_response(body: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[Unchecked]]:
    merger = Merger()
    merger.add(body)
    return _merged(merger)


def _merged(merger: Merger) -> tuple[Sequence[Message], Sequence[Unchecked]]:
    found = candidate_messages(_ASKED, merger)
    return (
        [message for candidate in found for message in candidate.messages],
        [unchecked for candidate in found for unchecked in candidate.unchecked],
    )


def _request_reader(method: str) -> _Read:
    if method == "uploadFile":
        return _read_upload
    call = read_call("POST", _PATHS.get(method, f"/v1beta/models/m:{method}"))

    def read(body: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[Unchecked]]:
        request = read_request(call, orjson.dumps(body))
        return request.messages, request.unchecked

    return read


_PATHS = {"createCachedContent": "/v1beta/cachedContents"}
_START = {
    "x-goog-upload-protocol": "resumable",
    "x-goog-upload-command": "start",
    "x-goog-upload-header-content-length": "0",
    "x-goog-upload-header-content-type": "image/png",
}


def _read_upload(body: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[Unchecked]]:
    """What is read of a file that is no text."""
    request = read_file(UploadedFile(read_start(_START, start := orjson.dumps(body)), start, None))
    return request.messages, request.unchecked


def _bytes_reader(reader: Callable[[bytes], GeminiRequest]) -> _Read:
    def read(body: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[Unchecked]]:
        request = reader(orjson.dumps(body))
        return request.messages, request.unchecked

    return read


def _read_chat_response(body: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[Unchecked]]:
    reader, merger = ChatReader(), Merger()
    for payload in [*reader.read(body), *reader.end()]:
        merger.add(payload)
    return _merged(merger)


def _read_interaction_response(body: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[Unchecked]]:
    reader, merger = InteractionReader(), Merger()
    frames = [body, {"event_type": "step.stop", "index": 0}] if "event_type" in body else [body]
    for payload in [payload for frame in frames for payload in reader.read(frame)] + [*reader.end()]:
        merger.add(payload)
    return _merged(merger)


def _read_live_client(body: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[Unchecked]]:
    frame = read_client_frame(orjson.dumps(body))
    request = read_setup(_LIVE, frame) if frame.kind == "setup" else read_input(_LIVE, frame)
    return request.messages, request.unchecked


def _read_live_server(body: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[Unchecked]]:
    reader, merger, frame = TurnReader(), Merger(), read_server_frame(orjson.dumps(body))
    for said in reader.read(frame.payload):
        merger.add(said)
    messages, unchecked = _merged(merger)
    heard: list[Message] = [{"role": "user", "content": frame.heard}] if frame.heard else []
    return [*heard, *messages], [
        *unchecked,
        *(Unchecked(path, reason) for path, reason in frame.unread(transcribed=True).items()),
    ]


_LIVE = read_call("GET", "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent")
_ASKED = read_request(read_call("POST", "/v1beta/models/m:generateContent"), b"{}")
