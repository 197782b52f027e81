"""Whole requests: every string in them is shown to rules, named as unchecked, or one of a few documented controls."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.fields import snake_case
from gemini_proxy.gemini.parts import Unchecked
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.policy import Conversation, compile_policy
from tests.gemini.reading import call, messages_of, output, read, said, spelled

HI = {"role": "user", "content": [{"type": "text", "text": "hi"}]}


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
        {"contents": {"parts": [[], [{"text": "hi"}]]}},
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
    assert first.unchecked == second.unchecked and len(first.unchecked) == 3
    assert (first.candidate_count, second.candidate_count) == (2, 2)


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
        assert [one.address for one in request.unchecked] == ["request.tools"]
    both = read({"contents": {"parts": {"text": "a"}}, "generateContentRequest": inner}, "countTokens")
    assert both.messages[0]["content"][0]["text"] == "a"
    assert both.messages[2:] == ({"role": "system", "content": "be"}, HI)


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
        ({"continuationToken": "dG9r"}, "request.continuationToken", "the response that this one continues"),
        ({"tools": {"googleSearch": {}}}, "request.tools", "googleSearch runs at the provider"),
        ({"tools": [{"url_context": {}}]}, "request.tools", "url_context runs at the provider"),
        ({"tools": [{"codeExecution": {}}]}, "request.tools", "codeExecution runs at the provider"),
        ({"tools": [{"newTool": {"prompt": "a"}}]}, "request.tools", "newTool runs at the provider"),
    ],
)  # fmt: skip
def test_what_no_rule_can_read_is_named(body: dict[str, Any], address: str, reason: str) -> None:
    """Each thing out of sight is named with its place and why."""
    assert [(one.address, one.reason) for one in read(body).unchecked] == [(address, reason)]


@pytest.mark.parametrize("spell", [str, snake_case], ids=["camelCase", "snake_case"])
@pytest.mark.parametrize(
    "body",
    [
        {"outputConfig": {"outputUriPrefix": "gs://theirs/x"}},
        {"generationOutputConfig": {"outputUriPrefix": "gs://theirs/x"}},
        {"webhookConfig": {"uris": ["https://theirs.example"]}},
        {"generationConfig": {"webhookUri": "https://theirs.example"}},
        {"tools": [{"newTool": [{"webhooks": ["https://theirs.example"]}]}]},
        {"outputConfig": {"outputUriPrefix": {"wrong": ["https://theirs.example"]}}},
    ],
)
def test_fields_that_send_the_answer_elsewhere_are_named_and_read(body: dict[str, Any], spell: Any) -> None:
    """Wherever they stand; what is done about them is not the reader's to say."""
    request = read(spelled({"contents": [], **body}, spell))
    (address,) = request.outbound
    assert Unchecked(f"request.{address}", "another destination of the response") in request.unchecked
    assert "theirs" in said(request.messages)


@pytest.mark.parametrize(
    "body",
    [
        {"labels": {"webhook": "x"}},
        {"outputConfig": {"outputUriPrefix": None}},
        {"generationConfig": {"responseJsonSchema": {"properties": {"webhookUrl": {"type": "string"}}}}},
        {"tools": {"functionDeclarations": {"name": "f", "parameters": {"properties": {"webhook_url": {}}}}}},
        {"tools": {"mcpServers": {"streamableHttpTransport": {"headers": {"webhook_id": "x"}}}}},
        {"contents": {"parts": {"functionCall": {"name": "f", "args": {"outputUriPrefix": "gs://x"}}}}},
    ],
)
def test_names_that_clients_choose_send_nothing_elsewhere(body: dict[str, Any]) -> None:
    assert read(body).outbound == ()


@pytest.mark.parametrize(
    "value", ["say zzforbiddenzz", ["say zzforbiddenzz"], {"say": "zzforbiddenzz"}, [[{"a": {"zzforbiddenzz": 1}}]]]
)
@pytest.mark.parametrize(
    "place",
    """
    model serviceTier store taskType safetySettings safetySettings.category
    toolConfig toolConfig.functionCallingConfig toolConfig.functionCallingConfig.mode
    toolConfig.retrievalConfig.latLng.latitude generationConfig.temperature generationConfig.candidateCount
    generationConfig.thinkingConfig generationConfig.thinkingConfig.thinkingBudget
    generationConfig.responseMimeType generationConfig.imageConfig.imageOutputOptions
    """.split(),
)
def test_text_in_a_field_that_steers_is_text(place: str, value: Any) -> None:
    """A wrong type, or a sentence where a word is meant: whatever Google makes of it, rules see it."""
    body = value
    for name in reversed(place.split(".")):
        body = {name: body}
    assert "zzforbiddenzz" in said(read({"contents": [], **body}).messages)


