"""Read and write the wire of batches: many requests in one, all read or none, with responses later in one body. No I/O.

All responses of a batch are read as one candidate, one after another. Checking each of them alone, after all of the
requests, would take time that grows with the square of their number.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import Any, Final

import orjson

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.calls import ModelCall, read_call
from gemini_proxy.gemini.fields import (
    JsonObject,
    a_string,
    an_object,
    camel_case,
    camel_keys,
    field,
    objects,
    spellings,
    steers,
)
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.framing.json_lines import JsonLinesFraming
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.generate_wire import GENERATE
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.messages import Message, MessageList
from gemini_proxy.gemini.parts import Reference, Unchecked, file_media, strings_in
from gemini_proxy.gemini.references import moved
from gemini_proxy.gemini.refusal import JSON_TYPE, Feedback, Refusal, StreamState, error_body, error_refusal
from gemini_proxy.gemini.request import (
    GeminiRequest,
    add_settings,
    control_fields,
    outbound_fields,
    read_request,
    request_without_settings,
)
from gemini_proxy.gemini.strict_json import read_object
from gemini_proxy.gemini.wire import Payload, ResponseReader, Run

MAX_REQUESTS: Final = 10_000
"""Requests in one batch, inline or in a file; more are refused, for all of them are read before one leaves."""
FILE: Final = "request.batch.inputConfig.fileName"
"""The address of the file that holds the requests of a batch."""

_GENERATE: Final = read_call("POST", "/v1beta/models/batch:generateContent")
_CONTROL: Final = control_fields("model priority")
_REQUESTS: Final = ("batch", "inputConfig", "requests", "requests")
_SOURCES: Final = spellings("requests", "fileName")
_STATE: Final = frozenset(
    "@type name model displayName state createTime endTime updateTime batchStats priority".split()
)
"""The fields in ``metadata`` of an unfinished batch."""
_SMALL: Final = 65_536
"""Bytes of an answer that takes no time to be read twice."""


def read_batch(body: bytes) -> GeminiRequest:
    """Read a batch whose requests are inline, or in a file. Raises BadRequest if any of it cannot be read."""
    root = read_object(body)
    batch = an_object(field(root, "batch"), "batch") or {}
    source = an_object(field(batch, "inputConfig"), "batch.inputConfig") or {}
    inline = an_object(field(source, "requests"), "batch.inputConfig.requests")
    file = a_string(field(source, "fileName"), "batch.inputConfig.fileName")
    if (inline is None) == (not file):
        raise BadRequest('A batch has its requests either in "inputConfig.requests" or in "inputConfig.fileName"')
    beside = [
        ("request", {name: value for name, value in root.items() if name != "batch"}),
        ("batch", {name: value for name, value in batch.items() if name not in spellings("inputConfig")}),
        ("batch.inputConfig", {name: value for name, value in source.items() if name not in _SOURCES}),
        ("batch.inputConfig.requests", {name: value for name, value in (inline or {}).items() if name != "requests"}),
    ]
    named = _without_requests(beside)
    if inline is None:
        return named._replace(unchecked=(*named.unchecked, Unchecked(FILE, "a file of requests", _file(file))))
    requests = objects(field(inline, "requests"), "batch.inputConfig.requests.requests")
    if len(requests) > MAX_REQUESTS:
        raise BadRequest(f"The batch has more than {MAX_REQUESTS} requests; send several batches")
    return with_requests(named, enumerate(requests, start=1), "Request {} of the batch cannot be read")


def _without_requests(beside: Iterable[tuple[str, JsonObject]]) -> GeminiRequest:
    messages, settings, outbound = MessageList(), dict[str, Any](), list[str]()
    for where, values in beside:
        add_settings(messages, where, values, _CONTROL)
        settings.update(values)
        outbound += outbound_fields(values)
    read = tuple(messages.messages)
    unchecked = [Unchecked(f"request.{address}", "another destination of the response") for address in outbound]
    return GeminiRequest(
        messages=read,
        unchecked=(*messages.unchecked, *unchecked),
        settings=settings,
        candidate_count=None,
        structured=False,
        outbound=tuple(outbound),
        stored=read,
        secrets=(),
    )


def _file(name: str) -> Reference:
    """Return the reference to a file of requests. Raises BadRequest for what names no file that Gemini keeps."""
    reference = file_media({"fileUri": name}).reference
    if reference is None or not reference.name:
        raise BadRequest('"batch.inputConfig.fileName" must name an uploaded file, such as "files/abc"')
    return replace(reference, of_requests=True)


def with_requests(named: GeminiRequest, requests: Iterable[tuple[int, JsonObject]], fault: str) -> GeminiRequest:
    """Return ``named`` with ``requests`` added in order, each a number and an object that holds the request.

    Raises BadRequest for one that cannot be read; ``fault`` says so with the number in its braces.
    """
    messages, stored = list(named.messages), list(named.stored)
    unchecked, outbound, secrets = list(named.unchecked), list(named.outbound), list(named.secrets)
    for number, given in requests:
        try:
            inner = an_object(field(given, "request"), "request")
            if inner is None:
                raise BadRequest('it has no "request"')
            request = read_request(_GENERATE, orjson.dumps(inner))
        except BadRequest as error:
            raise BadRequest(f"{fault.format(number)}: {error.message}") from None
        beside = "\n".join(strings_in([value for name, value in given.items() if name != "request"]))
        if beside:
            messages.append(_beside(beside))
            stored.append(messages[-1])
        unchecked += [moved(one, len(messages)) for one in request.unchecked]
        messages += request.messages
        stored += request.stored
        outbound += request.outbound
        secrets += request.secrets
    return named._replace(
        messages=tuple(messages),
        stored=tuple(stored),
        unchecked=tuple(unchecked),
        outbound=tuple(outbound),
        secrets=tuple(secrets),
    )


def _beside(text: str) -> Message:
    return {"role": "user", "content": [{"type": "text", "text": text, "field": "line"}]}


def results_request(name: str | None) -> GeminiRequest:
    """Return the request behind the responses of a batch: what its name stands for, nothing else. It may be unknown."""
    reference = Reference("batch", name, name) if name else None
    return request_without_settings(unchecked=[Unchecked("request", "the requests of the batch", reference)])


def has_output(body: bytes) -> bool:
    """Return whether a response about a batch has more than its progress. Raises DecodeError if it is not an object."""
    if len(body) > _SMALL:
        return True
    operation = _operation(body)
    metadata = operation.get("metadata", {})
    if not operation.keys() <= {"name", "metadata", "done"} or not isinstance(metadata, dict):
        return True
    return not all(_is_state(name, value) or _names_file(name, value) for name, value in metadata.items())


def _is_state(name: str, value: Any) -> bool:
    """Return whether a field of a batch says how far it is, or has the name that its owner gave it."""
    return _steers(name, value) or (name == "displayName" and isinstance(value, str))


def _names_file(name: str, value: Any) -> bool:
    return name == "inputConfig" and isinstance(value, dict) and value.keys() <= {"fileName"}


def results_file(body: bytes) -> str | None:
    """Return the name of the file that an answer about a batch says its responses are in, None if it names none."""
    operation = _operation(body)
    metadata = operation.get("metadata")
    holders = [operation.get("response"), metadata.get("output") if isinstance(metadata, dict) else None]
    for holder in holders:
        for name in spellings("responsesFile"):
            named = holder.get(name) if isinstance(holder, dict) else None
            if isinstance(named, str) and (reference := file_media({"fileUri": named}).reference) is not None:
                return reference.name or None
    return None


def without_output(page: bytes) -> bytes:
    """Return a page of batches with the progress of each, without its requests and responses."""
    listing = _operation(page)
    operations = listing.get("operations", [])
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise DecodeError("The upstream's list of batches cannot be read")
    return orjson.dumps({**listing, "operations": [_state(operation) for operation in operations]})


def _state(operation: Mapping[str, Any]) -> dict[str, Any]:
    metadata = operation.get("metadata")
    kept = {name: operation[name] for name in ("name", "done") if name in operation}
    if isinstance(metadata, dict):
        kept["metadata"] = {name: value for name, value in metadata.items() if name in _STATE}
    return kept


def _operation(body: bytes) -> dict[str, Any]:
    try:
        operation = orjson.loads(body)
    except orjson.JSONDecodeError:
        operation = None
    if not isinstance(operation, dict):
        raise DecodeError("The upstream's response about a batch cannot be read")
    return operation


class BatchReader:
    """Read the answer about a batch: its responses as one candidate, everything else as fields beside it."""

    carried_call = False
    has_open_call = False

    def read(self, payload: Payload) -> Iterable[Payload]:
        beside = dict(payload)
        parts: list[Payload] = []
        for holder in ("metadata", "response"):
            known = beside.get(holder)
            if isinstance(known, dict):
                beside[holder] = self._apart(known, parts)
        told = {f"batch.{name}": value for name, value in beside.items()}
        return ({**told, "candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]},)

    def end(self) -> Iterable[Payload]:
        return ()

    def refusal_events(
        self, refusal: Refusal, state: StreamState, feedback: Feedback, framing: str, left: int
    ) -> bytes:
        raise AssertionError("no answer about a batch is a stream")

    def error_events(self, body: Payload, framing: str) -> bytes:
        raise AssertionError("no answer about a batch is a stream")

    def _apart(self, holder: Mapping[str, Any], parts: list[Payload]) -> dict[str, Any]:
        """Return an object's content without its responses, whose parts are added to ``parts``."""
        beside = {name: value for name, value in camel_keys(holder).items() if not _steers(name, value)}
        output = beside.get("output")
        if isinstance(output, dict):
            beside["output"] = self._apart(output, parts)
        inlined = beside.get("inlinedResponses")
        if inlined is not None:
            inlined = inlined.get("inlinedResponses", inlined) if isinstance(inlined, dict) else inlined
            if not isinstance(inlined, list) or not all(isinstance(one, dict) for one in inlined):
                raise DecodeError("The upstream sent responses of a batch that cannot be read")
            del beside["inlinedResponses"]
            for number, one in enumerate(inlined, start=1):
                parts += _inlined(number, one)
        return beside


