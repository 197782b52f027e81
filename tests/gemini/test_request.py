"""Whole requests: every string in them is shown to rules, named as unseen, or one of a few documented controls."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.request import GeminiRequest
from tests.gemini.reading import read, said

HI = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    "body",
    [
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
        {"contents": {"role": "user", "parts": [{"text": "hi"}]}},
        {"contents": {"parts": {"text": "hi"}}},
        {"contents": [{"parts": {"text": "hi"}}]},
        {"contents": [[{"parts": [{"text": "hi"}]}]]},
        {"contents": [[[{"parts": [[[{"text": "hi"}]]]}]]]},
        {"contents": [None, {"parts": [None, {"text": "hi"}, None]}, None, []]},
        {"contents": [[None], {"parts": [[None, {"text": "hi"}]]}]},
        {"contents": {"parts": [{"text": "h"}, [{"text": "i"}]]}},
        {"contents": {"parts": [{"text": "hi", "inlineData": None, "functionCall": None, "unknown": None}]}},
        {"contents": [{"parts": [{"text": "hi"}]}], "systemInstruction": None, "tools": None, "generationConfig": None},
        {"contents": [{"role": None, "parts": [{"text": "hi"}]}]},
        {"content": {"parts": {"text": "hi"}}},
    ],
)
def test_lists_and_objects_are_read_as_google_reads_them(body: dict[str, Any]) -> None:
    """An object where a list is meant, lists in lists, nulls: all that Google takes, rules see."""
    assert read(body).messages == (HI,)


@pytest.mark.parametrize(
    "body",
    [
        {"contents": "hi"},
        {"contents": ["hi"]},
        {"contents": [["hi"]]},
        {"contents": 5},
        {"contents": True},
        {"contents": {"parts": "hi"}},
        {"contents": {"parts": ["hi"]}},
        {"contents": {"parts": [[{"text": "hi"}, 5]]}},
        {"contents": {"role": 5, "parts": []}},
        {"contents": {"role": ["model"], "parts": []}},
        {"systemInstruction": "be nice"},
        {"systemInstruction": [{"parts": [{"text": "a"}]}]},
        {"systemInstruction": {"parts": [{"text": 5}]}},
        {"systemInstruction": {"parts": "a"}},
        {"tools": "all"},
        {"tools": ["googleSearch"]},
        {"tools": {"functionDeclarations": "f"}},
        {"tools": {"functionDeclarations": {"name": 5}}},
        {"tools": {"functionDeclarations": {"name": "f", "description": ["d"]}}},
        {"generationConfig": []},
        {"generationConfig": "none"},
        {"systemInstruction": {}, "system_instruction": {}},
        {"systemInstruction": None, "system_instruction": {"parts": [{"text": "a"}]}},
        {"generationConfig": {}, "generation_config": {}},
        {"cachedContent": "a", "cached_content": "b"},
        {"continuationToken": "a", "continuation_token": "a"},
        {"generationConfig": {"candidateCount": 1, "candidate_count": 2}},
        {"tools": [{"functionDeclarations": [], "function_declarations": []}]},
        {"tools": {"functionDeclarations": {"name": "f", "parametersJsonSchema": {}, "parameters_json_schema": {}}}},
    ],
)
def test_what_cannot_be_read_or_read_two_ways_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        read({"contents": [], **body})


def test_snake_case_and_camel_case_are_one() -> None:
    """A request in the names of the protocol buffers is the same request, even where the two are mixed."""
    camel = {
        "systemInstruction": {"parts": [{"text": "be nice"}]},
        "contents": [
            {
                "parts": [
                    {"inlineData": {"mimeType": "text/plain", "data": "aGk="}},
                    {"fileData": {"fileUri": "gs://x"}},
                ]
            },
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"camelKey": 1}}}]},
            {"parts": [{"functionResponse": {"name": "f", "response": {"snake_key": "a"}}}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": {"type": "object"}}]}],
        "generationConfig": {"candidateCount": 2, "stopSequences": ["END"]},
        "cachedContent": "cachedContents/1",
        "continuationToken": "dG9r",
    }
    snake = {
        "system_instruction": camel["systemInstruction"],
        "contents": [
            {"parts": [{"inline_data": {"mime_type": "text/plain", "data": "aGk="}}, {"file_data": {"file_uri": "gs://x"}}]},
            {"role": "model", "parts": [{"function_call": {"name": "f", "args": {"camelKey": 1}}}]},
            {"parts": [{"function_response": {"name": "f", "response": {"snake_key": "a"}}}]},
        ],
        "tools": [{"function_declarations": [{"name": "f", "parameters_json_schema": {"type": "object"}}]}],
        "generation_config": {"candidate_count": 2, "stop_sequences": ["END"]},
        "cached_content": "cachedContents/1",
        "continuation_token": "dG9r",
    }  # fmt: skip
    first, second = read(camel), read(snake)
    plain = [{key: value for key, value in message.items() if key != "field"} for message in first.messages]
    assert plain == [{key: value for key, value in message.items() if key != "field"} for message in second.messages]
    assert first.unseen == second.unseen and len(first.unseen) == 3
    assert (first.candidate_count, second.candidate_count) == (2, 2)
    assert first.continues and second.continues


def test_other_casings_are_other_fields() -> None:
    """Google knows no third spelling; such a field is unknown, and what is in it is shown."""
    for name in ("Contents", "CONTENTS", "system-instruction", "System_Instruction", "generation_Config", "Tools"):
        assert "canary" in said(read({"contents": [], name: {"parts": [{"text": "canary"}]}}).messages)


def test_system_instruction_is_the_first_speaker() -> None:
    parts = [{"text": "be "}, {"text": "nice"}]
    body = {"contents": {"parts": {"text": "hi"}}, "systemInstruction": {"role": "user", "parts": parts}}
    assert read(body).messages == ({"role": "system", "content": "be nice"}, HI)


def test_tools_are_declared_to_rules() -> None:
    """Declarations become Tool events: JSON Schema's lower-case types, and every text that describes them."""
    schema = {
        "type": "OBJECT",
        "properties": {"type": {"type": "STRING", "enum": ["STRING"], "default": {"type": "Custom"}}},
        "items": [{"type": "ARRAY"}],
    }
    tools = {
        "functionDeclarations": [
            {"name": "f", "description": "does", "parameters": schema, "response": {"description": "gives"}},
            {"name": "g", "behavior": "BLOCKING"},
        ]
    }
    (message,) = read({"contents": [], "tools": [tools]}).messages
    first, second = message["tools"]
    assert first["inputSchema"] == {
        "type": "object",
        "properties": {"type": {"type": "string", "enum": ["STRING"], "default": {"type": "Custom"}}},
        "items": [{"type": "array"}],
    }
    assert first["description"] == "does\ndescription\ngives"
    assert second == {"name": "g", "description": "", "inputSchema": {}}


