"""A canary in every string field of a request: rules read it, the trace names it, or it is a documented control."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.fields import snake_case
from tests.gemini.reading import read, said, spelled

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
contents.0.parts.7.codeExecutionResult.id
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
tools.5.mcpServers.0.streamableHttpTransport.headers.authorization
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
generationConfig.thinkingConfig.someNewSetting
generationConfig.imageConfig.someNewSetting
generationConfig.translationConfig.targetLanguageCode
generationConfig.audioTranscriptionConfig.hints.0
generationConfig.someNewSetting.prompt
toolConfig.functionCallingConfig.allowedFunctionNames.0
toolConfig.someNewSetting.0
safetySettings.0.someNewSetting
labels.team
modelArmorConfig.promptTemplateName
outputConfig.outputUriPrefix
webhookConfig.uris.0
someNewField.deep.0
""".split()

INLINE_TEXT = ["contents.2.parts.0.inlineData.data", "contents.2.parts.1.functionResponse.parts.0.inlineData.data"]
"""base64 of text: what is decoded has to be readable."""

_VOICE = "generationConfig.speechConfig.voiceConfig.replicatedVoiceConfig"
NAMED_UNCHECKED = {
    "cachedContent": "request.cachedContent",
    "continuationToken": "request.continuationToken",
    f"{_VOICE}.voiceSampleAudio": f"request.{_VOICE}.voiceSampleAudio",
    f"{_VOICE}.consentAudio": f"request.{_VOICE}.consentAudio",
}

CONTROL = """
model
store
serviceTier
safetySettings.0.category
safetySettings.0.threshold
safetySettings.0.method
toolConfig.functionCallingConfig.mode
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
contents.0.parts.7.codeExecutionResult.outcome
contents.0.parts.8.mediaResolution.level
contents.0.parts.8.videoMetadata.startOffset
contents.0.parts.2.functionResponse.scheduling
contents.2.parts.0.inlineData.mimeType
""".split()
"""Enums, names of models and roles, offsets, and signatures that only Google reads: nothing that a model reads as text.
A text blob's type is used to decode it."""

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
    leaves = [*PLAIN_LEAVES, *INLINE_TEXT, *NAMED_UNCHECKED, *CONTROL, *FIXED]
    body, canaries = planted(list(dict.fromkeys(leaves)), spell)
    request = read(body)
    readable, unchecked = said(request.messages), {snake(one.address) for one in request.unchecked}
    lost = [leaf for leaf in [*PLAIN_LEAVES, *INLINE_TEXT] if canaries[leaf] not in readable]
    assert not lost
    assert [address for address in NAMED_UNCHECKED.values() if snake(address) not in unchecked] == []
    assert len(PLAIN_LEAVES) + len(INLINE_TEXT) >= 95


def test_control_fields_really_are_left_out() -> None:
    """The list of what rules do not see is exact: none of it shows, so it has to be looked at when it changes."""
    body, canaries = planted(list(dict.fromkeys([*PLAIN_LEAVES, *CONTROL])))
    readable = said(read(body).messages)
    assert [leaf for leaf in CONTROL if leaf not in FIXED and canaries[leaf] in readable] == []


SETTINGS = [
    [step for step in leaf.split(".") if not step.isdigit()]
    for leaf in [*PLAIN_LEAVES, *NAMED_UNCHECKED, *CONTROL]
    if not leaf.startswith(("contents", "systemInstruction"))
]
PLANTINGS = st.lists(
    st.tuples(
        st.sampled_from(SETTINGS),
        st.integers(1, 8),
        st.sampled_from([lambda said: said, lambda said: [said], lambda said: {"said": [said, 1]}]),
    ),
    min_size=1,
    max_size=6,
)
"""A setting, how many steps of its path to go, and what stands there instead: a sentence in some shape."""


def worded(plantings: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A body with another sentence in each place that is free, and the path of each sentence."""
    root: dict[str, Any] = {}
    found: dict[str, str] = {}
    for steps, depth, shape in plantings:
        *way, last = steps[:depth]
        node: Any = root
        for step in way:
            node = node.setdefault(step, {}) if isinstance(node, dict) else None
        if isinstance(node, dict) and last not in node:
            sentence = f"sentence no {len(found)};"
            found[sentence] = ".".join(["request", *steps[:depth]])
            node[last] = shape(sentence)
    return root, found


@given(
    PLANTINGS,
    st.sampled_from(
        [
            ("generateContent", None),
            ("countTokens", None),
            ("countTokens", "generateContentRequest"),
            ("embedContent", None),
            ("batchEmbedContents", "requests"),
        ]
    ),
    st.sampled_from([str, snake_case]),
)
def test_every_sentence_beside_the_contents_is_read_or_named(
    plantings: Any, method: tuple[str, str | None], spell: Any
) -> None:
    """Whatever stands where: a rule reads it, the trace names it as not checked, or the request is refused."""
    verb, wrapper = method
    settings, found = worded(plantings)
    body = spelled(settings, spell)
    try:
        request = read({spell(wrapper): body} if wrapper else body, verb)
    except BadRequest:
        return
    readable = said(request.messages)
    # What runs at the provider is named, and read nevertheless.
    named = tuple(snake(one.address) for one in request.unchecked if one.address != "request.tools")
    lost = {path for sentence, path in found.items() if sentence not in readable}
    assert {path for path in lost if not snake(path).startswith(named)} == set()
