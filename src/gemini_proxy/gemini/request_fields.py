"""A request's settings: which fields only steer the call, and which send its answer elsewhere. All others are text."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from gemini_proxy.gemini.casing import snake_case, spellings
from gemini_proxy.gemini.fields import JsonObject, steers
from gemini_proxy.gemini.parts import Unseen, strings_in


def _fields(paths: str) -> JsonObject:
    """A tree of the fields on dotted paths, each under both its spellings; ``{}`` where a path ends."""
    root: dict[str, Any] = {}
    for path in paths.split():
        node = root
        for name in path.split("."):
            inner = node.get(name, {})
            node.update(dict.fromkeys(spellings(name), inner))
            node = inner
    return root


CONTROL: Final = _fields(
    """
    model store serviceTier taskType outputDimensionality
    safetySettings.category safetySettings.threshold safetySettings.method
    toolConfig.functionCallingConfig.mode toolConfig.functionCallingConfig.streamFunctionCallArguments
    toolConfig.includeServerSideToolInvocations toolConfig.retrievalConfig.languageCode
    toolConfig.retrievalConfig.latLng.latitude toolConfig.retrievalConfig.latLng.longitude
    generationConfig.candidateCount generationConfig.maxOutputTokens generationConfig.temperature
    generationConfig.topP generationConfig.topK generationConfig.seed generationConfig.presencePenalty
    generationConfig.frequencyPenalty generationConfig.logprobs generationConfig.responseLogprobs
    generationConfig.responseMimeType generationConfig.responseModalities generationConfig.mediaResolution
    generationConfig.thinkingConfig.includeThoughts generationConfig.thinkingConfig.thinkingBudget
    generationConfig.thinkingConfig.thinkingLevel
    generationConfig.imageConfig.aspectRatio generationConfig.imageConfig.imageSize
    generationConfig.imageConfig.personGeneration generationConfig.imageConfig.prominentPeople
    generationConfig.imageConfig.outputMimeType generationConfig.imageConfig.outputCompressionQuality
    generationConfig.imageConfig.imageOutputOptions.mimeType
    generationConfig.imageConfig.imageOutputOptions.compressionQuality
    generationConfig.audioTimestamp generationConfig.enableEnhancedCivicAnswers generationConfig.enableAffectiveDialog
    generationConfig.routingConfig.autoMode.modelRoutingPreference generationConfig.routingConfig.manualMode.modelName
    generationConfig.modelSelectionConfig.featureSelectionPreference
    """
)
"""Fields that steer the call and carry no text to the model: numbers, switches, enums, formats, names of models."""
_AUDIO = spellings("voiceSampleAudio", "consentAudio")
_NAMED_BY_CLIENTS = spellings(
    *"contents content systemInstruction functionDeclarations responseSchema responseJsonSchema".split(),
    *"_responseJsonSchema responseFormat labels headers customConfigs".split(),
)
"""Fields within which names are the client's own, and mean nothing to Google."""
_OUTBOUND = re.compile(r"output_uri_prefix|webhook\w{0,40}", re.ASCII)


def read_setting(address: str, value: Any, known: JsonObject | None) -> Iterator[str | Unseen]:
    """The strings of a field as rules read them, and what of it they cannot read.

    ``known`` is the field's place in ``CONTROL``: None where it is not there, empty where it only steers the call. The
    names of known fields are no text.
    """
    if known is not None and not known:
        if not steers(value):
            yield from strings_in(value)
    elif type(value) is dict:
        for name, inner in value.items():
            if name in _AUDIO and isinstance(inner, str):
                yield Unseen(f"{address}.{name}", "inline audio")
                continue
            if known is None:
                yield name
            yield from read_setting(f"{address}.{name}", inner, known.get(name) if known else None)
    elif type(value) is list:
        for item in value:
            yield from read_setting(address, item, known)
    else:
        yield from strings_in(value)


def outbound_fields(request: JsonObject) -> tuple[str, ...]:
    """The addresses of a request's fields that have Google send the answer, or word of it, to someone else."""
    found: list[str] = []
    _find_outbound(request, "", found)
    return tuple(found)


def _find_outbound(value: Any, prefix: str, found: list[str]) -> None:
    if type(value) is dict:
        for name, inner in value.items():
            if inner is None or name in _NAMED_BY_CLIENTS:
                continue
            if _is_outbound(name):
                found.append(prefix + name)
            elif type(inner) is dict or type(inner) is list:
                _find_outbound(inner, f"{prefix}{name}.", found)
    elif type(value) is list:
        for item in value:
            _find_outbound(item, prefix, found)


@lru_cache(maxsize=512)
def _is_outbound(name: str) -> bool:
    return _OUTBOUND.fullmatch(snake_case(name)) is not None
