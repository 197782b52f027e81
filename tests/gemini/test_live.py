"""The frames of the Live API: what is read, what is refused, and what the proxy writes."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.live.frames import (
    FunctionName,
    ServerFrame,
    close_reason,
    read_client_frame,
    read_server_frame,
    refusal_frame,
    tool_errors,
)
from gemini_proxy.gemini.live.request import names_in, read_input, read_setup, transcribes, with_transcriptions
from gemini_proxy.gemini.live.wire import TurnReader
from gemini_proxy.gemini.merger import Merger

CALL = read_call("GET", "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent")
MODEL = "models/gemini-live-2.5-flash"
AUDIO = {"mimeType": "audio/pcm;rate=24000", "data": "AAAA"}


def add(merger: Merger, reader: TurnReader, raw: bytes) -> ServerFrame:
    """Add what a frame of the server says, and return the frame."""
    frame = read_server_frame(raw)
    assert ServerFrame.of(frame.payload) == frame
    for said in reader.read(frame.payload):
        merger.add(said)
    return frame


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"[]",
        b"{}",
        b'"setup"',
        b"\xff\xfe",
        b'{"setup": {}, "clientContent": {}}',
        b'{"setup": {}, "setup": {}}',
        b'{"setup": {}, "usageMetadata": {}}',
        b'{"setup": {}, "clientContent": null}',
        b'{"Setup": {}}',
        b'{"setup": []}',
        b'{"setup": null}',
        b'{"serverContent": {}}',
        b'{"clientContent": {"turns": [], "parts": [{"text": "x"}]}}',
        b'{"clientContent": {"turns": "x"}}',
        b'{"clientContent": {"turns": [{"parts": [{"text": 1}]}]}}',
        b'{"clientContent": {"turns": [], "turns": []}}',
        b'{"realtimeInput": {"text": ["x"]}}',
        b'{"realtimeInput": {"say": "x"}}',
        b'{"realtimeInput": {"activityStart": {"text": "x"}}}',
        b'{"realtimeInput": {"audioStreamEnd": "x"}}',
        b'{"realtimeInput": {"audio": {"mimeType": "audio/pcm", "data": "AA", "displayName": "x"}}}',
        b'{"realtimeInput": {"media_chunks": [], "mediaChunks": []}}',
        b'{"toolResponse": {"functionResponses": ["x"]}}',
        b'{"contextUpdate": {"contents": []}}',
        b'{"clientContent": ' + b"[" * 100 + b"]" * 100 + b"}",
    ],
)
def test_client_frames_that_may_be_read_two_ways_are_refused(frame: bytes) -> None:
    with pytest.raises(BadRequest):
        read_input(CALL, read_client_frame(frame))


HOSTILE_PLACE = "projects/p/locations/evil.example%2f/publishers/google/models/m"


@pytest.mark.parametrize(
    "model", [None, "", "gemini", "models/", "models/../x", "models/a b", "tunedModels/a", 1, HOSTILE_PLACE]
)
def test_a_setup_names_a_model(model: Any) -> None:
    with pytest.raises(BadRequest):
        names_in(read_client_frame(orjson.dumps({"setup": {"model": model}})))


@pytest.mark.parametrize(
    "frame",
    [
        b"{}",
        b"[]",
        b"no",
        b'{"serverContent": {}, "toolCall": {}}',
        b'{"error": {"message": "x"}}',
        b'{"serverContent": []}',
        b'{"serverContent": {"turnComplete": "x"}}',
        b'{"serverContent": {"outputTranscription": "x"}}',
        b'{"serverContent": {"outputTranscription": {"text": ["x"]}}}',
        b'{"serverContent": {"turnCompleteReason": "some text"}}',
        b'{"serverContent": {"modelTurn": {}, "model_turn": {}}}',
        b'{"toolCall": {"functionCalls": ["x"]}}',
        b'{"toolCall": {"functionCalls": [{"name": 1}]}}',
        b'{"toolCall": {"functionCalls": [{"name": "f", "willContinue": true}]}}',
        b'{"toolCall": {"functionCalls": [{"name": "f", "partial_args": [{"stringValue": "x"}]}]}}',
        b'{"toolCall": {"calls": []}}',
        b'{"goAway": {"timeLeft": "some text to show"}}',
        b'{"toolCallCancellation": {"ids": ["%s"]}}' % (b"a" * 5000),
        b'{"usageMetadata": []}',
        b'{"usageMetadata": {"note": "some text"}}',
        b'{"serverContent": {}, "usageMetadata": {"some text": 1}}',
        b'{"serverContent": {"outputTranscription": {"text": "x", "languageCode": "some text"}}}',
        b'{"serverContent": {"inputTranscription": {"text": "x", "finished": "some text"}}}',
        b'{"serverContent": {"modelTurn": {"role": "some text", "parts": []}}}',
    ],
)
def test_server_frames_in_which_something_might_go_unread_are_refused(frame: bytes) -> None:
    with pytest.raises(DecodeError):
        add(Merger(), TurnReader(), frame)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "setup model clientContent turns parts text realtimeInput audio mimeType data toolResponse tools "
                "functionResponses name id response serverContent modelTurn outputTranscription inputTranscription "
                "toolCall functionCalls args inlineData turnComplete usageMetadata thought goAway".split()
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(json_values)
def test_whatever_comes_is_read_or_refused(value: Any) -> None:
    """No frame ends otherwise than by the errors that are for it."""
    raw = orjson.dumps(value)
    try:
        frame = read_client_frame(raw)
        read_setup(CALL, frame) if frame.kind == "setup" else read_input(CALL, frame)
    except BadRequest:
        pass
    try:
        add(Merger(), TurnReader(), raw)
    except DecodeError:
        pass


def test_what_a_client_says() -> None:
    """Both spellings; streamed sound is named and not kept, text in another guise is read."""
    said = read_input(
        CALL, read_client_frame(b'{"client_content": {"turns": {"role": "model", "parts": {"text": "a"}}}}')
    )
    assert said.messages == ({"role": "assistant", "content": "a"},)
    said = read_input(
        CALL,
        read_client_frame(
            orjson.dumps({"realtimeInput": {"text": "b", "audio": AUDIO, "mediaChunks": [AUDIO, AUDIO]}})
        ),
    )
    assert said.messages == ({"role": "user", "content": [{"type": "text", "text": "b"}]},)
    assert [(one.address, one.reason) for one in said.unchecked] == [
        ("realtimeInput.audio", "realtime audio"),
        ("realtimeInput.mediaChunks", "realtime audio"),
    ]
    disguised = {"realtimeInput": {"mediaChunks": [{"mimeType": "text/plain", "data": "RHVibGlu"}]}}
    said = read_input(CALL, read_client_frame(orjson.dumps(disguised)))
    assert said.messages[0]["content"] == [{"type": "text", "text": "Dublin"}]
    update = {
        "contextUpdate": {"systemInstruction": {"parts": [{"text": "c"}]}, "tools": {"tools": [{"googleSearch": {}}]}}
    }
    said = read_input(CALL, read_client_frame(orjson.dumps(update)))
    assert [list(message) for message in said.messages] == [["tools"], ["role", "content"]]


def test_what_a_setup_says() -> None:
    """What is not known to steer is text; the handle of an earlier session is unchecked and not kept."""
    setup = {
        "model": f"projects/p/locations/l/publishers/google/{MODEL}",
        "systemInstruction": {"parts": [{"text": "Be kind"}]},
        "generationConfig": {"responseModalities": ["AUDIO"]},
        "sessionResumption": {"handle": "h-1", "transparent": True},
        "contextWindowCompression": {"slidingWindow": {"targetTokens": "100"}},
        "inputAudioTranscription": {"adaptationPhrases": [{"phrase": "Dublin"}]},
        "newThing": "say this",
    }
    frame = read_client_frame(orjson.dumps({"setup": setup}))
    assert names_in(frame) == {"project": "p", "location": "l", "model": "gemini-live-2.5-flash"}
    request = read_setup(CALL, frame)
    said = "\n".join(message["content"] for message in request.messages)
    assert {"Be kind", "Dublin", "say this"} <= set(said.split("\n"))
    assert "h-1" not in f"{request.messages}{request.settings}" and "targetTokens" not in said
    assert [one.reason for one in request.unchecked] == ["the session that this one continues"]


@given(st.sampled_from(["", " ", "\n"]), st.booleans(), st.sampled_from([{}, {"inputAudioTranscription": {}}]))
def test_transcriptions_are_added_in_place(space: str, empty: bool, given_already: dict[str, Any]) -> None:
    setup = {**({} if empty else {"model": MODEL}), **given_already}
    raw = f'{space}{{{space}"setup"{space}:{space}'.encode() + orjson.dumps(setup) + b"}"
    frame = read_client_frame(raw)
    added = with_transcriptions(raw, frame)
    assert orjson.loads(added)["setup"] == {**setup, "inputAudioTranscription": {}, "outputAudioTranscription": {}}
    assert transcribes(read_client_frame(added)) and with_transcriptions(added, read_client_frame(added)) == added
    assert added.endswith(orjson.dumps(setup)[1:] + b"}")


@pytest.mark.parametrize("raw", [b'{"s\\u0065tup": {"model": "x"}}', b'{"setup": {"outputAudioTranscription": null}}'])
def test_a_place_for_transcriptions_that_is_hard_to_find_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        with_transcriptions(raw, read_client_frame(raw))


@given(st.lists(st.tuples(st.sampled_from(["text", "speech", "thought", "sound"]), st.text(max_size=3)), max_size=12))
def test_what_is_written_and_what_is_spoken_are_each_one_text(pieces: list[tuple[str, str]]) -> None:
    """However they come: neither stands between two pieces of the other."""
    reader, merger = TurnReader(), Merger()
    for kind, text in pieces:
        part = {"text": {"text": text}, "thought": {"text": text, "thought": True}, "sound": {"inlineData": AUDIO}}
        content = (
            {"outputTranscription": {"text": text}} if kind == "speech" else {"modelTurn": {"parts": [part[kind]]}}
        )
        frame = add(merger, reader, orjson.dumps({"serverContent": content}))
        assert ("modelTurn" in frame.unread(transcribed=True)) is (kind == "sound")
    add(merger, reader, b'{"serverContent": {"turnComplete": true}}')
    assert merger.finished()
    texts = {
        "".join(part["text"] for part in candidate.parts if not part.get("thought")) for candidate in merger.candidates
    }
    expected = {"".join(text for kind, text in pieces if kind == wanted) for wanted in ("text", "speech")}
    assert texts - {""} == expected - {""}


def test_other_fields_of_a_turn_are_text() -> None:
    merger = Merger()
    frame = {"serverContent": {"groundingMetadata": {"webSearchQueries": ["Dublin"]}, "newThing": {"say": "Cork"}}}
    add(merger, TurnReader(), orjson.dumps(frame))
    assert {"Dublin", "Cork"} <= {text for texts in merger.candidates[0].fields.said.values() for text in texts}


def test_what_stands_beside_sound_and_speech_is_text() -> None:
    """Sound has a type and its data, speech its times: any other word there is read."""
    sound = {"mimeType": "audio/pcm;rate=24000", "data": "AA"}
    reader, merger = TurnReader(), Merger()
    for content in (
        {"modelTurn": {"parts": [{"inlineData": sound}, {"inlineData": {**sound, "displayName": "to Dublin"}}]}},
        {"modelTurn": {"parts": [{"inlineData": {**sound, "mimeType": "audio/pcm; to Cork"}}]}},
        {"modelTurn": {"parts": [{"inlineData": {**sound, "data": {"say": "to Limerick"}, "mime_type": 1}}]}},
        {"modelTurn": {"parts": [{"inlineData": sound, "text": "to Sligo"}]}},
        {"outputTranscription": {"words": [{"word": "Galway_Offset", "startOffset": "1.5s", "end_offset": "2s"}]}},
    ):
        assert not add(merger, reader, orjson.dumps({"serverContent": content})).only_sound
    assert read_server_frame(
        orjson.dumps({"serverContent": {"modelTurn": {"parts": [{"inlineData": sound}]}}})
    ).only_sound
    said = str([[candidate.parts, candidate.fields.said] for candidate in merger.candidates])
    assert all(text in said for text in ("to Dublin", "to Cork", "to Limerick", "to Sligo", "Galway_Offset"))
    assert not any(text in said for text in ("24000", "1.5s", "end_offset", "AA"))


@given(st.text(max_size=200))
def test_reasons_fit_into_a_close_frame(text: str) -> None:
    reason = close_reason(text)
    assert len(reason) <= 123
    reason.decode()


def test_what_the_proxy_says() -> None:
    assert orjson.loads(refusal_frame("no", completes=False)) == {
        "serverContent": {"modelTurn": {"role": "model", "parts": [{"text": "no"}]}}
    }
    errors = read_client_frame(tool_errors([FunctionName("1", "f"), FunctionName("", "g")], "no"))
    assert [message["content"] for message in read_input(CALL, errors).messages] == [{"error": "no"}] * 2
