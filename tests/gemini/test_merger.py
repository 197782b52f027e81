import copy
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.candidates import Candidate
from gemini_proxy.gemini.merger import Merger

Json = dict[str, Any]


def event(*parts: Any, **candidate: Any) -> Json:
    """A response of one candidate."""
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, **candidate}]}


def call(**fields: Any) -> Json:
    return {"functionCall": fields}


def merged(events: Iterable[Json]) -> Merger:
    merger = Merger()
    for each in events:
        merger.add(each)
    return merger


def parts(*events: Json) -> list[Json]:
    """The parts of the first candidate of what the events make."""
    return merged(events).candidates[0].parts


def one(*parts: Json) -> list[Json]:
    """One event for each part."""
    return [event(part) for part in parts]


_RUNS = st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.text(max_size=3)))


@given(_RUNS)
def test_text_is_added_up_per_candidate(runs: list[tuple[int, bool, str]]) -> None:
    """Each candidate's text is its deltas joined in order, in runs that change with the thought flag only."""
    merger = merged(event({"text": text, "thought": thought}, index=index) for index, thought, text in runs)
    assert [each.index for each in merger.candidates] == sorted({index for index, _, _ in runs})
    for candidate in merger.candidates:
        mine = [(thought, text) for index, thought, text in runs if index == candidate.index and text]
        assert "".join(part["text"] for part in candidate.parts) == "".join(text for _, text in mine)
        flags = [part.get("thought", False) for part in candidate.parts]
        assert flags == [flag for at, (flag, _) in enumerate(mine) if at == 0 or mine[at - 1][0] != flag]


def test_asking_between_events_changes_nothing() -> None:
    """Parts can be asked for at any time."""
    merger = Merger()
    seen = []
    for text in ("a", "b", "c"):
        merger.add(event({"text": text}))
        seen.append(merger.candidates[0].parts)
    assert seen == [[{"text": "a"}], [{"text": "ab"}], [{"text": "abc"}]]


def test_payloads_are_left_alone() -> None:
    """Adding changes no payload, not even when a call's given arguments grow."""
    events = one(call(name="f", args={"a": {"b": ["x"]}}, willContinue=True), _partial("$.a.b[0]", stringValue="y"))
    before = copy.deepcopy(events)
    assert parts(*events) == [call(name="f", args={"a": {"b": ["xy"]}})]
    assert events == before


def test_signatures() -> None:
    """A run keeps its first signature; an empty text counts only when it carries one."""
    signed = [{"text": "a"}, {"text": "", "thoughtSignature": "s1"}, {"text": "b", "thoughtSignature": "s2"}]
    assert parts(*one(*signed)) == [{"text": "ab", "thoughtSignature": "s1"}]
    assert parts(event({"text": ""}, {"text": "", "thought_signature": "s"})) == [{"text": "", "thoughtSignature": "s"}]


def test_parts_of_other_kinds_keep_their_place() -> None:
    """Code, images, tools and unknown kinds are appended whole, and part the text around them."""
    others: list[Json] = [
        {"executableCode": {"language": "PYTHON", "code": "1"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
        {"inlineData": {"mimeType": "image/png", "data": "AA=="}},
        {"toolCall": {"id": "1"}},
        {"holoDeck": {"text": "x"}},
        {"text": "y", "partMetadata": {"a": 1}},
    ]
    for other in others:
        assert parts(*one({"text": "a"}, other, {"text": "b"})) == [{"text": "a"}, other, {"text": "b"}]


def test_snake_case() -> None:
    """Every name read is read in snake_case too."""
    merger = merged(
        [
            event(
                {"function_call": {"name": "f", "args": {"snake_arg": 1}}, "thought_signature": "s"},
                {"inline_data": {"mime_type": "image/png", "data": ""}},
                finish_reason="STOP",
                finish_message="m",
                grounding_metadata={"search_entry_point": {"rendered_content": "g"}},
                citation_metadata={"citation_sources": [{"uri": "c"}]},
                continuation_token="t",
            )
            | {"usage_metadata": {"total_token_count": 1}, "model_version": "v", "response_id": "r"},
            {"prompt_feedback": {"block_reason": "SAFETY"}},
        ]
    )
    candidate = merger.candidates[0]
    assert candidate.parts[0] == call(name="f", args={"snake_arg": 1}) | {"thoughtSignature": "s"}
    assert candidate.parts[1] == {"inlineData": {"mime_type": "image/png", "data": ""}}
    assert candidate.finish_reason == "STOP"
    assert _said(candidate) == {"finishMessage": ["m"], "groundingMetadata": ["g"], "citationMetadata": ["c"]}
    assert (merger.usage, merger.model_version, merger.response_id) == ({"total_token_count": 1}, "v", "r")
    assert merger.blocked


def _said(candidate: Candidate) -> dict[str, list[str]]:
    return {field: list(texts) for field, texts in candidate.fields.said.items()}


def test_what_fields_say_in_several_events() -> None:
    """The last finish reason counts; a text stays whatever comes later in its field, and is kept once."""
    first, second = {"uri": "a"}, {"uri": "b"}
    candidate = merged(
        [
            event(finishReason="STOP", finishMessage="x", groundingMetadata={}),
            event(groundingMetadata={"webSearchQueries": ["q"]}, citationMetadata={"citationSources": [first]}),
            event(groundingMetadata={"webSearchQueries": ["r", "q"]}, citationMetadata={"citations": [first, second]}),
            event(finishReason="SAFETY", groundingMetadata={}, finishMessage="y"),
        ]
    ).candidates[0]
    assert candidate.finish_reason == "SAFETY"
    assert _said(candidate) == {
        "finishMessage": ["x", "y"],
        "groundingMetadata.webSearchQueries": ["q", "r"],
        "citationMetadata": ["a", "b"],
    }


def test_response_fields() -> None:
    """Usage is the last one, the version and the id are kept over events without them."""
    merger = merged(
        [
            {"usageMetadata": {"totalTokenCount": 1}, "modelVersion": "v", "responseId": "r"},
            {"usageMetadata": {"a": 2}},
            {"modelVersion": None},
        ]
    )
    assert (merger.usage, merger.model_version, merger.response_id) == ({"a": 2}, "v", "r")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("STOP", "STOP"),
        (1, "STOP"),
        (5, "OTHER"),
        (6, "LANGUAGE"),
        (99, "99"),
        (0, "FINISH_REASON_UNSPECIFIED"),
        ("NEW", "NEW"),
    ],
)
def test_finish_reasons(given: object, name: str) -> None:
    """Integers have their names, unknown values stay."""
    assert merged([event(finishReason=given)]).candidates[0].finish_reason == name


