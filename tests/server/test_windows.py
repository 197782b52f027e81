"""``stream_check = "window"``: what leaves while an answer grows, and what it comes to."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemini_proxy.guardrails.engine import FailOpenEngine, NoEngine
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.response_messages import candidate_messages, for_rules
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import Conversation, compile_policy
from gemini_proxy.sections import Guardrails
from tests.proxy.responses import (
    IMPORTS,
    PIECES,
    SECRETS,
    TEXT_RULES,
    TOKEN,
    Answered,
    Payload,
    Span,
    TextRule,
    answered,
    both,
    exchange_of,
    frames,
    part_payload,
    pipeline,
)

OVERLAP = 40
EXAMPLES = int(os.environ.get("WINDOW_EXAMPLES", "100"))
CALL = {"functionCall": {"name": "good", "args": {"to": "a"}}}
BAD_CALL = {"functionCall": {"name": "bad", "args": {}}}
CODE = {"executableCode": {"language": "PYTHON", "code": "print(1)"}}
RESULT = {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}}
IMAGE = {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}
OPENED = {"functionCall": {"name": "good", "willContinue": True}}
CLOSED: Payload = {"functionCall": {}}
OTHERS: list[list[Payload]] = [[CALL], [CODE], [RESULT], [IMAGE], [OPENED, {"text": "foo"}, CLOSED]]


def windows(**options: Any) -> Guardrails:
    return Guardrails.model_validate({"stream_check": "window", "window_overlap": OVERLAP, **options})


texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@st.composite
def pieces(draw: st.DrawFn, max_cuts: int = 12) -> list[str]:
    """A text, cut anywhere."""
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=max_cuts)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def answers(draw: st.DrawFn) -> list[Payload]:
    """Texts and thoughts of up to three candidates, with calls, code and images between, one part an event."""
    lanes = []
    for index in range(draw(st.integers(1, 3))):
        lane: list[Payload] = []
        for _ in range(draw(st.integers(1, 4))):
            if draw(st.integers(0, 3)) == 0:
                lane += [part_payload(part, index) for part in draw(st.sampled_from(OTHERS))]
            thought = {"thought": True} if draw(st.integers(0, 3)) == 0 else {}
            lane += [part_payload({"text": text, **thought}, index) for text in draw(pieces(6))]
        lanes.append(lane)
    mixed = []
    while any(lanes):
        mixed.append(draw(st.sampled_from([lane for lane in lanes if lane])).pop(0))
    ends = [part_payload({"text": ""}, index, "STOP") for index in range(len(lanes))]
    return mixed + (ends if draw(st.booleans()) else [])


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> list[bytes]:
    """Bytes as a network cuts them, or event by event."""
    if draw(st.booleans()):
        return [one + b"\r\n\r\n" for one in body.split(b"\r\n\r\n")[:-1]]
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=6)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def objected(policy: str, result: Answered, thoughts: str = "check") -> bool:
    """Whether checking every candidate's whole answer finds something."""
    assert result.exchange.request is not None
    compiled = compile_policy(policy)
    return any(
        bool(compiled.check(Conversation.of(for_rules((*result.exchange.request.messages, *each.messages), thoughts))))
        for each in candidate_messages(result.exchange.request, result.exchange.merger)
    )


def offences(payloads: Sequence[Payload], rule: TextRule, thoughts: str = "check") -> Iterator[int]:
    """The first event of each short enough offending text, by the texts as any reader sees them."""
    texts = [*_read(payloads, thoughts)]
    if rule.spans is not both:
        texts += _joined(payloads, thoughts)
    for text, owners in texts:
        yield from (owners[start] for start, end in _short(rule, text) if start < end)


def _short(rule: TextRule, text: str) -> Iterator[Span]:
    return ((start, end) for start, end in rule.spans(text) if rule.window == "whole" or end - start <= OVERLAP)


def _read(payloads: Sequence[Payload], thoughts: str) -> Iterator[tuple[str, list[int]]]:
    """Each text and the event of each of its characters. A call does not end a text; output, media and thoughts do."""
    lanes: dict[int, list[tuple[int, Payload]]] = {}
    for number, payload in enumerate(payloads):
        candidate = payload["candidates"][0]
        lanes.setdefault(candidate["index"], []).append((number, candidate["content"]["parts"][0]))
    for lane in lanes.values():
        for kind, text, owners in _texts(lane):
            if kind != "thought" or thoughts == "check":
                yield text, owners


def _joined(payloads: Sequence[Payload], thoughts: str) -> Iterator[tuple[str, list[int]]]:
    """All text of each candidate, and it with the thoughts in order, with the event of each character.

    Not the thoughts alone: what one begins may have left when another ends it.
    """
    for index in range(3):
        for kinds in ((False,), (False, True))[: 1 + (thoughts == "check")]:
            text, owners = "", list[int]()
            for number, payload in enumerate(payloads):
                candidate = payload["candidates"][0]
                part = candidate["content"]["parts"][0]
                if candidate["index"] == index and part.get("thought", False) in kinds:
                    text += part.get("text", "")
                    owners += [number] * len(part.get("text", ""))
            yield text, owners