def test_both_schemas_of_a_function_are_read() -> None:
    declared = {"name": "f", "parameters": {"title": "one"}, "parametersJsonSchema": {"title": "two"}}
    assert {"one", "two"} <= set(
        said(read({"contents": [], "tools": {"functionDeclarations": declared}}).messages).split("\n")
    )


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (2, 2),
        (2.0, 2),
        ("2", 2),
        (None, None),
        (0, None),
        (-1, None),
        (True, None),
        ("x", None),
        (2.5, None),
        ([2], None),
    ],
)
def test_candidate_count_is_read_as_google_reads_it(count: Any, expected: int | None) -> None:
    assert read({"contents": [], "generationConfig": {"candidateCount": count}}).candidate_count == expected


def test_settings_hold_no_contents() -> None:
    """A trace keeps what was said once: in its messages."""
    body = {"contents": [], "systemInstruction": {}, "generationConfig": {"topK": 1}, "safetySettings": []}
    assert read(body).settings == {"generationConfig": {"topK": 1}, "safetySettings": []}
    assert not read({"generateContentRequest": {"contents": []}}, "countTokens").settings
    assert not read({"content": {}, "requests": [], "system_instruction": {}}, "batchEmbedContents").settings


def test_count_tokens_is_read_in_both_forms() -> None:
    inner = {
        "model": "models/m",
        "contents": [{"parts": [{"text": "hi"}]}],
        "systemInstruction": {"parts": {"text": "be"}},
        "tools": {"googleSearch": {}},
    }
    assert read({"contents": inner["contents"]}, "countTokens").messages == (HI,)
    for name in ("generateContentRequest", "generate_content_request"):
        request = read({name: inner}, "countTokens")
        assert request.messages[1:] == ({"role": "system", "content": "be"}, HI)
        assert [one.address for one in request.unseen] == ["request.tools"]
    both = read({"contents": {"parts": {"text": "a"}}, "generateContentRequest": inner}, "countTokens")
    assert [message.get("content") for message in both.messages] == ["a", None, "be", "hi"]


