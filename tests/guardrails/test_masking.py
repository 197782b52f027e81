"""Masking without a server: what goes upstream holds no value, and what comes back is what it was."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.batches import BATCH, RESULTS
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.framing.json_array import JsonArrayFraming
from gemini_proxy.gemini.framing.json_lines import JsonLinesFraming
from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.uploads import Announced, UploadedFile
from gemini_proxy.guardrails import masking
from gemini_proxy.guardrails.masking import (
    CannotMask,
    FrameEditor,
    Hiding,
    Masks,
    Placeholders,
    Repetition,
    RequestMasks,
    Restoring,
    Spellings,
    mask_body,
    mask_file,
    masked_values,
    may_hold_placeholder,
    moved,
    other_spellings,
    placeholder_digits,
)
from gemini_proxy.guardrails.rules import guardrail
from gemini_proxy.guardrails.verdict import Violation

KEY = b"k" * 32
PLACEHOLDERS = Placeholders(KEY, "ada", "shop")
EMAIL, CARD, OTHER = "ada.lovelace@example.com", "4111 1111 1111 1111", "the blue door"
VALUES = (EMAIL, CARD, OTHER, "+49 30 1234567", "ghp_" + "a1B2" * 9)
POLICY = 'raise "found" if:\n    (m: Message)\n    "x" in m.content\n'
GUARDRAIL = guardrail("mask.gr", POLICY, "block")

WORDS = st.sampled_from(
    [*VALUES, " ", "<", ">", "<EMAIL_ADDRESS_0123456789>", "EMAIL", "_", "\\_", "&lt;", "é", "\n", '"', "lorem ipsum"]
)
TEXTS = st.lists(WORDS, max_size=8).map("".join)


def masks(*values: str) -> Masks:
    return Masks({value: PLACEHOLDERS.of(value) for value in values or VALUES})


def requested(*values: str) -> RequestMasks:
    return RequestMasks({value: PLACEHOLDERS.of(value) for value in values})


def violation(*ranges: str) -> Violation:
    return Violation(("found",), {}, ranges, GUARDRAIL)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(EMAIL, "EMAIL_ADDRESS"), (CARD, "CREDIT_CARD"), (OTHER, "MASKED"), (VALUES[4], "GITHUB_TOKEN")],
)
def test_a_placeholder_tells_the_kind_and_nothing_else(value: str, kind: str) -> None:
    placeholder = PLACEHOLDERS.of(value)
    assert re.fullmatch(f"<{kind}_[0-9a-f]{{10}}>", placeholder)
    assert placeholder == Placeholders(KEY, "ada", "shop").of(value)
    others = [Placeholders(KEY, "bob", "shop"), Placeholders(KEY, "ada", None), Placeholders(b"other", "ada", "shop")]
    assert len({placeholder, *(other.of(value) for other in others)}) == 4


@given(TEXTS)
def test_what_is_masked_comes_back_as_it_was(text: str) -> None:
    """Text that only looks like a placeholder is left alone."""
    hidden = masks().hide(text)
    assert not any(value in hidden for value in VALUES)
    assert masks().show(hidden) == text


SPELLS: tuple[Callable[[str], str], ...] = (
    str.lower,
    lambda text: text.strip("<>"),
    lambda text: text.replace("_", "\\_"),
    lambda text: text.replace("<", "\\<").replace(">", "\\>"),
    lambda text: text.replace("<", "&lt;").replace(">", "&gt;"),
    lambda text: text.strip(">"),
)


@pytest.mark.parametrize("spell", SPELLS)
def test_a_placeholder_is_known_as_models_spell_it(spell: Any) -> None:
    spelled = spell(PLACEHOLDERS.of(EMAIL))
    assert masks().show(f"Write to {spelled}, please") == f"Write to {EMAIL}, please"


@pytest.mark.parametrize("spell", SPELLS)
def test_placeholders_are_found_in_json_as_models_spell_them(spell: Callable[[str], str]) -> None:
    """Whatever writes the JSON: some escape brackets and all that is not ASCII. In slices, too."""
    placeholders = [PLACEHOLDERS.of(value) for value in (EMAIL, CARD)]
    first, second = map(spell, placeholders)
    text = f"\n{first}\u00e9{'x' * 65_500}{second}, please"
    digits = [placeholder[-11:-1] for placeholder in placeholders]
    for written in (orjson.dumps(text), json.dumps(text).encode(), json.dumps(text).replace("_", "\\u005f").encode()):
        assert may_hold_placeholder(written)
        assert placeholder_digits(written, 10) == digits
    assert placeholder_digits(written, 1) == digits[:1]
    assert not may_hold_placeholder(b"EMAIL_ADDRESS_012345678") and not placeholder_digits(b"_ADDRESS_", 10)


def test_a_placeholder_of_another_value_is_left_alone() -> None:
    stranger = PLACEHOLDERS.of("bob@example.com")
    assert masks(EMAIL).show(stranger) == stranger


# Responses ------------------------------------------------------------------------------------------------------------


def event(parts: Sequence[dict[str, Any]], index: int = 0, finish: str | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": index}
    return {"candidates": [{**candidate, "finishReason": finish} if finish else candidate]}


def framed(events: Sequence[dict[str, Any]], form: str) -> tuple[bytes, Framing]:
    bodies = [orjson.dumps(one) for one in events]
    match form:
        case "sse":
            return b"".join(b"data: " + body + b"\r\n\r\n" for body in bodies), SseFraming()
        case "array":
            return b"[" + b",\r\n".join(bodies) + b"\n]", JsonArrayFraming()
    assert len(bodies) == 1
    return bodies[0], WholeBodyFraming()


def through(editor: FrameEditor, body: bytes, cuts: Sequence[int]) -> bytes:
    ends = sorted({cut % (len(body) + 1) for cut in cuts})
    pieces = [body[start:end] for start, end in zip([0, *ends], [*ends, len(body)], strict=True)]
    return b"".join([editor.feed(piece) for piece in pieces]) + editor.end()


def texts(body: bytes, framing: Framing) -> dict[tuple[int, bool], str]:
    """What a client reads: the text of each candidate, and its thoughts."""
    said: dict[tuple[int, bool], str] = {}
    for _, payload in [*framing.feed(body), *framing.end()]:
        for candidate in (payload or {}).get("candidates", ()):
            for part in candidate["content"]["parts"]:
                key = (candidate["index"], bool(part.get("thought")))
                said[key] = said.get(key, "") + part.get("text", "")
    return said


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[tuple[int, bool], str]]:
    """A response of two candidates whose texts are split anywhere, and the texts as they were before masking."""
    events, originals = [], {}
    for index in (0, 1):
        for thought in (False, True):
            original = draw(TEXTS)
            hidden = masks().hide(original)
            cuts = sorted(draw(st.lists(st.integers(0, len(hidden)), max_size=6)))
            pieces = [hidden[start:end] for start, end in zip([0, *cuts], [*cuts, len(hidden)], strict=True)]
            mark = {"thought": True} if thought else {}
            events.append([event([{"text": piece, **mark}], index) for piece in pieces])
            originals[index, thought] = original
    order = draw(st.permutations([number for number, some in enumerate(events) for _ in some]))
    queues = [iter(some) for some in events]
    return [next(queues[number]) for number in order], originals


@pytest.mark.parametrize("form", ["sse", "array"])
@given(streams(), st.lists(st.integers(0, 10_000), max_size=6))
def test_a_stream_is_restored_wherever_it_is_split(form: str, stream: Any, cuts: list[int]) -> None:
    events, originals = stream
    body, framing = framed(events, form)
    restored = through(FrameEditor(framing, Restoring(masks())), body, cuts)
    assert texts(restored, framed(events, form)[1]) == originals


@given(streams())
def test_frames_without_a_placeholder_leave_as_they_came(stream: Any) -> None:
    events, _ = stream
    body, framing = framed(events, "sse")
    assert through(FrameEditor(framing, Restoring(masks("nothing of it"))), body, []) == body


def test_long_values_make_no_response_longer_than_it_may_be() -> None:
    value = "lorem ipsum " * 1_000
    body, _ = framed([event([{"text": PLACEHOLDERS.of(value) * 10}])], "sse")
    restoring, room = Restoring(masks(value)), 10 * len(value)
    assert FrameEditor(SseFraming(), restoring, most_added=room).edit(body).count(value.encode()) == 10
    with pytest.raises(DecodeError, match="max_answer_bytes"):
        FrameEditor(SseFraming(), restoring, most_added=room // 2).edit(body)


def test_what_is_held_back_is_what_could_become_a_placeholder() -> None:
    """A frame waits while its text ends in the beginning of one, and no longer."""
    placeholder = PLACEHOLDERS.of(EMAIL)
    pieces = ["Hello ", "wor", "ld ", placeholder[:6], placeholder[6:], " today"]
    frames = [framed([event([{"text": piece}])], "sse")[0] for piece in pieces]
    editor = FrameEditor(SseFraming(), Restoring(masks(EMAIL)))
    left = [editor.feed(frame) for frame in frames]
    assert [bool(some) for some in left] == [True, True, True, False, True, True]
    assert texts(b"".join(left), SseFraming()) == {(0, False): f"Hello world {EMAIL} today"}
    assert left[0] + left[1] + left[2] + left[5] == frames[0] + frames[1] + frames[2] + frames[5]


def test_a_call_ends_a_text_that_waits() -> None:
    call = {"functionCall": {"name": "send", "args": {"to": f"x {PLACEHOLDERS.of(EMAIL)}"}}}
    parts: tuple[dict[str, Any], ...] = ({"text": "calling <EM"}, call)
    frames = [framed([event([part])], "sse")[0] for part in parts]
    editor = FrameEditor(SseFraming(), Restoring(masks(EMAIL)))
    assert editor.feed(frames[0]) == b""
    left = editor.feed(frames[1])
    assert left.startswith(frames[0])
    assert orjson.dumps(f"x {EMAIL}") in left


@pytest.mark.parametrize("texts_only", [False, True])
def test_calls_and_code_are_restored_where_that_is_chosen(texts_only: bool) -> None:
    placeholder = PLACEHOLDERS.of(EMAIL)
    parts: list[dict[str, Any]] = [
        {"text": f"to {placeholder}"},
        {"functionCall": {"name": "send", "args": {"to": [placeholder], "deep": {"note": f"cc {placeholder}"}}}},
        {"executableCode": {"language": "PYTHON", "code": f"send('{placeholder}')"}},
        {"text": "x", "thoughtSignature": "c2lnbmF0dXJl"},
    ]
    body, framing = framed([event(parts, finish="STOP")], "whole")
    restored = orjson.loads(through(FrameEditor(framing, Restoring(masks(EMAIL)), texts_only=texts_only), body, []))
    said = restored["candidates"][0]["content"]["parts"]
    shown = placeholder if texts_only else EMAIL
    assert said[0]["text"] == f"to {EMAIL}"
    assert said[1]["functionCall"]["args"] == {"to": [shown], "deep": {"note": f"cc {shown}"}}
    assert said[2]["executableCode"]["code"] == f"send('{shown}')"
    assert said[3] == parts[3]


@given(st.lists(st.integers(0, 80), max_size=5))
def test_streamed_arguments_are_restored(cuts: list[int]) -> None:
    hidden = f"to {PLACEHOLDERS.of(EMAIL)} and {PLACEHOLDERS.of(CARD)}"
    ends = sorted({min(cut, len(hidden)) for cut in cuts})
    pieces = [hidden[start:end] for start, end in zip([0, *ends], [*ends, len(hidden)], strict=True)]
    events = [
        event([{"functionCall": {"partialArgs": [{"jsonPath": "$.to", "stringValue": piece}], "willContinue": True}}])
        for piece in pieces
    ]
    body, framing = framed(events, "sse")
    restored = through(FrameEditor(framing, Restoring(masks())), body, [])
    values = [
        payload["candidates"][0]["content"]["parts"][0]["functionCall"]["partialArgs"][0]["stringValue"]
        for _, payload in SseFraming().feed(restored)
        if payload
    ]
    assert "".join(values) == f"to {EMAIL} and {CARD}"


@given(streams(), st.lists(st.integers(0, 10_000), max_size=4))
def test_values_in_a_whole_response_are_hidden(stream: Any, cuts: list[int]) -> None:
    events, originals = stream
    shown, framing = framed(events, "sse")
    restored = through(FrameEditor(framing, Restoring(masks())), shown, [])
    hidden = through(FrameEditor(SseFraming(), Hiding(masks())), restored, cuts)
    said = texts(hidden, SseFraming())
    assert not any(value in text for text in said.values() for value in VALUES)
    assert said == {key: masks().hide(text) for key, text in originals.items()}


@pytest.mark.parametrize(
    "odd",
    [
        {"candidates": None},
        {"candidates": ["text", None, 3]},
        {"candidates": [{"content": "text"}]},
        {"candidates": [{"content": {"parts": "text"}}]},
        {"candidates": [{"content": {"parts": [None, "text", {"text": 3}]}, "index": "x"}]},
    ],
)
def test_odd_frames_pass_as_they_are(odd: dict[str, Any]) -> None:
    """What they mean is for the merger to say."""
    body, framing = framed([event([{"text": "<EM"}]), odd, event([{"text": "x"}])], "sse")
    assert through(FrameEditor(framing, Restoring(masks())), body, []) == body


def test_a_repeated_name_is_for_the_merger_to_refuse() -> None:
    body = b'data: {"candidates":[{"content":{"parts":[{"text":"a"}]}}],"candidates":[]}\r\n\r\n'
    assert through(FrameEditor(SseFraming(), Restoring(masks())), body, []) == body


SPELLED = st.builds(
    lambda spell, value: spell(PLACEHOLDERS.of(value)), st.sampled_from((str, *SPELLS)), st.sampled_from(VALUES)
)
WRITTEN = st.lists(
    st.one_of(SPELLED, st.sampled_from([" ", "<", "\\", "_", "é", "\n", '"', "so ", "&lt;"])), max_size=8
)


@example("&lt;{0}&gt;&lt;{0}&gt;".format(PLACEHOLDERS.of(EMAIL).strip("<>")), [1, 9, 34, 40, 50], True)
@given(WRITTEN.map("".join), st.lists(st.integers(0, 300), max_size=4), st.booleans())
def test_a_model_finds_what_it_wrote_however_it_spelled(written: str, cuts: list[int], in_pieces: bool) -> None:
    """The client sends a turn again with values in it, joined or in the pieces of a stream."""
    ends = sorted({cut % (len(written) + 1) for cut in cuts})
    pieces = [written[start:end] for start, end in zip([0, *ends], [*ends, len(written)], strict=True)]
    body, framing = framed([event([{"text": piece}]) for piece in pieces], "sse")
    repetitions: list[Repetition] = []
    restored = through(FrameEditor(framing, Restoring(masks()), repetitions=repetitions), body, [])
    said = [payload["candidates"][0]["content"]["parts"][0] for _, payload in SseFraming().feed(restored) if payload]
    whole = "".join(part["text"] for part in said)
    assert whole == masks().show(written)
    parts = said if in_pieces else [{"text": whole}]
    history = {"contents": [{"role": "user", "parts": [{"text": EMAIL}]}, {"role": "model", "parts": parts}]}
    known = {("turn", occurrence): spelled for occurrence, spelled in other_spellings(repetitions, masks()).items()}
    request = replace(requested(*VALUES), spellings=Spellings({1: "turn"}, known))
    sent = orjson.loads(mask_body(orjson.dumps(history), request))["contents"]
    assert "".join(part["text"] for part in sent[1]["parts"]) == written
    assert sent[0]["parts"][0]["text"] == PLACEHOLDERS.of(EMAIL)


# Requests -------------------------------------------------------------------------------------------------------------


REQUEST: dict[str, Any] = {
    "system_instruction": {"parts": [{"text": f"You know {EMAIL}"}]},
    "contents": [
        {"role": "user", "parts": [{"text": f"Mail {EMAIL} é \n"}, {"inlineData": {"mimeType": "a/b", "data": EMAIL}}]},
        {"role": "model", "parts": [{"functionCall": {"name": EMAIL, "args": {"name": EMAIL, "list": [EMAIL, 3]}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"deep": {"to": EMAIL}}}}]},
    ],
    "tools": [{"functionDeclarations": [{"name": EMAIL, "description": f"asks {EMAIL}"}]}],
    "generationConfig": {"stopSequences": [EMAIL]},
}


def test_values_are_masked_in_what_the_model_reads_alone() -> None:
    """Names and data that the API reads itself stay; a check of what came of it decides over those."""
    masked = orjson.loads(mask_body(orjson.dumps(REQUEST), requested(EMAIL)))
    shown, hidden = EMAIL, PLACEHOLDERS.of(EMAIL)
    assert masked["system_instruction"]["parts"][0]["text"] == f"You know {hidden}"
    assert masked["contents"][0]["parts"][0]["text"] == f"Mail {hidden} é \n"
    assert masked["contents"][0]["parts"][1]["inlineData"]["data"] == shown
    call = masked["contents"][1]["parts"][0]["functionCall"]
    assert call == {"name": shown, "args": {"name": hidden, "list": [hidden, 3]}}
    assert masked["contents"][2]["parts"][0]["functionResponse"]["response"] == {"deep": {"to": hidden}}
    assert masked["tools"][0]["functionDeclarations"][0] == {"name": shown, "description": f"asks {hidden}"}
    assert masked["generationConfig"] == {"stopSequences": [shown]}


def test_a_single_object_is_masked_as_a_list_of_it() -> None:
    call = {"functionResponse": {"name": EMAIL, "response": {"name": EMAIL}}}
    bodies = [
        orjson.dumps({"contents": contents, "systemInstruction": {"parts": {"text": EMAIL}}}).decode()
        for contents in ({"parts": {"text": EMAIL}}, [{"parts": call}], [{"parts": [call]}])
    ]
    masked = [mask_body(body.encode(), requested(EMAIL)).decode() for body in bodies]
    assert [body.count(EMAIL) for body in masked] == [0, 1, 1]
    assert [body.replace(PLACEHOLDERS.of(EMAIL), EMAIL) for body in masked] == bodies


def test_all_other_bytes_of_a_body_stay() -> None:
    body = b'{ "contents":[ {"parts" : [{"text":"\\u00e9 ' + EMAIL.encode() + b' \\/ \xc3\xa9"}]} ] , "x":1.50 }'
    assert mask_body(body, requested(EMAIL)) == body.replace(EMAIL.encode(), PLACEHOLDERS.of(EMAIL).encode())
    escaped = body.replace(b"@", b"\\u0040")
    assert mask_body(escaped, requested(EMAIL)) == mask_body(body, requested(EMAIL))


def unmasked(data: bytes) -> bytes:
    for value in VALUES:
        data = data.replace(PLACEHOLDERS.of(value).encode(), value.encode())
    return data


def holds_a_value(*data: bytes) -> bool:
    return any(value.encode() in some for value in VALUES for some in data)


@given(st.sampled_from(["", "\ufeff"]), TEXTS, st.sampled_from(["\n", "\r\n", "\r"]), TEXTS)
def test_a_file_of_text_goes_masked_and_else_as_it_is(mark: str, first: str, line_end: str, second: str) -> None:
    """Byte for byte, announced by the size that it has then."""
    data = f"{mark}{first}{line_end}{second}".encode()
    start = orjson.dumps({"file": {"displayName": first, "size_bytes": len(data), "name": "files/a", "x": [second]}})
    names = {"file.displayName": first, "file.name": "files/a", "file.x": second, "X-Goog-Upload-File-Name": second}
    masked = mask_file(UploadedFile(Announced("text/plain", len(data), names), start, data), masks())
    assert masked.data is not None
    assert not holds_a_value(masked.data, masked.start, *(name.encode() for name in masked.announced.names.values()))
    assert unmasked(masked.data) == data
    said = orjson.loads(masked.start)["file"]
    assert masked.announced.size == said["size_bytes"] == len(masked.data)
    assert masked.announced.names.keys() >= {"X-Goog-Upload-File-Name", "file.name"} and said["name"] == "files/a"


def system(text: str) -> dict[str, Any]:
    return {"systemInstruction": {"parts": [{"text": text}]}}


@st.composite
def requests(draw: st.DrawFn) -> list[bytes]:
    """Requests of a batch, with values anywhere in them and beside them."""
    found = []
    for text, other in draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=3)):
        request = {"contents": [{"role": "user", "parts": [{"text": text}]}], **system(other)}
        line = {"key": draw(WORDS), "request": request, "metadata": {"of": other}}
        found.append(json.dumps(line, ensure_ascii=draw(st.booleans())).encode())
    return found


@given(requests(), TEXTS, st.booleans())
def test_requests_of_a_batch_go_masked(found: list[bytes], name: str, camel: bool) -> None:
    """And its name, with all other bytes as they were, in either spelling."""
    names = ("displayName", "inputConfig") if camel else ("display_name", "input_config")
    shown, config = (orjson.dumps(each) for each in names)
    inline = b" , ".join(found)
    body = b'{"batch": {%s: %s,\n %s: {"requests": {"requests": [%s]}}}}' % (shown, orjson.dumps(name), config, inline)
    masked = mask_body(body, requested(*VALUES), BATCH)
    assert not holds_a_value(masked) and unmasked(masked) == body


@given(requests(), st.sampled_from([b"", b"\xef\xbb\xbf"]), st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_a_file_of_requests_goes_masked_line_by_line(found: list[bytes], mark: bytes, line_end: bytes) -> None:
    data = mark + line_end.join(found)
    masked = mask_file(UploadedFile(Announced("jsonl", len(data), {}), b"", data), masks())
    assert masked.data is not None and not holds_a_value(masked.data)
    assert unmasked(masked.data) == data and masked.announced.size == len(masked.data)


def test_what_is_in_too_many_places_is_not_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_MOST_PLACES", 3)
    line = orjson.dumps({"request": system(EMAIL)})
    for mime_type, piece in (("text/plain", EMAIL.encode()), ("jsonl", line)):
        for times in (3, 4):
            file = UploadedFile(Announced(mime_type, 0, {}), b"", b"\n".join([piece] * times))
            if times == 3:
                assert mask_file(file, masks()).data is not None
                continue
            with pytest.raises(CannotMask, match="more than 3 places"):
                mask_file(file, masks())


def test_many_values_are_looked_for_at_once() -> None:
    """The same is found as where each is looked for by itself."""
    many = masks(*(f"user{number}@example.com" for number in range(20)))
    placeholder = many.placeholders["user7@example.com"]
    for spelled in (placeholder, placeholder.lower(), placeholder.strip("<>").upper()):
        assert many.may_show(f"to {spelled}".encode())
    assert (
        not many.may_show(b"to <EMAIL_ADDRESS_0123456789>") and many.show(f"to {placeholder}") == "to user7@example.com"
    )


def test_a_document_is_not_changed() -> None:
    """Other bytes of it say where its parts begin."""
    with pytest.raises(CannotMask, match="document"):
        mask_file(UploadedFile(Announced("application/pdf", 3, {}), b"", b"%PDF"), masks())
    picture = UploadedFile(Announced("image/png", 3, {"X-Goog-Upload-File-Name": EMAIL}), b"", None)
    assert mask_file(picture, masks()).announced == Announced(
        "image/png", 3, {"X-Goog-Upload-File-Name": PLACEHOLDERS.of(EMAIL)}
    )


@given(st.integers(0, 40))
def test_results_of_a_batch_are_restored_in_each_response_by_itself(cut: int) -> None:
    """A text runs on over the parts of one candidate, whatever stands between, and not into another response."""
    placeholder = f"to {PLACEHOLDERS.of(EMAIL)}."
    first, second = {"text": placeholder[:cut]}, {"text": placeholder[cut:]}
    call = {"functionCall": {"name": "f", "args": {"to": PLACEHOLDERS.of(EMAIL)}}}
    whole = {"key": PLACEHOLDERS.of(EMAIL), "response": {"candidates": [{"content": {"parts": [first, call, second]}}]}}
    halves = [{"response": {"candidates": [{"content": {"parts": [part]}}]}} for part in (first, second)]
    body = b"\n".join(map(orjson.dumps, (whole, *halves)))
    editor = FrameEditor(JsonLinesFraming(), Restoring(masks()), places=RESULTS.places)
    read, *others = map(orjson.loads, editor.edit(body).splitlines())
    parts = read["response"]["candidates"][0]["content"]["parts"]
    assert (parts[0]["text"] + parts[2]["text"], parts[1]["functionCall"]["args"]["to"]) == (f"to {EMAIL}.", EMAIL)
    assert read["key"] == EMAIL
    if 4 < cut < 28:
        assert others == halves


@given(TEXTS)
def test_a_range_is_where_its_value_was(text: str) -> None:
    """As if the text before each of its ends had been masked by itself."""
    messages = [{"role": "user", "content": text}]
    hidden = list(masks().hidden(text, 0))
    ranges = [f"messages.0.content:{start}-{end}" for start, end, _ in hidden]
    [found] = moved([violation(*ranges)], masks(), messages)
    ends = [(len(masks().hide(text[:start])), len(masks().hide(text[:end]))) for start, end, _ in hidden]
    assert found.ranges == tuple(f"messages.0.content:{start}-{end}" for start, end in ends)


MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": f"Mail {EMAIL}"}, {"type": "text", "text": OTHER}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"to.whom": EMAIL, "n": 3}}}]},
    {"role": "tool", "tool_name": "f", "content": {"a": {"b": CARD}}},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
]


@pytest.mark.parametrize(
    ("address", "values"),
    [
        (f"messages.0.content.0.text:5-{5 + len(EMAIL)}", [EMAIL]),
        ("messages.0.content.1", [OTHER]),
        ("messages.0", [f"Mail {EMAIL}", OTHER]),
        ("messages.1.tool_calls.0.function.arguments.to.whom", [EMAIL]),
        ("messages.1.tool_calls.0", [EMAIL]),
        ("messages.2.content.a.b", [CARD]),
    ],
)
def test_values_are_read_where_a_violation_points(address: str, values: list[str]) -> None:
    assert masked_values(MESSAGES, [violation(address)]) == values


@pytest.mark.parametrize(
    "address",
    ["messages.3.content.0", "messages.3", "messages.9", "messages.1.tool_calls.0.function.arguments.n", "messages.x"],
)
def test_what_has_no_text_cannot_be_masked(address: str) -> None:
    with pytest.raises(CannotMask):
        masked_values(MESSAGES, [violation(address)])
    with pytest.raises(CannotMask):
        masked_values(MESSAGES, [violation()])