def _texts(lane: Sequence[tuple[int, Payload]]) -> Iterator[tuple[str, str, list[int]]]:
    kind, text, owners = "text", "", list[int]()
    for number, part in lane:
        if part.get("text") == "":
            continue
        now = "thought" if part.get("thought") else "text"
        ends = (
            now != kind if "text" in part else kind == "thought" or not part.keys() & {"functionCall", "executableCode"}
        )
        if ends:
            yield kind, text, owners
            kind, text, owners = now, "", []
        if "text" in part:
            text, owners = text + part["text"], owners + [number] * len(part["text"])
    yield kind, text, owners


@pytest.mark.parametrize("rule", TEXT_RULES, ids=repr)
def test_how_a_rule_is_judged_while_an_answer_grows(rule: TextRule) -> None:
    """What a slice of text can decide is read off the rule when it loads."""
    policy = rule.policy if "PATTERN" not in repr(rule) else 'PATTERN := "foobar"\n' + rule.policy
    assert compile_policy(policy).rules[0].window == rule.window


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sampled_from(TEXT_RULES), answers(), st.sampled_from(["check", "skip"]))
def test_windows_refuse_what_the_whole_would_and_let_nothing_of_it_out(
    data: st.DataObject, rule: TextRule, payloads: list[Payload], thoughts: str
) -> None:
    """For any rule, answer and split: the verdict is that on the whole; all bytes of an allowed answer leave, unchanged
    and in order; of a refused one none that holds any part of a short offending text, or comes after it."""
    policy = 'PATTERN := "foobar"\n' + rule.policy
    body = frames(payloads)
    result = answered(
        pipeline(windows(thoughts=thoughts)), exchange_of(policy), data.draw(chunked(b"".join(body)), "chunks")
    )
    finished = answered(pipeline(windows(stream_check="hold")), exchange_of(policy), [b"".join(body)])
    assert result.refused == objected(policy, finished, thoughts)
    if not result.refused:
        assert result.body == b"".join(body)
    else:
        stopped = min(offences(payloads, rule, thoughts), default=len(body))
        assert b"".join(body).startswith(result.body)
        assert len(result.body) <= len(b"".join(body[:stopped]))


EVENT_RULES = {
    "tool pattern": "(c: ToolCall)\n    c is tool:bad",
    "arguments": "(c: ToolCall)\n    any(secrets(c))",
    "flow": "(a: ToolCall) -> (b: ToolCall)\n    a is tool:good\n    b is tool:bad",
    "count": "count(min=2):\n        (c: ToolCall)\n        c is tool:good",
    "late": "count(min=1, max=1):\n        (c: ToolCall)\n        c is tool:good",
    "output": '(o: ToolOutput)\n    "1" in o.content',
    "image": '(m: Message)\n    m.role == "assistant"\n    len(image(m)) > 0',
    "text and call": '(m: Message) -> (c: ToolCall)\n    m.role == "assistant"\n    "foo" in m.content',
}
STAYING = {"tool pattern", "arguments", "flow", "count", "output"}


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.data(),
    st.sampled_from(sorted(EVENT_RULES)),
    st.lists(
        st.one_of(st.sampled_from([CALL, BAD_CALL, CODE, RESULT, IMAGE]), pieces(0).map(lambda one: {"text": one[0]})),
        max_size=8,
    ),
    st.booleans(),
)
def test_calls_outputs_and_counts_are_judged_with_the_whole(
    data: st.DataObject, name: str, parts: list[Payload], finishes: bool
) -> None:
    """Patterns of tools, flows and counts: the verdict is that on the whole, and no event leaves from the first on with
    which the answer so far would be refused for good."""
    policy = f'{IMPORTS}\nraise "found" if:\n    {EVENT_RULES[name]}\n'
    payloads = [part_payload(part) for part in parts] + [part_payload({"text": ""}, 0, "STOP")] * finishes
    body = frames(payloads)
    result = answered(pipeline(windows()), exchange_of(policy), data.draw(chunked(b"".join(body)), "chunks"))
    hold = pipeline(windows(stream_check="hold"))
    so_far = [answered(hold, exchange_of(policy), body[: end + 1]).refused for end in range(len(body))]
    assert result.refused == (so_far[-1] if so_far else False)
    if not result.refused:
        assert result.body == b"".join(body)
    elif name in STAYING:
        assert b"".join(body).startswith(result.body)
        assert len(result.body) <= len(b"".join(body[: so_far.index(True)]))
    else:
        assert b"".join(body).startswith(result.body)