def test_embedding_requests_are_read() -> None:
    one = {"content": {"parts": [{"text": "hi"}]}, "title": "about", "taskType": "RETRIEVAL_DOCUMENT"}
    assert said(read(one, "embedContent").messages).split("\n").count("hi") == 1
    assert "about" in said(read(one, "embedContent").messages)
    many = read({"requests": [one, [{"content": {"parts": {"text": "two"}}}]]}, "batchEmbedContents")
    assert {"hi", "about", "two"} <= set(said(many.messages).split("\n"))
    with pytest.raises(BadRequest):
        read({"requests": ["hi"]}, "batchEmbedContents")


@pytest.mark.parametrize("name", ["requests", "generateContentRequest", "generate_content_request", "batch", "input"])
def test_fields_of_other_methods_are_shown(name: str) -> None:
    """What a method does not know is not read as contents, but it is not hidden either."""
    assert "canary" in said(read({"contents": [], name: {"contents": {"parts": {"text": "canary"}}}}).messages)


@pytest.mark.parametrize(
    ("body", "address", "reason"),
    [
        ({"contents": {"parts": {"inlineData": {"mimeType": "image/png", "data": "aGk="}}}},
         "messages.0.content.0", "inline image/png"),
        ({"contents": {"parts": [{"text": "a"}, {"inlineData": {"mimeType": "audio/wav", "data": "aGk="}}]}},
         "messages.0.content.1", "inline audio/wav"),
        ({"contents": {"parts": {"inlineData": {"data": "aGk="}}}}, "messages.0.content.0", "inline data"),
        ({"contents": {"parts": {"fileData": {"fileUri": "https://x"}}}},
         "messages.0.content.0", "a file behind a URI"),
        ({"systemInstruction": {"parts": {"fileData": {"fileUri": "https://x"}}}},
         "messages.0.content.0", "a file behind a URI"),
        ({"cachedContent": "cachedContents/1"}, "request.cachedContent", "cached content"),
        ({"continuationToken": "dG9r"}, "request.continuationToken", "the answer this one continues"),
        ({"tools": {"googleSearch": {}}}, "request.tools", "googleSearch runs at the provider"),
        ({"tools": [{"url_context": {}}]}, "request.tools", "url_context runs at the provider"),
        ({"tools": [{"codeExecution": {}}]}, "request.tools", "codeExecution runs at the provider"),
        ({"tools": [{"newTool": {"prompt": "a"}}]}, "request.tools", "newTool runs at the provider"),
    ],
)  # fmt: skip
def test_what_no_rule_can_read_is_named(body: dict[str, Any], address: str, reason: str) -> None:
    """Each thing out of sight is named with its place and why."""
    assert [(one.address, one.reason) for one in read(body).unseen] == [(address, reason)]


def test_plain_requests_have_nothing_unseen() -> None:
    assert not read({"contents": {"parts": {"text": "hi"}}, "tools": {"functionDeclarations": []}}).unseen