def test_unspecified_takes_no_reason_back() -> None:
    """A default value behind a reason is none."""
    assert merged([event(finishReason=3), event(finishReason=0)]).candidates[0].finish_reason == "SAFETY"


def test_finished() -> None:
    """The answer is over when every candidate seen, and as many as asked for, has a terminal reason."""
    merger = Merger()
    assert not merger.finished()
    merger.add(event({"text": "a"}, index=0, finishReason="STOP"))
    assert merger.finished()
    assert not merger.finished(2)
    merger.add(event({"text": "a"}, index=1))
    assert not merger.finished()
    merger.add(event(index=1, finishReason="MAX_TOKENS"))
    assert merger.finished(2)


@pytest.mark.parametrize("reason", ["CONTINUATION", "FINISH_REASON_UNSPECIFIED", 0, None, ""])
def test_not_finished(reason: object) -> None:
    """A reason that says to go on, or none, ends nothing."""
    assert not merged([event({"text": "a"}, finishReason=reason)]).finished()


def test_blocked_prompts_and_errors_finish() -> None:
    """A block reason or an error ends an answer without candidates; feedback that says nothing does not."""
    assert merged([{"promptFeedback": {"blockReason": "SAFETY"}}]).finished(3)
    assert merged([{"promptFeedback": {"blockReason": 1}}, {"promptFeedback": {"safetyRatings": []}}]).finished()
    assert merged([{"error": {"code": 503}}, {"error": {"code": 1}}]).error == {"code": 503}
    assert merged([event({"text": "a"}), {"error": {}}]).finished()
    unspecific: list[Json] = [
        {},
        {"safetyRatings": []},
        {"blockReason": "BLOCK_REASON_UNSPECIFIED"},
        {"blockReason": 0},
    ]
    for feedback in unspecific:
        assert not merged([{"promptFeedback": feedback}]).finished()


def test_what_is_missing_has_its_default() -> None:
    """No index is 0, nulls and empty things are absent."""
    merger = merged([{"candidates": [{"content": {"parts": None}, "finishReason": None}, None]}, {"candidates": None}])
    assert [(each.index, each.parts) for each in merger.candidates] == [(0, [])]
    assert merged([event(None, {}, {"text": None}, {"functionCall": None, "text": "a"})]).candidates[0].parts == [
        {"text": "a"}
    ]
    assert parts({"candidates": [{"content": {"parts": {"text": "a"}}}]}) == [{"text": "a"}]


def _content(content: Any) -> Json:
    return {"candidates": [{"content": content}]}