def test_text_leaves_when_enough_has_followed_and_not_before() -> None:
    """An event goes when ``window_overlap`` characters of its text stand behind it: no thoughts, no other candidate."""
    policy = TEXT_RULES[0].policy
    body = frames(
        [
            part_payload({"text": "a" * 10}),
            part_payload({"text": "b" * (OVERLAP - 1)}),
            part_payload({"text": "c"}),
            part_payload({"text": "d" * 80}, 1),
            part_payload({"text": "e" * OVERLAP}),
            part_payload({"text": "f" * OVERLAP}, 1),
            part_payload({"text": "g", "thought": True}),
            part_payload({"text": "h", "thought": True}, 1),
        ]
    )
    result = answered(pipeline(windows()), exchange_of(policy), body)
    counts = [len(b"".join(result.left[: end + 1]).split(b"data: ")) - 1 for end in range(len(result.left))]
    assert counts == [0, 0, 1, 1, 3, 4, 4, 4, 8]


@pytest.mark.parametrize("first", [1, 2, 20, 38])
def test_a_match_as_long_as_the_overlap_never_leaves_in_part(first: int) -> None:
    """All but its last character has come, and as much as can has followed its first event: still none of it leaves."""
    pieces = ["x" * 90, TOKEN[:first], TOKEN[first:-1], TOKEN[-1], "y" * 90]
    body = frames([part_payload({"text": text}) for text in pieces])
    assert len(TOKEN) == OVERLAP
    result = answered(pipeline(windows()), exchange_of(SECRETS.policy), body)
    assert result.refused
    assert result.body == body[0][: len(result.body)]


@pytest.mark.parametrize("overlap", [0, 300])
def test_the_overlap_is_what_stays_behind(overlap: int) -> None:
    body = frames([part_payload({"text": "a" * 150})] * 4)
    result = answered(pipeline(windows(window_overlap=overlap)), exchange_of(TEXT_RULES[0].policy), body)
    assert [len(one) for one in result.left] == [
        len(body[0]) * count for count in ([1, 1, 1, 1, 0] if overlap == 0 else [0, 0, 1, 1, 2])
    ]


def test_an_engine_that_fails_open_lets_a_window_pass_only_at_the_end() -> None:
    """A piece without a verdict is not let go; what the configuration lets pass passes with the final check."""
    policy = 'raise "x" if:\n    (m: Message)\n    m.role == "assistant"\n    input.word in m.content\n'
    engine = FailOpenEngine(NativeEngine(Workers(), 5.0))
    body = frames([part_payload({"text": "a" * 150})] * 4)
    result = answered(pipeline(windows(), engine), exchange_of(policy), body)
    assert [bool(one) for one in result.left] == [False] * 4 + [True]
    assert result.exchange.unchecked


def test_without_an_engine_windows_are_final() -> None:
    body = frames([part_payload({"text": "a"})] * 2)
    result = answered(pipeline(windows(), NoEngine()), exchange_of(TEXT_RULES[0].policy), body)
    assert result.left[:2] == body


@pytest.mark.parametrize(
    "between", [[CALL], [CODE], [OPENED, CLOSED], [IMAGE], [RESULT], [CODE, RESULT], [{"text": "hm", "thought": True}]]
)
@pytest.mark.parametrize("before", ["", "x" * 90])
def test_text_goes_on_after_other_parts_where_the_messages_say(before: str, between: list[Payload]) -> None:
    """Early and late, a violation stands at the same place; across a call a text is one text."""
    joined = between[0] in (CALL, CODE, OPENED) and len(between) != 2 or between[0] == OPENED
    texts = [{"text": before}, {"text": "sec" if joined else "so"}]
    after = [{"text": "ret-1" if joined else "secret-1"}, {"text": "y" * 90}, {"text": "y" * 90}]
    body = frames([part_payload(part) for part in [*texts, *between, *after]])
    policy = TEXT_RULES[0].policy
    early = answered(pipeline(windows()), exchange_of(policy), body)
    late = answered(pipeline(windows(stream_check="hold")), exchange_of(policy), body)
    assert early.refused and late.refused
    assert len(early.left) == len(texts) + len(between)
    assert early.body == b"".join(body[: len(body) - 3 if not joined else 1])[: len(early.body)]
    places = [[address for one in each.exchange.violations for address in one.ranges] for each in (early, late)]
    assert places[0] == places[1] != []


def test_what_more_of_the_answer_may_undo_is_not_refused_for_at_a_call() -> None:
    """One call is what the rule means, two are not: at the first one it is only held back."""
    policy = f'{IMPORTS}\nraise "found" if:\n    {EVENT_RULES["late"]}\n'
    body = frames([part_payload(part) for part in ({"text": "foo"}, CALL, {"text": "bar" * 40}, CALL, {"text": ""})])
    result = answered(pipeline(windows()), exchange_of(policy), body)
    assert (result.refused, result.body) == (False, b"".join(body))
    assert not b"".join(result.left[1:3])