PLAIN_LEAVES = """
contents.0.parts.0.text
contents.0.parts.1.functionCall.name
contents.0.parts.1.functionCall.id
contents.0.parts.1.functionCall.args.key
contents.0.parts.1.functionCall.args.list.0.deep
contents.0.parts.1.functionCall.partialArgs.0.jsonPath
contents.0.parts.1.functionCall.partialArgs.0.stringValue
contents.0.parts.2.functionResponse.name
contents.0.parts.2.functionResponse.id
contents.0.parts.2.functionResponse.response.result
contents.0.parts.2.functionResponse.response.other.deep.0
contents.0.parts.3.functionResponse.response.output
contents.0.parts.4.functionResponse.response.anything
contents.0.parts.5.functionResponse.response.error.message
contents.0.parts.5.functionResponse.parts.0.inlineData.data
contents.0.parts.5.functionResponse.parts.0.inlineData.displayName
contents.0.parts.5.functionResponse.parts.1.fileData.fileUri
contents.0.parts.5.functionResponse.parts.1.fileData.displayName
contents.0.parts.5.functionResponse.parts.2.text
contents.0.parts.5.functionResponse.parts.3.documentMetadata.title
contents.0.parts.6.executableCode.code
contents.0.parts.6.executableCode.language
contents.0.parts.6.executableCode.id
contents.0.parts.7.codeExecutionResult.output
contents.0.parts.8.inlineData.data
contents.0.parts.8.inlineData.mimeType
contents.0.parts.8.inlineData.displayName
contents.0.parts.9.fileData.fileUri
contents.0.parts.9.fileData.mimeType
contents.0.parts.9.fileData.displayName
contents.0.parts.10.toolCall.id
contents.0.parts.10.toolCall.toolType
contents.0.parts.10.toolCall.args.query
contents.0.parts.11.toolResponse.id
contents.0.parts.11.toolResponse.toolType
contents.0.parts.11.toolResponse.response.answer
contents.0.parts.12.partMetadata.note
contents.0.parts.13.audioTranscription.text
contents.0.parts.14.speechMetadata.speaker
contents.0.parts.15.mediaProcessing.prompt
contents.0.parts.16.documentMetadata.title
contents.0.parts.17.spreadsheetMetadata.sheet
contents.0.parts.18.text
contents.0.parts.19.someNewKind.deep.0.er
contents.0.someNewField
contents.1.parts.0.text
systemInstruction.parts.0.text
systemInstruction.parts.1.functionResponse.response.result
systemInstruction.someNewField
tools.0.functionDeclarations.0.name
tools.0.functionDeclarations.0.description
tools.0.functionDeclarations.0.parameters.description
tools.0.functionDeclarations.0.parameters.title
tools.0.functionDeclarations.0.parameters.format
tools.0.functionDeclarations.0.parameters.pattern
tools.0.functionDeclarations.0.parameters.example
tools.0.functionDeclarations.0.parameters.default
tools.0.functionDeclarations.0.parameters.enum.0
tools.0.functionDeclarations.0.parameters.required.0
tools.0.functionDeclarations.0.parameters.propertyOrdering.0
tools.0.functionDeclarations.0.parameters.type
tools.0.functionDeclarations.0.parameters.properties.named.description
tools.0.functionDeclarations.0.parameters.properties.named.enum.0
tools.0.functionDeclarations.0.parameters.items.description
tools.0.functionDeclarations.0.parameters.anyOf.0.description
tools.0.functionDeclarations.0.response.description
tools.0.functionDeclarations.0.responseJsonSchema.description
tools.0.functionDeclarations.1.parametersJsonSchema.description
tools.0.functionDeclarations.1.parametersJsonSchema.$defs.a.description
tools.0.functionDeclarations.1.parametersJsonSchema.const
tools.1.googleSearch.excludeDomains.0
tools.1.googleSearch.timeRangeFilter.startTime
tools.2.googleSearchRetrieval.dynamicRetrievalConfig.mode
tools.3.urlContext.urls.0
tools.4.fileSearch.fileSearchStoreNames.0
tools.4.fileSearch.metadataFilter
tools.5.mcpServers.0.name
tools.5.mcpServers.0.streamableHttpTransport.url
tools.6.computerUse.excludedPredefinedFunctions.0
tools.7.retrieval.vertexAiSearch.datastore
tools.8.googleMaps.authConfig.apiKey
tools.9.someNewTool.prompt
generationConfig.stopSequences.0
generationConfig.responseSchema.description
generationConfig.responseSchema.properties.named.description
generationConfig.responseSchema.enum.0
generationConfig.responseJsonSchema.description
generationConfig._responseJsonSchema.title
generationConfig.responseFormat.text.schema.description
generationConfig.speechConfig.voiceConfig.prebuiltVoiceConfig.voiceName
generationConfig.speechConfig.languageCode
generationConfig.speechConfig.multiSpeakerVoiceConfig.speakerVoiceConfigs.0.speaker
generationConfig.translationConfig.targetLanguageCode
generationConfig.audioTranscriptionConfig.hints.0
generationConfig.someNewSetting.prompt
labels.team
modelArmorConfig.promptTemplateName
someNewField.deep.0
""".split()