@pytest.mark.parametrize(
    "payload",
    [
        {"candidates": {}},
        {"candidates": "text"},
        {"candidates": ["text"]},
        {"candidates": [{"index": "0"}]},
        {"candidates": [{"index": -1}]},
        {"candidates": [{"index": True}]},
        {"candidates": [{"finishReason": ["STOP"]}]},
        _content("text"),
        _content(["text"]),
        _content({"role": 1}),
        {"candidates": [{"content": {"role": "model"}}, {"content": {"role": {"text": "a"}}}]},
        _content({"parts": "text"}),
        _content({"parts": ["text"]}),
        event({"text": 1}),
        event({"text": ["a"]}),
        event({"text": "a", "thought": "yes"}),
        event({"functionCall": {"name": "f"}, "function_call": {"name": "g"}}),
        event({"functionCall": "f"}),
        event(call(name=1)),
        event(call(name="f", args="{}")),
        event(call(name="f", args=[])),
        event(call(id=1)),
        event(call(partialArgs={})),
        event(call(willContinue="true")),
    ],
)
def test_what_cannot_be_read_is_an_error(payload: Json) -> None:
    """A shape in which a part of the answer could hide is a DecodeError, not a gap."""
    with pytest.raises(DecodeError):
        Merger().add(payload)


def test_complete_calls() -> None:
    """Whole calls are appended, with the marks beside them; anything else in the part is a part."""
    part = call(name="f", args={"a": None}) | {"thoughtSignature": "s"}
    merger = merged([event({"text": "a"}, part | {"text": "b"}, call(name="g", willContinue=False))])
    assert merger.candidates[0].parts == [{"text": "a"}, part, {"text": "b"}, call(name="g")]
    assert not merger.candidates[0].has_open_call


def test_repeats_of_a_call() -> None:
    """The same call with the same id is one call; with another id, or none, or other arguments it is one more."""
    same = call(name="f", args={"a": 1}, id="1")
    assert parts(*one(same, same)) == [same]
    for other in (call(name="f", args={"a": 1}, id="2"), call(name="f", args={"a": 2}, id="1")):
        assert parts(*one(same, other)) == [same, other]
    assert len(parts(*one(call(name="f"), call(name="f")))) == 2


def _partial(path: str, more: bool = True, **value: Any) -> Json:
    piece: Json = {"partialArgs": [{"jsonPath": path, **value}]}
    return call(**piece, **({"willContinue": True} if more else {}))


def test_streamed_call() -> None:
    """A call holds its place from its first piece, grows by path, and is complete at the piece that does not go on."""
    merger = Merger()
    pieces = [
        call(name="send", id="7", willContinue=True) | {"thoughtSignature": "s"},
        _partial("$.to[0]", stringValue="a@"),
        {"text": "meanwhile"},
        _partial("$.to[0]", stringValue="b", willContinue=True),
        {"function_call": {"partial_args": [{"json_path": "$['to'][1]", "string_value": "c"}], "will_continue": True}},
        _partial('$["body"].size', numberValue=3),
        _partial("$.body.size", numberValue=4),
        _partial("$.body['odd.key'].x", boolValue=True),
        _partial("$.body.none", nullValue=None),
    ]
    for each in one(*pieces):
        merger.add(each)
        assert merger.candidates[0].has_open_call
    merger.add(event(call()))
    args = {"to": ["a@b", "c"], "body": {"size": 4, "odd.key": {"x": True}, "none": None}}
    whole = call(name="send", id="7", args=args) | {"thoughtSignature": "s"}
    assert merger.candidates[0].parts == [whole, {"text": "meanwhile"}]
    assert not merger.candidates[0].has_open_call
    merger.add(event(call(name="send", id="7", args=args)))
    assert len(merger.candidates[0].parts) == 2


@given(
    st.lists(
        st.tuples(st.sampled_from(["$.a", "$['a']", "$.b[0]", "$.b[1].c", "$['x]']"]), st.text(max_size=3)), min_size=1
    )
)
def test_streamed_strings_are_the_pieces_joined(pieces: list[tuple[str, str]]) -> None:
    """However a path is spelled, its string is what was sent for it, in order."""
    merger = merged(
        one(call(name="f", willContinue=True), *[_partial(path, stringValue=text) for path, text in pieces])
    )
    args = merger.candidates[0].parts[0]["functionCall"]["args"]
    sent = {name: "".join(text for path, text in pieces if path in paths) for name, paths in _PATHS.items()}
    got = {
        "a": args.get("a", ""),
        "b0": (args.get("b") or [""])[0] or "",
        "b1": (args["b"][1]["c"] if len(args.get("b", [])) > 1 else ""),
        "x": args.get("x]", ""),
    }
    assert got == sent


_PATHS = {"a": ("$.a", "$['a']"), "b0": ("$.b[0]",), "b1": ("$.b[1].c",), "x": ("$['x]']",)}