def _inlined(number: int, one: Mapping[str, Any]) -> list[Payload]:
    """Return the content of one response: fields beside its parts, then the parts."""
    return [{"inlinedResponse": {"number": number, **_beside_response(one)}}, *_parts(one.get("response"))]


def _steers(name: str, value: Any) -> bool:
    """Return whether a field only says how far a batch is."""
    if name == "displayName" or name not in _STATE:
        return False
    return all(map(steers, value.values())) if isinstance(value, dict) else steers(value)


def _beside_response(inlined: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields beside the parts of one response."""
    beside = {name: value for name, value in inlined.items() if name != "response" and value is not None}
    response = inlined.get("response")
    if isinstance(response, dict):
        said = {name: value for name, value in response.items() if name != "candidates" and not _counts(name, value)}
        candidates = [
            {name: value for name, value in candidate.items() if name != "content" and not _counts(name, value)}
            for candidate in _objects(response.get("candidates"))
        ]
        beside |= {"response": said, "candidates": candidates}
    elif response is not None:
        beside["response"] = response
    return beside


_COUNTS: Final = spellings("usageMetadata", "modelVersion", "responseId", "finishReason", "index", "safetyRatings")


def _counts(name: str, value: Any) -> bool:
    """Return whether a field of a response only counts, or names what it is of."""
    return name in _COUNTS and _steers_within(value)


def _steers_within(value: Any, depth: int = 8) -> bool:
    """Return whether nothing in a value is text."""
    if not isinstance(value, dict | list):
        return steers(value)
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_steers_within(one, depth - 1) for one in inner)


def _parts(response: Any) -> Iterator[Payload]:
    for candidate in _objects(response.get("candidates")) if isinstance(response, dict) else ():
        content = candidate.get("content")
        if content is None:
            continue
        if not isinstance(content, dict):
            raise DecodeError("The upstream sent a candidate with content that is not an object")
        yield from _objects(content.get("parts"))
        if rest := {name: value for name, value in content.items() if name not in ("role", "parts")}:
            yield {"content": rest}


def _objects(value: Any) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DecodeError("The upstream sent a list in a response of a batch that cannot be read")
    return value


class ResultsReader:
    """Read the lines of a results file, each the response to one request, as one candidate."""

    carried_call = False
    has_open_call = False

    def __init__(self) -> None:
        self._number = 0

    def read(self, payload: Payload) -> Iterable[Payload]:
        self._number += 1
        parts = _inlined(self._number, payload)
        return ({"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]},)

    def end(self) -> Iterable[Payload]:
        return ()

    def refusal_events(
        self, refusal: Refusal, state: StreamState, feedback: Feedback, framing: str, left: int
    ) -> bytes:
        raise AssertionError("no file is a stream")

    def error_events(self, body: Payload, framing: str) -> bytes:
        raise AssertionError("no file is a stream")


class BatchPlaces:
    """The texts of a batch's responses: a candidate's text continues from part to part."""

    def texts(self, payload: Payload) -> Iterable[str]:
        return ()

    def run_of(self, path: Path, payload: Payload) -> Run | None:
        if path[-1] != "text" or path[-3:-2] != ("parts",):
            return None
        part: Any = payload
        for step in path[:-1]:
            try:
                part = part[step]
            except (LookupError, TypeError):
                # A parser does not see the value of a repeated name that stands in the text. Rules read the parser's
                # result.
                return None
        return (path[:-2], "text", isinstance(part, dict) and bool(part.get("thought")))

    def ends(self, run: Run, payload: Payload) -> bool:
        return True

    def is_opaque(self, path: Path) -> bool:
        return GENERATE.places.is_opaque(path)

    def is_json(self, path: Path) -> bool:
        return False


def is_text_of_request(path: Path) -> bool:
    """Return whether the string at ``path`` of a request in a batch, or beside it, is text that may be masked."""
    return path[:1] != ("request",) or GENERATE.is_request_text(path[1:])


@dataclass(frozen=True, slots=True)
class BatchWire:
    """Batches as they are begun, and as their responses are read, which are in one body or a line each."""

    framing: Callable[[], Framing]
    reader: Callable[[], ResponseReader]
    places: BatchPlaces = BatchPlaces()
    refuses_by_event: bool = False

    def read_request(self, call: ModelCall, body: bytes) -> GeminiRequest:
        return read_batch(body)

    def contents_of_messages(self, call: ModelCall, body: bytes) -> tuple[int | None, ...]:
        return ()

    def content_of(self, path: Path) -> int | None:
        return None

    def is_request_text(self, path: Path) -> bool:
        """Return whether a string is the batch's name, or text of one of its requests."""
        names = tuple(camel_case(step) if isinstance(step, str) else step for step in path)
        if names == ("batch", "displayName"):
            return True
        if names[:4] != _REQUESTS:
            return False
        within = tuple(dropwhile(lambda step: isinstance(step, int), path[4:]))
        return is_text_of_request(within)

    def stream_type(self, call: ModelCall) -> str:
        return JSON_TYPE

    def new_framing(self, content_type: str, *, streams: bool) -> Framing:
        return self.framing()

    def new_reader(self, call: ModelCall) -> ResponseReader:
        return self.reader()

    def error_body(self, status: int, message: str, code: str, details: Sequence[Payload] = ()) -> Payload:
        return error_body(status, message, code, details)

    def refusal_body(self, refusal: Refusal, code: str) -> Payload:
        return error_refusal(refusal, code)


BATCH: Final = BatchWire(WholeBodyFraming, BatchReader)
RESULTS: Final = BatchWire(JsonLinesFraming, ResultsReader)