INLINE_TEXT = ["contents.2.parts.0.inlineData.data", "contents.2.parts.1.functionResponse.parts.0.inlineData.data"]
"""base64 of text: what is decoded has to be readable."""

NAMED_UNSEEN = {"cachedContent": "request.cachedContent", "continuationToken": "request.continuationToken"}

CONTROL = """
model
store
serviceTier
safetySettings.0.category
safetySettings.0.threshold
safetySettings.0.method
toolConfig.functionCallingConfig.mode
toolConfig.functionCallingConfig.allowedFunctionNames.0
toolConfig.retrievalConfig.languageCode
generationConfig.responseMimeType
generationConfig.responseModalities.0
generationConfig.mediaResolution
generationConfig.thinkingConfig.thinkingLevel
generationConfig.imageConfig.aspectRatio
generationConfig.routingConfig.manualMode.modelName
generationConfig.modelSelectionConfig.featureSelectionPreference
tools.0.functionDeclarations.0.behavior
contents.0.role
systemInstruction.role
contents.0.parts.0.thoughtSignature
contents.0.parts.7.codeExecutionResult.id
contents.0.parts.7.codeExecutionResult.outcome
contents.0.parts.8.mediaResolution.level
contents.0.parts.8.videoMetadata.startOffset
contents.0.parts.2.functionResponse.scheduling
contents.2.parts.0.inlineData.mimeType
""".split()
"""Enums, names of models and roles, offsets, and signatures that only Google reads: nothing that a model reads as text.
``allowedFunctionNames`` repeat names that were declared; a text blob's type is used to decode it; an output's id is
replaced by that of the call it was found to answer."""

FIXED = {
    "contents.2.parts.0.inlineData.mimeType": "text/plain",
    "contents.2.parts.1.functionResponse.parts.0.inlineData.mimeType": "text/plain",
}


def planted(leaves: list[str], spell: Any = str) -> tuple[dict[str, Any], dict[str, str]]:
    """A request with a canary at each leaf, and the canaries by leaf."""
    canaries = {leaf: f"canary{number:03}x" for number, leaf in enumerate(leaves)}
    root: dict[str, Any] = {}
    for leaf, canary in canaries.items():
        value = FIXED.get(leaf, canary)
        put(root, leaf, base64.b64encode(value.encode()).decode() if leaf in INLINE_TEXT else value, spell)
    return fill(root), canaries


def put(root: dict[str, Any], path: str, value: str, spell: Any) -> None:
    *steps, last = [step if step.isdigit() else spell(step) for step in path.split(".")]
    for step in steps:
        root = root.setdefault(step, {})
    root[last] = value


def fill(value: Any) -> Any:
    """Objects whose keys are numbers as lists."""
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [fill(value.get(str(number), {})) for number in range(max(map(int, value)) + 1)]
    return {key: fill(inner) for key, inner in value.items()}


def snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)


@pytest.mark.parametrize("spell", [str, snake], ids=["camelCase", "snake_case"])
def test_every_leaf_is_readable_or_named(spell: Any) -> None:
    """A canary in each of over a hundred string fields: rules can read it, or the trace says that they cannot."""
    leaves = [*PLAIN_LEAVES, *INLINE_TEXT, *NAMED_UNSEEN, *CONTROL, *FIXED]
    body, canaries = planted(list(dict.fromkeys(leaves)), spell)
    request = read(body)
    readable = said(request.messages)
    lost = [leaf for leaf in [*PLAIN_LEAVES, *INLINE_TEXT] if canaries[leaf] not in readable]
    assert not lost
    assert set(NAMED_UNSEEN.values()) <= {one.address for one in request.unseen}
    assert len(PLAIN_LEAVES) + len(INLINE_TEXT) >= 95