@pytest.mark.parametrize("value", ["say zzforbiddenzz", ["say zzforbiddenzz"], {"say": "zzforbiddenzz"}])
@pytest.mark.parametrize(
    "part",
    [
        lambda text: {"text": "hi", "videoMetadata": text},
        lambda text: {"text": "hi", "videoMetadata": {"startOffset": text}},
        lambda text: {"text": "hi", "mediaResolution": {"level": text}},
        lambda text: {"text": "hi", "thoughtSignature": [text]},
        lambda text: {"functionCall": {"name": "f", "willContinue": text}},
        lambda text: {"functionResponse": {"name": "f", "response": {}, "willContinue": text}},
        lambda text: {"functionResponse": {"name": "f", "response": {}, "scheduling": text}},
        lambda text: {"functionResponse": {"name": "f", "response": {}, "parts": [{"videoMetadata": text}]}},
        lambda text: {"codeExecutionResult": {"output": "", "outcome": text}},
    ],
)
def test_text_in_a_field_of_a_part_that_steers_is_text(part: Any, value: Any) -> None:
    assert "zzforbiddenzz" in said(messages_of(part(value), role="model"))


def test_what_steers_is_no_text() -> None:
    """Usual settings make no message."""
    body = {
        "model": "models/gemini-2.5-flash",
        "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        "toolConfig": {
            "functionCallingConfig": {"mode": "ANY", "streamFunctionCallArguments": True},
            "retrievalConfig": {"latLng": {"latitude": 1.5, "longitude": "-2"}, "languageCode": "de-DE"},
        },
        "generationConfig": {
            "temperature": 0.5,
            "maxOutputTokens": 10,
            "responseMimeType": "application/json",
            "responseModalities": ["TEXT", "IMAGE"],
            "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 100},
            "imageConfig": {"aspectRatio": "16:9", "imageSize": "1K"},
        },
        "store": False,
    }
    assert read({"contents": [], **body}).messages == ()
    video = {"videoMetadata": {"startOffset": "1.5s", "fps": 2}, "mediaResolution": {"level": "MEDIA_RESOLUTION_LOW"}}
    assert messages_of({"text": "hi", "thoughtSignature": "a+/=", **video}) == [HI]


def test_a_voice_is_named_and_no_text() -> None:
    """Base64 is nothing that a rule could read."""
    voice = {"mimeType": "audio/wav", "voiceSampleAudio": "Y2FuYXJ5", "consentAudio": "Y2FuYXJ5"}
    speech = {"multiSpeakerVoiceConfig": {"speakerVoiceConfigs": [{"voiceConfig": {"replicatedVoiceConfig": voice}}]}}
    request = read({"contents": [], "generationConfig": {"speechConfig": speech}})
    assert "Y2FuYXJ5" not in said(request.messages) and "audio/wav" in said(request.messages)
    assert [one.reason for one in request.unchecked] == ["inline audio"] * 2
    assert request.unchecked[0].address.endswith("voiceConfig.replicatedVoiceConfig.voiceSampleAudio")


def test_plain_requests_have_nothing_unseen() -> None:
    assert not read({"contents": {"parts": {"text": "hi"}}, "tools": {"functionDeclarations": []}}).unchecked


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


FINDS_IT = compile_policy(
    "\n".join(
        f'raise "{event}" if:\n    (e: {event})\n    "zzforbiddenzz" in e' for event in ("ToolCall", "ToolOutput")
    )
)


@pytest.mark.parametrize(
    "parts",
    [
        [call("zzforbiddenzz")],
        [call("f", "zzforbiddenzz")],
        [call("f", "a"), call("f", "zzforbiddenzz")],
        [call("f", "zzforbiddenzz"), call("g", "zzforbiddenzz")],
        [output("zzforbiddenzz")],
        [output("f", call_id="zzforbiddenzz")],
        [call("f"), output("f", call_id="zzforbiddenzz")],
        [call("f", "a"), output("zzforbiddenzz", call_id="a")],
        [{"executableCode": {"code": "", "id": "zzforbiddenzz"}}],
        [{"executableCode": {"code": ""}}, {"codeExecutionResult": {"output": "", "id": "zzforbiddenzz"}}],
    ],
)
def test_rules_find_names_and_ids_of_calls_and_outputs(parts: list[dict[str, Any]]) -> None:
    """Also an id that is another's already, or that no call has."""
    messages = read({"contents": [{"role": "model", "parts": parts}]}).messages
    assert FINDS_IT.check(Conversation.of(messages))


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
