"""What ``predict`` and its like say: every string is text, or named as unchecked, or known to steer the call."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.gemini.calls import ModelCall, read_call
from gemini_proxy.gemini.json_edit import Path
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.parts import strings_in
from gemini_proxy.gemini.predictions import PREDICTIONS
from gemini_proxy.gemini.request import GeminiRequest, read_request
from gemini_proxy.guardrails.response_messages import CandidateMessages, candidate_messages

CALL = read_call("POST", "/v1beta/models/imagen-4.0-generate-001:predict")
GENERATE = read_call("POST", "/v1beta/models/m:generateContent")


def read(body: Any, call: ModelCall = CALL) -> GeminiRequest:
    return PREDICTIONS.read_request(call, orjson.dumps(body))


def told(body: dict[str, Any]) -> CandidateMessages:
    """What rules see of a response."""
    merger = Merger()
    for payload in PREDICTIONS.new_reader(CALL).read(body):
        merger.add(payload)
    assert merger.finished()
    (candidate,) = candidate_messages(read_request(GENERATE, b"{}"), merger)
    return candidate


def said(messages: Any) -> str:
    return "\n".join(strings_in([dict(message) for message in messages]))


IMAGE = {"bytesBase64Encoded": "aGk=", "mimeType": "image/png"}


def test_a_prompt_with_all_that_goes_with_it() -> None:
    request = read(
        {
            "instances": [
                {
                    "prompt": "a castle",
                    "image": IMAGE,
                    "lastFrame": {"gcsUri": "gs://bucket/last.png", "mimeType": "image/png"},
                    "referenceImages": [
                        {
                            "referenceImage": IMAGE,
                            "referenceType": "REFERENCE_TYPE_SUBJECT",
                            "subjectImageConfig": {"subjectDescription": "a dog", "subjectType": "SUBJECT_TYPE_ANIMAL"},
                        }
                    ],
                }
            ],
            "parameters": {"negativePrompt": "no people", "sampleCount": 2, "aspectRatio": "16:9"},
        }
    )
    prompts, settings = request.messages
    texts = [chunk["text"] for chunk in prompts["content"] if chunk["type"] == "text"]
    assert texts == ["a castle", "a dog"]
    assert settings == {"role": "system", "content": "no people", "field": "parameters.negativePrompt"}
    assert {unchecked.reason for unchecked in request.unchecked} == {"inline image/png", "a file behind a URI"}
    assert request.outbound == ()


def test_what_the_model_reads_is_what_can_be_masked() -> None:
    """Texts of instances and parameters, also of somebody's own model; nothing that steers the call, no picture."""
    texts: list[Path] = [("instances", 0, "prompt"), ("parameters", "negativePrompt"), ("instances", 0, "their", 1)]
    others: list[Path] = [("instances", 0, "image", "bytesBase64Encoded"), ("parameters", "storageUri"), ("name",)]
    assert all(map(PREDICTIONS.is_request_text, texts)) and not any(map(PREDICTIONS.is_request_text, others))


def test_what_is_written_elsewhere_is_outbound() -> None:
    for name in ("storageUri", "storage_uri", "pubsubTopic", "outputGcsUri"):
        body = {"instances": [{"prompt": "x"}], "parameters": {name: "gs://theirs"}}
        assert read(body).outbound == (f"parameters.{name}",)


def test_an_operation_is_asked_for_without_a_body() -> None:
    call = read_call("GET", "/v1beta/models/veo-3/operations/abc")
    assert read({}, call).messages == PREDICTIONS.read_request(call, b"").messages == ()


def test_what_comes_of_it() -> None:
    video = {"uri": "https://generativelanguage.googleapis.com/v1beta/files/f:download?alt=media"}
    done = {
        "name": "models/veo-3/operations/abc",
        "done": True,
        "response": {
            "generateVideoResponse": {
                "generatedSamples": [{"video": video}],
                "raiMediaFilteredReasons": ["not allowed here"],
            }
        },
    }
    candidate = told(done)
    assert "not allowed here" in said(candidate.messages)
    assert [unchecked.reason for unchecked in candidate.unchecked] == ["a file behind a URI"]
    assert "some text" in said(told({"modelDisplayName": "some text", "predictions": []}).messages)
    picture = told({"predictions": [{**IMAGE, "prompt": "a castle by the sea"}]})
    assert "a castle by the sea" in said(picture.messages)
    assert [unchecked.reason for unchecked in picture.unchecked] == ["inline image/png"]
    assert (
        told({"predictions": [{"embeddings": {"values": [0.1, 2], "statistics": {"token_count": 3}}}]}).messages == ()
    )


NAMES = st.sampled_from(
    ["prompt", "content", "title", "image", "x", "mimeType", "bytesBase64Encoded", "gcsUri", "mode"]
)
VALUES = st.recursive(
    st.one_of(st.just("CANARY with words"), st.integers(0, 9), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)


@given(VALUES, st.sampled_from(["instances", "parameters", "labels"]))
def test_no_string_is_silent(value: Any, where: str) -> None:
    """Wherever a sentence stands, a rule reads it or the trace names what it is in."""
    request = read({where: value})
    if "CANARY" in orjson.dumps(value).decode():
        assert "CANARY" in said(request.messages) or request.unchecked
    candidate = told({"predictions": value})
    if "CANARY" in orjson.dumps(value).decode():
        assert "CANARY" in said(candidate.messages) or candidate.unchecked


def test_names_and_numbers_are_text_where_they_are_not_googles_own() -> None:
    request = read({"instances": [{"Dublin": 1, "card": 4111111111111111}], "parameters": {"seed": 7}})
    assert {"Dublin", "4111111111111111"} <= set(said(request.messages).splitlines())
    assert len(request.messages) == 1