def test_control_fields_really_are_left_out() -> None:
    """The list of what rules do not see is exact: none of it shows, so it has to be looked at when it changes."""
    body, canaries = planted(list(dict.fromkeys([*PLAIN_LEAVES, *CONTROL])))
    readable = said(read(body).messages)
    assert [leaf for leaf in CONTROL if leaf not in FIXED and canaries[leaf] in readable] == []


def test_keys_are_text_too() -> None:
    """A client chooses the keys of arguments, outputs and schemas, and the model reads them."""
    body = {
        "contents": [
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"canary1": {"canary2": 1}}}}]},
            {"parts": [{"functionResponse": {"name": "f", "response": {"canary3": "a"}}}]},
            {"parts": [{"functionResponse": {"name": "f", "response": {"canary4": 1}}}, {"new": {"canary5": True}}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f", "parameters": {"properties": {"canary6": {}}}}]}],
        "generationConfig": {"responseSchema": {"properties": {"canary7": {}}}},
    }
    readable = said(read(body).messages)
    assert [name for name in (f"canary{number}" for number in range(1, 8)) if name not in readable] == []


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(
                    "contents content parts text role thought systemInstruction system_instruction tools inlineData "
                    "functionDeclarations function_declarations parameters name description id args response "
                    "mimeType mime_type data fileData file_uri functionCall function_call functionResponse "
                    "executableCode codeExecutionResult generationConfig candidateCount responseSchema requests "
                    "generateContentRequest cachedContent continuationToken type".split()
                ),
                st.text(max_size=4),
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=25,
)
PARTS = st.lists(st.dictionaries(st.sampled_from(["text", "inlineData", "functionCall", "function_response"]), JSON))


@given(
    st.one_of(
        st.dictionaries(st.text(max_size=4), JSON),
        st.fixed_dictionaries(
            {"contents": st.lists(st.fixed_dictionaries({"parts": PARTS}))},
            optional={"tools": JSON, "systemInstruction": st.fixed_dictionaries({"parts": PARTS}), "requests": JSON},
        ),
        JSON,
    ),
    st.sampled_from(["generateContent", "countTokens", "embedContent", "batchEmbedContents"]),
)
def test_any_json_is_a_request_or_a_bad_request(body: Any, verb: str) -> None:
    """No shape of JSON makes the reader fail in another way."""
    try:
        raw = json.dumps(body).encode()
        request = read(raw, verb)
    except BadRequest:
        return
    assert isinstance(request, GeminiRequest)
    assert all("role" in message or "tools" in message for message in request.messages)


TEXT_PART: st.SearchStrategy[dict[str, Any]] = st.builds(dict, text=st.text(max_size=12)) | st.builds(
    dict, text=st.text(max_size=12), thought=st.booleans()
)
OTHER_PART = st.sampled_from(
    [
        {},
        {"inlineData": {"mimeType": "image/png", "data": "aGk="}},
        {"functionCall": {"name": "f", "args": {}}},
        {"functionResponse": {"name": "f", "response": {"result": "r"}}},
        {"executableCode": {"code": "c"}},
        {"codeExecutionResult": {"output": "o"}},
        {"new": "kind"},
    ]
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "model", "", "system", None]),
            st.lists(
                st.one_of(TEXT_PART, st.builds(lambda one, two: {**one, **two}, TEXT_PART, OTHER_PART), OTHER_PART)
            ),
        ),
        max_size=5,
    )
)
def test_no_text_is_ever_lost(contents: list[tuple[str | None, list[dict[str, Any]]]]) -> None:
    """Whatever stands beside it, the text of each part is in a message, in order."""
    request = read({"contents": [{"role": role, "parts": parts} for role, parts in contents]})
    readable, place = said(request.messages), 0
    for _, parts in contents:
        for part in parts:
            found = readable.find(part.get("text", ""), place)
            assert found >= 0
            place = found if part.get("text") is None else found + len(part.get("text", ""))