def test_which_piece_belongs_to_which_call() -> None:
    """Another name, another id or a whole call closes the open one; a repeated name does not."""
    start = call(name="f", id="1", willContinue=True)
    part = call(name="f", id="1", args={})
    for other in (call(name="g"), call(name="f", id="2"), call(name="f", args={"x": 1})):
        assert parts(*one(start, other)) == [part, other]
        assert not merged(one(start, other)).candidates[0].has_open_call
    assert parts(*one(start, call(name="f", willContinue=True), call())) == [part]
    assert parts(*one(call(), start, call(), call())) == [part]
    assert parts(*one(_partial("$.a", more=False, numberValue=1))) == [call(args={"a": 1})]


def test_open_calls_of_two_candidates() -> None:
    """Pieces go to the call of their own candidate."""
    start = call(name="f", willContinue=True)
    events = [
        event(start, index=0),
        event(start, index=1),
        event(_partial("$.a", stringValue="x"), index=0),
        event(call(), index=1),
    ]
    first, second = merged(events).candidates
    assert (first.parts, first.has_open_call) == ([call(name="f", args={"a": "x"})], True)
    assert (second.parts, second.has_open_call) == ([call(name="f", args={})], False)


@pytest.mark.parametrize(
    "pieces",
    [
        [_partial("a", stringValue="x")],
        [_partial("$", stringValue="x")],
        [_partial("$.", stringValue="x")],
        [_partial("$..a", stringValue="x")],
        [_partial("$[*]", stringValue="x")],
        [_partial("$[0]", stringValue="x")],
        [_partial("$.a[101]", stringValue="x")],
        [_partial("$" + ".a" * 65, stringValue="x")],
        [_partial("$.a", stringValue=1)],
        [_partial("$.a", numberValue={"b": "x"})],
        [_partial("$.a", stringValue="x", numberValue=1)],
        [_partial("$.a", structValue={"b": "x"})],
        [call(partialArgs=[{"stringValue": "x"}])],
        [call(partialArgs=["x"])],
        [_partial("$.a", stringValue="x"), _partial("$.a", numberValue=1)],
        [_partial("$.a", stringValue="x"), _partial("$.a.b", numberValue=1)],
        [_partial("$.a.b", stringValue="x"), _partial("$.a", stringValue="y")],
        [_partial("$.a.b", stringValue="x"), _partial("$.a[0]", stringValue="y")],
        [_partial("$.a", stringValue="x"), call(args={"a": "y"})],
        [call(name="f", args={"a": "x"}, willContinue=True), _partial("$.a", boolValue=True)],
    ],
)
def test_streamed_arguments_that_do_not_fit(pieces: list[Json]) -> None:
    """A path, value or overwriting that could hide an argument is a DecodeError."""
    with pytest.raises(DecodeError):
        merged(one(*pieces))


def test_a_skipped_index_is_null() -> None:
    """Elements without a leaf of their own are never sent; the list has a place for them."""
    assert parts(*one(_partial("$.a[2].b", more=False, stringValue="x"))) == [
        call(args={"a": [None, None, {"b": "x"}]})
    ]


def test_many_events() -> None:
    """Text and arguments in very many pieces are added at a cost that lets this test end."""
    merger = Merger()
    text, piece = event({"text": "x" * 100}), event(_partial("$.a", stringValue="y" * 100), index=1)
    for _ in range(50_000):
        merger.add(text)
        merger.add(piece)
        merger.finished()
    assert len(merger.candidates[0].parts[0]["text"]) == 5_000_000
    assert len(merger.candidates[1].parts[0]["functionCall"]["args"]["a"]) == 5_000_000


@pytest.mark.parametrize("key", ["functionCall", "function_call"])
def test_an_event_that_carries_a_call(key: str) -> None:
    """A call, or a piece of one, is found in any candidate and part, in a list of parts or alone."""
    merger = merged([{"candidates": [{}, None, {"content": {"parts": [{"text": "a"}, {key: {}}]}}]}])
    assert merger.carried_call
    assert not merged([event({key: {}}), event({"text": "a"})]).carried_call
    assert merged([{"candidates": [{"content": {"parts": {key: {"name": "f"}}}}, {"index": 1}]}]).carried_call
    assert merged([event({key: None, "text": "a"})]).carried_call


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"candidates": None},
        {"candidates": [{}]},
        _content({}),
        _content({"parts": []}),
        event({"text": "functionCall"}),
    ],
)
def test_an_event_that_carries_no_call(payload: Json) -> None:
    """A frame without one is not withheld."""
    assert not merged([payload]).carried_call


def test_candidate_is_public() -> None:
    """The views are candidates, one for each index, the same ones while they grow."""
    merger = merged([event({"text": "a"}, index=2), event({"text": "b"})])
    views = merger.candidates
    assert [each.index for each in views] == [0, 2]
    assert all(isinstance(each, Candidate) for each in views)
    merger.add(event({"text": "c"}))
    assert views[0].parts == [{"text": "bc"}]
